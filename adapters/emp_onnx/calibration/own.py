"""Moments of what a linear map of the dense network reads, in single precision: in half the time and half the memory.

What should come out is W·x of the same inputs, so nothing is summed but these. Activations are in single precision
themselves, and they are summed as what they differ from the mean of the first samples: so a mean that is large beside
the spread costs no digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.moments import SMALL, Moments, Samples, few

__all__ = ["Found", "Own", "OwnSums", "merge"]

Array = NDArray[Any]
Float = NDArray[np.float64]
Single = NDArray[np.float32]
ROWS = 128  # samples that are gathered before they are multiplied
PANEL = 256  # rows of a product that are made before they are added: of large ones adding takes as long as multiplying


@dataclass(eq=False)
class Own:
    """The same face as `Moments`, of inputs X and of Y = W·X.

    Attributes:
        count: samples.
        mean: of X, (groups, d).
        covariance: of X per sample, (groups, d, d).
        weights: gives W, (groups, out, d).
    """

    count: int
    mean: Float
    covariance: Single
    weights: Callable[[], Float]

    @property
    def x(self) -> Float:
        """Σ x."""
        return self.mean * self.count

    @property
    def y(self) -> Float:
        """Σ y."""
        return np.asarray((self.weights() @ self.x[..., None])[..., 0], np.float64)

    @property
    def xx(self) -> Float:
        """Σ x xᵀ."""
        return np.asarray(self.second(False) * float(self.count), np.float64)

    @property
    def yx(self) -> Float:
        """Σ y xᵀ."""
        return np.asarray(self.weights() @ self.xx, np.float64)

    @property
    def yy(self) -> Float:
        """Σ y²."""
        w = self.weights()
        return np.asarray(np.einsum("god,god->go", w @ self.second(False), w) * float(self.count), np.float64)

    def second(self, centred: bool) -> Array:
        """The covariance of X per sample, or its second moment if not `centred`."""
        if centred:
            return self.covariance
        mean = self.mean.astype(np.float32)
        out = mean[:, :, None] * mean[:, None]
        out += self.covariance
        return out

    def merge(self, other: Found) -> Own:
        """Those of both."""
        two = other if isinstance(other, Own) else _of(other, self.weights)
        count = self.count + two.count
        a, b, gap = self.count / max(count, 1), two.count / max(count, 1), two.mean - self.mean
        covariance = a * self.covariance + b * two.covariance + a * b * gap[:, :, None] * gap[:, None, :]
        return Own(count, self.mean + b * gap, covariance.astype(np.float32), self.weights)

    def rows(self, some: NDArray[np.intp]) -> Own:
        """The same of some outputs alone."""
        weights = self.weights
        return replace(self, weights=lambda: weights()[:, some])

    def spread(self) -> Float:
        """The variance of each input per sample, (groups, d)."""
        return np.asarray(np.maximum(np.einsum("gii->gi", self.covariance), 0), np.float64)

    def variance(self, centred: bool) -> float:
        """Of Y per sample, over all outputs; its mean square if not `centred`."""
        w = self.weights()
        return max(0.0, float(np.einsum("god,god->", w @ self.second(centred), w)))

    def miss(self, w: Float, centred: bool) -> float:
        """See `Moments.miss`."""
        gap = w - self.weights()
        return float(np.einsum("god,god->", gap @ self.second(centred), gap))


Found = Moments | Samples | Own


def merge(one: Found, other: Found, /) -> Found:
    """The moments of the samples of both."""
    if isinstance(other, Own):
        return other.merge(one)
    return one.merge(other)


def _of(other: Moments | Samples, weights: Callable[[], Float]) -> Own:
    n = max(other.count, 1)
    return Own(other.count, other.x / n, other.centred()[0].astype(np.float32), weights)


class OwnSums:
    """Adds samples of X up, and gives the moments of all of them. See `Sums`."""

    def __init__(self, groups: int, d: int) -> None:
        self.count = 0
        self.x, self.shift = np.zeros((groups, d)), np.zeros((groups, 1, d), np.float32)
        self.early: list[Array] | None = [] if groups == 1 else None  # samples, as long as they are few
        self.buffer: Single | None = None  # samples that wait to be multiplied, `held` of them
        self.held = 0
        self.total: Single | None = None
        self.covariance: Single | None = None

    def add(self, x: Array, want: Array | None = None, y: Float | None = None) -> None:
        """Take samples in, (groups, samples, d); the dense network's are the same ones.

        Beyond the first few they are copied, not kept: small arrays that stay lie between the large ones of a run, and
        memory falls to pieces.
        """
        _, n, d = x.shape
        if not self.count and n:
            self.shift = x.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)
        self.count += n
        if self.early is not None:
            self.early.append(x)
            if few(self.count, d):
                return
            early, self.early = self.early, None
            for one in early:
                self._take(one)
        else:
            self._take(x)

    def moments(self, weights: Callable[[], Float]) -> Samples | Own:
        """The moments, given what gives the dense weights."""
        if self.early:
            x = np.concatenate([one[0] for one in self.early])
            self.early = [x[None]]
            return Samples(x, x @ weights()[0].T)
        self._flush()
        self.buffer = None
        groups, d = self.x.shape
        n = max(self.count, 1)
        mean = self.x / n
        if self.covariance is None:
            self.covariance = self._covariance(mean) if self.total is not None else np.zeros((groups, d, d), np.float32)
        return Own(self.count, mean + self.shift[:, 0], self.covariance, weights)

    def _covariance(self, mean: Float) -> Single:
        """Made of the total, and in its place."""
        covariance, self.total = self.total, None
        assert covariance is not None
        covariance /= np.float32(max(self.count, 1))
        d = covariance.shape[-1]
        off = mean.astype(np.float32)  # from the shift
        for i in range(0, d, PANEL):
            j = i + PANEL
            if d > PANEL:  # only the upper half is there, panel by panel
                covariance[:, j:, i:j] = covariance[:, i:j, j:].swapaxes(1, 2)
            covariance[:, i:j] -= off[:, i:j, None] * off[:, None]
        return covariance

    def _take(self, x: Array) -> None:
        n = x.shape[1]
        if n >= ROWS:
            self._flush()
            for i in range(0, n, 4 * ROWS):
                self._multiply(np.subtract(x[:, i : i + 4 * ROWS], self.shift, dtype=np.float32, casting="same_kind"))
            return
        if self.buffer is None:
            groups, _, d = x.shape
            self.buffer = np.empty((groups, ROWS if d >= SMALL else n, d), np.float32)
        start = 0
        while start < n:
            stop = min(n, start + self.buffer.shape[1] - self.held)
            held = self.held + stop - start
            np.subtract(x[:, start:stop], self.shift, out=self.buffer[:, self.held : held], casting="same_kind")
            start, self.held = stop, held
            if self.held == self.buffer.shape[1]:
                self._flush()

    def _flush(self) -> None:
        if self.buffer is not None and self.held:
            x, self.held = self.buffer[:, : self.held], 0
            self._multiply(x)

    def _multiply(self, x: Single) -> None:
        groups, _, d = x.shape
        if self.total is None:
            self.total = np.zeros((groups, d, d), np.float32)
        self.x += x.sum(1, dtype=np.float64)
        if d <= PANEL:
            self.total += x.swapaxes(1, 2) @ x
            return
        for total, one in zip(self.total, x, strict=True):
            for i in range(0, d, PANEL):
                j = i + PANEL
                left = one[:, i:j].T
                total[i:j, i:j] += left @ one[:, i:j]  # of a matrix with itself: half the work
                total[i:j, j:] += left @ one[:, j:]
