"""Fewer directions instead of fewer channels: a product split in two thin ones, with a basis from the feeds.

What a layer y = W·x + b makes lies, on real inputs, near a space of far fewer dimensions than y has channels: the
effective size of the spectrum of its covariance says of how many. With U the r first eigenvectors of Σ = Cov(W·x),

    y  ≈  U·(Uᵀ·W)·x + (b + (1 − U·Uᵀ)·E[W·x]),

the best fit of rank r to y in the mean square (reduced-rank regression with the dense layer's own outputs); what is
lost is the sum of the eigenvalues left out. Uᵀ·W has the kernel of W and makes r numbers a place, U is a 1×1
convolution. A layer as wide as before comes out, so residual sums and concatenations are no obstacle. The r numbers
between are units like any others, and may be cut further.

The second product keeps the name of W, so that it is fitted as what W was: from its r inputs to W·x of the dense model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_core import effective_size
from emp_onnx.shrink.fitting.readers import Reader
from emp_onnx.shrink.fitting.refit import Origin
from emp_onnx.shrink.view import View

__all__ = ["Split", "Thin", "find_thin", "product", "splittable"]

KINDS = ("conv", "right", "rightt")
BLOCK = 16  # ranks are multiples: onnxruntime's blocked convolutions compute so many together
WORTH = 0.85  # of the work of the layer that a split may have at most
Wide = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Thin:
    """One layer's split.

    Attributes:
        weight: name of its constant.
        basis: (outputs, rank), orthonormal columns.
        mean: E[W·x], (outputs,).
        lost: share of the variance of W·x that is left out.
        directions: effective size of the spectrum.
    """

    weight: str
    basis: Wide
    mean: Wide
    lost: float
    directions: float

    @property
    def rank(self) -> int:
        """How many directions stay."""
        return int(self.basis.shape[1])


@dataclass(frozen=True)
class Split:
    """Splits of several layers."""

    parts: tuple[Thin, ...]

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
        said = ", ".join(
            f"{p.weight}: {p.rank} of {len(p.basis)} directions, effective size {p.directions:.1f}" for p in self.parts
        )
        return f"{len(self.parts)} layers became two thin ones each ({said})"


def product(view: View, readers: Sequence[Reader], split: Split) -> Any:
    """The model in its old shape, with the product of both factors as each weight: what the split one has to equal."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(view.model)
    own = {r.weight: r for r in readers}
    for part in split.parts:
        reader = own[part.weight]
        w = reader.matrix(view.constants[part.weight])
        flat = part.basis @ (part.basis.T @ w.reshape(len(w), -1))
        _set(model, part.weight, reader.put(flat.reshape(w.shape), view.constants[part.weight]))
        if reader.bias:
            _set(model, reader.bias, reader.add_bias(view.constants[reader.bias], _shift(part)))
    return model


def find_thin(view: View, readers: Sequence[Reader], moments: Sequence[Wide]) -> list[Thin]:
    """Every split that is less work than the layer it is of: by layer, ranks from many to few.

    `moments` are those of (x, 1) of each reader.
    """
    out: list[Thin] = []
    for reader, moment in zip(readers, moments, strict=True):
        w = reader.matrix(view.constants[reader.weight])
        flat = w.reshape(len(w), -1)
        if not (np.isfinite(flat).all() and np.isfinite(moment).all()):
            continue
        mean = moment[:-1, -1] if reader.bias else np.zeros(len(moment) - 1)
        values, vectors = np.linalg.eigh(flat @ (moment[:-1, :-1] - np.outer(mean, mean)) @ flat.T)
        values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        whole = float(values.sum())
        most = int(WORTH * flat.size / sum(flat.shape)) // BLOCK * BLOCK
        if whole <= 0 or most < BLOCK:
            continue
        number = float(effective_size(values))
        ranks = {most * q // 4 // BLOCK * BLOCK for q in (4, 3, 2, 1)}
        out += [
            Thin(reader.weight, vectors[:, :r], flat @ mean, 1 - float(values[:r].sum()) / whole, number)
            for r in sorted(ranks, reverse=True)
            if BLOCK <= r < min(flat.shape)
        ]
    return out


def splittable(view: View, readers: Sequence[Reader]) -> list[Reader]:
    """Readers that can be split."""
    held = {*view.overridable, *view.captured}
    return [r for r in readers if r.kind in KINDS and r.weight not in held]


def _shift(part: Thin) -> Wide:
    return part.mean - part.basis @ (part.basis.T @ part.mean)


def _two(model: Any, view: View, reader: Reader, part: Thin, node: Any, taken: set[str]) -> list[Any]:
    """The two nodes in place of one, their constants put into the model."""
    import onnx

    old = view.constants[part.weight]
    w = reader.matrix(old)
    down = part.basis.T @ w.reshape(len(w), -1)
    first, inner = _free(f"{part.weight}_thin", taken), _free(f"{node.output[0]}_thin", taken)
    up = type(node).FromString(node.SerializeToString())
    if reader.kind == "conv":
        one = type(node).FromString(node.SerializeToString())
        del one.input[2:]
        new, wide = down.reshape(-1, *old.shape[1:]), part.basis.reshape(*part.basis.shape, *[1] * (old.ndim - 2))
        kept = [a for a in up.attribute if a.name == "group"]
        del up.attribute[:]
        up.attribute.extend([*kept, onnx.helper.make_attribute("kernel_shape", [1] * (old.ndim - 2))])
    else:
        one = onnx.helper.make_node("MatMul", [node.input[0], first], [inner])
        new, wide = down.T, part.basis.T if reader.kind == "right" else part.basis
    one.input[1], one.output[0] = first, inner
    up.input[0] = inner
    one.name, up.name = (f"{node.name}_thin", node.name) if node.name else ("", "")
    tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(new.astype(old.dtype)), first)
    model.graph.initializer.append(tensor)
    _set(model, part.weight, np.ascontiguousarray(wide.astype(old.dtype)))
    if model.ir_version < 4:  # in files of old, constants are inputs too
        for info in model.graph.input:
            if info.name == part.weight:
                info.CopyFrom(onnx.helper.make_tensor_value_info(info.name, tensor.data_type, wide.shape))
        model.graph.input.append(onnx.helper.make_tensor_value_info(first, tensor.data_type, new.shape))
    if reader.bias:
        _set(model, reader.bias, reader.add_bias(view.constants[reader.bias], _shift(part)))
    return [one, up]


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _set(model: Any, name: str, values: Any) -> None:
    import onnx

    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
