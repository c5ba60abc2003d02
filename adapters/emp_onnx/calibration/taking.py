"""Samples of what goes into one site: taken from networks that were run, feed by feed, and summed.

The feeds need not all be there at once: whoever runs the network on a few of them after the other gives each few here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.loops import At, in_step
from emp_onnx.calibration.maps import Get, Problem, Site
from emp_onnx.calibration.moments import Sums
from emp_onnx.calibration.own import Found, OwnSums
from emp_onnx.calibration.pooled import pick, unpool
from emp_onnx.calibration.reads import Reads
from emp_onnx.calibration.recurrent import HIDDEN
from emp_onnx.calibration.runner import Runner
from emp_onnx.calibration.values import holds
from emp_onnx.errors import ModelError

if TYPE_CHECKING:
    from emp_onnx.calibration.network import Network

__all__ = ["PER_INPUT", "NotPooledError", "Taking", "Totals"]

Array = NDArray[Any]
Float = NDArray[np.float64]
Changed = Mapping[str, Array] | None
Totals = Sums | OwnSums
APART = 1_000_003  # between the seeds of two iterations of a loop
PER_INPUT = 12  # samples for each input of a linear map that are enough
STACK, ROOM = 16, 1 << 20  # feeds that are taken together at most, and numbers in them: one by one, calls take longest


class NotPooledError(Exception):
    """A feed on which a site's input is not the mean that it was on others."""


