"""What a change costs and saves: answers missed on feeds kept back, and latency, both measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.cost import Costs
from emp_onnx.shrink.fitting.distance import misses, watched
from emp_onnx.shrink.latency import latencies
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.search.fits import locally

__all__ = ["Judge"]

SECONDS = 1.0  # of a measurement of latency


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
