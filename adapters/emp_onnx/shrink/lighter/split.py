"""A layer split in two thin ones, and the proof's other side: the model in its old shape with their product as weight.

The second product keeps the name of the weight, so that it is fitted as that was: from its inputs to W·x of the dense
model. A layer as wide as before comes out, so residual sums and concatenations are no obstacle; what lies between are
units like any others, and may be cut further.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from emp_onnx.shrink.fitting.readers import Reader
from emp_onnx.shrink.fitting.refit import Origin
from emp_onnx.shrink.tensors import add_constant, free, set_constant
from emp_onnx.shrink.view import View

__all__ = ["KINDS", "Halves", "Part", "Split", "product", "splittable"]

KINDS = ("conv", "right", "rightt")
Wide = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Halves:
    """The nodes in place of one, in the order in which they run, and their weights."""

    nodes: tuple[Any, Any]
    first: NDArray[Any]
    second: NDArray[Any]


class Part(Protocol):
    """One layer's split: `weight` names its constant, `rank` says how many numbers a place lie between, `share` what
    is left of the multiply-adds, `lost` of the variance of what it says is left out."""

    @property
    def weight(self) -> str: ...  # noqa: D102
    @property
    def rank(self) -> int: ...  # noqa: D102
    @property
    def share(self) -> float: ...  # noqa: D102
    @property
    def lost(self) -> float: ...  # noqa: D102
    @property
    def shift(self) -> Wide: ...  # noqa: D102

    def product(self, matrix: Wide) -> Wide: ...  # noqa: D102

    def halves(self, reader: Reader, old: NDArray[Any], node: Any, first: str, inner: str) -> Halves: ...  # noqa: D102


@dataclass(frozen=True)
class Split:
    """Splits of several layers."""

    parts: tuple[Part, ...]

    def made(self, view: View, readers: Sequence[Reader], origin: Origin) -> tuple[Any, Origin]:
        """The model with two thin products for each of the layers."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(view.model)
        own = {r.weight: r for r in readers}
        taken = {*view.makers, *view.constants, *view.readers}
        nodes = list(model.graph.node)
        for part in self.parts:
            reader = own[part.weight]
            place = next(i for i, node in enumerate(nodes) if part.weight in node.input)
            nodes[place : place + 1] = _two(model, view, reader, part, nodes[place], taken)
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(copies)
        return model, origin

    def equal(self, view: View, readers: Sequence[Reader]) -> Any:
        """The model in its old shape that the split one has to equal."""
        return product(view, readers, self)

    def __str__(self) -> str:
        said = ", ".join(f"{p.weight}: {p}" for p in self.parts)
        return f"{len(self.parts)} layers became two thin ones each ({said})"


def product(view: View, readers: Sequence[Reader], split: Split) -> Any:
    """The model in its old shape, with the product of both factors as each weight: what the split one has to equal."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(view.model)
    own = {r.weight: r for r in readers}
    for part in split.parts:
        reader = own[part.weight]
        old = view.constants[part.weight]
        set_constant(model, part.weight, reader.put(part.product(reader.matrix(old)), old))
        if reader.bias:
            set_constant(model, reader.bias, reader.add_bias(view.constants[reader.bias], part.shift))
    return model


def splittable(view: View, readers: Sequence[Reader]) -> list[Reader]:
    """Readers that can be split."""
    held = {*view.overridable, *view.captured}
    return [r for r in readers if r.kind in KINDS and r.weight not in held]


def _two(model: Any, view: View, reader: Reader, part: Part, node: Any, taken: set[str]) -> list[Any]:
    """The two nodes in place of one, their constants put into the model."""

    old = view.constants[part.weight]
    first, inner = free(f"{part.weight}_thin", taken), free(f"{node.output[0]}_thin", taken)
    halves = part.halves(reader, old, node, first, inner)
    one, up = halves.nodes
    one.input[1], one.output[0] = first, inner
    up.input[0] = inner
    one.name, up.name = (f"{node.name}_thin", node.name) if node.name else ("", "")
    add_constant(model, first, halves.first.astype(old.dtype))
    set_constant(model, part.weight, halves.second.astype(old.dtype))
    if reader.bias:
        set_constant(model, reader.bias, reader.add_bias(view.constants[reader.bias], part.shift))
    return [one, up]
