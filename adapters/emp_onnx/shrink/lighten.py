"""Lighter before smaller: bounds nobody reaches, places before a mean, and directions go where that costs less than
units would.

What units cost is seen from an even cut of all groups to the target: so many more answers missed, for each share of
latency saved, is their rate. A change is made if it costs no more than that for what it is measured to save; where
units have to go all the same, what is chosen with changes is compared with what is chosen without.

Directions of several layers go in the order of their price, each measured alone, until the next would cost too much
or the target is met; then they are measured together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from emp_onnx.errors import ModelError
from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.bounds import find_opened
from emp_onnx.shrink.budget import MARGIN
from emp_onnx.shrink.coarse import find_coarser
from emp_onnx.shrink.cost import Costs
from emp_onnx.shrink.distance import misses, watched
from emp_onnx.shrink.fits import locally
from emp_onnx.shrink.latency import latencies
from emp_onnx.shrink.moments import moments
from emp_onnx.shrink.problem import Lighter, Problem
from emp_onnx.shrink.refit import Origin
from emp_onnx.shrink.thin import Split, Thin, find_thin, splittable

__all__ = ["Judge", "lightened", "opened_and_coarser", "thinner"]

SAVES = 0.01  # of the latency, at least, that a change has to save; less is not told from noise
LEAST = 0.003  # the same of one layer's split
SECONDS = 1.0
SHOWN = 64  # feeds that judge


@dataclass
class Judge:
    """Errors on feeds kept back, and shares of the source's latency."""

    problem: Problem
    held: Sequence[Feed]
    dense: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        runner = watched(self.problem.dense, self.problem.threads)
        self.dense = [runner(feed) for feed in self.held]

    def error(self, problem: Problem) -> float:
        """How many answers are likely to be missed before any unit goes."""
        return misses(self.dense, problem.view.model, self.held, problem.threads)

    def rate(self, problem: Problem, left: float) -> float:
        """How many more answers an even cut of units to a share of the latency misses, for the share saved."""
        costs = Costs(problem.view, problem.trace, problem.feeds)
        whole, found = costs.total({}), None
        for sixteenths in range(1, 16):
            masks = problem.masks([round(group.units * sixteenths / 16) for group in problem.groups])
            if masks is None:
                break
            found = masks
            if costs.total(masks) <= left * whole:
                break
        if found is None:
            return float("inf")
        more = misses(self.dense, locally(problem, found), self.held, problem.threads) - self.error(problem)
        return max(more, 0.0) / max(1 - costs.total(found) / whole, 1e-3)

    def share(self, problem: Problem) -> float:
        """Of the source's latency."""
        before, after = latencies([problem.source, problem.view.model], problem.feeds, seconds=SECONDS)
        return after / before


def lightened(problem: Problem, target: float, fit: Sequence[Feed], held: Sequence[Feed]) -> Problem:
    """The problem with all the changes that are worth it, measured on `fit`; itself, if none is.

    Args:
        problem: measured.
        target: share of the source's latency to reach; nothing more goes from there.
        fit, held: feeds that show what goes, and that judge.
    """
    judge = Judge(problem, held[:SHOWN])
    now = problem
    for change in (opened_and_coarser, thinner):
        share = judge.share(now)
        if share > MARGIN * target:
            now = change(now, target, judge.rate(now, target / share), fit, judge)
            if now.changes and not now.moments:
                now.measure(fit)
    return now


def opened_and_coarser(problem: Problem, target: float, rate: float, fit: Sequence[Feed], judge: Judge) -> Problem:
    """Without bounds that nothing reaches, and at fewer places before means, where that is worth it.

    Args:
        problem: what is changed.
        target: share of the source's latency to reach; nothing more goes from there.
        rate: misses for each share of latency that are worth it.
        fit: feeds that show which bounds are reached.
        judge: measures.
    """
    now, error, share = problem, judge.error(problem), judge.share(problem)
    for kind in ("bounds", "places"):
        changes: Sequence[Lighter | None] = (
            [find_opened(now.view, fit, threads=now.threads)] if kind == "bounds" else find_coarser(now.view, now.trace)
        )
        for change in changes:
            if change is None or share <= MARGIN * target:
                continue
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


def thinner(problem: Problem, target: float, rate: float, fit: Sequence[Feed], judge: Judge) -> Problem:
    """With layers split in two thin ones, as long as that is worth it; the arguments are the same."""
    share, start = judge.share(problem), judge.error(problem)
    readers = splittable(problem.view, problem.readers)
    if not readers or share <= MARGIN * target:
        return problem
    thin = find_thin(problem.view, readers, moments(problem.view.model, readers, fit, threads=problem.threads))
    costs = Costs(problem.view, problem.trace, problem.feeds)
    whole, origin = costs.total({}), Origin(problem.view, tuple(problem.readers))
    options: dict[str, list[tuple[Thin, float, float]]] = {}
    for part in thin:
        saved = share * _saved(problem, costs, part) / whole
        if saved < LEAST:
            continue
        model = Split((part,)).made(problem.view, problem.readers, origin)[0]
        error = max(misses(judge.dense, model, judge.held, problem.threads) - start, 0.0)
        options.setdefault(part.weight, []).append((part, saved, error))
    chosen: dict[str, tuple[Thin, float, float]] = {}
    order: list[tuple[Thin, float, float]] = []
    while (step := _next(options, chosen, rate)) is not None:
        chosen[step[0].weight] = step
        order.append(step)
    best, count, falling = problem, _enough(order, share, MARGIN * target), False
    while count:
        parts = {step[0].weight: step[0] for step in order[:count]}
        try:
            other = problem.lighter(Split(tuple(parts.values())))
        except ModelError:
            break
        left, more = judge.share(other), judge.error(other) - start
        if more <= rate * (share - left):
            best = other
            if falling or left <= MARGIN * target or count == len(order):
                break
            count = min(count + max(1, count // 4), len(order))
        elif best is problem:  # together they cost more than each by itself
            count, falling = count * 3 // 4, True
        else:
            break
    return best


def _enough(order: list[tuple[Thin, float, float]], share: float, target: float) -> int:
    """How many of these steps are likely to meet a target; all, if that is too few."""
    saved: dict[str, float] = {}
    for count, (part, less, _) in enumerate(order, 1):
        saved[part.weight] = less
        if share - sum(saved.values()) <= target:
            return count
    return len(order)


def _next(
    options: dict[str, list[tuple[Thin, float, float]]], chosen: dict[str, tuple[Thin, float, float]], rate: float
) -> tuple[Thin, float, float] | None:
    """The step, from what is chosen of one layer to fewer directions of it, with the least error for what it saves."""
    best: tuple[float, tuple[Thin, float, float]] | None = None
    for weight, parts in options.items():
        _, saved, error = chosen.get(weight, (None, 0.0, 0.0))
        for option in parts:
            if option[1] <= saved:
                continue
            price = max(option[2] - error, 0.0) / (option[1] - saved)
            if price <= rate and (best is None or price < best[0]):
                best = price, option
    return None if best is None else best[1]


def _saved(problem: Problem, costs: Costs, part: Thin) -> float:
    """Microseconds that a split is likely to save: of the work, less one more operation."""
    index = next(op.index for op in problem.view.ops if part.weight in op.inputs)
    outs = len(part.basis)
    ins = problem.view.constants[part.weight].size // outs
    overhead = min((t for t in costs.micros.values() if t > 0), default=0.0)
    time = max(costs.micros.get(index, 0.0) - overhead, 0.0)
    return time * (1 - part.rank * (outs + ins) / (outs * ins)) - overhead
