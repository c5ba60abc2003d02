"""A program whose activations are not rounded to whole numbers on the way: only cut off where the numbers end.

Rounding is as good as chance: in a network with 8-bit activations one weight moved by one step changes half of what is
rounded after it, and moves the answers by as much as the removal of a tenth of the weights (measured: .25 of their
spread on an int8 MobileNetV2). Against that nothing can be measured, and what is fitted to it shrinks. So layers are
measured and fitted without it, and the whole model is measured as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.program import Program, Step
from emp_onnx.files.graph import Node

__all__ = ["smooth"]

Array = NDArray[Any]
INTO, BACK = "QuantizeLinear", "DequantizeLinear"
MOVES = ("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Slice", "Gather", "Expand")


def smooth(program: Program, value: Callable[[str], Array], /) -> bool:
    """Replace, in place, the rounding of activations whose whole numbers are only moved about and made floats again.

    Args:
        program: laid flat.
        value: gives a fixed value.

    Returns:
        Whether there was one.
    """
    import onnx

    done: dict[int, list[Step]] = {}
    for step in program.steps:
        if step.node.op != INTO or step.inputs[0] in program.fixed or id(step) in done:
            continue
        after = _after(program, step)
        if after is None or len(program.makers.get(step.outputs[0], ())) != 1:
            continue
        bounds = _bounds(program, step, value)
        if bounds is None:
            continue
        done[id(step)] = _cut(onnx, step, bounds)
        for other in after:
            done[id(other)] = [_step(onnx, "Identity", other.inputs[:1], other.outputs, other)]
    if done:
        program.steps = [new for step in program.steps for new in done.get(id(step), [step])]
        for name in ("makers", "readers", "fixed"):
            program.__dict__.pop(name, None)
    return bool(done)


def _after(program: Program, step: Step) -> list[Step] | None:
    """The steps that make floats again of what a step rounds; None where its whole numbers are put to other use."""
    found: list[Step] = []
    todo = [step.outputs[0]]
    while todo:
        name = todo.pop()
        if name in program.outputs:
            return None
        for reader, slot in program.readers.get(name, ()):
            if slot or reader.node.domain or reader.body is not None:
                return None
            if reader.node.op == BACK:
                pairs = zip(reader.inputs[1:], step.inputs[1:], strict=False)
                if any(_key(program, a) != _key(program, b) for a, b in pairs):
                    return None
                found.append(reader)
            elif reader.node.op in MOVES and len(list(filter(None, reader.outputs))) == 1:
                todo.append(reader.outputs[0])
            else:
                return None
    return found


def _key(program: Program, name: str) -> str:
    """What a constant is, whatever its names."""
    return program.constants[name].key if name in program.constants else name


def _bounds(program: Program, step: Step, value: Callable[[str], Array]) -> tuple[Array, Array] | None:
    """The least and the largest float that a step's whole numbers stand for; None where they are not known."""
    if any(name and name not in program.fixed for name in step.inputs[1:]):
        return None
    scale = value(step.inputs[1])
    point = value(step.inputs[2]) if len(step.inputs) > 2 and step.inputs[2] else np.zeros((), np.uint8)
    if scale.size != 1 or point.size != 1 or point.dtype.kind not in "iu" or scale.dtype.kind != "f":
        return None
    ends = np.iinfo(point.dtype)
    low, high = (scale.reshape(()) * (end - int(point.reshape(()))) for end in (ends.min, ends.max))
    return np.asarray(low, scale.dtype), np.asarray(high, scale.dtype)


def _cut(onnx: Any, step: Step, bounds: tuple[Array, Array]) -> list[Step]:
    """The steps that cut off what lies outside."""
    source, target, out = step.inputs[0], step.outputs[0], list[Step]()
    for op, end, tensor in zip(("Max", "Min"), ("low", "high"), bounds, strict=True):
        name = f"{target} {end}:"
        made = onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(tensor))
        out.append(Step(made, Node("Constant", "", "", (), (name,), {}, ()), (), (name,), step.guard))
        after = target if op == "Min" else f"{target} above:"
        out.append(_step(onnx, op, (source, name), (after,), step))
        source = after
    return out


def _step(onnx: Any, op: str, reads: tuple[str, ...], gives: tuple[str, ...], like: Step) -> Step:
    made = onnx.helper.make_node(op, list(reads), list(gives))
    return Step(made, Node(op, "", "", tuple(reads), tuple(gives), {}, ()), tuple(reads), tuple(gives), like.guard)
