"""Layers that go whole, one after the other, the one with the least measured error for the time it saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from emp_onnx.errors import ModelError
from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.cost import Costs
from emp_onnx.shrink.fitting.distance import ancestors, misses, watched
from emp_onnx.shrink.fitting.refit import Origin
from emp_onnx.shrink.lighter.split import Split
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.report import flops_of
from emp_onnx.shrink.search.near import RUN
from emp_onnx.shrink.skip import Skip, find_skips, left_out, skipped

__all__ = ["shallower"]

MOST, LONGEST = 8, 16  # layers that may go, and of how many, those that take longest, one is chosen
FEEDS, HELD = 64, 32  # with which layers are ranked, at least: a fit of as few ranks wide layers by chance
WORK = 4e10  # multiplications that ranking them once may take, where that is more feeds
FREE = 0.5  # answers: layers that cost no more are told apart by what they save
FAR = 0.6  # of the target: with so little latency left before any unit goes, no more layers go


def shallower(problem: Problem, target: float, fit: Sequence[Feed], held: Sequence[Feed]) -> Iterator[Problem]:
    """The problem, and the same with one more layer left out each time, measured."""
    yield problem
    costs = Costs(problem.view, problem.trace, problem.feeds)
    # by what operations make: their numbers are others in every model that a layer is left out of
    micros = {op.outputs[0]: costs.micros.get(op.index, 0.0) for op in problem.view.ops if op.outputs}
    runner = watched(problem.dense, problem.threads)
    some = ranking(problem, len(fit))
    held = held[: max(some * HELD // FEEDS, HELD)]
    dense = [runner(feed) for feed in held]
    whole = costs.total({})
    saved = 0.0
    for _ in range(MOST):
        found = _next(problem, micros, fit[:some], held, dense, saved)
        if found is None:
            return
        skip, more = found
        saved += more
        try:
            problem = problem.without(skip, fit)
        except ModelError:  # what is left does not run
            return
        if not problem.groups:
            return
        problem.measure(fit)
        yield problem
        if 1 - saved / whole < FAR * target:
            return


def ranking(problem: Problem, most: int) -> int:
    """Of how many feeds, up to `most`, layers are ranked by fits: each is a pass of two models over all of them."""
    each = 2 * LONGEST * (flops_of(problem, {})[0] + RUN)
    return min(max(int(WORK / each), FEEDS), most)


def _next(
    problem: Problem, micros: Mapping[str, float], fit: Sequence[Feed], held: Sequence[Feed], dense: list[Any],
    saved: float,
) -> tuple[Skip, float] | None:  # fmt: skip
    """The skip with the least error for all the time saved, and the microseconds it saves."""
    origin = problem.origin or Origin(problem.view, tuple(problem.readers))
    watched_too = {*ancestors(origin.view.model)}
    best: tuple[float, Skip, float] | None = None
    seen: set[frozenset[str]] = set()
    pairs = _pairs(problem)
    options: list[tuple[float, Skip]] = []
    for skip in find_skips(problem.view, problem.trace):
        gone = left_out(problem.view, skip)
        if gone in seen or skip.after in watched_too or gone & watched_too:
            continue
        if any((one in gone) != (other in gone) for one, other in pairs):
            continue
        seen.add(gone)
        more = sum(micros.get(name, 0.0) for name in gone)
        if more > 0:
            options.append((more, skip))
    for more, skip in sorted(options, key=lambda o: -o[0])[:LONGEST]:
        try:
            model = skipped(origin, problem.view, problem.trace, skip, fit, far=False, threads=problem.threads)
            error = misses(dense, model, held, problem.threads)
        except ModelError:
            continue
        price = max(error, FREE / len(held)) / (saved + more)
        if best is None or price < best[0]:
            best = (price, skip, more)
    return None if best is None else best[1:]


def _pairs(problem: Problem) -> list[tuple[str, str]]:
    """What both halves of each split make. One without the other would be the whole layer again, which is another
    problem's."""
    split = {part.weight for change in problem.changes if isinstance(change, Split) for part in change.parts}
    ends = [op for op in problem.view.ops if op.outputs and split.intersection(op.inputs)]
    return [(op.inputs[0], op.outputs[0]) for op in ends]
