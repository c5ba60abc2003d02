"""Masks and scales of scores, where they cost least.

Scores s + b (with a bias b of positions) are hidden by Where(m, c, s + b), c a number so large that nothing that is
added to it shows: s + Where(m, c, b) says the same for every s below |c|/2²⁵, and Where(m, c, b) is the same for all
layers that share bias and mask. A product that is scaled, (x·y)·c, is (x·c)·y, and where x was made by a product with
a constant, its scale goes into that constant.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emp_onnx.shrink.axes.trace import Trace
from emp_onnx.shrink.plainer.edit import Edit
from emp_onnx.shrink.plainer.rearranged import keeps_order
from emp_onnx.shrink.view import Op, View

__all__ = ["attention_masks"]

LARGE = 2.0**100  # beside which a score does not show


def attention_masks(view: View, traced: Trace) -> Any:
    """A copy of a prepared model with masks in shared biases, and scales in weights; None if there are none."""
    edit = Edit(view, traced)
    for op in view.ops:
        if op.type in ("Mul", "Div"):
            _scale(op, edit)
    for op in view.ops:
        if op.type == "Where":
            _mask(op, edit)
    return edit.done()


def _mask(op: Op, edit: Edit) -> None:
    """Hide the bias of positions in place of the scores, where others hide the same."""
    for slot in (1, 2):
        value, other = edit.view.constants.get(op.input(slot)), op.input(3 - slot)
        total = edit.view.makers.get(other)
        if value is None or value.size != 1 or value.dtype != np.float32 or abs(float(value.reshape(-1)[0])) < LARGE:
            continue
        if total is None or total.type != "Add" or edit.only_reader(other) is None:
            continue
        for bias, scores in (total.inputs, total.inputs[::-1]):
            if edit.sizes.of(scores) == edit.sizes.of(other) and _shared(op, other, bias, edit):
                now = edit.instead.get
                hidden = edit.insert(op, "Where", [now(bias, bias) if n == other else n for n in op.inputs], bias)
                edit.put(op, "Add", [now(scores, scores), hidden])
                return


def _shared(op: Op, total: str, bias: str, edit: Edit) -> bool:
    """Whether another mask hides a sum with the same bias in the same places."""
    for add, _ in edit.view.readers.get(bias, []):
        for user, _ in edit.view.readers.get(add.outputs[0], []):
            same = [bias if n == add.outputs[0] else n for n in user.inputs]
            if user is not op and user.type == "Where" and same == [bias if n == total else n for n in op.inputs]:
                return True
    return False


def _scale(op: Op, edit: Edit) -> None:
    """A number that scales a product of two tensors, into the weight that one of them is made with."""
    factor = edit.view.constants.get(op.input(1))
    name, product = op.inputs[0], edit.view.makers.get(op.inputs[0])
    if factor is None and op.type == "Mul":
        factor = edit.view.constants.get(op.inputs[0])
        name, product = op.inputs[1], edit.view.makers.get(op.inputs[1])
    if factor is None or factor.size != 1 or factor.dtype != np.float32 or factor.ndim > len(edit.sizes.of(name)):
        return
    if product is None or product.type not in ("MatMul", "Einsum") or len(product.inputs) != 2:
        return
    if edit.only_reader(name) is None or op.outputs[0] in edit.fixed:
        return
    number = float(factor.reshape(-1)[0])
    by = number if op.type == "Mul" else 1 / number if number else np.inf
    for source in product.inputs:
        weight = _weight(source, edit)
        if weight is not None and np.isfinite(by):
            at, slot = weight
            values = edit.view.constants[at.inputs[slot]]
            edit.nodes[at.index].input[slot] = edit.constant(at.inputs[slot], (values * by).astype(values.dtype))
            edit.read_instead(op.outputs[0], name)
            return


def _weight(name: str, edit: Edit) -> tuple[Op, int] | None:
    """The product with a constant that a tensor is made with, and the slot of the constant, if nothing else reads it
    on the way and nothing is added."""
    while (op := edit.view.makers.get(name)) is not None and edit.only_reader(name) is not None:
        if op.type == "MatMul" and op.input(1) in edit.view.constants:
            values = edit.view.constants[op.inputs[1]]
            return (op, 1) if values.dtype == np.float32 and edit.nodes[op.index].input[1] == op.inputs[1] else None
        if op.type != "Transpose" and not keeps_order(op, edit):
            return None
        name = op.inputs[0]
    return None
