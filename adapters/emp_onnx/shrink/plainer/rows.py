"""Products of rows, told as rows: what is made flat behind a product is made flat before it.

x of shape (…, k) · A of shape (k, n) is the same product whatever the axes before the last are called; onnxruntime
does it, with the sum behind it, in one operation where there is one such axis, and puts reshapes of its own around it
where there are more. So a Reshape to (rows, n) goes before all that treats rows each by itself: products with
constants, what works element by element, sums with a constant of the last axis, and a Concat of tensors that are
reshaped anyway.
"""

from __future__ import annotations

from typing import Any

from emp_onnx.shrink.axes.rules.elementwise import UNARY
from emp_onnx.shrink.axes.sizes import Entry
from emp_onnx.shrink.axes.trace import Trace
from emp_onnx.shrink.plainer.edit import Edit
from emp_onnx.shrink.plainer.rearranged import keeps_order
from emp_onnx.shrink.view import Op, View

__all__ = ["rows"]

SUMS = ("Add", "Sub", "Mul", "Div")


def rows(view: View, traced: Trace) -> Any:
    """A copy of a prepared model in which rows are made before products of them; None if they are."""
    if traced.fixed:
        return None
    edit = Edit(view, traced)
    for op in view.ops:
        wanted = edit.sizes.of(op.outputs[0])
        if op.type in ("Reshape", "Squeeze", "Flatten") and keeps_order(op, edit) and len(wanted) == 2:
            source = edit.sizes.of(op.inputs[0])
            if len(source) > 2 and source[-1] == wanted[-1]:
                _move(op, wanted[0], edit)
    return edit.done()


def _move(op: Op, count: Entry, edit: Edit) -> None:
    """Make rows as early as can be, where a product comes after."""
    steps: list[tuple[Op, int]] = []
    name = op.inputs[0]
    while (maker := edit.view.makers.get(name)) is not None and edit.only_reader(name) is not None:
        slot = _slot(maker, edit)
        if slot is None:
            break
        steps.append((maker, slot))
        name = maker.inputs[slot]
    while steps and steps[-1][0].type != "MatMul":
        steps.pop()
    if not steps:
        return
    name = steps[-1][0].inputs[steps[-1][1]]
    parts = _parts(name, edit)
    made = [_row(part, count, op, edit) for part in parts]
    if any(m is None for m in made):
        return
    said = [str(m()) for m in made if m is not None]
    chosen = said[0] if len(said) == 1 else edit.insert(op, "Concat", said, name, axis=1)
    for step, slot in reversed(steps):
        inputs = [chosen if at == slot else n for at, n in enumerate(step.inputs)]
        if step is steps[0][0]:
            edit.put(op, step.type, inputs, **step.attributes)
        else:
            chosen = edit.insert(op, step.type, inputs, step.outputs[0], **step.attributes)


def _slot(op: Op, edit: Edit) -> int | None:
    """From which input an operation makes each row by itself; None where it does not."""
    out = edit.sizes.of(op.outputs[0])
    if len(op.outputs) != 1 or not out:
        return None
    if op.type in UNARY and "." not in op.type:
        return 0
    constants = [name in edit.view.constants for name in op.inputs]
    if op.type == "MatMul" and constants == [False, True] and len(edit.sizes.of(op.inputs[1])) == 2:
        return 0 if len(edit.sizes.of(op.inputs[0])) == len(out) else None
    if op.type in SUMS and sum(constants) == 1 and not {"axis", "broadcast"} & set(op.attributes):
        values = edit.view.constants[op.inputs[constants.index(True)]]
        slot = constants.index(False)
        fits = values.ndim < 2 and edit.sizes.of(op.inputs[slot]) == out
        return slot if fits else None
    return None


def _parts(name: str, edit: Edit) -> tuple[str, ...]:
    """What a tensor is a Concat of along its last axis, if all of that is rearranged anyway; else itself."""
    op = edit.view.makers.get(name)
    shape = edit.sizes.of(name)
    if op is None or op.type != "Concat" or edit.only_reader(name) is None:
        return (name,)
    if int(op.attributes["axis"]) % len(shape) != len(shape) - 1:
        return (name,)
    makers = [edit.view.makers.get(part) for part in op.inputs]
    return op.inputs if all(m is not None and keeps_order(m, edit) for m in makers) else (name,)


def _row(name: str, count: Entry, at: Op, edit: Edit) -> Any:
    """How a tensor is made rows; None where that cannot be said once and for all."""
    source = edit.sizes.of(name)
    to = edit.target(source, (count, source[-1]))
    if to is None:
        return None
    return lambda: edit.insert(at, "Reshape", [name, edit.constant(name, to)], name)
