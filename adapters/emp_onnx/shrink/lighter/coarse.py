"""Fewer places before a mean: convolutions that are only read through a mean over all places work at every second one.

What stands next to each other is alike, so the mean over every second place is nearly the mean over all, for a
quarter of the work (in two dimensions). Then, exactly: a 1×1 convolution with stride s reads every s-th place alone, so
the convolutions before it, if nobody else reads them, take the stride over:

    conv1x1(stride s) ∘ f ∘ conv(stride t)  =  conv1x1(stride 1) ∘ f ∘ conv(stride s·t),   f by itself at each place,

places of the left: s·(t·i) = (s·t)·i; and ⌊⌊n / t⌋ / s⌋ = ⌊n / (s·t)⌋, so the sizes agree as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from emp_onnx.shrink.axes.rules.elementwise import BROADCAST, UNARY
from emp_onnx.shrink.axes.trace import Trace
from emp_onnx.shrink.cut import drop_dead
from emp_onnx.shrink.fitting.readers import Reader
from emp_onnx.shrink.fitting.refit import Origin
from emp_onnx.shrink.view import Op, View

__all__ = ["Coarser", "find_coarser", "means"]

FACTOR = 2  # from one place to the next
LEAST = 4  # places along every axis: fewer have hardly a neighbour to stand for them
PLACEWISE = {*UNARY, "Clip", "Dropout", "BatchNormalization"}


@dataclass(frozen=True)
class Coarser:
    """Convolutions, by what they make, with the strides they get; and all whose places are fewer by `FACTOR`."""

    first: tuple[tuple[str, tuple[int, ...]], ...]
    strides: tuple[tuple[str, tuple[int, ...]], ...]
    fewer: tuple[str, ...]

    def made(self, view: View, readers: Sequence[Reader], origin: Origin) -> tuple[Any, Origin]:
        """The model at fewer places, and the dense readers at the same ones."""
        weights = {view.makers[name].inputs[1] for name in self.fewer}
        dense = tuple(_apart(r, FACTOR) if r.weight in weights else r for r in origin.readers)
        return strided(view, self.strides), replace(origin, readers=dense)

    def equal(self, view: View, readers: Sequence[Reader]) -> Any:
        """The model whose last convolutions alone have other strides: moving them has to change nothing."""
        return strided(view, self.first)

    def __str__(self) -> str:
        names = ", ".join(self.fewer)
        return f"{len(self.fewer)} convolutions before a mean over all places work at every second one ({names})"


def strided(view: View, strides: Sequence[tuple[str, tuple[int, ...]]]) -> Any:
    """A copy of the model with these strides of convolutions, by what they make."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(view.model)
    for name, steps in strides:
        node = model.graph.node[view.makers[name].index]
        kept = [a for a in node.attribute if a.name != "strides"]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("strides", list(steps))])
    del model.graph.value_info[:]  # sizes on the way are others now
    drop_dead(model.graph)
    return model


def find_coarser(view: View, traced: Trace) -> list[Coarser]:
    """One for each mean over all places that convolutions come before."""
    out = []
    for op in view.ops:
        if not means(op, view, traced):
            continue
        found = _convolutions(view, traced, op.inputs[0], {op.index})
        shape = traced.shapes[op.inputs[0]]
        if not found or any(size is not None and size < LEAST for size in shape[2:]):
            continue
        steps = {c.index: [FACTOR * s for s in _strides(c)] for c in found}
        first = tuple((c.outputs[0], tuple(steps[c.index])) for c in found)
        _forward(view, traced, found, steps)
        ops = [view.ops[index] for index in sorted(steps)]
        strides = tuple((c.outputs[0], tuple(steps[c.index])) for c in ops if steps[c.index] != _strides(c))
        out.append(Coarser(first, strides, tuple(c.outputs[0] for c in ops)))
    return out


def _forward(view: View, traced: Trace, found: list[Op], steps: dict[int, list[int]]) -> None:
    """Move strides, in place, to the convolutions before, as far as that changes nothing."""
    waiting = list(found)
    while waiting:
        op = waiting.pop()
        source = op.inputs[0]
        readers = [o for o, _ in view.readers[source]]
        alike = all(o.index in steps and _single(o) and steps[o.index] == steps[op.index] for o in readers)
        if not alike or all(s == 1 for s in steps[op.index]):
            continue
        before = _convolutions(view, traced, source, {o.index for o in readers})
        if not before:
            continue
        apart = steps[op.index]
        for one in before:
            steps[one.index] = [s * a for s, a in zip(_strides(one), apart, strict=True)]
        for one in readers:
            steps[one.index] = [1] * len(apart)
        waiting += before


def _convolutions(view: View, traced: Trace, name: str, readers: set[int]) -> list[Op]:
    """The convolutions from which a tensor is made place by place, if no others read what is on the way; else none."""
    found: dict[int, Op] = {}
    allowed, tensors, stack = set(readers), [], [name]
    while stack:
        at = stack.pop()
        op = view.makers.get(at)
        shape = traced.shapes.get(at)
        if op is None or shape is None or at in view.outputs or at in view.captured or at != op.outputs[0]:
            return []
        tensors.append(at)
        if op.type == "Conv":
            if op.attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or len(shape) < 3:
                return []
            found[op.index] = op
            continue
        allowed.add(op.index)
        values = [i for i in op.inputs if i and i not in view.constants]
        if op.type in PLACEWISE:
            values = [i for i in op.inputs[:1] if i not in view.constants]
        elif op.type in BROADCAST:
            constants = [view.constants[i].shape for i in op.inputs if i in view.constants]
            places = len(shape) - 2
            if any(any(d != 1 for d in s[-places:]) for s in constants) or any(
                traced.shapes.get(i) != shape for i in values
            ):
                return []
        elif op.type != "Concat" or op.attributes.get("axis") not in (1, 1 - len(shape)):
            return []
        if not values:
            return []
        stack += [v for v in values if v not in tensors]
    if any(o.index not in allowed for t in tensors for o, _ in view.readers.get(t, ())):
        return []
    return list(found.values())


def means(op: Op, view: View, traced: Trace) -> bool:
    """Whether an operation is the mean over all places of channels."""
    if op.type == "GlobalAveragePool":
        return True
    rank = len(traced.shapes.get(op.inputs[0]) or ()) if op.type == "ReduceMean" else 0
    if rank < 3:
        return False
    axes = op.attributes.get("axes")
    if axes is None and op.input(1) in view.constants:
        axes = view.constants[op.input(1)].tolist()
    return axes is not None and {int(a) % rank for a in axes} == set(range(2, rank))


def _strides(op: Op) -> list[int]:
    dims = op.attributes.get("kernel_shape") or ()
    return [int(s) for s in op.attributes.get("strides", [1] * len(dims))]


def _single(op: Op) -> bool:
    """Whether a convolution reads one place for each that it makes."""
    kernel = op.attributes.get("kernel_shape") or (2,)
    return op.type == "Conv" and all(k == 1 for k in kernel) and not any(op.attributes.get("pads", ()))


def _apart(reader: Reader, factor: int) -> Reader:
    steps = [factor * s for s in _strides(reader.op)]
    return replace(reader, op=replace(reader.op, attributes={**reader.op.attributes, "strides": steps}))
