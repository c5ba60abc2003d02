"""The fit that is written: in the way, and from the kind of feeds, that did best on feeds kept back, or in quarters of
all feeds where those do not tell; then from all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.cut import Masks
from emp_onnx.shrink.fitting.distance import missed, watched
from emp_onnx.shrink.fitting.moments import ROWS
from emp_onnx.shrink.fitting.refit import levels
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.report import flops_of
from emp_onnx.shrink.search.fits import Fitted, Way, anew, every_fit, fit
from emp_onnx.shrink.search.near import BYTES, MOVED, RUN, near_to, nearby, with_near
from emp_onnx.shrink.search.quarters import FEWEST, FOLDS, Quarters
from emp_onnx.shrink.search.varied import varied

__all__ = ["Last", "affordable", "last_fit"]

VARIED, MOST = "varied", 4000  # feeds in all
WORK = 4e11  # multiplications that a fit in sequence to varied feeds may take
JUDGES = 5  # times as many as are kept back judge whether varied feeds help, those moved from them among these


@dataclass(frozen=True)
class Last:
    """What is written, what was judged, the problem of the first, and how feeds were added to ("" if not)."""

    shrunk: Any
    judged: Any
    problem: Problem
    near: str


def last_fit(
    problem: Problem, masks: Masks, feeds: Sequence[Feed], held: Sequence[Feed], near: str, *, final: bool, more: bool
) -> Last:
    """Fit a cut model for good.

    Args:
        problem: measured on `feeds` with what is `near` them.
        masks: what goes.
        feeds, held: to fit to, and to judge by.
        near: the way in which feeds were added to.
        final: whether all feeds are fitted once more; else what was judged is what is written.
        more: whether feeds may be added to here, if that helps.
    """
    found = every_fit(problem, masks, with_near(problem, feeds, near), held)
    ways = nearby(problem.whole().view, feeds) if more and not near else {}
    others = []
    for name, added in ways.items():
        both = [*feeds, *added]
        others.append((every_fit(anew(problem, both), masks, both, held), name))
    for other, name in sorted(others, key=lambda o: -_best(o[0]).error)[-1:]:
        if not _best(other).missed.worse(_best(found).missed):  # more are better, unless they are seen not to be
            found, near = other, name
    if not final:
        best = _best(found)
        return Last(best.model, best.model, problem, near)
    given = [*feeds, *held]
    every = with_near(problem, given, near)
    best = _by_quarters(problem, masks, found, given, near, len(every))
    size = sum(value.nbytes for value in map(np.asarray, feeds[0].values()))
    count = affordable(problem, masks, size) if near == MOVED else 0
    if count > len(every):
        stronger = _from_varied(problem, masks, best, feeds, held, count)
        if stronger is not None:
            best, near, every = stronger, VARIED, [*given, *varied(given, count - len(given))]
    last = anew(problem, every)
    return Last(fit(last, masks, best.way, every), best.model, last, near)


def _best(found: Sequence[Fitted]) -> Fitted:
    return min(found, key=lambda f: f.error)


def _by_quarters(
    problem: Problem, masks: Masks, found: Sequence[Fitted], feeds: Sequence[Feed], near: str, count: int
) -> Fitted:
    """Of the fits that feeds kept back do not tell apart, the one in whose way quarters of all feeds are fitted best;
    the one that does best on those kept back, where that takes too long. `count`: of all feeds with those near them."""
    best = _best(found)
    alike = [one for one in found if not one.missed.worse(best.missed)]
    if len(alike) == 1 or len(feeds) < FEWEST or len(alike) * FOLDS * count * _work(problem, masks) > WORK:
        return best
    quarters = Quarters(problem, feeds, near, -(-count // FOLDS))
    return min(alike, key=lambda one: quarters.misses(masks, one.way))


def affordable(problem: Problem, masks: Masks, size: int) -> int:
    """To how many varied feeds of so many bytes a fit in sequence may be made, by what it multiplies."""
    return int(min(MOST, WORK / _work(problem, masks), BYTES / max(size, 1)))


def _work(problem: Problem, masks: Masks) -> float:
    """What a fit in sequence multiplies for one feed: each level of readers is a pass of two models over it, on average
    as far as their middle; then there are the sums."""
    passes = len(levels(problem.view, problem.readers)[0])
    features = [r.matrix(problem.view.constants[r.weight])[0].size for r in problem.readers]
    return float(passes * (sum(flops_of(problem, masks)) / 2 + 2 * RUN) + 2 * ROWS * sum(f * f for f in features))


def _from_varied(
    problem: Problem, masks: Masks, best: Fitted, feeds: Sequence[Feed], held: Sequence[Feed], count: int
) -> Fitted | None:
    """The fit to varied feeds, in sequence or in the way that was best without them; None where it is not better."""
    judges = [*held, *near_to(problem, held, MOVED, seed=1)[: (JUDGES - 1) * len(held)]]
    runner = watched(problem.dense, problem.threads)
    dense = [runner(feed) for feed in judges]
    more = [*feeds, *varied(feeds, count - len(feeds))]
    other, found = anew(problem, more), []
    for way in dict.fromkeys((best.way, Way(sequence=True))):
        model = fit(other, masks, way, more)
        found.append(Fitted(model, way, missed(dense, model, judges, problem.threads)))
    one = min(found, key=lambda f: f.error)
    return one if one.error < missed(dense, best.model, judges, problem.threads).total else None
