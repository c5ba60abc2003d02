"""How many units of each group go: by effective size, or by measured error per saved microsecond.

The error of a cut at the model's outputs is taken to be the sum over groups of sensitivity × (error of the group's
own readers), both measured: each group is cut alone, at three depths, and the outputs are compared on feeds kept
back. A share of the readers' own errors counts too: feeds need not show at the outputs what other inputs would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.cost import Costs
from emp_onnx.shrink.cut import Masks
from emp_onnx.shrink.fitting.distance import misses, output_error, watched
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.search.amounts import step
from emp_onnx.shrink.search.fits import locally

__all__ = ["Planner"]


DEPTHS = (0.25, 0.6, 0.85)  # shares of a group's units at which it is tried alone
UNSEEN = 0.1  # weight of readers' own errors, for what these feeds do not show at the outputs others may
STATES = 5.0  # the same of groups that states are made of, where feeds end before it shows what states are for
SHOWN = 0.5  # the same of all groups of a model that has states, where feeds go on until it shows
TRIED = 32  # feeds on which a group is tried alone
LEVELS = 16  # at most so many counts of each group are considered
Path = list[tuple[list[int], float]]
Cost = Callable[[Masks], float]


def neighbours(problem: Problem) -> list[set[int]]:
    """For each group those that some operation reads or makes tensors of beside its own, and itself."""
    ops: list[set[int]] = []
    for group in problem.groups:
        names = {name for name, _ in group.axes}
        ops.append(
            {op.index for op in problem.view.ops if names.intersection(op.inputs) or names.intersection(op.outputs)}
        )
    return [{i for i, other in enumerate(ops) if other & own or other is own} for own in ops]


class Planner:
    """Sensitivities and costs of a problem, and cuts that meet a target."""

    def __init__(
        self, problem: Problem, costs: Costs, held: Sequence[Feed], *, round_to: int = 8, least: int = 1,
        short: bool = True, known: Planner | None = None,
    ) -> None:  # fmt: skip
        self.problem, self.costs, self.round_to, self.least = problem, costs, round_to, least
        self.held = list(held)
        self.known: dict[tuple[int, ...], float] = {}
        runner = watched(problem.dense, problem.threads)
        self.dense = [runner(feed) for feed in self.held]
        self.later = [any(problem.readers[i].kind == "state" for i in problem.of_group(g)) for g in problem.groups]
        usual = UNSEEN if short or not any(self.later) else SHOWN
        self.unseen = [STATES if short and later else usual for later in self.later]
        of = [] if known is None else [(g.name, g.units) for g in known.problem.groups]
        before = dict(zip(of, [] if known is None else known.weights, strict=True))
        self.weights: list[tuple[tuple[float, float], ...]] = [
            before.get((group.name, group.units)) or self._sensitivity(i) for i, group in enumerate(problem.groups)
        ]

    def _sensitivity(self, which: int) -> tuple[tuple[float, float], ...]:
        """Pairs (own error, error at the outputs) of the group cut alone, from shallow to deep."""
        group, curve = self.problem.groups[which], self.problem.curves[which]
        out = []
        for share in DEPTHS:
            n = min(max(int(group.units * share), 1), group.units - 1)
            counts = [0] * len(self.problem.groups)
            counts[which] = n
            masks = self.problem.masks(counts) if n else None
            if masks is None:
                continue
            error = output_error(
                self.dense[:TRIED], locally(self.problem, masks), self.held[:TRIED], self.problem.threads
            )
            out.append((max(float(curve.error[n - 1]), 1e-12), max(error, 1e-12)))
        return tuple(out)

    def error(self, which: int, count: int) -> float:
        """Predicted error at the outputs when `count` units of a group go."""
        own = max(self.own(which, count), 1e-12)
        return self._shown(which, own) + self.unseen[which] * own if count else 0.0

    def own(self, which: int, count: int) -> float:
        """The error of a group's own readers when `count` units go, as a share of what they say."""
        return float(self.problem.curves[which].error[count - 1]) if count else 0.0

    def _shown(self, which: int, own: float) -> float:
        points = self.weights[which]
        if not points:
            return np.inf
        if own <= points[0][0] or len(points) == 1:
            return points[0][1] / points[0][0] * own
        logs = np.log(np.array(sorted(points)))
        x, (known, seen) = np.log(own), (logs[:, 0], np.maximum.accumulate(logs[:, 1]))
        if x <= known[-1]:
            return float(np.exp(np.interp(x, known, seen)))
        slope = max((seen[-1] - seen[0]) / max(known[-1] - known[0], 1e-9), 1.0)  # no cheaper than in proportion
        return float(np.exp(seen[-1] + slope * (x - known[-1])))

    def steps(self, which: int, count: int) -> list[int]:
        """Larger counts at which what is left is round, nearest first; none deeper than was measured."""
        units = self.problem.groups[which].units
        size = step(units, self.round_to)
        size *= max(1, round(units / (LEVELS * size)))  # wide groups in wider steps, for there are many groups
        least = max(self.least, round((1 - DEPTHS[-1]) * units), 1)
        first = (units - count - 1) // size * size
        return [units - n for n in range(first, least - 1, -size)][:3]

    def paths(self, cost: Cost, until: float) -> list[Path]:
        """Ways down to a share of the cost: by error, by its root (which spreads the cuts), and evenly."""
        return [self.greedy(cost, until, 1.0), self.greedy(cost, until, 0.5), self.evenly(cost, until)]

    def greedy(self, cost: Cost, until: float, power: float) -> Path:
        """Cuts one after the other, each the one with the least (predicted error)^power for what it saves."""
        counts = [0] * len(self.problem.groups)
        now = whole = cost({})
        out: Path = [(list(counts), 1.0)]
        ways: dict[int, list[tuple[float, int, float]]] = {}
        near = neighbours(self.problem)
        anew = set(range(len(counts)))  # what a group saves is another number where one beside it was cut
        while now > until * whole:
            for g in anew:
                ways[g] = []
                before = self.error(g, counts[g]) ** power
                for to in self.steps(g, counts[g]):
                    masks = self.problem.masks([to if i == g else n for i, n in enumerate(counts)])
                    if masks is None:
                        break
                    saved = now - cost(masks)
                    if saved > 0:
                        ways[g].append((max(self.error(g, to) ** power - before, 1e-15) / saved, to, saved))
            best = min(((price, g, to, saved) for g, found in ways.items() for price, to, saved in found), default=None)
            if best is None:
                break
            _, g, counts[g], saved = best
            now -= saved
            anew = near[g]
            out.append((list(counts), now / whole))
        return out

    def evenly(self, cost: Cost, until: float) -> Path:
        """The same share of every group, rounded, more and more of it."""
        whole = cost({})
        out: Path = [([0] * len(self.problem.groups), 1.0)]
        for share in np.arange(0.05, DEPTHS[-1] + 0.01, 0.05):
            counts = []
            for g, group in enumerate(self.problem.groups):
                allowed = [0, *(n for n in self.round(g) if n <= share * group.units + 1e-9)]
                counts.append(max(allowed))
            masks = self.problem.masks(counts)
            if masks is None or counts == out[-1][0]:
                continue
            out.append((counts, cost(masks) / whole))
            if out[-1][1] <= until:
                break
        return out

    def round(self, which: int) -> list[int]:
        """The counts of a group that are considered, the least first."""
        found, at = [], 0
        while steps := self.steps(which, at):
            found += steps
            at = steps[-1]
        return found

    def predicted(self, counts: Sequence[int]) -> float:
        """Microseconds of a cut; infinite where it leaves an axis empty."""
        masks = self.problem.masks(counts)
        return np.inf if masks is None else self.costs.total(masks)

    def guessed(self, counts: Sequence[int]) -> float:
        """Predicted error of a cut: the sum over groups."""
        return sum(self.error(g, n) for g, n in enumerate(counts)) + 1e-9

    def measured(self, counts: Sequence[int]) -> float:
        """How many answers are likely to be missed, with readers fitted each by itself; known from the last time."""
        key = tuple(counts)
        if key not in self.known:
            self.known[key] = self.measure(counts)
        return self.known[key]

    def measure(self, counts: Sequence[int]) -> float:
        """The same, measured anew."""
        masks = self.problem.masks(counts)
        if masks is None:
            return np.inf
        error = misses(self.dense, locally(self.problem, masks), self.held, self.problem.threads)
        if not any(self.later):
            return error
        return error + sum(self.unseen[g] * self.own(g, n) for g, n in enumerate(counts) if self.unseen[g] > UNSEEN)
