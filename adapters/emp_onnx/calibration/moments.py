"""Second moments of what goes into a linear map and of what should come out, summed in float64, and mergeable.

What the dense network wants of a layer is W·x of inputs that are summed anyway, so its moments follow from theirs and
no output is ever made: Σ y xᵀ = W·Σ x xᵀ. With the inputs of a pruned network beside it, the sum in the middle is that
of the dense inputs times the pruned ones; where a layer has few outputs these are made after all, since that is less
work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Moments", "Samples", "Sums"]

Array = NDArray[Any]
Float = NDArray[np.float64]
ROWS = 1024  # samples that are gathered before they are multiplied: of a few, adding the product takes longest
SMALL = 64  # inputs below which products are taken as they come
PANEL = 512  # rows of a product that are made before they are added: all of a large one would be too much memory


@dataclass(eq=False)
class Moments:
    """Sums over samples, for each group: of X (d inputs) and Y (what should come out, `out` of them).

    Attributes:
        count: samples.
        x, y: sums, (groups, d) and (groups, out).
        xx: Σ x xᵀ, (groups, d, d); yx: Σ y xᵀ, (groups, out, d).
        yy: Σ y², (groups, out); None where it was not summed.
    """

    count: int
    x: Float
    y: Float
    xx: Float
    yx: Float
    yy: Float | None

    def merge(self, other: Moments | Samples) -> Moments | Samples:
        """The sums over both."""
        yy = None if self.yy is None or other.yy is None else self.yy + other.yy
        return Moments(
            self.count + other.count, self.x + other.x, self.y + other.y, self.xx + other.xx, self.yx + other.yx, yy
        )

    def rows(self, some: NDArray[np.intp]) -> Moments:
        """The same of some outputs alone."""
        yy = None if self.yy is None else self.yy[:, some]
        return replace(self, y=self.y[:, some], yx=self.yx[:, some], yy=yy)

    def centred(self) -> tuple[Float, Float]:
        """Covariances per sample: of X (groups, d, d), and of Y with X (groups, out, d)."""
        n = max(self.count, 1)
        x, y = self.x / n, self.y / n
        xx, yx = self.raw()
        xx -= x[:, :, None] * x[:, None, :]
        yx -= y[:, :, None] * x[:, None, :]
        return xx, yx

    def spread(self) -> Float:
        """The variance of each input per sample, (groups, d)."""
        n = max(self.count, 1)
        return np.asarray(np.maximum(np.einsum("gii->gi", self.xx) / n - (self.x / n) ** 2, 0))

    def raw(self) -> tuple[Float, Float]:
        """The same without taking off means."""
        n = max(self.count, 1)
        return self.xx / n, self.yx / n

    def miss(self, w: Float, centred: bool) -> float:
        """How far W·x is from y, squared, per sample, up to a constant: to compare weights by."""
        xx, yx = self.centred() if centred else self.raw()
        return float(np.einsum("god,god->", w @ xx - 2 * yx, w))

    def variance(self, centred: bool) -> float:
        """Of Y per sample, over all outputs; its mean square if not `centred`."""
        assert self.yy is not None
        n = max(self.count, 1)
        return float(np.maximum(self.yy / n - (self.y / n) ** 2 if centred else self.yy / n, 0).sum())


class Samples:
    """The samples themselves, where they are so few that their moments would be larger: the same face as `Moments`.

    Attributes:
        rows_x: (samples, d), in float64, or as they came; rows_y: (samples, out), in float64.
    """

    def __init__(self, rows_x: Array, rows_y: Float) -> None:
        self.rows_x, self.rows_y = rows_x, rows_y
        self.count = len(rows_x)
        self.x, self.y = rows_x.sum(0, dtype=np.float64)[None], rows_y.sum(0)[None]

    @cached_property
    def xx(self) -> Float:
        """Σ x xᵀ."""
        x = self.rows_x.astype(np.float64)
        return (x.T @ x)[None]

    @cached_property
    def yx(self) -> Float:
        """Σ y xᵀ."""
        return (self.rows_y.T @ self.rows_x.astype(np.float64))[None]

    @property
    def yy(self) -> Float:
        """Σ y²."""
        found: Float = np.einsum("no,no->o", self.rows_y, self.rows_y)[None]
        return found

    def merge(self, other: Moments | Samples) -> Moments | Samples:
        """Both: still samples if these are few enough."""
        if isinstance(other, Samples) and few(self.count + other.count, self.rows_x.shape[1]):
            x, y = (np.concatenate(pair) for pair in ((self.rows_x, other.rows_x), (self.rows_y, other.rows_y)))
            return Samples(x, y)
        return Moments(self.count, self.x, self.y, self.xx, self.yx, self.yy).merge(other)

    def rows(self, some: NDArray[np.intp]) -> Samples:
        """The same of some outputs alone."""
        return Samples(self.rows_x, self.rows_y[:, some])

    def scaled(self, centred: bool) -> tuple[Float, Float]:
        """X and Y divided by √count, their means taken off if `centred`: the products of these are the moments."""
        x, y = self.rows_x, self.rows_y
        if centred:
            x, y = (a - a.mean(0, dtype=np.float64) for a in (x, y))
        root = np.sqrt(self.count)
        return (np.divide(x, root, out=x), np.divide(y, root, out=y)) if centred else (x / root, y / root)

    def centred(self) -> tuple[Float, Float]:
        """See `Moments.centred`."""
        x, y = self.scaled(True)
        return (x.T @ x)[None], (y.T @ x)[None]

    def spread(self) -> Float:
        """See `Moments.spread`."""
        return np.asarray(self.rows_x.var(0, dtype=np.float64), np.float64)[None]

    def raw(self) -> tuple[Float, Float]:
        """See `Moments.raw`."""
        return self.xx / self.count, self.yx / self.count

    def miss(self, w: Float, centred: bool) -> float:
        """See `Moments.miss`."""
        x, y = self.scaled(centred)
        return float(np.square(x @ w[0].T - y).sum())

    def variance(self, centred: bool) -> float:
        """See `Moments.variance`."""
        return float(np.square(self.scaled(centred)[1]).sum())


def few(count: int, d: int) -> bool:
    """Whether so many samples of so many inputs are better kept than multiplied."""
    return 2 * count <= d and d >= SMALL


class Sums:
    """Adds samples up, and gives the moments of all of them.

    Args:
        groups, d: of the inputs.
        out: outputs, where what should come out is made sample by sample; None where it follows from the inputs.
        two: whether inputs of two networks are given.
    """

    def __init__(self, groups: int, d: int, out: int | None = None, two: bool = False) -> None:
        self.count, self.shape, self.made = 0, (groups, d, out), out is not None
        self.x, self.dense = np.zeros((groups, d)), np.zeros((groups, d))
        self.y = np.zeros((groups, out or 0))
        self.two = two and out is None
        self.early: list[tuple[Array, Array]] | None = [] if groups == 1 else None
        self.xx: _Product | None = None
        self.other: _Product | None = None  # what should come out, or the dense network's inputs, with the inputs

    def add(self, x: Array, want: Array | None = None, y: Float | None = None) -> None:
        """Take samples in: X of shape (groups, samples, d), the dense network's beside it, or what should come out."""
        self.count += x.shape[1]
        second = y if self.made else want if self.two else x
        assert second is not None
        if self.early is not None:
            self.early.append((x, second))
            if few(self.count, self.shape[1]):
                return
            early, self.early = self.early, None
            for pair in early:
                self._take(*pair)
        else:
            self._take(x, second)

    def _take(self, x: Array, second: Array) -> None:
        groups, d, out = self.shape
        if self.xx is None:
            self.xx = _Product(groups, d, d)
            if self.made or self.two:
                self.other = _Product(groups, out or d, d)
        self.x += x.sum(1, dtype=np.float64)
        self.xx.add(x, x)
        if self.other is not None:
            if self.made:
                self.y += second.sum(1)
            else:
                self.dense += second.sum(1, dtype=np.float64)
            self.other.add(second, x)

    def moments(self, w: Float) -> Moments | Samples:
        """The moments, given the dense weights (groups, out, d)."""
        if self.early:
            x = np.concatenate([one[0] for one, _ in self.early], dtype=np.float64)
            second = np.concatenate([two[0] for _, two in self.early], dtype=np.float64)
            return Samples(x, second if self.made else second @ w[0].T)
        groups, d, _ = self.shape
        if self.xx is None:
            zeros = np.zeros(w.shape)
            return Moments(0, self.x, zeros[..., 0], np.zeros((groups, d, d)), zeros, zeros[..., 0])
        xx = self.xx.sum()
        if self.other is None:
            yx = w @ xx
            yy = np.maximum(np.einsum("god,god->go", yx, w), 0)
            return Moments(self.count, self.x, _times(w, self.x), xx, yx, yy)
        if self.made:
            return Moments(self.count, self.x, self.y, xx, self.other.sum(), None)
        return Moments(self.count, self.x, _times(w, self.dense), xx, w @ self.other.sum(), None)


