"""Lighter before smaller: bounds nobody reaches, and places before a mean, go where that costs less than units would.

What units cost is seen from an even cut of all groups to the target: so many more answers missed, for each share of
latency saved, is their rate. A change is made if it costs no more than that for what it is measured to save. An even
cut may be far worse than the one that is found in the end, so every step on the way is a problem of its own, and
which of them is best to cut units from is for the plan to see.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from emp_onnx.errors import ModelError
from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.fitting.bounds import find_opened
from emp_onnx.shrink.lighter.coarse import Coarser, find_coarser
from emp_onnx.shrink.lighter.edges import find_edges
from emp_onnx.shrink.lighter.split import Split
from emp_onnx.shrink.problem import Lighter, Problem
from emp_onnx.shrink.search.budget import MARGIN
from emp_onnx.shrink.search.judge import Judge

__all__ = ["carried", "coarser", "cropped", "lighter_ways", "opened"]

SAVES = 0.01  # of the latency, at least, that a change has to save; less is not told from noise
SHOWN = 64  # feeds that judge
SEEN = 200  # feeds that show which bounds are reached
Wide = NDArray[np.float64]


def lighter_ways(problem: Problem, target: float, fit: Sequence[Feed], held: Sequence[Feed]) -> list[Problem]:
    """The problem, and the same with one more kind of change that is worth it each time, all measured on `fit`; the
    last one at fewer places along the edges instead of everywhere.

    Args:
        problem: measured.
        target: share of the source's latency to reach; nothing more goes from there.
        fit, held: feeds that show what goes, and that judge.
    """
    judge = Judge(problem, held[:SHOWN])
    ways = [problem]
    for change in (opened, coarser):
        now = ways[-1]
        share = judge.share(now)
        if share > MARGIN * target:  # units would have to do the rest from here: the rate is of that
            now = change(now, target, judge.rate(now, target / share), fit, judge)
        if now is not ways[-1]:
            now.measured(now.sums(fit, carried(ways[-1], now)), ways[-1])
            ways.append(now)
    return [*ways, *cropped(next(way for way in reversed(ways) if not _coarse(way)), target, fit, judge)]


def carried(before: Problem, now: Problem) -> dict[int, Wide]:
    """The moments of those readers that have the same weights as before, and read the same channels.

    What bounds hardly ever change, neighbours that are left out, and splits elsewhere hardly move them.
    """
    known = {(r.weight, r.kind, r.direction): before.moments.get(i) for i, r in enumerate(before.readers)}
    anew = {part.weight for change in now.changes if isinstance(change, Split) for part in change.parts}
    found: dict[int, Wide] = {}
    for group in now.groups:
        for i in now.of_group(group):
            reader = now.readers[i]
            moment = known.get((reader.weight, reader.kind, reader.direction))
            features = reader.matrix(now.view.constants[reader.weight])[0].size
            if moment is not None and len(moment) == features + 1 and reader.weight not in anew:
                found[i] = moment
    return found


def opened(problem: Problem, target: float, rate: float, fit: Sequence[Feed], judge: Judge) -> Problem:
    """Without bounds that nothing reaches, where that is worth it.

    Args:
        problem: what is changed.
        target: share of the source's latency to reach; nothing more goes from there.
        rate: misses for each share of latency that are worth it.
        fit: feeds that show which bounds are reached.
        judge: measures.
    """
    change = find_opened(problem.view, fit[:SEEN], threads=problem.threads)
    return _worth(problem, [] if change is None else [change], target, rate, judge)


def coarser(problem: Problem, target: float, rate: float, fit: Sequence[Feed], judge: Judge) -> Problem:
    """At fewer places before means, where that is worth it; arguments as in `opened`."""
    return _worth(problem, find_coarser(problem.view, problem.trace), target, rate, judge)


def cropped(problem: Problem, target: float, fit: Sequence[Feed], judge: Judge) -> list[Problem]:
    """At fewer places along the edges of one axis, and of one more: half a place each, then a whole one each; arguments
    as in `opened`.

    What moves by a few places answers otherwise where answers are close, and as well: rates say little of it.
    """
    ways: list[Problem] = []
    axes = len(find_edges(problem.view, problem.trace))
    if not axes:
        return ways
    most, all_places = MARGIN * target, judge.share(problem)
    for parts in (2, 1):
        now, share = problem, all_places
        for axis in range(axes):
            edges = find_edges(now.view, now.trace, parts=parts)[axis : axis + 1]
            if share <= most or not edges:
                break
            try:
                other = now.lighter(edges[0])
            except ModelError:  # it does not run
                break
            left = judge.share(other)
            if not other.groups or share - left < SAVES:
                break
            other.measured(other.sums(fit, carried(now, other)), now)
            ways.append(other)
            now, share = other, left
        if share <= most:
            break
    return ways


def _coarse(problem: Problem) -> bool:
    return any(isinstance(change, Coarser) for change in problem.changes)


def _worth(now: Problem, changes: Sequence[Lighter], target: float, rate: float, judge: Judge) -> Problem:
    """With those changes, one after the other, that cost no more than units would."""
    if not changes:
        return now
    error, share = judge.error(now), judge.share(now)
    for change in changes:
        if share <= MARGIN * target:
            break
        try:
            other = now.lighter(change)
        except ModelError:  # it does not run, or not as it should
            continue
        if not other.groups:
            continue
        less, more = share - judge.share(other), judge.error(other) - error
        if less >= SAVES and more <= rate * less:
            now, error, share = other, error + more, share - less
    return now
