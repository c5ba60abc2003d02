"""Second moments of what goes into a linear map and of what should come out, summed in float64, and mergeable.

What the dense network wants of a layer is W·x of inputs that are summed anyway, so its moments follow from theirs and
no output is ever made: Σ y xᵀ = W·Σ x xᵀ. With the inputs of a pruned network beside it, the sum in the middle is that
of the dense inputs times the pruned ones; where a layer has few outputs these are made after all, since that is less
work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Moments", "Sums"]

Array = NDArray[Any]
Float = NDArray[np.float64]
ROWS = 1024  # samples that are gathered before they are multiplied: of a few, adding the product takes longest
SMALL = 64  # inputs below which products are taken as they come


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

    def merge(self, other: Moments) -> Moments:
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

    def raw(self) -> tuple[Float, Float]:
        """The same without taking off means."""
        n = max(self.count, 1)
        return self.xx / n, self.yx / n

    def variance(self, centred: bool) -> float:
        """Of Y per sample, over all outputs; its mean square if not `centred`."""
        assert self.yy is not None
        n = max(self.count, 1)
        return float(np.maximum(self.yy / n - (self.y / n) ** 2 if centred else self.yy / n, 0).sum())


class Sums:
    """Adds samples up, and gives the moments of all of them.

    Args:
        groups, d: of the inputs.
        out: outputs, where what should come out is made sample by sample; None where it follows from the inputs.
        two: whether inputs of two networks are given.
    """

    def __init__(self, groups: int, d: int, out: int | None = None, two: bool = False) -> None:
        self.count = 0
        self.x, self.dense = np.zeros((groups, d)), np.zeros((groups, d))
        self.xx = _Product(groups, d, d)
        self.cross = _Product(groups, d, d) if two and out is None else None
        self.yx = _Product(groups, out, d) if out is not None else None
        self.y = np.zeros((groups, out or 0))

    def add(self, x: Array, want: Array | None = None, y: Float | None = None) -> None:
        """Take samples in: X of shape (groups, samples, d), the dense network's beside it, or what should come out."""
        self.count += x.shape[1]
        self.x += x.sum(1, dtype=np.float64)
        self.xx.add(x, x)
        if y is not None:
            assert self.yx is not None
            self.y += y.sum(1)
            self.yx.add(y, x)
        elif self.cross is not None:
            assert want is not None
            self.dense += want.sum(1, dtype=np.float64)
            self.cross.add(want, x)

    def moments(self, w: Float) -> Moments:
        """The moments, given the dense weights (groups, out, d)."""
        xx = self.xx.sum()
        if self.yx is not None:
            return Moments(self.count, self.x, self.y, xx, self.yx.sum(), None)
        if self.cross is not None:
            return Moments(self.count, self.x, _times(w, self.dense), xx, w @ self.cross.sum(), None)
        yx = w @ xx
        return Moments(self.count, self.x, _times(w, self.x), xx, yx, np.maximum(np.einsum("god,god->go", yx, w), 0))


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
        if self.half:  # only the upper half is there
            whole = self.total[0]
            for i in range(0, len(whole), ROWS):
                j = i + ROWS
                corner = whole[i:j, i:j]
                corner[:] = np.triu(corner) + np.triu(corner, 1).T
                whole[j:, i:j] = whole[i:j, j:].T
            self.half = False
        return self.total

    def _flush(self) -> None:
        if not self.waiting:
            return
        from scipy.linalg.blas import dgemm, dsyrk  # takes as long to import as a small model takes altogether

        same = all(a is b for a, b in self.waiting)
        left = np.concatenate([a for a, _ in self.waiting], dtype=np.float64)
        right = left if same else np.concatenate([b for _, b in self.waiting], dtype=np.float64)
        self.waiting, self.held = [], 0
        # these speak of columns where NumPy has rows: their matrix is ours transposed, lower there is upper here
        if same:
            self.half = True
            done = dsyrk(1.0, left.T, beta=1.0, c=self.total[0].T, lower=1, overwrite_c=1)
        else:
            done = dgemm(1.0, right.T, left.T, beta=1.0, c=self.total[0].T, trans_b=1, overwrite_c=1)
        assert np.shares_memory(done, self.total)