def _times(w: Float, x: Float) -> Float:
    return np.asarray((w @ x[..., None])[..., 0], np.float64)


class _Product:
    """Σ aᵀ b over samples, in float64; samples of large matrices are gathered, and then added in place."""

    def __init__(self, groups: int, rows: int, columns: int) -> None:
        self.total = np.zeros((groups, rows, columns))
        self.waiting: list[tuple[Array, Array]] = []
        self.held = 0
        self.half = False

    def add(self, a: Array, b: Array) -> None:
        if self.total.shape[0] > 1 or min(self.total.shape[1:]) < SMALL:
            left = a.astype(np.float64)
            right = left if a is b else b.astype(np.float64)
            self.total += left.swapaxes(1, 2) @ right
            return
        one = a[0]
        self.waiting.append((one, one if a is b else b[0]))
        self.held += a.shape[1]
        if self.held >= ROWS:
            self._flush()

    def sum(self) -> Float:
        """Everything so far."""
        self._flush()
        if self.half:  # only the upper half is there, panel by panel
            whole = self.total[0]
            for i in range(0, len(whole), PANEL):
                j = i + PANEL
                whole[j:, i:j] = whole[i:j, j:].T
        return self.total

    def _flush(self) -> None:
        if not self.waiting:
            return
        same = all(a is b for a, b in self.waiting)
        left = np.concatenate([a for a, _ in self.waiting], dtype=np.float64)
        right = left if same else np.concatenate([b for _, b in self.waiting], dtype=np.float64)
        self.waiting, self.held = [], 0
        rows = self.total.shape[1]
        self.half = same and rows > PANEL
        for i in range(0, rows, PANEL):
            start = i if self.half else 0
            self.total[0, i : i + PANEL, start:] += left[:, i : i + PANEL].T @ right[:, start:]
