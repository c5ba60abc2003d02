"""Fewer directions instead of fewer channels: a product split in two thin ones, with a basis from the feeds.

What a layer y = W·x + b makes lies, on real inputs, near a space of far fewer dimensions than y has channels: the
effective size of the spectrum of its covariance says of how many. With U the r first eigenvectors of Σ = Cov(W·x),

    y  ≈  U·(Uᵀ·W)·x + (b + (1 − U·Uᵀ)·E[W·x]),

the best fit of rank r to y in the mean square (reduced-rank regression with the dense layer's own outputs); what is
lost is the sum of the eigenvalues left out. Uᵀ·W has the kernel of W and makes r numbers a place, U is a 1×1
convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_core import effective_size
from emp_onnx.shrink.fitting.readers import Reader
from emp_onnx.shrink.lighter.split import Halves
from emp_onnx.shrink.view import View

__all__ = ["BLOCK", "WORTH", "Thin", "find_thin"]

BLOCK = 16  # ranks are multiples: onnxruntime's blocked convolutions compute so many together
WORTH = 0.85  # of the work of the layer that a split may have at most
Wide = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Thin:
    """One layer's split by directions.

    Attributes:
        weight: name of its constant.
        basis: (outputs, rank), orthonormal columns.
        mean: E[W·x], (outputs,).
        lost: share of the variance of W·x that is left out.
        directions: effective size of the spectrum.
        share: of the multiply-adds of the layer.
    """

    weight: str
    basis: Wide
    mean: Wide
    lost: float
    directions: float
    share: float = 1.0

    @property
    def rank(self) -> int:
        """How many directions stay."""
        return int(self.basis.shape[1])

    @property
    def shift(self) -> Wide:
        """What the bias has to make up for."""
        return np.asarray(self.mean - self.basis @ (self.basis.T @ self.mean))

    def product(self, matrix: Wide) -> Wide:
        """The weight (outputs, channels, places) that both products come to."""
        return np.asarray(self.basis @ (self.basis.T @ matrix.reshape(len(matrix), -1))).reshape(matrix.shape)

    def halves(self, reader: Reader, old: NDArray[Any], node: Any, first: str, inner: str) -> Halves:
        """The product that makes directions, and the one that makes outputs of them."""
        import onnx

        w = reader.matrix(old)
        down = self.basis.T @ w.reshape(len(w), -1)
        up = type(node).FromString(node.SerializeToString())
        if reader.kind != "conv":
            one = onnx.helper.make_node("MatMul", [node.input[0], first], [inner])
            return Halves((one, up), down.T, self.basis.T if reader.kind == "right" else self.basis)
        one = type(node).FromString(node.SerializeToString())
        del one.input[2:]
        kept = [a for a in up.attribute if a.name == "group"]
        del up.attribute[:]
        up.attribute.extend([*kept, onnx.helper.make_attribute("kernel_shape", [1] * (old.ndim - 2))])
        return Halves(
            (one, up), down.reshape(-1, *old.shape[1:]), self.basis.reshape(*self.basis.shape, *[1] * (old.ndim - 2))
        )

    def __str__(self) -> str:
        return f"{self.rank} of {len(self.basis)} directions, effective size {self.directions:.1f}"


def find_thin(
    view: View, readers: Sequence[Reader], moments: Sequence[Wide], *, largest: bool = False
) -> list[Thin]:
    """Every split that is less work than the layer it is of: by layer, ranks from many to few.

    `moments` are those of (x, 1) of each reader; with `largest` the first alone.
    """
    out: list[Thin] = []
    for reader, moment in zip(readers, moments, strict=True):
        w = reader.matrix(view.constants[reader.weight])
        flat = w.reshape(len(w), -1)
        if not (np.isfinite(flat).all() and np.isfinite(moment).all()):
            continue
        said = flat @ (moment[:-1, -1] if reader.bias else np.zeros(len(moment) - 1))
        values, vectors = np.linalg.eigh(flat @ moment[:-1, :-1] @ flat.T - np.outer(said, said))
        values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        whole = float(values.sum())
        most = int(WORTH * flat.size / sum(flat.shape)) // BLOCK * BLOCK
        if whole <= 0 or most < BLOCK:
            continue
        number = float(effective_size(values))
        ranks = {most * q // 4 // BLOCK * BLOCK for q in ((4,) if largest else (4, 3, 2, 1))}
        out += [
            Thin(
                reader.weight, vectors[:, :r], said, 1 - float(values[:r].sum()) / whole, number,
                r * sum(flat.shape) / flat.size,
            )
            for r in sorted(ranks, reverse=True)
            if BLOCK <= r < min(flat.shape)
        ]  # fmt: skip
    return out
