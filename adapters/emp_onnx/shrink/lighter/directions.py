"""Which layers come apart in two thin ones, and how far: priced on top of a cut, where prices are what they will be.

Errors do not add up: what is lost by one more change beside others is far less than what it loses alone, for answers
that are close to missed are missed once. So every split is tried in the model that units were cut from, with its
readers fitted, and its price is the answers that it misses more there for the latency that it is measured to save.
Splits that cost no more than the last units did are then made in the model that nothing was cut from, all of them or
the cheapest half, with as many numbers between as save any work; what lies between are units, and all units are cut
from each of these anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from emp_onnx.errors import ModelError
from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.axes.trace import trace
from emp_onnx.shrink.cost import Costs
from emp_onnx.shrink.fitting.distance import misses
from emp_onnx.shrink.fitting.moments import moments
from emp_onnx.shrink.fitting.readers import find_readers
from emp_onnx.shrink.fitting.refit import Origin
from emp_onnx.shrink.latency import latencies
from emp_onnx.shrink.lighter.sides import Sides, find_sides
from emp_onnx.shrink.lighter.split import Part, Split, splittable
from emp_onnx.shrink.lighter.thin import find_thin
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.search.fits import locally
from emp_onnx.shrink.search.judge import Judge
from emp_onnx.shrink.view import View

__all__ = ["Priced", "longest", "priced", "thinner"]

LEAST = 0.004  # of the latency, at least, that one layer's split has to save
LIKELY = 0.5  # of that: what the profile has to say before it is measured
SECONDS = 0.2  # of a measurement of latency
SHOWN = 400  # feeds from which prices are made
TRIED = 20  # splits that are measured, those that lose least for what they are likely to save
MOST = 12  # layers that may come apart
FREE = 1e-4  # answers: a split that misses no more is told apart by what it saves


@dataclass(frozen=True)
class Priced:
    """A split of one layer, the share of the cut model's latency that it saves, and the answers missed for all of
    it."""

    part: Part
    saved: float
    price: float


def priced(problem: Problem, counts: Sequence[int], fit: Sequence[Feed], judge: Judge) -> list[Priced]:
    """The best split of each layer in the model that so many units of each group are cut from, the cheapest first."""
    masks = problem.masks(counts)
    model = locally(problem, masks) if masks else problem.view.model
    view = View.of(model)
    traced = trace(view, problem.feeds[:2])
    readers = splittable(view, find_readers(view, traced))
    if not readers:
        return []
    sums = moments(model, readers, fit[:SHOWN], threads=problem.threads)
    costs, origin = Costs(view, traced, problem.feeds), Origin(view, tuple(readers))
    start, whole = misses(judge.dense, model, judge.held, problem.threads), costs.total({})
    best: dict[str, Priced] = {}
    parts: list[Part] = [*find_thin(view, readers, sums), *find_sides(view, traced, readers, sums, rounds=0)]
    guesses = [(_guessed(view, costs, part), part) for part in parts]
    likely = [(part.lost / guess, part) for guess, part in guesses if guess > LIKELY * LEAST * whole]
    for _, part in sorted(likely, key=lambda found: found[0])[:TRIED]:
        other = Split((part,)).made(view, readers, origin)[0]
        before, after = latencies([model, other], problem.feeds[:2], seconds=SECONDS)
        saved = 1 - after / before
        if saved < LEAST:
            continue
        error = misses(judge.dense, other, judge.held, problem.threads) - start
        found = Priced(part, saved, max(error, FREE) / saved)
        if part.weight not in best or found.price < best[part.weight].price:
            best[part.weight] = found
    return sorted(best.values(), key=lambda p: p.price)[:MOST]


def thinner(problem: Problem, options: Sequence[Priced], fit: Sequence[Feed]) -> Iterator[Problem]:
    """The problem with all of these splits, and with fewer and fewer, those first that are cheapest; not measured
    yet."""
    weights = {p.part.weight for p in options}
    sided = {p.part.weight for p in options if isinstance(p.part, Sides)}
    readers = [r for r in splittable(problem.view, problem.readers) if r.weight in weights]
    if not readers:
        return
    sums = moments(problem.view.model, readers, fit, threads=problem.threads)
    found: list[Part] = [p for p in find_thin(problem.view, readers, sums, largest=True) if p.weight not in sided]
    found += [p for p in find_sides(problem.view, problem.trace, readers, sums, largest=True) if p.weight in sided]
    parts = {part.weight: part for part in found}
    chosen = [parts[p.part.weight] for p in options if p.part.weight in parts]
    for count in sizes(len(chosen)):
        try:
            yield problem.lighter(Split(tuple(chosen[:count])))
        except ModelError:  # it does not run, or not as it should
            continue


def longest(problem: Problem, fit: Sequence[Feed]) -> Problem | None:
    """The problem with the layer that takes longest in two, with as many directions between as save any work; not
    measured yet. None where it does not come apart."""
    costs = Costs(problem.view, problem.trace, problem.feeds)
    micros = {name: costs.micros.get(op.index, 0.0) for op in problem.view.ops for name in op.inputs}
    readers = sorted(splittable(problem.view, problem.readers), key=lambda r: -micros.get(r.weight, 0.0))[:1]
    sums = moments(problem.view.model, readers, fit, threads=problem.threads) if readers else []
    for part in find_thin(problem.view, readers, sums, largest=True):
        try:
            return problem.lighter(Split((part,)))
        except ModelError:  # it does not run, or not as it should
            return None
    return None


def sizes(most: int) -> list[int]:
    """How many splits are made: all, half of them, a quarter, and so on.

    >>> sizes(6)
    [6, 3, 1]
    """
    return [most >> halved for halved in range(most.bit_length())]


def _guessed(view: View, costs: Costs, part: Part) -> float:
    """Microseconds that a split is likely to save: of the work, less one more operation."""
    index = next(op.index for op in view.ops if part.weight in op.inputs)
    overhead = min((t for t in costs.micros.values() if t > 0), default=0.0)
    return max(costs.micros.get(index, 0.0) - overhead, 0.0) * (1 - part.share) - overhead / 2
