"""What sorts the outputs of a product by heads, as attention has them: a Reshape to four axes, and a Transpose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from emp_onnx.fused.graph import Uses, is_standard, value_of

__all__ = ["Heads", "heads_behind"]

ORDERS = ([0, 2, 1, 3], [0, 2, 3, 1])  # queries and values; keys


@dataclass(frozen=True)
class Heads:
    """What was found behind a product.

    Attributes:
        attributes: of the node that does it too: heads, what Reshape is told, and perm.
        steps: the nodes that do it, the one with the result last.
    """

    attributes: list[onnx.AttributeProto]
    steps: list[onnx.NodeProto]


def heads_behind(graph: Uses, name: str, outputs: int) -> Heads | None:
    """What sorts a product of so many outputs by heads, if nothing else uses it.

    Only where Reshape is told constants: onnxruntime makes some of what is computed, and no longer could.
    """
    reshape = graph.only_user(name)
    if reshape is None or not is_standard(reshape, "Reshape") or len(reshape.input) != 2 or reshape.input[0] != name:
        return None
    told = graph.constant(reshape.input[1])
    if told is None or told.dtype != np.int64 or told.shape != (4,) or value_of(reshape, "allowzero", 0):
        return None
    dims = [int(size) for size in told]
    transpose = graph.only_user(reshape.output[0])
    if transpose is None or not is_standard(transpose, "Transpose"):
        return None
    order = list(value_of(transpose, "perm", []))
    if order not in ORDERS or dims[2] < 1 or dims[2] * dims[3] != outputs or min(dims) < -1 or dims[:2] == [-1, -1]:
        return None
    attributes = [helper.make_attribute("heads", dims), helper.make_attribute("perm", order)]
    return Heads(attributes, [reshape, transpose])
