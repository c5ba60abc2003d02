"""Units given back where a cut goes beyond its target: it ends at what was asked for, and not below.

Latency goes in steps, and what is predicted is not what is measured; so a cut that meets a target may leave room. Units
come back in the order of predicted error for each predicted microsecond, as many as measured latency allows; where
the next ones are too many, others that take less are tried.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from emp_onnx.shrink.search.choose import Planner

__all__ = ["returned"]

ROOM = 0.99  # of the target: what is measured to leave less room than that ends at it
BEYOND = 1.05  # times the target: what is predicted to take more is not measured
TRIES = 8  # single steps measured after the halving
Counts = tuple[int, ...]


def returned(planner: Planner, counts: list[int], target: float, share: Callable[[Counts], float]) -> list[int]:
    """Counts of which none is larger, within the target, of no larger measured error.

    Args:
        planner: what predicts and measures errors, and predicts costs.
        counts: how many units of each group go; within the target.
        target: share of the source's latency that may be left.
        share: measures that share.
    """
    now = tuple(counts)
    if share(now) > ROOM * target:
        return counts
    path = _path(planner, now, share(now), BEYOND * target)
    low, high = 0, len(path)
    while low < high:  # how far the path may be gone back
        middle = (low + high + 1) // 2
        if share(path[middle - 1]) <= target:
            low = middle
        else:
            high = middle - 1
    now = path[low - 1] if low else now
    refused: set[tuple[int, int]] = set()
    for _ in range(TRIES):
        left = share(now)
        if left > ROOM * target:
            break
        step = next(iter(_steps(planner, now, left, BEYOND * target, refused)), None)
        if step is None:
            break
        other = _with(now, step)
        if share(other) <= target:
            now = other
        else:
            refused.add(step)
    return list(now) if planner.measured(now) <= planner.measured(counts) else counts


def _path(planner: Planner, start: Counts, share: float, limit: float) -> list[Counts]:
    """The cuts that follow from a cut, each with one group's units a step more, until they are predicted to take too
    long."""
    out: list[Counts] = []
    now, first = start, planner.predicted(start)
    while True:
        left = share * planner.predicted(now) / first
        step = next(iter(_steps(planner, now, left, limit, set())), None)
        if step is None:
            return out
        now = _with(now, step)
        out.append(now)


def _steps(
    planner: Planner, now: Counts, share: float, limit: float, refused: set[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Groups, and how many of each then go, that fit within a limit: the most error for what they cost first."""
    whole = planner.predicted(now)
    found: list[tuple[float, tuple[int, int]]] = []
    for g, count in enumerate(now):
        for to in sorted((n for n in (0, *planner.round(g)) if n < count), reverse=True):
            cost = planner.predicted(_with(now, (g, to)))
            if not np.isfinite(cost) or share * cost / whole > limit:
                break
            less = planner.error(g, count) - planner.error(g, to)
            if (g, to) not in refused:
                found.append((-less / max(cost - whole, 1e-9 * whole), (g, to)))
                break
    return [step for _, step in sorted(found)]


def _with(counts: Counts, step: tuple[int, int]) -> Counts:
    out = list(counts)
    out[step[0]] = step[1]
    return tuple(out)