class Taking:
    """The samples of one site.

    Args:
        network: that has the site.
        site: the site.
        changed: tensors of the pruned network.
        part: which part of the feeds each belongs to, of so many `parts`.
        two: whether inputs come from a pruned network beside the dense one.

    Raises:
        ModelError: weights that are NaN or infinite, with the node's name.
    """

    def __init__(
        self, network: Network, site: Site, changed: Changed, part: Callable[[int], int], parts: int, two: bool
    ) -> None:
        self.network, self.site, self.two, self.part, self.parts = network, site, two, part, parts
        if not all(np.isfinite(network.matrix(problem)).all() for problem in site.problems):
            raise ModelError(f"{site.step.node.label} must have finite weights, got NaN or infinities")
        self._reads = (Reads(network, site, None), Reads(network, site, changed))
        self._apart = False
        self._sums: list[list[Totals]] = []
        self._todo: list[tuple[Problem, Float | None, list[Totals]]] = []

    def look(self, dense: Runner, thin: Runner | None, count: int) -> None:
        """See whether positions behind a mean are samples of their own: where the means themselves are few among all
        `count` feeds, and are means on each of the feeds that were run here, in both networks."""
        self._apart = False
        if not self.site.pooled:
            return
        problem, found = self.site.problems[0], 0
        for run, reads in zip((dense,) if thin is None else (dense, thin), self._reads, strict=False):
            found = 0
            for i in range(run.feeds):
                x = run.values.get(self.site.pooled, i)
                if run.values.get(self.site.reads[0], i) is None:
                    continue
                rows = problem.rows(reads.at(run, [i]), i, self.network.limit(problem))
                if x is None or unpool(x, rows) is None:
                    return
                found += rows.shape[1]
        self._apart = 0 < found * count < PER_INPUT * problem.shape[2] * dense.feeds

    def prepare(self, shared: dict[object, list[Totals]] | None, *, own: bool = False) -> None:
        """Make room for the sums; those of a value that another site of the level reads too are found in `shared`.

        `own`: sums of the inputs of the dense network alone, see `own.py`.
        """
        for problem in self.site.problems:
            # what should come out is made where it is not the weights' doing alone, or where that is less work
            groups, out, d = problem.shape
            past = bool(self.site.skip) and self.two and problem.outs is not None
            made = past or (self.two and 2 * out < d)
            alone = shared is None or made or self._apart or problem.same is None
            known = None if alone or shared is None else shared.get(problem.same)
            if known is None:
                known = [
                    OwnSums(groups, d) if own else Sums(groups, d, out if made else None, self.two)
                    for _ in range(self.parts)
                ]
                self._todo.append((problem, self.network.matrix(problem) if made else None, known))
                if shared is not None and not alone:
                    shared[problem.same] = known
            self._sums.append(known)

    def take(self, dense: Runner, thin: Runner | None = None, first: int = 0) -> None:
        """Take in all feeds that were run, of which `first` is the first.

        Raises:
            ModelError: NaN or infinities, with the node's name.
            NotPooledError: see there.
        """
        ways = (dense,) if thin is None else (dense, thin)
        for some in self._stacks(ways, first) if self._todo else ():
            for n, one, two in self._gets(dense, thin, some):
                for problem, w, sums in self._todo:
                    seed, mine = first + some[0] + APART * n, sums[self.part(first + some[0])]
                    self._add(problem, w, mine, (dense, thin), (one, two), some, first, seed)

    def walk(self, run: Runner) -> None:
        """Go through the iterations of the loops around the site, on all feeds that were run.

        Raises:
            ModelError: an iteration that cannot be run.
        """
        for some in self._stacks((run,), 0):
            for _, get, _ in self._gets(run, None, some):
                for problem in self.site.problems:
                    problem.rows(get, 0, 1)

    def _gets(self, dense: Runner, thin: Runner | None, some: list[int]) -> Iterator[tuple[int, Get, Get]]:
        """What gives the values of some feeds; in a loop, for each iteration that reaches the site."""
        one = self._reads[0].at(dense, some)
        two = one if thin is None else self._reads[1].at(thin, some)
        if not self.site.path:
            yield 0, one, two
            return
        first = self._reads[0].walk(one)
        both: Iterable[tuple[At, Get, Get]]
        both = ((at, get, get) for at, get in first) if thin is None else in_step(first, self._reads[1].walk(two))
        guard = self.site.step.guard
        for n, (_, a, b) in enumerate(both):
            if all(holds(get(name), wanted) for get in (a, b) for name, wanted in guard):
                yield n, a, b

    def _stacks(self, ways: Sequence[Runner], first: int) -> Iterator[list[int]]:
        """The feeds that reach the site; those together that can be, of one part and of the same shapes."""
        site, stack, before = self.site, list[int](), object()
        names = list(filter(self._made, site.needs)) if site.path else [n for n in (*site.reads, site.skip) if n]
        must = names if site.path else [name for name in site.reads[:1] if self._made(name)]
        joins, most = all(problem.stacks for problem in site.problems) and not self._apart and not site.path, 1
        for i in sorted(range(ways[0].feeds), key=lambda i: self.part(first + i)):
            if not all(holds(run.values.get(n, i), wanted) for n, wanted in site.outer.guard for run in ways):
                continue
            shapes = [run.values.shape(name, i) for run in ways for name in names]
            kind = (self.part(first + i), shapes)
            if kind != before and any(run.values.shape(name, i) is None for run in ways for name in must):
                continue
            if stack and (kind != before or len(stack) >= most):
                yield stack
                stack = []
            if kind != before:
                deep = [shape for shape in shapes if shape is not None and len(shape) > 1]
                large = max(map(math.prod, deep), default=0)
                most = min(STACK, ROOM // max(large, 1)) if joins and len(deep) == len(shapes) else 1
            stack.append(i)
            before = kind
        if stack:
            yield stack

    def _made(self, name: str) -> bool:
        """Whether a value is one that a network makes from its feeds."""
        return name not in self.network.program.fixed and not name.startswith(HIDDEN)

    def moments(self) -> list[list[Found]]:
        """For each problem the moments of each part."""
        found = []
        for problem, sums in zip(self.site.problems, self._sums, strict=True):
            found.append([self._of(problem, one) for one in sums])
            if self.site.path and not any(s.count for s in sums):
                reason = "the loop around it does not run, or does not come to it, on any feed"
                self.network.why.update(dict.fromkeys(self.site.keys, reason))
        return found

    def _of(self, problem: Problem, sums: Totals) -> Found:
        weights = partial(self.network.matrix, problem)
        return sums.moments(weights) if isinstance(sums, OwnSums) else sums.moments(weights())

    def _add(
        self, problem: Problem, w: Float | None, sums: Totals, runs: tuple[Runner, Runner | None],
        gets: tuple[Get, Get], some: list[int], first: int, feed: int,
    ) -> None:  # fmt: skip
        """Take in the samples of some feeds; `feed` is the seed for their choice."""
        thin = runs[1]
        site, limit = self.site, self.network.limit(problem) * len(some)
        past: Any = 0.0
        want = problem.rows(gets[0], feed, limit)
        have = want if thin is None else problem.rows(gets[1], feed, limit)
        if have.shape != want.shape:
            return
        if site.skip and thin is not None and problem.outs is not None:
            past = self._missing(problem, gets, feed, limit)
        if self._apart:
            want, have, past = self._spread(gets, (want, have, past), feed, limit)
            have = want if thin is None else have
        if not (np.isfinite(have).all() and (have is want or np.isfinite(want).all()) and np.isfinite(past).all()):
            which = first + self._culprit(runs, some)
            raise ModelError(f"{site.step.node.label} must see finite numbers, got NaN or infinities on feed {which}")
        if w is None:
            sums.add(have, want)
        else:
            y = want.astype(np.float64) @ w.swapaxes(1, 2)
            if site.past and site.past.bounded:
                past = np.where(site.past.room(y + self.network.offset(problem)), past, 0)
            sums.add(have, y=y + past)

    def _culprit(self, runs: Iterable[Runner | None], some: list[int]) -> int:
        """The first of some feeds on which a value that the site reads is not finite."""
        for i in some[:-1]:
            found = [run.values.get(name, i) for run in runs if run is not None for name in self.site.reads]
            if not all(np.isfinite(x).all() for x in found if x is not None):
                return i
        return some[-1]

    def _spread(self, gets: tuple[Get, Get], rows: tuple[Array, Array, Any], feed: int, limit: int) -> Any:
        """Inputs, dense and thin, and what is missing, at the positions behind them."""
        out = []
        for get, some in zip(gets, rows, strict=False):
            x = get(self.site.pooled)
            flat = None if x is None else unpool(x, some)
            if flat is None:
                raise NotPooledError
            out.append(flat)
        past = rows[2]
        if np.ndim(past):
            past = np.broadcast_to(past[0][:, None], (*out[0].shape[:2], past.shape[2]))
            past = pick(past, feed, limit)
        return pick(out[0], feed, limit), pick(out[1], feed, limit), past

    def _missing(self, problem: Problem, gets: tuple[Get, Get], feed: int, limit: int) -> Any:
        one, two = (get(self.site.skip) for get in gets)
        if one is None or two is None or one.shape != two.shape or problem.outs is None:
            return 0.0
        return problem.outs(one.astype(np.float64) - two, feed, limit)
