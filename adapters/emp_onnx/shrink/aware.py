"""Fits that know of the bound behind them: what a Relu or Clip cuts off need not be reached.

A reader whose result z goes into f(z) = min(max(z, a), b) and nowhere else has to say f(y), not y, where y is what the
dense one says. Where y lies below a any z below a does as well, and where y lies above b any z above b. So the squared
error that counts is at most

    Σ (z − t)²,   t = y within the bounds,  min(z₀, a) where y < a,  max(z₀, b) where y > b,

with equality at z = z₀ where y lies outside; within, the error of z is no less than that of f(z). Least squares to t
with z₀ the present fit, again and again, each time with the same square matrix and other right sides, brings this down
(majorisation; the aim is that of Zhang et al. 2016, Accelerating Very Deep Convolutional Networks).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.bounds import bounds_of
from emp_onnx.shrink.cut import Masks
from emp_onnx.shrink.moments import samples
from emp_onnx.shrink.readers import Reader
from emp_onnx.shrink.refit import RIDGE, kept_of, put_fit, rows_of
from emp_onnx.shrink.view import View

__all__ = ["bounded", "refit_bounded", "towards"]

ROUNDS = 8  # of least squares
MEMORY = 1 << 26  # numbers of the samples of the readers that are fitted together
Wide = NDArray[np.float64]


def towards(
    x: NDArray[Any], kept: NDArray[np.bool_], target: Wide, bias: Wide, bounds: tuple[float, float], *,
    ridge: float = RIDGE, rounds: int = ROUNDS,
) -> tuple[Wide, Wide]:  # fmt: skip
    """M' (outputs, kept) and b' such that f(M'z + b') is near f(Mx + b), z the features of x that are kept.

    Args:
        x: samples (number, features).
        kept: which features stay.
        target, bias: M (outputs, features) and b.
        bounds: between which f keeps its input.
        ridge: towards M without what goes, of the mean of the diagonal.
        rounds: of least squares; 0 is the fit that knows of no bound.
    """
    z = x[:, kept].astype(np.float64)
    mean = z.mean(0)
    z -= mean
    said = x @ target.T + bias
    prior = target[:, kept]
    h = z.T @ z / len(z)
    level = ridge * float(np.trace(h)) / max(len(h), 1) + 1e-12
    inverse: Any = np.linalg.inv(h + level * np.eye(len(h)))
    low, high = bounds
    below, above = said < low, said > high

    def fitted(goal: Wide) -> tuple[Wide, Wide]:
        centre = goal.mean(0)
        return ((goal - centre).T @ z / len(z) + level * prior) @ inverse, centre

    new, centre = fitted(said)
    for _ in range(rounds):
        now = z @ new.T + centre
        new, centre = fitted(np.where(below, np.minimum(now, low), np.where(above, np.maximum(now, high), said)))
    return new, centre - new @ mean


def bounded(view: View, readers: Sequence[Reader]) -> dict[int, tuple[float, float]]:
    """The readers with a bias whose results go into a bound and nowhere else, by their number."""
    found = {}
    for i, reader in enumerate(readers):
        name = reader.op.outputs[0]
        if not reader.bias or reader.kind in ("input", "state", "left"):
            continue
        behind = view.readers.get(name, [])
        if len(behind) == 1 and reader.bias in behind[0][0].inputs:  # a product and the sum that is its bias
            name = behind[0][0].outputs[0]
            behind = view.readers.get(name, [])
        if len(behind) == 1 and name not in view.outputs and name not in view.captured and not behind[0][1]:
            bounds = bounds_of(behind[0][0], view)
            if bounds is not None:
                found[i] = bounds
    return found


def refit_bounded(
    view: View, shrunk: Any, masks: Masks, readers: Sequence[Reader], feeds: Sequence[Feed], *,
    ridge: float = RIDGE, threads: int = 1,
) -> None:  # fmt: skip
    """Refit, in place, each reader whose input was cut and whose result is bounded, as if nothing had changed before
    it."""
    import onnx

    tensors = {t.name: t for t in shrunk.graph.initializer}
    found = {
        i: bounds for i, bounds in bounded(view, readers).items()
        if (readers[i].source, readers[i].axis) in masks and readers[i].weight in tensors
    }  # fmt: skip
    for some in _lots(readers, found):
        for i, x in zip(some, samples(view.model, [readers[i] for i in some], feeds, threads=threads), strict=True):
            reader = readers[i]
            rows = rows_of(view, masks, reader)
            full = reader.matrix(view.constants[reader.weight])
            bias = view.constants[reader.bias].astype(np.float64).ravel()
            kept = kept_of(masks[reader.source, reader.axis], x.shape[1])
            target = full.reshape(len(full), -1)[rows]
            new, shift = towards(x, kept, target, bias[rows], found[i], ridge=ridge)
            put_fit(view, tensors, masks, reader, new, shift - bias[rows], onnx)


def _lots(readers: Sequence[Reader], found: Mapping[int, Any]) -> Iterator[list[int]]:
    """Readers whose samples are held at once."""
    some: list[int] = []
    size = 0
    for i in found:
        more = samples_of(readers[i])
        if some and size + more > MEMORY:
            yield some
            some, size = [], 0
        some.append(i)
        size += more
    if some:
        yield some


def samples_of(reader: Reader) -> int:
    """About how many numbers the samples of a reader are."""
    features = reader.channels * int(np.prod(reader.op.attributes.get("kernel_shape", ())) or 1)
    return features * 10 * features
