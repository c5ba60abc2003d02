"""Where a target on latency is to be met: what goes whole, and then how many units of what stays.

Bounds and places go first (`lighten.py`), one kind after the other, and units are cut from each of these. In the best
of them, once units were exchanged, layers come apart in two thin ones (`directions.py`), more of them or fewer. From
the best of all these layers go one after the other, the one with the least measured error for the time it saves; and
so from the model of which only the longest layer came apart, which frees most where the others are whole. After
each, units are cut from what is left until the target is met; the one of these models that does best on feeds kept
back, after exchange, is the plan. A layer that is no longer there frees time that units of the others may keep.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from emp_onnx.errors import UsageError
from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.cost import Costs
from emp_onnx.shrink.fitting.distance import misses, watched
from emp_onnx.shrink.latency import share
from emp_onnx.shrink.lighter.directions import longest, priced, thinner
from emp_onnx.shrink.lighter.lighten import carried, lighter_ways
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.search.budget import MARGIN, Budget, fit_budget
from emp_onnx.shrink.search.choose import Planner
from emp_onnx.shrink.search.exchange import Clock, exchange
from emp_onnx.shrink.search.judge import Judge
from emp_onnx.shrink.search.near import with_near
from emp_onnx.shrink.search.nearer import nearer
from emp_onnx.shrink.search.quarters import FEWEST, FOLDS, Quarters
from emp_onnx.shrink.shallower import shallower
from emp_onnx.shrink.view import View

__all__ = ["Plan", "plan"]


NEAR, RUNNERS = 1.5, 3  # plans that exchange may make the best: by their error, and how many
ALIKE = 1.07  # times the least error on many feeds: plans that these hardly tell apart are judged by quarters too
STEP = 8  # what half of a group is a multiple of, where its costs are learned
FARTHEST = 3.0  # times the error of a cut: from one that goes beyond the target and misses more nothing comes back
ENDS = 6  # cuts of one problem that are judged so
AGAIN, SURE = 2, 4.0  # times that exchange begins; times as long as others its ends are measured
SAFE = 0.965  # of the target: what two measurements find together
LONG = 2.0  # seconds of a measurement that decides whether anything has to be cut
SHORT = 10.0  # seconds of the processor for exchange before splits are priced
PATIENCE = 2  # plans in a row that are no better
LESS = 1.12  # times the target: from there to the target are the last units


@dataclass(frozen=True)
class Plan:
    """A problem, perhaps without some layers; how many units of each group go; the error measured; and whether the
    latency was within the target when it was measured once more."""

    problem: Problem
    counts: list[int]
    error: float
    within: bool = True


def plan(
    problem: Problem, target: float, fit: Sequence[Feed], held: Sequence[Feed], *,
    near: str = "", judging: Sequence[Feed] = (), round_to: int = 8, least: int = 1, changes: bool = True,
    short: bool = True, seconds: float = 90.0,
) -> Plan:  # fmt: skip
    """The plan of least error on `held` within a target on latency.

    Args:
        problem: measured.
        target: share of the source's latency.
        fit, held: feeds to fit to, and kept back.
        near: in which way those to fit to are added to.
        judging: more feeds to judge by.
        round_to, least: see `shrink`.
        changes: whether whole layers, bounds, places and edges may go, and layers come apart.
        short: whether feeds end before they show what recurrent states are for.
        seconds: of the processor, after which no more layers go; half as much is for splits before, and as much
            for exchange after that.

    Raises:
        UsageError: no cut reaches the target.
    """
    wide, judged = with_near(problem, fit, near), [*held, *judging]
    found: list[tuple[Plan, Planner | None]] = []
    failed: list[UsageError] = []

    def look(one: Problem, known: Planner | None = None) -> bool:
        """Whether units have to go to meet the target, however it is met."""
        try:
            found.append(_at(one, target, judged, round_to, least, short, known))
        except UsageError as error:
            failed.append(error)
            return True
        return found[-1][1] is not None

    ways = lighter_ways(problem, target, wide, judged) if changes else [problem]
    more = True
    for way in ways:
        if not found or _error(way, judged) < min(p.error for p, _ in found):
            more = look(way, found[-1][1] if found else None)
    end = time.process_time() + seconds / 2
    if more and changes:
        first, planner = min(found, key=lambda f: f[0].error) if found else (None, None)
        first = first or Plan(ways[-1], [0] * len(ways[-1].groups), np.inf)
        worse, lowest, apart = 0, first.error, list[Problem]()
        for one in _apart(first, planner, target, wide, judged):
            apart.append(one)
            if _error(one, judged) >= lowest or not look(one, planner):
                break
            now = min((p.error for p, _ in found), default=np.inf)
            worse, lowest = (0 if now < lowest else worse + 1), now
            if worse == PATIENCE or (found and time.process_time() > end):
                break
        # where no cut of units reaches the target, none says yet whether layers should be whole before some go
        bases = [min(found, key=lambda f: f[0].error)[0].problem] if found else [ways[-1], *apart]
        bases += _longest_apart(ways[-1], wide)
        for base in bases:
            end = time.process_time() + seconds / len(bases)  # layers have a time of their own
            for one in shallower(base, target, wide, judged):
                if one is base:
                    continue
                if found and _error(one, judged) >= min(p.error for p, _ in found):
                    break
                if not look(one) or (found and time.process_time() > end):  # a layer less would miss more
                    break
    if not found:
        raise failed[0]
    found.sort(key=lambda f: f[0].error)
    better = []
    close = [f for f in found if f[0].error <= NEAR * found[0][0].error][:RUNNERS]
    for first, planner in close:
        if planner is None:
            better.append(first)
            continue
        better += _exchanged(first, planner, target, seconds / len(close))
    better = [p for p in better if p.within] or better
    if judging:
        lowest = min(p.error for p in better)
        better = [p for p in better if p.error <= ALIKE * lowest]
    if len(better) == 1 or len(fit) + len(held) < FEWEST:
        return min(better, key=lambda p: p.error)
    lot, problems = -(-len(wide) // FOLDS), {id(p.problem): p.problem for p in better}
    totals: dict[int, float] = {}
    for key, problem in problems.items():  # one after the other: each has the moments of four fits
        quarters = Quarters(problem, [*fit, *held], near, lot)
        for i, p in enumerate(better):
            if id(p.problem) == key:  # two estimates are steadier than one
                totals[i] = quarters.misses(problem.masks(p.counts) or {}) + p.error
        del quarters
    return better[min(totals, key=totals.__getitem__)]


def _exchanged(first: Plan, planner: Planner, target: float, seconds: float) -> list[Plan]:
    """The plans within the target that exchange of units comes to, from a plan and from one that goes beyond it.

    Of many cuts that were measured, those are found that were measured too short. So what is found is measured once
    more, for longer; where the best of it is outside then, a few more units go, and the same begins from there.
    """
    problem, limit, clock = first.problem, MARGIN * target, Clock(first.problem)
    start, met, least = first.counts, list[list[int]](), (np.inf, first.counts)
    for which in range(AGAIN):
        ends = _ends(first, start, planner, limit, seconds / (1 + which), clock)
        ends += [start] if which and start not in ends else []  # that one is not found by being measured too short
        shares = [(clock.sure(tuple(counts), SURE), counts) for counts in ends]
        met += [counts for share, counts in shares if share <= SAFE * target and counts not in met]
        least = min(least, *shares)
        if shares[0][0] <= SAFE * target or which + 1 == AGAIN:
            break
        start = nearer(planner, shares[0][1], shares[0][0], MARGIN * target)
        limit *= limit / shares[0][0]
    return [Plan(problem, counts, planner.measured(counts), bool(met)) for counts in met or [least[1]]]


def _ends(
    first: Plan, start: list[int], planner: Planner, limit: float, seconds: float, clock: Clock
) -> list[list[int]]:
    """The best cuts that exchange comes to from this one and from one step beyond it."""
    deeper = [next(iter(planner.steps(g, n)), n) for g, n in enumerate(start)]
    alone = first.problem.masks(deeper) is None or planner.measured(deeper) > FARTHEST * first.error
    starts = [start] if alone else [start, deeper]
    ends: list[list[int]] = []
    for one in starts:  # one that gives back is not led astray by the same things
        for counts in exchange(planner, one, limit, seconds=seconds / len(starts), best=ENDS, clock=clock):
            ends += [] if counts in ends else [counts]
    met = [counts for counts in ends if clock.share(tuple(counts)) <= limit] or [start]
    return sorted(met, key=planner.measured)[:ENDS]


def _apart(
    cut: Plan, planner: Planner | None, target: float, wide: Sequence[Feed], held: Sequence[Feed]
) -> Iterator[Problem]:
    """The problem of a plan with layers split in two, more or fewer of those that cost no more than its last units."""
    problem = cut.problem
    if planner is not None:
        (counts,) = exchange(planner, cut.counts, MARGIN * target, seconds=SHORT)
        cut = Plan(problem, counts, planner.measured(counts))
    options = priced(problem, cut.counts, wide, Judge(problem, held))
    rate = _rate(cut, planner, target)
    for one in thinner(problem, [o for o in options if o.price <= rate], wide):
        one.measured(one.sums(wide, carried(problem, one)), problem)
        yield one


def _longest_apart(problem: Problem, wide: Sequence[Feed]) -> list[Problem]:
    """The problem with the layer that takes longest in two, if it comes apart at all.

    On top of a cut a split of it saves little, since there it is as small as the others. But where it may stay as wide
    as it is, others can go whole.
    """
    one = longest(problem, wide)
    if one is None:
        return []
    one.measured(one.sums(wide, carried(problem, one)), problem)
    return [one]


def _rate(cut: Plan, planner: Planner | None, target: float) -> float:
    """How many more answers the last units miss, for the share of the latency that they save; no limit where none
    were found to."""
    if planner is None:
        return np.inf
    try:
        less = fit_budget(
            cut.problem, planner, Budget(latency=min(LESS * target, 1.0)), lambda masks: None, planner.held
        )
    except UsageError:  # the target itself was measured met by chance only: what is milder was not
        return np.inf
    now, before = planner.predicted(cut.counts), planner.predicted(less)
    return (cut.error - planner.measured(less)) / (before / now - 1) if before > now else np.inf


def _at(
    problem: Problem, target: float, held: Sequence[Feed], round_to: int, least: int, short: bool,
    known: Planner | None,
) -> tuple[Plan, Planner | None]:  # fmt: skip
    """The plan for one problem, and what measures others of it; none where nothing has to go."""
    if problem.changes and problem.settle() <= MARGIN * target and _once_more(problem) <= SAFE * target:
        return Plan(problem, [0] * len(problem.groups), _error(problem, held)), None
    costs = Costs(problem.view, problem.trace, problem.feeds)
    half = problem.masks([group.units // 2 // STEP * STEP or group.units // 2 for group in problem.groups])
    if half:
        costs.learn(half, View.of(problem.cut(half)))
    planner = Planner(problem, costs, held, round_to=round_to, least=least, short=short, known=known)
    counts = fit_budget(problem, planner, Budget(latency=target), lambda masks: None, held)
    return Plan(problem, counts, planner.measured(counts)), planner


def _once_more(problem: Problem) -> float:
    """The share of the latency before anything is cut, measured for longer: of many ways that are measured, those that
    nothing has to be cut from are the ones that were measured too short."""
    return share(problem.source, problem.finish(problem.view.model), problem.feeds, seconds=LONG)


def _error(problem: Problem, held: Sequence[Feed]) -> float:
    runner = watched(problem.dense, problem.threads)
    return misses([runner(feed) for feed in held], problem.view.model, held, problem.threads)
