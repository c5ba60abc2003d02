"""The fit that is written: in the way, and from the kind of feeds, that did best on feeds kept back; then from all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.cut import Masks
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.search.fits import anew, best_fit, fit
from emp_onnx.shrink.search.near import nearby

__all__ = ["Last", "last_fit", "with_near"]


@dataclass(frozen=True)
class Last:
    """What is written, what was judged, the problem of the first, and how feeds were added to ("" if not)."""

    shrunk: Any
    judged: Any
    problem: Problem
    near: str


def with_near(problem: Problem, feeds: Sequence[Feed], way: str) -> list[Feed]:
    """Feeds and those near them; the feeds alone where `way` is empty."""
    return [*feeds, *(nearby(problem.view, feeds)[way] if way else ())]


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
    best = best_fit(problem, masks, with_near(problem, feeds, near), held)
    ways = nearby(problem.view, feeds) if more and not near else {}
    others = []
    for way, added in ways.items():
        both = [*feeds, *added]
        others.append((best_fit(anew(problem, both), masks, both, held), way))
    for other, way in sorted(others, key=lambda o: -o[0].error)[-1:]:
        if not other.missed.worse(best.missed):  # more feeds are better, unless they are seen not to be
            best, near = other, way
    if not final:
        return Last(best.model, best.model, problem, near)
    every = with_near(problem, [*feeds, *held], near)
    last = anew(problem, every)
    return Last(fit(last, masks, best.way, every), best.model, last, near)
