"""Bounds that hardly anything reaches, left out: Clip and Relu whose input lies within them.

Files that were once quantised clip between all operations. Each such Clip keeps onnxruntime from joining a sum to the
convolution before it, and costs a pass of its own. min(max(x, a), b) = x wherever a ≤ x ≤ b: left out where at most one
element in a thousand, of those that the feeds show, lies outside. Where that is so of b alone, and a = 0, a Relu is
left: convolutions have it in their kernels, and go over their results once more for any other bound. Other inputs may
reach a bound: this is a loss as any other, measured at the outputs, and the report names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.axes.trace import Runner
from emp_onnx.shrink.cut import drop_dead
from emp_onnx.shrink.fitting.moments import segment
from emp_onnx.shrink.fitting.readers import Reader
from emp_onnx.shrink.fitting.refit import Origin
from emp_onnx.shrink.view import Op, View

__all__ = ["Opened", "find_opened"]

SELDOM = 1e-3  # of the elements: outside the bounds


@dataclass(frozen=True)
class Opened:
    """Bounds that go, by the tensors that they made.

    Attributes:
        outputs: whose readers read what was bounded instead.
        floors: made by a Relu now: of their bounds the lower one, zero, stays.
    """

    outputs: tuple[str, ...]
    floors: tuple[str, ...] = ()

    def made(self, view: View, readers: Sequence[Reader], origin: Origin) -> tuple[Any, Origin]:
        """The model without these bounds."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(view.model)
        instead: dict[str, str] = {}
        for node in model.graph.node:  # in order, so that one after the other is seen through
            for slot, name in enumerate(node.input):
                node.input[slot] = instead.get(name, name)
            if node.output and node.output[0] in self.outputs:
                instead[node.output[0]] = node.input[0]
            elif node.output and node.output[0] in self.floors:
                node.op_type = "Relu"
                del node.input[1:], node.attribute[:]
        drop_dead(model.graph)
        return model, origin

    def equal(self, view: View, readers: Sequence[Reader]) -> None:
        """Nothing: what a bound does is lost where it is reached."""

    def __str__(self) -> str:
        floors = f", {len(self.floors)} of which keep their zero" if self.floors else ""
        count = len(self.outputs) + len(self.floors)
        return f"{count} bounds that hardly any element of the feeds reached were left out{floors}"


def bounds_of(op: Op, view: View) -> tuple[float, float] | None:
    """Between which numbers an operation keeps its input; None if it is none of these, or they are not constants."""
    if op.type == "Relu":
        return 0.0, np.inf
    if op.type != "Clip":
        return None
    found = []
    for slot, key, none in ((1, "min", -np.inf), (2, "max", np.inf)):
        name = op.input(slot)
        if name and name not in view.constants:
            return None
        found.append(float(view.constants[name]) if name else float(op.attributes.get(key, none)))
    return found[0], found[1]


def find_opened(view: View, feeds: Sequence[Feed], *, threads: int = 1) -> Opened | None:
    """All bounds that hardly any element of these feeds lies outside of; None if there are none."""
    held = {*view.outputs, *view.captured}
    ops = [(op, b) for op in view.ops if op.outputs[0] not in held and (b := bounds_of(op, view)) is not None]
    if not ops:
        return None
    runner = Runner(segment(view.model, [op.inputs[0] for op, _ in ops]), threads=threads)
    below, above, most = np.zeros(len(ops)), np.zeros(len(ops)), np.zeros(len(ops))
    floats = np.ones(len(ops), bool)
    for feed in feeds:
        values = runner(feed)
        for i, (op, (low, high)) in enumerate(ops):
            x = values[op.inputs[0]]
            below[i] += np.count_nonzero(x < low)
            above[i] += np.count_nonzero(x > high)
            most[i] += SELDOM * x.size
            floats[i] &= x.dtype.kind == "f"
    free = below + above <= most
    floor = ~free & (above <= most) & floats & [b == 0 and h < np.inf for _, (b, h) in ops]
    names, floors = (tuple(op.outputs[0] for (op, _), yes in zip(ops, which, strict=True) if yes)
                     for which in (free, floor))  # fmt: skip
    return Opened(names, floors) if names or floors else None
