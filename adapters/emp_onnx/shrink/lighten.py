"""Lighter before smaller: bounds nobody reaches, places before a mean, and directions go where that costs less than
units would.

What units cost is seen from an even cut of all groups to the target: so many more answers missed, for each share of
latency saved, is their rate. A change is made if it costs no more than that for what it is measured to save; where
units have to go all the same, what is chosen with changes is compared with what is chosen without.
"""

from __future__ import annotations

from collections.abc import Sequence

from emp_onnx.errors import ModelError
from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.bounds import find_opened
from emp_onnx.shrink.budget import MARGIN
from emp_onnx.shrink.coarse import find_coarser
from emp_onnx.shrink.directions import thinner
from emp_onnx.shrink.judge import Judge
from emp_onnx.shrink.problem import Lighter, Problem

__all__ = ["lightened", "opened_and_coarser"]

SAVES = 0.01  # of the latency, at least, that a change has to save; less is not told from noise
SHOWN = 64  # feeds that judge


def lightened(problem: Problem, target: float, fit: Sequence[Feed], held: Sequence[Feed]) -> Problem:
    """The problem with all the changes that are worth it, measured on `fit`; itself, if none is.

    Args:
        problem: measured.
        target: share of the source's latency to reach; nothing more goes from there.
        fit, held: feeds that show what goes, and that judge.
    """
    judge = Judge(problem, held[:SHOWN])
    now = problem
    for change in (opened_and_coarser, thinner):
        share = judge.share(now)
        if share > MARGIN * target:  # units would have to do the rest from here: the rate is of that
            now = change(now, target, judge.rate(now, target / share), fit, judge)
            if now.changes and not now.moments:
                now.measure(fit)
    return now


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
