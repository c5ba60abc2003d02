"""Second moments of what goes into a linear map and of what should come out, summed in float64, and mergeable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Moments"]

Array = NDArray[Any]
Float = NDArray[np.float64]


@dataclass(eq=False)
class Moments:
    """Sums over samples, for each group: of X (d inputs) and Y (what should come out, `out` of them).

    Attributes:
        count: samples.
        x, y: sums, (groups, d) and (groups, out).
        xx: Σ x xᵀ, (groups, d, d); yx: Σ y xᵀ, (groups, out, d); yy: Σ y², (groups, out).
    """

    count: int
    x: Float
    y: Float
    xx: Float
    yx: Float
    yy: Float

    @classmethod
    def empty(cls, groups: int, out: int, d: int) -> Moments:
        """No samples yet."""
        return cls(
            0, np.zeros((groups, d)), np.zeros((groups, out)), np.zeros((groups, d, d)), np.zeros((groups, out, d)),
            np.zeros((groups, out)),
        )  # fmt: skip

    def add(self, x: Array, y: Array) -> None:
        """Take samples in: X of shape (groups, samples, d), Y of shape (groups, samples, out)."""
        x = np.asarray(x, np.float64)
        y = np.asarray(y, np.float64)
        self.count += x.shape[1]
        self.x += x.sum(1)
        self.y += y.sum(1)
        self.xx += x.swapaxes(1, 2) @ x
        self.yx += y.swapaxes(1, 2) @ x
        self.yy += (y * y).sum(1)

    def merge(self, other: Moments) -> Moments:
        """The sums over both."""
        return Moments(
            self.count + other.count, self.x + other.x, self.y + other.y, self.xx + other.xx, self.yx + other.yx,
            self.yy + other.yy,
        )  # fmt: skip

    def centred(self) -> tuple[Float, Float, Float]:
        """Covariances per sample: of X (groups, d, d), of Y with X (groups, out, d), variances of Y (groups, out)."""
        n = max(self.count, 1)
        x, y = self.x / n, self.y / n
        return (
            self.xx / n - x[:, :, None] * x[:, None, :],
            self.yx / n - y[:, :, None] * x[:, None, :],
            np.maximum(self.yy / n - y * y, 0),
        )

    def raw(self) -> tuple[Float, Float, Float]:
        """The same without taking off means."""
        n = max(self.count, 1)
        return self.xx / n, self.yx / n, self.yy / n
