"""Cuts judged by all feeds: each quarter by a fit to the others.

A cut of units is judged quickly by fits of each reader by itself, but the one that is written may be fitted in
sequence, as what follows a layer left out always is. So plans of different kinds are compared as they would be
written, in the better of both ways.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.fitting.distance import misses, watched
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.search.fits import Way, anew, fit, locally
from emp_onnx.shrink.search.last import with_near
from emp_onnx.shrink.search.near import MOVED

__all__ = ["FOLDS", "Quarters"]

SECONDS = 5.0  # of the processor: where a fit in sequence takes longer, plans are compared without
FOLDS, JUDGES = 4, 3  # in which plans are judged; of feeds near others so many times as many judge


class Quarters:
    """All feeds in quarters, with `share` of those near them in each, which judge by a fit to the others."""

    def __init__(self, problem: Problem, feeds: Sequence[Feed], near: str, share: int) -> None:
        self.problem = problem
        runner = watched(problem.dense, problem.threads)
        folds = [feeds[fold::FOLDS] for fold in range(FOLDS)]
        wide = [with_near(problem, fold, near)[: max(share, len(fold))] for fold in folds]
        more = JUDGES if near == MOVED else 1  # what is mixed of two classes has no answer that could be missed
        self.judges = [part[: more * len(fold)] for part, fold in zip(wide, folds, strict=True)]
        self.dense = [[runner(feed) for feed in part] for part in self.judges]
        sums = [] if problem.skips else [problem.sums(part) for part in wide]
        self.rest = [[feed for part in (*wide[:i], *wide[i + 1 :]) for feed in part] for i in range(FOLDS)]
        self.others: list[Problem] = []
        for i in range(FOLDS):
            if problem.skips:  # their readers are fitted too, and what comes after them reads other numbers then
                self.others.append(anew(problem, self.rest[i]))
            else:
                left = [*sums[:i], *sums[i + 1 :]]
                moments = {k: sum((s[k] for s in left[1:]), left[0][k]) / len(left) for k in problem.moments}
                self.others.append(replace(problem, moments=moments))

    def misses(self, counts: Sequence[int]) -> float:
        """How many answers are missed when so many units of each group go."""
        masks = self.problem.masks(counts) or {}
        return self._mean([locally(other, masks) for other in self.others])

    def fitted(self, counts: Sequence[int]) -> float:
        """The same in the better of two ways to fit: each reader by itself, or in sequence, where that is quick."""
        masks, few = self.problem.masks(counts) or {}, self.rest[0][: FOLDS * JUDGES]
        begin = time.process_time()
        fit(self.others[0], masks, Way(sequence=True), few)
        if (time.process_time() - begin) / len(few) * len(self.rest[0]) > SECONDS:
            return self.misses(counts)
        models = [
            fit(other, masks, Way(sequence=True), rest) for other, rest in zip(self.others, self.rest, strict=True)
        ]
        return min(self.misses(counts), self._mean(models))

    def _mean(self, models: Sequence[Any]) -> float:
        """Answers missed by one model for each quarter, the mean."""
        every = zip(self.others, models, self.dense, self.judges, strict=True)
        return sum(misses(dense, model, part, other.threads) for other, model, dense, part in every) / FOLDS
