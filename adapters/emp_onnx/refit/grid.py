"""Kept weights rounded to the numbers that a quantised tensor can hold, so that the others make good for each.

Rounding all of them at once costs what their errors cost by themselves. Here inputs are rounded a few at a time, those
with the most energy first, and the weights that are still free are solved again after each few (as OBQ does one by one,
Frantar and Alistarh, arXiv 2208.11580, and GPTQ in blocks, arXiv 2210.17323; here masks are kept exactly). In the end
each weight in turn moves to the best of its numbers while all the others stay, which can only lower the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.refit.loss import Quadratic
from emp_onnx.refit.solve import solve

__all__ = ["Grid", "onto"]

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]
STEPS, ROUNDS = 16, 12  # in which all inputs are rounded, and rounds of conjugate gradients after each
SWEEPS, WORK = 3, 2e10  # of single weights, as long as they take no more multiplications than this


@dataclass(frozen=True, eq=False)
class Grid:
    """The numbers that each weight of a map may have: `step·k` for whole k from `low` to `high`; any where step is 0.

    Attributes:
        step, low, high: arrays of the shape of the map, (groups, out, d).
    """

    step: Float
    low: Float
    high: Float

    def round(self, w: Float, some: Any = ...) -> Float:
        """The nearest of them, of all weights or of some.

        >>> Grid(np.full((1, 1, 2), 0.5), np.full((1, 1, 2), -2.0), np.full((1, 1, 2), 2.0)).round(
        ...     np.array([[[0.7, 9.0]]])).tolist()
        [[[0.5, 1.0]]]
        """
        step, low, high = (part[some] for part in (self.step, self.low, self.high))
        free = step == 0
        whole = np.clip(np.rint(w / np.where(free, 1, step)), low, high)
        return np.where(free, w, whole * step)


def onto(loss: Quadratic, mask: Mask, w: Float, grid: Grid) -> Float:
    """The weights on the grid, zero outside the mask, with as little loss as this way finds.

    Args:
        loss: of the map.
        mask: which weights stay.
        w: solved weights, zero outside the mask.
        grid: with 0 among the numbers of each weight.
    """
    groups, _, d = mask.shape
    plain = np.where(mask, grid.round(w), 0)
    order = np.argsort(-loss.diagonal, axis=1, kind="stable")
    free, fixed, w = mask.copy(), np.zeros(mask.shape), np.asarray(w, np.float64)
    for some in np.array_split(np.arange(d), min(STEPS, d)):
        for g in range(groups):
            at = np.s_[g, :, order[g, some]]
            fixed[at] = np.where(mask[at], grid.round(w[at], at), 0)
            free[at] = False
        if not free.any():
            break
        rest = solve(loss.beside(fixed), free, np.asarray(w * free, np.float32), rounds=ROUNDS)
        w = fixed + rest
    sweeps = int(min(SWEEPS, WORK // max(2.0 * mask.size * d, 1)))
    fixed = _moved(loss, mask, fixed, grid, order, sweeps) if sweeps else fixed
    return fixed if loss.loss(fixed) <= loss.loss(plain) else plain


def _moved(loss: Quadratic, mask: Mask, w: Float, grid: Grid, order: NDArray[np.intp], sweeps: int) -> Float:
    """Each weight in turn moved to the best of its numbers."""
    a, w = loss.a, w.copy()
    for g in range(len(w)):
        pull = (w[g] - loss.best[g]) @ a[g]
        for _ in range(sweeps):
            still = True
            for j in order[g]:
                at = np.s_[g, :, j]
                best = np.where(mask[at], grid.round(w[at] - pull[:, j] / a[g, j, j], at), 0)
                gap = best - w[at]
                rows = np.flatnonzero(gap)
                if rows.size:
                    still = False
                    w[g, rows, j] = best[rows]
                    pull[rows] += gap[rows, None] * a[g, j]
            if still:
                break
    return w
