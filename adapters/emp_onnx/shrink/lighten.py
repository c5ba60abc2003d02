"""Lighter before smaller: bounds nobody reaches, places before a mean, and directions go where that costs less than
units would.

What cutting units alone to the target would cost, in answers missed for each share of latency saved, is the rate.
A change is made if it costs less than that for what it is measured to save. Directions of several layers go in the
order of their price, each measured alone, until the next would cost more than the rate or the target is met.
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
from emp_onnx.shrink.latency import latencies
from emp_onnx.shrink.moments import moments
from emp_onnx.shrink.problem import Lighter, Problem
from emp_onnx.shrink.thin import Split, Thin, find_thin, splittable

__all__ = ["Judge", "opened_and_coarser", "thinner"]

SAVES = 0.01  # of the latency, at least, that a change has to save; less is not told from noise
LEAST = 0.003  # the same of one layer's split
SECONDS = 1.0


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

    def share(self, problem: Problem) -> float:
        """Of the source's latency."""
        before, after = latencies([problem.source, problem.view.model], problem.feeds, seconds=SECONDS)
        return after / before


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
    whole = costs.total({})
    options: dict[str, list[tuple[Thin, float, float]]] = {}
    for part in thin:
        saved = share * _saved(problem, costs, part) / whole
        if saved < LEAST:
            continue
        try:
            error = max(judge.error(problem.lighter(Split((part,)))) - start, 0.0)
        except ModelError:
            continue
        options.setdefault(part.weight, []).append((part, saved, error))
    chosen: dict[str, tuple[Thin, float, float]] = {}
    tried: Problem | None = None
    while True:
        step = _next(options, chosen, rate)
        if step is not None:
            chosen[step[0].weight] = step
            if share - sum(s for _, s, _ in chosen.values()) > MARGIN * target:
                continue
        if not chosen:
            return problem
        try:
            tried = problem.lighter(Split(tuple(part for part, _, _ in chosen.values())))
        except ModelError:
            return problem
        if step is None or judge.share(tried) <= MARGIN * target:
            return tried


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
