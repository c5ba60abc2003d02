"""Structured pruning: whole channels, neurons and heads taken out of an ONNX model, with a proof each time.

```text
file ── store: protobuf ── view: operations, constants ── plainer: said with fewer operations ── lighter: bounds, places
                                   │
          axes: sizes from runs; one relation per operation, closed into groups of units (union-find)
                                   │
      fitting: statistics, what goes first ── search: how many of which group ── depth: whole layers too
                                   │
   fold: what they still say, into biases ── cut: sliced ── fitting: readers fitted ── proof: masked = shrunk ── store
```
"""

from emp_onnx.shrink.report import GroupRow, ShrinkReport
from emp_onnx.shrink.run import shrink

__all__ = ["GroupRow", "ShrinkReport", "shrink"]
