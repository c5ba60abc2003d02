"""The same total, spread over the layers in other ways: which layer keeps how many."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from emp_core import effective_size
from emp_onnx.errors import UsageError, quote
from emp_onnx.refit.curves import Curve

__all__ = ["ALLOCATIONS", "FLOOR", "allocate", "spread"]

Float = NDArray[np.float64]
STEPS = 8  # for each step of a curve
FLOOR = 1.0  # share of the mean density that a layer keeps at least where there are recurrent cells
Matrix = Callable[[Curve], Float]


def allocate(how: str, curves: Sequence[Curve], total: int, matrix: Matrix) -> list[int]:
    """How many weights each layer keeps, `total` together (or all of them, or one each, where that is not possible).

    Args:
        how: a key of `ALLOCATIONS`.
        curves: one per layer.
        total: to be kept.
        matrix: gives a layer's weights.
    """
    if how not in ALLOCATIONS:
        raise UsageError(f"allocate must be one of {', '.join(ALLOCATIONS)}, got {quote(how)}")
    total = min(max(total, len(curves)), sum(curve.size for curve in curves))
    return ALLOCATIONS[how](curves, total, matrix)


def spread(shares: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Whole numbers in proportion to `shares`, each from 1 to its size, `total` together.

    What would go beyond a size is spread over the others, in proportion.

    >>> spread([1.0, 3.0], [10, 10], 8)
    [2, 6]
    >>> spread([1.0, 3.0], [10, 10], 18)
    [8, 10]
    """
    share, size = np.asarray(shares, np.float64), np.asarray(sizes, np.int64)
    full = np.zeros(len(size), bool)
    want = np.zeros(len(size))
    for _ in range(len(size) + 1):
        left = total - size[full].sum()
        open_ = share[~full].sum()
        want = np.where(full, size, share * (left / open_ if open_ > 0 else 0))
        over = ~full & (want >= size)
        if not over.any():
            break
        full |= over
    out = np.clip(np.floor(want + 1e-9).astype(np.int64), 1, size)
    order = np.argsort(-(want - out), kind="stable")
    for i in (*order, *order):
        gap = total - int(out.sum())
        if gap > 0 and out[i] < size[i]:
            out[i] += min(gap, 1 if i in order[: len(order)] else gap, int(size[i] - out[i]))
        elif gap < 0 and out[i] > 1:
            out[i] -= min(-gap, int(out[i]) - 1)
    for i in order:  # whatever is left, to whoever has room
        out[i] += min(max(total - int(out.sum()), 0), int(size[i] - out[i]))
    return [int(k) for k in out]


def _uniform(curves: Sequence[Curve], total: int, matrix: Matrix) -> list[int]:
    return spread([float(c.size) for c in curves], [c.size for c in curves], total)


def _emp(curves: Sequence[Curve], total: int, matrix: Matrix) -> list[int]:
    """In proportion to the effective size of each layer's weights."""
    return spread([float(effective_size(matrix(c))) for c in curves], [c.size for c in curves], total)


def _erk(curves: Sequence[Curve], total: int, matrix: Matrix) -> list[int]:
    """In proportion to the sum of its dimensions (Erdős–Rényi kernels: Evci et al., arXiv 1911.11134)."""
    return spread([float(sum(c.problem.shape)) for c in curves], [c.size for c in curves], total)


def _lamp(curves: Sequence[Curve], total: int, matrix: Matrix) -> list[int]:
    """As the `total` largest of all scores fall, w² over the sum of the squares not below it (LAMP: arXiv
    2010.07611)."""
    scores = []
    for curve in curves:
        squares = np.square(matrix(curve)).reshape(-1)
        squares.sort()
        rest = np.cumsum(squares[::-1])[::-1]
        scores.append(np.divide(squares, rest, out=squares, where=rest > 0))
    together = np.concatenate(scores)
    at = max(0, together.size - total)
    together.partition(at)
    counts = [int(np.count_nonzero(s > together[at])) for s in scores]
    for i, s in enumerate(scores):  # of equal ones the first stay
        counts[i] += min(total - sum(counts), int(np.count_nonzero(s == together[at])))
    return spread([float(k) for k in counts], [c.size for c in curves], total)


def _owl(curves: Sequence[Curve], total: int, matrix: Matrix) -> list[int]:
    """Density moved by up to 0.08 either way, more where more scores are outliers (OWL: arXiv 2310.05175)."""
    base = total / sum(c.size for c in curves)
    share = np.array([c.outliers for c in curves])
    away = share - np.average(share, weights=[c.size for c in curves])
    peak = np.abs(away).max(initial=0.0)
    density = np.clip(base + (0.08 * away / peak if peak > 0 else 0), 1e-3, 1)
    return spread([d * c.size for d, c in zip(density, curves, strict=True)], [c.size for c in curves], total)


def _error(curves: Sequence[Curve], total: int, matrix: Matrix) -> list[int]:
    """Where it costs the answers least: every layer's last weight costs the same (up to the steps of the curves).

    But where there are recurrent cells no layer keeps less than `FLOOR` of the mean density: feeds may show only the
    first steps, on which a cell has little to remember, and what follows it little to tell apart.
    """
    recurrent = any(len(c.problem.parts) > 1 for c in curves)
    floor = FLOOR * total / sum(c.size for c in curves)
    least = [math.ceil(floor * c.size) if recurrent else 0 for c in curves]
    pieces = []
    for i, curve in enumerate(curves):
        for (k, e), (k2, e2) in _hull(curve):
            pieces.append(((e2 - e) * curve.price / (k - k2), i, k - k2))
    keep = [c.size for c in curves]
    surplus = sum(keep) - total
    for _, i, count in sorted(pieces):
        take = max(0, min(count, surplus, keep[i] - least[i]))
        keep[i] -= take
        surplus -= take
    # beyond the ends of the curves, evenly
    if surplus > 0:
        keep = spread([float(k) for k in keep], [c.size for c in curves], total)
    return keep


def _between(curve: Curve) -> Iterator[tuple[int, float]]:
    """A curve's points with `STEPS` in place of each step: errors grow by factors, and from nothing as a square.

    With straight lines between few points the least would always lie at one of these, and the smallest change of what
    was measured would move a tenth of a layer.
    """
    yield curve.counts[0], curve.errors[0]
    for (k, e), (k2, e2) in pairwise(zip(curve.counts, curve.errors, strict=True)):
        last = k
        for step in range(1, STEPS + 1):
            t = step / STEPS
            at = k2 if step == STEPS else round(k + (k2 - k) * t)
            if at < last:
                last = at
                yield at, e * (e2 / e) ** t if e > 0 else e2 * t * t


def _hull(curve: Curve) -> list[tuple[tuple[int, float], tuple[int, float]]]:
    """The lower convex hull of a curve, as pieces from dense downwards."""
    hull: list[tuple[int, float]] = []
    for point in _between(curve):
        hull.append(point)
        while len(hull) > 2:
            (a, ea), (b, eb), (c, ec) = hull[-3:]
            if (eb - ea) * (b - c) < (ec - eb) * (a - b):
                break
            del hull[-2]
    return list(pairwise(hull))


ALLOCATIONS: Mapping[str, Callable[[Sequence[Curve], int, Matrix], list[int]]] = {
    "error": _error, "emp": _emp, "uniform": _uniform, "lamp": _lamp, "erk": _erk, "owl": _owl,
}  # fmt: skip
