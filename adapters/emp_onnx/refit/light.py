"""The loss of a large layer in single precision: its moments stay as they are, and what is added to them is kept apart.

So a layer with 4,000 inputs is solved with one matrix beside its moments, not with four in double precision.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.refit.loss import Quadratic, pull, root

__all__ = ["Light"]

Float = NDArray[np.float64]
Single = NDArray[np.float32]


class Light(Quadratic):
    """A = C + diag(weight), with C of shape (groups, d, d) in single precision, and weight (groups, d)."""

    block = 1 << 17

    def __init__(self, c: Single, weight: Float, best: Any) -> None:
        self.c, self.weight, self.best = c, weight, best
        self._single_weight = weight.astype(np.float32)

    @classmethod
    def own(cls, c: Single, best: Float, strength: float) -> Light:
        """`Quadratic.ridge` where Y = `best`·X, and the pull is towards `best` too, which is then the solution."""
        apart = pull(np.diagonal(c, axis1=1, axis2=2).astype(np.float64))
        return cls(c, strength * apart, best.astype(np.float32))

    @cached_property
    def a(self) -> Float:  # type: ignore[override]
        """A itself, for those who cannot do without."""
        found = self.c.astype(np.float64)
        np.einsum("gii->gi", found)[...] += self.weight
        return found

    @cached_property
    def diagonal(self) -> Float:
        """Of A, (groups, d)."""
        return np.diagonal(self.c, axis1=1, axis2=2) + self.weight

    @cached_property
    def target(self) -> Float:
        """W₀·A."""
        return np.asarray(self.whole(self.best), np.float64)

    @cached_property
    def wanted(self) -> Single:
        """W₀·A in single precision."""
        return np.asarray(self.whole(self.best), np.float32)

    def times(self, w: Any, group: int) -> Any:
        """W·A of some rows of a group."""
        out = w @ self.c[group]
        out += w * self._single_weight[group]
        return out

    def whole(self, w: Any) -> Any:
        """W·A."""
        out = w @ self.c
        out += w * (self._single_weight if w.dtype == np.float32 else self.weight)[:, None]
        return out

    @cached_property
    def rise(self) -> Float:
        """1 / [A⁻¹]ⱼⱼ; where A is singular to single precision, of one to which more is added."""
        found = []
        for c, weight in zip(self.c, self._single_weight, strict=True):
            for more in range(12):
                a = c.copy()
                np.einsum("ii->i", a)[...] += weight * np.float32(10**more)
                try:
                    one = root(a)
                except np.linalg.LinAlgError:
                    continue
                found.append(1 / np.einsum("ij,ij->j", one, one).astype(np.float64))
                break
            else:
                found.append(weight.astype(np.float64))
        return np.stack(found)
