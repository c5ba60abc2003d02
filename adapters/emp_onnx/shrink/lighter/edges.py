"""Fewer places at the edges: what only ends in a mean over all places is worked out for the middle of the input alone.

Each crop is one last place along one axis, or half of one: the input's size by the size of the map that the mean is
taken of, half of it from either end. (With half a place the last map stays as it is, and those before it shrink.) What
stays is what was there, but for places whose windows reach over the new edge; so readers are fitted to the dense model
at the same places, which is the cropped one, and answers are judged by the whole one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from emp_onnx.shrink.axes.rules.elementwise import BROADCAST, UNARY
from emp_onnx.shrink.axes.trace import Trace
from emp_onnx.shrink.fitting.readers import Reader
from emp_onnx.shrink.fitting.refit import Origin
from emp_onnx.shrink.lighter.coarse import means
from emp_onnx.shrink.tensors import add_constant, free
from emp_onnx.shrink.view import Op, View

__all__ = ["Cropped", "find_edges"]

LEAST = 4  # places of the last map: of fewer one is too much
SLID = {"Conv", "MaxPool", "AveragePool", "BatchNormalization", "Clip", "Dropout", "Slice", *UNARY}


@dataclass(frozen=True)
class Cropped:
    """An input of which the places from `begin` to `end` along one axis are read."""

    source: str
    axis: int
    begin: int
    end: int
    size: int

    def made(self, view: View, readers: Sequence[Reader], origin: Origin) -> tuple[Any, Origin]:
        """The model that reads the middle alone, and the dense one that does, for readers to be fitted to."""
        model, _ = self._cropped(view)
        dense, name = self._cropped(origin.view)
        read = tuple(replace(r, source=name) if r.source == self.source else r for r in origin.readers)
        return model, Origin(View.of(dense), read, origin.whole or origin.view)

    def equal(self, view: View, readers: Sequence[Reader]) -> None:
        """Nothing: what the edges showed is lost."""

    def __str__(self) -> str:
        where = f"along axis {self.axis} those from {self.begin} to {self.end}"
        return f"of {self.size} places of the input {where} are read"

    def _cropped(self, view: View) -> tuple[Any, str]:
        """A copy of a model, and the name of what is left of its input."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(view.model)
        graph = model.graph
        taken = {*view.makers, *view.constants, *view.readers, *(i.name for i in graph.input)}
        name = free(f"{self.source}_middle{self.axis}", taken)
        numbers = {"starts": [self.begin], "ends": [self.end], "axes": [self.axis]}
        if view.opset < 10:
            node = onnx.helper.make_node("Slice", [self.source], [name])
            node.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in numbers.items())
        else:
            told = [
                add_constant(model, free(f"{name}_{key}", taken), np.array(value, np.int64))
                for key, value in numbers.items()
            ]
            node = onnx.helper.make_node("Slice", [self.source, *told], [name])
        for other in graph.node:
            for slot, read in enumerate(other.input):
                if read == self.source:
                    other.input[slot] = name
        nodes = [node, *(type(n).FromString(n.SerializeToString()) for n in graph.node)]
        del graph.node[:], graph.value_info[:]  # sizes on the way are others now
        graph.node.extend(nodes)
        return model, name


def find_edges(view: View, traced: Trace, *, parts: int = 1) -> list[Cropped]:
    """One for each axis of the only input, the last one first; none where places count for anything but a mean.

    `parts` says into how many a last place is divided, one of which goes.
    """
    sources = [name for name in traced.feeds[0] if name in view.readers]
    shape = traced.shapes.get(sources[0]) if len(sources) == 1 else None
    if shape is None or len(shape) < 3 or not all(isinstance(size, int) for size in shape):
        return []
    last = _last(view, traced, sources[0])
    if last is None:
        return []
    out = []
    for axis in reversed(range(2, len(shape))):
        size, left = int(shape[axis] or 0), last[axis]
        if not isinstance(left, int) or left < LEAST or size < 2 * left:
            continue
        step = -(-size // left) // parts
        if step < 1:
            continue
        out.append(Cropped(sources[0], axis, step // 2, size - step + step // 2, size))
    return out


def _last(view: View, traced: Trace, source: str) -> tuple[int | None, ...] | None:
    """The shape of what means over all places are taken of; None if places count for anything else on the way."""
    placed, found = {source}, None
    for op in view.ops:
        read = [name for name in op.inputs if name in placed]
        if not read:
            continue
        if means(op, view, traced) and op.inputs[0] in placed:
            shape = traced.shapes[op.inputs[0]]
            if found is not None and found != shape:
                return None
            found = shape
        elif _passes(op, view, traced, placed):
            placed.update(op.outputs)
        else:
            return None
    return None if placed.intersection((*view.outputs, *view.captured)) else found


def _passes(op: Op, view: View, traced: Trace, placed: set[str]) -> bool:
    """Whether an operation works alike at all places."""
    others = [name for name in op.inputs if name and name not in placed]
    if any(name not in view.constants for name in others) or len(op.outputs) != 1:
        return False
    shape = traced.shapes.get(op.inputs[0])
    if op.type == "Concat":
        return shape is not None and op.attributes.get("axis") in (1, 1 - len(shape))
    if op.type in BROADCAST:
        own = traced.shapes.get(op.outputs[0])
        places = len(own or ()) - 2
        flat = all(d == 1 for name in others for d in view.constants[name].shape[-places:]) if places > 0 else False
        return flat and all(traced.shapes.get(name) == own for name in op.inputs if name in placed)
    return op.type in SLID and op.inputs[0] in placed
