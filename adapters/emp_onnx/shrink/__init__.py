"""Structured pruning: whole channels, neurons and heads taken out of an ONNX model, with a proof each time.

```text
file ── store: protobuf ── view: operations, constants ── trace: sizes, from runs ── plain
                                   │
          rules: one relation per operation ── links ── regions: groups of units (union-find)
                                   │
       moments, order, amounts, choose, budget: which units of which group, how many
                                   │
   fold: what they still say, into biases ── cut: sliced ── refit ── proof: masked = shrunk ── store
```
"""

from emp_onnx.shrink.report import GroupRow, ShrinkReport
from emp_onnx.shrink.run import shrink

__all__ = ["GroupRow", "ShrinkReport", "shrink"]
