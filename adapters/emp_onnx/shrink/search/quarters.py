"""Cuts judged by all feeds: each quarter by a fit to the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.cut import Masks
from emp_onnx.shrink.fitting.distance import misses, watched
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.search.fits import LOCAL, Way, anew, fit
from emp_onnx.shrink.search.near import MOVED, with_near

__all__ = ["FEWEST", "FOLDS", "Quarters"]

FEWEST = 8  # feeds: of fewer a quarter has less than two, which nothing can be mixed of
FOLDS, JUDGES = 4, 3  # in which plans are judged; of feeds near others so many times as many judge


class Quarters:
    """All feeds, `FEWEST` or more, in quarters, with `share` of those near them in each, which judge by a fit to the
    others."""

    def __init__(self, problem: Problem, feeds: Sequence[Feed], near: str, share: int) -> None:
        self.problem = problem
        runner = watched(problem.dense, problem.threads)
        folds = [feeds[fold::FOLDS] for fold in range(FOLDS)]
        wide = [with_near(problem, fold, near)[: max(share, len(fold))] for fold in folds]
        more = JUDGES if near == MOVED else 1  # what is mixed of two classes has no answer that could be missed
        self.judges = [part[: more * len(fold)] for part, fold in zip(wide, folds, strict=True)]
        self.dense = [[runner(feed) for feed in part] for part in self.judges]
        self.rest = [[feed for part in (*wide[:i], *wide[i + 1 :]) for feed in part] for i in range(FOLDS)]
        if problem.skips:  # their readers are fitted too, and what comes after them reads other numbers then
            self.others = [anew(problem, rest) for rest in self.rest]
        else:
            sums = [{k: s for k, s in problem.sums(part).items() if k in problem.moments} for part in wide]
            for k in problem.moments:  # in place: these are the largest matrices there are
                whole = sum((s[k] for s in sums[1:]), sums[0][k])
                for s in sums:
                    np.subtract(whole, s[k], out=s[k])
                    s[k] /= FOLDS - 1
            self.others = [replace(problem, moments=moments) for moments in sums]

    def misses(self, masks: Masks, way: Way = LOCAL) -> float:
        """How many answers are missed when these units go and readers are fitted in this way."""
        every = zip(self.others, self.dense, self.judges, self.rest, strict=True)
        return sum(misses(d, fit(one, masks, way, rest), part, one.threads) for one, d, part, rest in every) / FOLDS
