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

from emp_onnx.shrink.fitting.definite import BLOCK, invert_in_place, take_off
from emp_onnx.shrink.fitting.readers import Reader

__all__ = ["Curve", "eliminate"]

RIDGE = 3e-2  # of the mean of the diagonal
ROUND, CHOICE = 24, 4  # of so many units left one goes in a round; from among so many times as many
SPARSE = 0.75  # where so small a share of units is left, the matrices are made as small
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
    np.einsum("ii->i", h)[...] += RIDGE * float(np.trace(h)) / len(h) + 1e-12
    return _Side(invert_in_place(h), flat.copy(), where, total)


def centred(moment: Wide, about_mean: bool) -> Wide:
    """The moments of x from those of (x, 1): about the mean, or as they are."""
    h = moment[:-1, :-1].copy()
    if about_mean:
        take_off(h, moment[:-1, -1])
    return h


def eliminate(sides: Sequence[_Side], units: int) -> Curve:
    """Take all units away, the cheapest first.

    Where there are many, several go in a round: the cheapest one after the other from among the cheapest few, for
    which alone the inverse is brought up to date in between; that of all the others follows in one product.
    """
    alive, whole = np.arange(units), units
    order: list[int] = []
    error: list[float] = []
    total = 0.0
    while len(alive):
        count = max(1, len(alive) // ROUND)
        if count > 1:
            cost = _cost(sides, alive)
            few = alive[np.sort(np.argpartition(cost, min(CHOICE * count, len(alive)) - 1)[: CHOICE * count])]
            parts = [_part(s, few) for s in sides]
        else:
            few, parts = alive, list(sides)
        gone = []
        for _ in range(count):
            cost = _cost(parts, few)
            unit = int(few[cost.argmin()])
            total += max(float(cost.min()), 0.0)
            order.append(unit)
            error.append(total)
            gone.append(unit)
            few = few[few != unit]
            for part in parts:
                _leave(part, [unit])
        alive = alive[~np.isin(alive, gone)]
        if count > 1:
            for s in sides:
                _leave(s, gone)
            if len(alive) <= SPARSE * whole:
                sides, whole = [_part(s, alive) for s in sides], len(alive)
    return Curve(np.array(order, np.intp), np.array(error))


def _cost(sides: Sequence[_Side], units: NDArray[np.intp]) -> Wide:
    """What each of these units costs, the mean over readers."""
    return np.asarray(sum((_costs(s, units) / s.scale for s in sides), np.zeros(len(units)))) / len(sides)


def _part(s: _Side, units: NDArray[np.intp]) -> _Side:
    """The same for some of the units alone, with copies of what belongs to them."""
    at = np.concatenate([s.where[u] for u in units])
    where = [at[:0]] * len(s.where)
    start = 0
    for u in units:
        where[u] = np.arange(start, start + len(s.where[u]))
        start += len(s.where[u])
    return _Side(s.inverse[np.ix_(at, at)], s.weight[:, at], where, s.scale)


def _costs(s: _Side, units: NDArray[np.intp]) -> Wide:
    out = np.zeros(len(units))
    sizes = np.array([len(s.where[u]) for u in units])
    for size in np.unique(sizes):
        if not size:
            continue
        own = np.flatnonzero(sizes == size)
        index = np.stack([s.where[units[i]] for i in own])
        if size == 1:
            flat = index[:, 0]
            out[own] = np.square(s.weight[:, flat]).sum(0) / s.inverse[flat, flat]
        else:
            blocks = s.inverse[index[:, :, None], index[:, None, :]]
            weights = np.moveaxis(s.weight[:, index], 0, -1)  # units, size, outputs
            out[own] = (weights * np.linalg.solve(blocks, weights)).sum((1, 2))
    return out


def _leave(s: _Side, units: Sequence[int]) -> None:
    """Take units away; what belongs to them is not looked at again."""
    at = np.concatenate([s.where[u] for u in units])
    if not len(at):
        return
    rows = s.inverse[at]
    solved = np.linalg.solve(rows[:, at], rows)
    s.weight -= s.weight[:, at] @ solved
    for start in range(0, len(s.inverse), BLOCK):
        s.inverse[start : start + BLOCK] -= rows[:, start : start + BLOCK].T @ solved
