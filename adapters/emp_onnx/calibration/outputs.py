"""How far answers are from each other, and how many of them are the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["agreement", "classes", "distance", "heat", "moved", "probabilities", "rows_of", "sides", "top1"]

Array = NDArray[Any]
SURE = 10.0  # a lead of scores at which the second class has half a ten-thousandth of the first one's probability
LEAST = 1e-45  # of a probability: what float32 has
LOOKED = 1024  # rows of an answer whose leads are looked at; of more, some


def distance(one: Sequence[Sequence[Array]], other: Sequence[Sequence[Array]]) -> float:
    """How far answers are apart: the sum over outputs of squared differences, each by the output's own variance.

    Of class scores the Hellinger distance of the probabilities is taken, which weighs a change by what it does to the
    choice. Scores whose leads are so large that every probability is 0 or 1 are first divided by what makes half of the
    leads in `one` smaller than `SURE`: else nothing short of another choice would be seen.
    """
    total = 0.0
    for a, b in zip(zip(*one, strict=True), zip(*other, strict=True), strict=True):
        moved = size = mean = 0.0
        count, cooled = 0, heat(a)
        for x, y in zip(a, b, strict=True):
            if x.shape != y.shape:
                return float("inf")
            p, q = _comparable(x, cooled), _comparable(y, cooled)
            moved += float(((p - q) ** 2).sum())
            size += float((p * p).sum())
            mean += float(p.sum())
            count += p.size
        spread = size - mean * mean / max(count, 1)
        total += moved / spread if spread > 0 else (0.0 if moved == 0 else float("inf"))
    return total


def top1(one: Sequence[Sequence[Array]], other: Sequence[Sequence[Array]]) -> float | None:
    """The share of rows of class scores whose largest entry is the same; None where no output is one of those."""
    same = rows = 0
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            p, q = classes(x), classes(y)
            if p is not None:
                rows += len(p)
                if q is not None and p.shape == q.shape:
                    same += int((p.argmax(1) == q.argmax(1)).sum())
    return same / rows if rows else None


def rows_of(answer: Sequence[Array], /) -> int:
    """How many answers one feed got: rows of class scores, else entries of the first axis; of the largest output."""
    found = [(classes(x), x) for x in answer]
    return max((len(x if rows is None else rows) if x.ndim else 1 for rows, x in found), default=0)


def classes(value: Array) -> Array | None:
    """Class scores as (rows, classes): the last axis longer than 1, where two or more axes are left."""
    shape = [size for i, size in enumerate(value.shape) if i < 1 or size != 1]
    if value.dtype.kind != "f" or len(shape) < 2 or shape[-1] < 2 or not value.size:
        return None
    return value.reshape(-1, shape[-1])


def heat(values: Sequence[Array]) -> float:
    """What class scores are divided by: 1, unless half of the best lead the second by more than `SURE`."""
    leads = []
    for value in values:
        rows = classes(value)
        if rows is None:
            return 1.0
        best = np.partition(_scores(rows[:: -(-len(rows) // LOOKED)]), -2, axis=1)[:, -2:]
        with np.errstate(invalid="ignore"):  # two that are masked with −∞ lead by nothing that is a number
            leads.append(best[:, 1] - best[:, 0])
    middle = float(np.median(np.concatenate(leads))) if leads else 0.0
    return max(1.0, middle / SURE) if math.isfinite(middle) else 1.0


def _scores(rows: Array) -> NDArray[np.float64]:
    """Class scores as they are; probabilities as logarithms."""
    rows = rows.astype(np.float64)
    return np.log(np.maximum(rows, LEAST)) if probabilities(rows) else rows


def probabilities(rows: Array) -> bool:
    """Whether rows of class scores are probabilities."""
    return bool((rows >= 0).all()) and np.allclose(rows.sum(1), 1, atol=1e-3)


def _comparable(value: Array, cooled: float) -> Array:
    x = value.astype(np.float64)
    rows = classes(x)
    if rows is None:
        return x.reshape(-1)
    with np.errstate(all="ignore"):
        if cooled == 1 and probabilities(rows):
            return np.sqrt(rows)
        scores = _scores(rows)
        odds = np.exp((scores - scores.max(1, keepdims=True)) / cooled)
        found: Array = np.sqrt(odds / odds.sum(1, keepdims=True))
        return found


def sides(values: Sequence[Array], /) -> list[Array] | None:
    """Probabilities of one thing, one column of numbers from 0 to 1 on every feed, as those of two classes: that it is
    not, and that it is. None where one of the arrays is something else.

    >>> sides([np.array([[0.25], [1.0]], np.float32)])[0].tolist()
    [[0.75, 0.25], [0.0, 1.0]]
    """
    for x in values:
        column = x.ndim and x.size and x.dtype.kind == "f" and (x.size == 1 or (x.ndim > 1 and x.shape[-1] == 1))
        if not column or classes(x) is not None or not ((x >= 0) & (x <= 1)).all():
            return None
    return [np.stack([1 - x.reshape(-1), x.reshape(-1)], -1) for x in values]


def agreement(one: Sequence[Sequence[Array]], other: Sequence[Sequence[Array]], /) -> float:
    """Share of answers that stayed the same (top-1), or 1 − their relative distance where none is class scores."""
    same = top1(one, other)
    return same if same is not None else 1 - min(1.0, distance(one, other))


def moved(one: Sequence[Sequence[Array]], other: Sequence[Sequence[Array]], /) -> float:
    """Relative error of answers: ‖difference‖ / ‖deviation from the mean‖."""
    gap = size = 0.0
    for a, b in zip(zip(*one, strict=True), zip(*other, strict=True), strict=True):
        count = mean = square = 0.0
        for x, y in zip(a, b, strict=True):
            if x.shape != y.shape:
                return math.inf
            p, q = x.astype(np.float64), y.astype(np.float64)
            finite = np.isfinite(p) & np.isfinite(q)
            if not finite.all():  # a score that is masked with −∞ is no difference
                if (p != q)[~finite].any():
                    return math.inf
                p, q = p[finite], q[finite]
            gap += float(((p - q) ** 2).sum())
            square += float((p * p).sum())
            mean += float(p.sum())
            count += p.size
        size += square - mean * mean / max(count, 1)
    return math.sqrt(gap / size) if size > 0 else (0.0 if gap == 0 else math.inf)
