"""What is read is chosen first: one coordinate of an axis, before what is done to each coordinate alike.

A Gather of one coordinate i along an axis says f(x)[i]. Where f treats the coordinates of the axis each by itself
(element by element, a product over another axis, a transpose, a reshape that leaves the axis), f(x)[i] = f(x[i]), and
all others need not be computed. Where x are the states of a recurrent operation and i is the last that it makes, that
state is an output of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from emp_onnx.shrink.axes.rules.elementwise import BROADCAST, UNARY
from emp_onnx.shrink.axes.sizes import Entry
from emp_onnx.shrink.axes.trace import Trace
from emp_onnx.shrink.plainer.edit import Edit
from emp_onnx.shrink.plainer.rearranged import keeps_order
from emp_onnx.shrink.view import Op, View

__all__ = ["early", "unasked"]


@dataclass
class _Step:
    """An operation that can be done after the choice; which of its inputs is chosen from, along which axis, and for
    reshapes the new target."""

    op: Op
    slot: int
    axis: int
    target: Any = None


def early(view: View, traced: Trace) -> Any:
    """A copy of a prepared model in which single coordinates are chosen as early as they can; None if they are."""
    if traced.fixed:
        return None
    edit = Edit(view, traced)
    touched: set[int] = set()
    for op in view.ops:
        if op.type == "Gather" and _single(op, edit) and not touched.intersection(_maker(op.inputs[0], edit)):
            touched |= _move(op, edit)
    return edit.done()


def _maker(name: str, edit: Edit) -> set[int]:
    op = edit.view.makers.get(name)
    return set() if op is None else {op.index}


def _single(op: Op, edit: Edit) -> bool:
    """Whether a Gather takes one coordinate of an axis that has more."""
    shape, index = edit.sizes.of(op.inputs[0]), edit.trace.shapes.get(op.input(1))
    if not shape or index not in ((), (1,)) or op.inputs[0] in edit.view.constants:
        return False
    return shape[int(op.attributes.get("axis", 0)) % len(shape)] != 1


def _move(op: Op, edit: Edit) -> set[int]:
    """Choose before what can come after; the operations that changed."""
    steps: list[_Step] = []
    name, along = op.inputs[0], int(op.attributes.get("axis", 0))
    given = edit.sizes.of(name)
    along = axis = along % len(given)
    last = edit.target((*given[:along], 1, *given[along + 1 :]), edit.sizes.of(op.outputs[0]))
    if last is None:
        return set()
    while (maker := edit.view.makers.get(name)) is not None and edit.only_reader(name) is not None:
        step = _after(maker, axis, edit)
        if step is None:
            break
        steps.append(step)
        name, axis = maker.inputs[step.slot], step.axis
    chosen = _last_state(op, name, axis, edit)
    if not chosen and not steps:
        return set()
    chosen = chosen or edit.insert(op, "Gather", [name, _index(op, edit)], op.outputs[0], axis=axis)
    for step in reversed(steps):
        chosen = _again(step, chosen, op, edit)
    edit.put(op, "Reshape", [chosen, edit.constant(op.outputs[0], last)])
    return {op.index, *(step.op.index for step in steps)}


def _index(op: Op, edit: Edit) -> str:
    """The coordinate as a tensor of one axis."""
    name = op.inputs[1]
    values = edit.view.constants.get(name)
    if values is not None:
        return edit.constant(name, values.reshape(1))
    while (maker := edit.view.makers.get(name)) is not None and keeps_order(maker, edit):
        name = maker.inputs[0]
    if edit.trace.shapes[name] == (1,):
        return name
    one = edit.constant(name, np.array([1], np.int64))
    return edit.insert(op, "Reshape", [name, one], name)


def _after(op: Op, axis: int, edit: Edit) -> _Step | None:
    """Whether an operation treats the coordinates of an axis of its result each by itself."""
    out = edit.sizes.of(op.outputs[0])
    if len([o for o in op.outputs if o]) != 1 or not out:
        return None
    if op.type in UNARY or op.type == "Dropout":
        return _Step(op, 0, axis)
    if op.type in BROADCAST:
        return _broadcast(op, axis, out, edit)
    if op.type == "MatMul" and axis < len(out) - 1 and len(edit.sizes.of(op.inputs[1])) == 2:
        return _Step(op, 0, axis) if len(edit.sizes.of(op.inputs[0])) == len(out) else None
    if any(name and name not in edit.sizes.shapes for name in op.inputs):
        return None
    if op.type == "Gemm" and axis == 0 and not op.attributes.get("transA"):
        bias = edit.sizes.of(op.input(2)) if op.input(2) else ()
        return _Step(op, 0, 0) if len(bias) < 2 or bias[0] == 1 else None
    if op.type == "Transpose":
        return _Step(op, 0, int(op.attributes.get("perm", range(len(out))[::-1])[axis]))
    if op.type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return _reshape(op, axis, out, edit)
    return None


def _broadcast(op: Op, axis: int, out: tuple[Entry, ...], edit: Edit) -> _Step | None:
    """One operand has the axis, and all others are the same along it."""
    having = []
    for slot, name in enumerate(op.inputs):
        shape = edit.sizes.of(name)
        if name not in edit.sizes.shapes:
            return None
        at = axis - len(out) + len(shape)
        if at >= 0 and shape[at] != 1:
            having.append((slot, at, len(shape)))
    if len(having) != 1 or having[0][2] != len(out) or "axis" in op.attributes or op.attributes.get("broadcast"):
        return None
    return _Step(op, having[0][0], having[0][1])


def _reshape(op: Op, axis: int, out: tuple[Entry, ...], edit: Edit) -> _Step | None:
    """The axis is one before and after where as much stands before it."""
    source = edit.sizes.of(op.inputs[0])
    for at, size in enumerate(source):
        if size == out[axis] and _same(source[:at], out[:axis]) and _same(source[at + 1 :], out[axis + 1 :]):
            to = edit.target((*source[:at], 1, *source[at + 1 :]), (*out[:axis], 1, *out[axis + 1 :]))
            return None if to is None else _Step(op, 0, at, to)
    return None


def _same(one: tuple[Entry, ...], other: tuple[Entry, ...]) -> bool:
    """Whether two lists of sizes have the same product whatever the input."""
    numbers = [int(np.prod([e for e in part if isinstance(e, int)], dtype=np.int64)) for part in (one, other)]
    names = [sorted(map(repr, (e for e in part if not isinstance(e, int)))) for part in (one, other)]
    return numbers[0] == numbers[1] and names[0] == names[1]


def _again(step: _Step, chosen: str, at: Op, edit: Edit) -> str:
    """The same operation on what was chosen, before `at`."""
    op = step.op
    if step.target is not None:
        return edit.insert(at, "Reshape", [chosen, edit.constant(op.outputs[0], step.target)], op.outputs[0])
    inputs = [chosen if slot == step.slot else name for slot, name in enumerate(op.inputs)]
    domain, _, kind = op.type.rpartition(".")
    attributes = {**op.attributes, **({"domain": domain} if domain else {})}
    return edit.insert(at, kind, inputs, op.outputs[0], **attributes)


def _last_state(op: Op, name: str, axis: int, edit: Edit) -> str:
    """The output of a recurrent operation that is its last state, if that is what is chosen; else nothing."""
    maker = edit.view.makers.get(name)
    index = edit.view.constants.get(op.input(1))
    if maker is None or maker.type not in ("LSTM", "GRU", "RNN") or maker.outputs[0] != name or axis or index is None:
        return ""
    if maker.input(4) or int(maker.attributes.get("layout", 0)):
        return ""
    way = maker.attributes.get("direction", b"forward")
    if (way, int(index.reshape(-1)[0])) not in ((b"forward", -1), (b"reverse", 0)):
        return ""
    node = edit.nodes[maker.index]
    if len(node.output) < 2:
        node.output.append("")
    if not node.output[1]:
        node.output[1] = edit.name(name)
    shape = edit.sizes.of(name)
    to = edit.target((1, *shape[2:]), (1, *shape[1:]))
    return "" if to is None else edit.insert(op, "Reshape", [node.output[1], edit.constant(name, to)], name)


def unasked(model: Any) -> Any:
    """A copy in which recurrent operations give out only what something reads."""
    import onnx

    from emp_onnx.shrink.view import _captured

    new = onnx.ModelProto()
    new.CopyFrom(model)
    read = {name for node in new.graph.node for name in (*node.input, *_captured(node))}
    read |= {o.name for o in new.graph.output}
    for node in new.graph.node:
        if node.op_type in ("LSTM", "GRU", "RNN") and not node.domain:
            kept = [name if name in read else "" for name in node.output]
            while kept and not kept[-1]:
                kept.pop()
            node.output[:] = kept
    return new
