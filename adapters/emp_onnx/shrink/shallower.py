"""Layers that go whole, one after the other: those with the least measured error for the time they save.

Which layer should go first shows only once units are cut to the target, so several are proposed each time, such as
leave out different things, and the caller goes on from the one that did best.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from emp_onnx.errors import ModelError
from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.cost import Costs
from emp_onnx.shrink.fitting.distance import ancestors, misses, watched
from emp_onnx.shrink.fitting.refit import LONG, Origin
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.skip import Skip, find_skips, left_out, skipped

__all__ = ["MOST", "Shallower"]

MOST, LONGEST = 8, 16  # layers that may go, and of how many, those that take longest, one is chosen
FEEDS, HELD = 64, 32  # with which layers are ranked
SECONDS = 20.0  # that the fit of all that is behind a layer may take; that which is written is from all feeds
FAR = 4.0  # times as large may be the error of a fit of those alone that read what is before the layer
ALIKE = 0.5  # of what two skips leave out: with more in common the second is not proposed beside the first


class Shallower:
    """What may go of a problem and of those that come of it."""

    def __init__(self, base: Problem, fit: Sequence[Feed], held: Sequence[Feed]) -> None:
        self.fit, self.held = fit, held[:HELD]
        costs = Costs(base.view, base.trace, base.feeds)
        self.micros = {op.outputs[0]: costs.micros.get(op.index, 0.0) for op in base.view.ops if op.outputs}
        self.whole = costs.total({})
        most = int(SECONDS * 1e6 / (2 * LONG * max(self.whole, 1.0)))  # each level is a pass of two models
        self.enough = fit[: max(most, FEEDS)]
        runner = watched(base.dense, base.threads)
        self.dense = [runner(feed) for feed in self.held]

    def saved(self, problem: Problem) -> float:
        """Microseconds that the layers took which a problem has no more."""
        return sum(time for name, time in self.micros.items() if name not in problem.view.makers)

    def left(self, problem: Problem) -> float:
        """Share of the time that is left in a problem."""
        return 1 - self.saved(problem) / self.whole

    def fewer(self, problem: Problem, limit: float = np.inf) -> Iterator[Problem]:
        """The problem with one layer less each, measured, the one with the least error for all the time saved first;
        none whose error is so far beyond a limit that a fit of all that is behind the layer will not mend it."""
        proposed: list[frozenset[str]] = []
        for skip, gone in self._ranked(problem, FAR * limit):
            if any(len(gone & other) > ALIKE * len(gone | other) for other in proposed):
                continue
            try:
                one = problem.without(skip, self.enough)
            except ModelError:  # what is left does not run
                continue
            if not one.groups:
                continue
            proposed.append(gone)
            one.measure(self.fit)
            yield one

    def _ranked(self, problem: Problem, limit: float) -> list[tuple[Skip, frozenset[str]]]:
        """Skips whose error is within a limit, and what each leaves out, by their error for all the time saved."""
        origin = problem.origin or Origin(problem.view, tuple(problem.readers))
        shown = {*ancestors(origin.view.model)}
        options: list[tuple[float, Skip, frozenset[str]]] = []
        for skip in find_skips(problem.view, problem.trace):
            gone = left_out(problem.view, skip)
            if skip.after in shown or gone & shown or any(gone == other for _, _, other in options):
                continue
            more = sum(self.micros.get(name, 0.0) for name in gone)
            if more > 0:
                options.append((more, skip, gone))
        saved = self.saved(problem)
        found: list[tuple[float, int, Skip, frozenset[str]]] = []
        for i, (more, skip, gone) in enumerate(sorted(options, key=lambda o: -o[0])[:LONGEST]):
            try:
                model = skipped(
                    origin, problem.view, problem.trace, skip, self.fit[:FEEDS], far=False, threads=problem.threads
                )
                error = misses(self.dense, model, self.held, problem.threads)
            except ModelError:
                continue
            if error <= limit:
                found.append((error / (saved + more), i, skip, gone))
        return [(skip, gone) for _, _, skip, gone in sorted(found, key=lambda f: f[:2])]
