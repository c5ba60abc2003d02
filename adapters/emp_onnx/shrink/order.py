"""In which order the units of a group may go, and what each costs: backward elimination with compensation, in closed
form.

For a reader y = M·x with second moments H of x, leaving out the coordinates B and letting the others make up for them
costs Δ = tr(M_B [(H⁻¹)_BB]⁻¹ M_Bᵀ), and changes M to M − M_B [(H⁻¹)_BB]⁻¹ (H⁻¹)_B: (optimal brain surgeon, Hassibi &
Stork 1993, by blocks). The unit with the least sum of Δ over all readers goes first, each Δ as a share of what its
reader says; then H⁻¹ is brought up to date. With a bias, moments are taken about the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.shrink.readers import Reader

__all__ = ["Curve", "eliminate"]

RIDGE = 3e-2  # of the mean of the diagonal
Wide = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """The units in the order in which they go, and the error after each: of the readers' outputs, as a share of their
    variance."""

    order: NDArray[np.intp]
    error: Wide


@dataclass
class _Side:
    """One reader during elimination: inverse moments, weights, and which features belong to which unit."""

    inverse: Wide
    weight: Wide
    where: list[NDArray[np.intp]]
    scale: float


def side(reader: Reader, weight: NDArray[Any], moment: Wide, labels: NDArray[np.intp], units: int) -> _Side | None:
    """Prepare a reader; None if it says nothing."""
    matrix = reader.matrix(weight)
    outs, channels, places = matrix.shape
    flat = matrix.reshape(outs, channels * places)
    h = centred(moment, bool(reader.bias))
    total = float(np.einsum("of,fg,og->", flat, h, flat, optimize=True))
    if not total > 0:
        return None
    features = np.repeat(labels, places)
    order = np.argsort(features, kind="stable")
    bounds = np.searchsorted(features[order], np.arange(units + 1))
    where = [order[a:b] for a, b in pairwise(bounds)]
    h = h + np.eye(len(h)) * (RIDGE * float(np.trace(h)) / len(h) + 1e-12)
    inverse: Any = np.linalg.inv(h)
    return _Side(inverse, flat.copy(), where, total)


def shrunk_towards_diagonal(h: Wide, samples: float) -> Wide:
    """(1 − ρ)·h + ρ·diag(h), ρ = p/(p + n): with fewer samples than numbers in one, correlations are mostly chance."""
    rho = len(h) / (len(h) + samples)
    return (1 - rho) * h + rho * np.diag(np.diag(h))


def centred(moment: Wide, about_mean: bool) -> Wide:
    """The moments of x from those of (x, 1): about the mean, or as they are."""
    h, mean = moment[:-1, :-1], moment[:-1, -1]
    return h - np.outer(mean, mean) if about_mean else h.copy()


def eliminate(sides: Sequence[_Side], units: int) -> Curve:
    """Take all units away, the cheapest first."""
    alive = np.ones(units, bool)
    order, error, total = [], [], 0.0
    while alive.any():
        cost = np.zeros(units)
        for s in sides:
            cost += _costs(s, alive) / s.scale / len(sides)
        cost[~alive] = np.inf
        unit = int(cost.argmin())
        total += max(float(cost[unit]), 0.0)
        order.append(unit)
        error.append(total)
        alive[unit] = False
        for s in sides:
            _leave(s, unit)
    return Curve(np.array(order, np.intp), np.array(error))


def _costs(s: _Side, alive: NDArray[np.bool_]) -> Wide:
    out = np.zeros(len(alive))
    sizes = np.array([len(w) for w in s.where])
    for size in np.unique(sizes[alive]):
        if not size:
            continue
        units = np.flatnonzero(alive & (sizes == size))
        index = np.stack([s.where[u] for u in units])
        if size == 1:
            flat = index[:, 0]
            out[units] = (s.weight[:, flat] ** 2).sum(0) / s.inverse[flat, flat]
        else:
            blocks = s.inverse[index[:, :, None], index[:, None, :]]
            weights = np.moveaxis(s.weight[:, index], 0, -1)  # units, size, outputs
            out[units] = (weights * np.linalg.solve(blocks, weights)).sum((1, 2))
    return out


def _leave(s: _Side, unit: int) -> None:
    at = s.where[unit]
    if not len(at):
        return
    block = s.inverse[np.ix_(at, at)]
    rows = s.inverse[at]
    solved = np.linalg.solve(block, rows)
    s.weight -= s.weight[:, at] @ solved
    s.inverse -= rows.T @ solved
    s.weight[:, at] = 0.0
    s.inverse[at] = 0.0
    s.inverse[:, at] = 0.0
    s.inverse[at, at] = 1.0
