"""Ways to refit a cut model, and which of them does best on feeds that were kept back.

Each reader by itself, which few feeds bear; or in sequence, which makes up for what came before; the second also with
the dense model's own inputs as samples. Each with a ridge of one of several strengths. Or by itself with the bound
behind it in mind (`aware.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.cut import Masks
from emp_onnx.shrink.fitting.aware import bounded, refit_bounded
from emp_onnx.shrink.fitting.distance import Missed, missed, watched
from emp_onnx.shrink.fitting.refit import RIDGE, RIDGES, refit, refit_locally
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.skip import Skip

__all__ = ["LOCAL", "Fitted", "Way", "anew", "best_fit", "every_fit", "fit", "locally"]

ANCHOR = 1.0  # weight of the dense model's own inputs in a refit in sequence


@dataclass(frozen=True)
class Way:
    """A ridge's strength; whether readers are fitted in sequence, and then the weight of the dense model's inputs; and
    if not in sequence, whether with what is behind them in mind."""

    ridge: float = RIDGE
    sequence: bool = False
    anchor: float = 0.0
    aware: bool = False


LOCAL = Way()  # each reader by itself


@dataclass(frozen=True)
class Fitted:
    """A cut model refitted, the way that was taken, and its error on the feeds kept back."""

    model: Any
    way: Way
    missed: Missed

    @property
    def error(self) -> float:
        """As one number."""
        return self.missed.total


def fit(problem: Problem, masks: Masks, way: Way, feeds: Sequence[Feed] = ()) -> Any:
    """The cut model with its readers refitted in one way; `feeds` are for those in sequence, or aware."""
    model = problem.cut(masks)
    if not way.sequence:
        refit_locally(
            problem.view, model, masks, problem.readers, problem.moments, ridge=way.ridge,
            solved=problem.solved,
        )  # fmt: skip
        if way.aware:
            refit_bounded(problem.view, model, masks, problem.readers, feeds, ridge=way.ridge, threads=problem.threads)
        return model
    refit(
        problem.view, model, masks, problem.readers, feeds, threads=problem.threads, ridge=way.ridge,
        stats=problem.moments, anchor=way.anchor, origin=problem.origin,
    )  # fmt: skip
    return model


def locally(problem: Problem, masks: Masks) -> Any:
    """The same, each reader by itself."""
    return fit(problem, masks, LOCAL)


def best_fit(problem: Problem, masks: Masks, feeds: Sequence[Feed], held: Sequence[Feed]) -> Fitted:
    """The fit from `feeds` that does best on `held`."""
    return min(every_fit(problem, masks, feeds, held), key=lambda f: f.error)


def every_fit(problem: Problem, masks: Masks, feeds: Sequence[Feed], held: Sequence[Feed]) -> list[Fitted]:
    """The fits from `feeds` that are tried on `held`: first the ridge of readers by themselves, then the same with the
    bounds behind them in mind, and the ways in sequence."""
    runner = watched(problem.dense, problem.threads)
    dense = [runner(feed) for feed in held]

    def tried(way: Way) -> Fitted:
        model = fit(problem, masks, way, feeds)
        return Fitted(model, way, missed(dense, model, held, problem.threads))

    found = [tried(Way(ridge)) for ridge in RIDGES]
    best = min(found, key=lambda f: f.error)
    if any((r.source, r.axis) in masks for r in (problem.readers[i] for i in bounded(problem.view, problem.readers))):
        found.append(tried(replace(best.way, aware=True)))
    found.append(tried(Way(RIDGES[-1], True)))
    if not found[-1].missed.worse(best.missed):  # one is enough to see that sequences do not help
        ridges = {best.way.ridge, RIDGES[-1]}
        anchors = (0.0,) if problem.origin else (0.0, ANCHOR)
        ways = [Way(ridge, True, anchor) for ridge in ridges for anchor in anchors]
        found += [tried(way) for way in ways if way != found[-1].way]
    return found


def anew(problem: Problem, feeds: Sequence[Feed]) -> Problem:
    """The same changes made, and the same units in the same order, but all fitted to these feeds."""
    one = problem.whole()
    for change in problem.changes:
        one = one.without(change, feeds) if isinstance(change, Skip) else one.lighter(change)
    one = replace(one, curves=problem.curves, joins=problem.joins)
    one.moments = one.sums(feeds)
    return one
