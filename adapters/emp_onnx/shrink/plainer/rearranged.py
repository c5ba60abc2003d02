"""Rearrangements that move no number, said once.

Reshape, Flatten, Squeeze and Unsqueeze leave numbers in their order, and so does a Transpose that moves only axes of
one coordinate past others, a Gather of the only coordinate of an axis, and an Expand to the size that was there. Any
chain of them is one Reshape, or none where the shape is as it was. A Softmax only to see which entry is the largest is
none either: x ↦ exp(x)/Σexp is monotone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emp_onnx.shrink.axes.trace import Trace
from emp_onnx.shrink.plainer.edit import Edit
from emp_onnx.shrink.view import Op, View

__all__ = ["keeps_order", "rearranged"]

SHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def rearranged(view: View, traced: Trace) -> Any:
    """A copy of a prepared model with one Reshape for each chain of rearrangements; None if there is nothing to do."""
    if traced.fixed:  # else what stayed the same may only not have been varied
        return None
    edit = Edit(view, traced)
    for op in view.ops:
        if keeps_order(op, edit):
            _shorten(op, edit)
        elif op.type in ("ArgMax", "ArgMin"):
            _largest(op, edit)
    return edit.done()


def keeps_order(op: Op, edit: Edit) -> bool:
    """Whether an operation's result holds the numbers of its first input in their order."""
    if not op.inputs or not op.inputs[0] or op.inputs[0] in edit.view.constants:
        return False
    source, made = edit.sizes.of(op.inputs[0]), edit.trace.shapes.get(op.outputs[0])
    if made is None or op.inputs[0] not in edit.trace.shapes:
        return False
    if op.type in SHAPES:
        return True
    if op.type == "Transpose":
        order = [axis for axis in op.attributes.get("perm", range(len(source))[::-1]) if source[axis] != 1]
        return order == sorted(order)
    if op.type == "Gather":
        index = edit.view.constants.get(op.input(1))
        axis = int(op.attributes.get("axis", 0)) % max(len(source), 1)
        return index is not None and index.size == 1 and len(source) > 0 and source[axis] == 1
    return op.type == "Expand" and edit.sizes.of(op.outputs[0]) == source


def _shorten(op: Op, edit: Edit) -> None:
    """Read from the start of the chain, by one Reshape."""
    base, length = op.inputs[0], 1
    while (before := edit.view.makers.get(base)) is not None and keeps_order(before, edit):
        base, length = before.inputs[0], length + 1
    if length == 1 and op.type in SHAPES and edit.sizes.of(base) != edit.sizes.of(op.outputs[0]):
        return
    source, wanted = edit.sizes.of(base), edit.sizes.of(op.outputs[0])
    if source == wanted and op.outputs[0] not in edit.fixed:
        edit.read_instead(op.outputs[0], edit.instead.get(base, base))
        return
    to = edit.target(source, wanted)
    if to is None or (op.type == "Reshape" and length == 1):
        return
    base = edit.instead.get(base, base)
    edit.put(op, "Reshape", [base, edit.constant(op.outputs[0], np.asarray(to))])


def _largest(op: Op, edit: Edit) -> None:
    """Choose among what a Softmax along the same axis reads."""
    soft = edit.view.makers.get(op.inputs[0])
    if soft is None or soft.type not in ("Softmax", "LogSoftmax") or edit.only_reader(op.inputs[0]) is None:
        return
    rank = len(edit.trace.shapes.get(op.inputs[0]) or ())
    new = edit.view.opset >= 13
    along = int(soft.attributes.get("axis", -1 if new else 1)) % max(rank, 1)
    if rank and along == int(op.attributes.get("axis", 0)) % rank and (new or along == rank - 1):
        edit.nodes[op.index].input[0] = soft.inputs[0]
        edit.changed = True
