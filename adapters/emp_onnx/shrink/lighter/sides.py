"""Two thin convolutions for one with a kernel of two sides: along one side, then along the other.

A weight W (outputs, channels, k, l) as a matrix from pairs (channel, place along the first side) to pairs (output,
place along the second) has rank at most min(channels·k, outputs·l), and what it says on real inputs is nearly of a
far lower one. With r numbers between,

    y  ≈  Σⱼ Uⱼ · (V ∗ x) moved by j,    V (r, channels, k) along the first side, U (outputs, r, l) along the second,

which is r·(channels·k + outputs·l) multiply-adds a place instead of outputs·channels·k·l (Jaderberg et al. 2014). V are
the first singular vectors of W in the metric of the feeds, A^½·W·B^½, with A and B the covariances of what lies
along the first and the second side; U follows in closed form, from the covariance of all of x. Where W is small
enough V does too, and both in turn, which lowers what is lost each time.

Zeros beyond the edges of x are zeros beyond those of V ∗ x, for there is no bias between: W' = U∘V is exact there too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.shrink.axes.trace import Trace
from emp_onnx.shrink.fitting.readers import Reader
from emp_onnx.shrink.lighter.split import Halves
from emp_onnx.shrink.lighter.thin import BLOCK, WORTH
from emp_onnx.shrink.view import View

__all__ = ["Sides", "find_sides", "fitted"]

RIDGE = 1e-3  # of the mean of the diagonal
LARGE = 3200  # unknowns of V: with more it is not fitted again
ROUNDS = 3  # of both in turn
PAIRED = ("strides", "dilations")  # attributes with a number for each side
Wide = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Sides:
    """One layer's split by the sides of its kernel.

    Attributes:
        weight: name of its constant.
        first: V (rank, channels, k).
        second: U (outputs, rank, l).
        across: whether the first convolution is along the last axis.
        shift: of the bias, (outputs,).
        lost: share of the variance of W·x that is left out.
        share: of the multiply-adds of the layer.
    """

    weight: str
    first: Wide
    second: Wide
    across: bool
    lost: float
    share: float
    shift: Wide = field(repr=False)

    @property
    def rank(self) -> int:
        """How many numbers a place lie between."""
        return len(self.first)

    def product(self, matrix: Wide) -> Wide:
        """The weight (outputs, channels, places) that both convolutions come to."""
        w = np.einsum("orl,rck->ockl", self.second, self.first)
        return np.ascontiguousarray(w.swapaxes(2, 3) if self.across else w).reshape(matrix.shape)

    def halves(self, reader: Reader, old: NDArray[Any], node: Any, first: str, inner: str) -> Halves:
        """The convolution along one side, and the one along the other."""
        one, two = (type(node).FromString(node.SerializeToString()) for _ in range(2))
        del one.input[2:]
        ahead, behind = (1, 0) if self.across else (0, 1)
        _along(one, ahead, old.shape[2:])
        _along(two, behind, old.shape[2:])
        return Halves((one, two), np.expand_dims(self.first, 2 + behind), np.expand_dims(self.second, 2 + ahead))

    def __str__(self) -> str:
        return f"{self.rank} channels between the sides of its kernel"


def _along(node: Any, side: int, kernel: Sequence[int]) -> None:
    """Let a convolution work along one side alone."""
    import onnx

    kept = []
    for attribute in node.attribute:
        values = list(attribute.ints)
        if attribute.name in PAIRED:
            values = [v if i == side else 1 for i, v in enumerate(values)]
        elif attribute.name == "pads":
            values = [v if i % 2 == side else 0 for i, v in enumerate(values)]
        elif attribute.name == "kernel_shape":
            continue
        else:
            kept.append(attribute)
            continue
        kept.append(onnx.helper.make_attribute(attribute.name, values))
    kept.append(onnx.helper.make_attribute("kernel_shape", [k if i == side else 1 for i, k in enumerate(kernel)]))
    copies = [type(a).FromString(a.SerializeToString()) for a in kept]
    del node.attribute[:]
    node.attribute.extend(copies)


def find_sides(
    view: View, traced: Trace, readers: Sequence[Reader], moments: Sequence[Wide],
    *, largest: bool = False, rounds: int = ROUNDS,
) -> list[Sides]:  # fmt: skip
    """Every split that is less work than the layer it is of, ranks from many to few, each along the side first that
    loses less; arguments as in `find_thin` and `fitted`, and the sizes of tensors."""
    out: list[Sides] = []
    for reader, moment in zip(readers, moments, strict=True):
        w = view.constants[reader.weight].astype(np.float64)
        source, made = (traced.runs[0].get(name, ()) for name in (reader.source, reader.op.outputs[0]))
        if not _suits(reader, w) or not source or not made or not (np.isfinite(w).all() and np.isfinite(moment).all()):
            continue
        metrics = [_Metric(w, moment, across=across, bias=bool(reader.bias)) for across in (False, True)]
        for rank in _ranks(w.shape):
            shares = [_share(w.shape, rank, source, made, across) for across in (False, True)]
            ways = [across for across in (False, True) if shares[across] <= WORTH]
            if ways:
                across = min(ways, key=lambda way: metrics[way].fitted(rank, 0)[3])
                first, second, shift, lost = metrics[across].fitted(rank, rounds)
                out.append(Sides(reader.weight, first, second, across, lost, shares[across], shift))
                if largest:
                    break
    return out


def _share(shape: Sequence[int], rank: int, source: Sequence[int], made: Sequence[int], across: bool) -> float:
    """Of a layer's multiply-adds, what both convolutions need."""
    outs, channels, *kernel = shape
    ahead = 1 if across else 0
    between = made[2 + ahead] * source[3 - ahead]  # the second one alone takes steps along the other side
    work = rank * (channels * kernel[ahead] * between + outs * kernel[1 - ahead] * prod(made[2:]))
    return float(work / (prod(shape) * prod(made[2:])))


def _suits(reader: Reader, w: Wide) -> bool:
    auto = reader.op.attributes.get("auto_pad", b"NOTSET")
    return reader.kind == "conv" and w.ndim == 4 and min(w.shape[2:]) > 1 and auto in (b"NOTSET", b"VALID")


def _ranks(shape: Sequence[int]) -> list[int]:
    outs, channels, k, other = shape
    most = min(outs * other, channels * k)
    fewest = int(WORTH * outs * channels * k * other / min(channels * k + outs * other, channels * other + outs * k))
    steps = {min(most, fewest) * q // 4 // BLOCK * BLOCK for q in (4, 3, 2)}
    return sorted((r for r in steps if r >= BLOCK), reverse=True)


class _Metric:
    """One weight along one side first, with what the feeds say of it, for all ranks."""

    def __init__(self, w: Wide, moment: Wide, *, across: bool, bias: bool) -> None:
        outs, channels, *kernel = w.shape
        mean = moment[:-1, -1] if bias else np.zeros(len(moment) - 1)
        h = (moment[:-1, :-1] - np.outer(mean, mean)).reshape(channels, *kernel, channels, *kernel)
        mean = mean.reshape(channels, *kernel)
        if across:
            w, h, mean = w.swapaxes(2, 3), h.swapaxes(1, 2).swapaxes(4, 5), mean.swapaxes(1, 2)
        k, other = w.shape[2:]
        size = channels * k * other
        h = np.ascontiguousarray(h).reshape(size, size)
        self.h = h + np.eye(size) * (RIDGE * float(np.trace(h)) / size + 1e-12)
        self.mean, self.flat = mean.reshape(-1), w.reshape(outs, -1)
        self.parts = self.h.reshape(channels, k, other, channels, k, other)
        self.said = self.flat @ self.h
        self.shape = outs, channels, k, other
        root, self.inverse = _root(np.einsum("aijbkj->aibk", self.parts).reshape(channels * k, -1))
        matrix = w.transpose(1, 2, 0, 3).reshape(-1, other) @ _root(np.einsum("aijail->jl", self.parts))[0]
        seen = root @ matrix.reshape(channels * k, outs * other)
        self.directions = np.linalg.eigh(seen @ seen.T)[1][:, ::-1]

    def fitted(self, rank: int, rounds: int) -> tuple[Wide, Wide, Wide, float]:
        """V, U, the shift of the bias and the share of the variance that is lost."""
        outs, channels, k, other = self.shape
        v = (self.inverse @ self.directions[:, :rank]).T.reshape(rank, channels, k)
        second, placed = _second(v, self.h, self.said, other)
        for _ in range(rounds if v.size <= LARGE else 0):
            v = _first(second.reshape(outs, rank, other), self.parts, self.said, v.shape)
            second, placed = _second(v, self.h, self.said, other)
        gap = self.flat - second @ placed
        lost = float(((gap @ self.h) * gap).sum() / (self.said * self.flat).sum())
        return v, second.reshape(outs, rank, other), gap @ self.mean, lost


def fitted(
    w: Wide, moment: Wide, rank: int, *, across: bool = False, bias: bool = True, rounds: int = ROUNDS
) -> tuple[Wide, Wide, Wide, float]:
    """V, U, the shift of the bias and the share of the variance of W·x that is lost.

    Args:
        w: the weight (outputs, channels, k, l).
        moment: of (x, 1), x the window that an output sums over.
        rank: how many numbers a place lie between.
        across: whether the last axis comes first.
        bias: whether there is one, so that covariances count; else moments do.
        rounds: of U and V in turn, where V is small enough.
    """
    return _Metric(w, moment, across=across, bias=bias).fitted(rank, rounds)


def _root(matrix: Wide) -> tuple[Wide, Wide]:
    values, vectors = np.linalg.eigh(matrix)
    values = np.sqrt(np.maximum(values, 1e-12 * max(float(values[-1]), 1e-300)))
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


def _second(v: Wide, h: Wide, said: Wide, other: int) -> tuple[Wide, Wide]:
    """U of least error for V, and V at each place along the second side as one matrix."""
    placed = np.einsum("rck,jl->rjckl", v, np.eye(other)).reshape(len(v) * other, -1)
    left = placed @ h @ placed.T
    level = 1e-9 * float(np.trace(left)) / len(left) + 1e-300
    return np.linalg.solve(left + level * np.eye(len(left)), placed @ said.T).T, placed


def _first(second: Wide, parts: Wide, said: Wide, shape: tuple[int, ...]) -> Wide:
    """V of least error for U."""
    inner = np.einsum("orj,osl->rjsl", second, second)
    rank, channels, k = shape
    left = np.einsum("rjsl,aijbkl->raisbk", inner, parts, optimize=True).reshape(rank * channels * k, -1)
    right = np.einsum("orj,oaij->rai", second, said.reshape(len(second), channels, k, -1), optimize=True)
    level = 1e-9 * float(np.trace(left)) / len(left) + 1e-300
    found: Any = np.linalg.solve(left + level * np.eye(len(left)), right.reshape(-1))
    return np.asarray(found.reshape(shape))
