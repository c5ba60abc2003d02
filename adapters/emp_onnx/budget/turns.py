"""Feeds kept back in turn, so that every amount is measured on all of them, each by a fit that did not learn from it.

A quarter of 200 feeds is too few to tell a drop of one point from none. So each quarter is kept back once, while the
others are learnt from; the answers of the four fits together are one measurement on all feeds. The model that is
written is fitted to all feeds, at an amount that four fits to three quarters of them have borne out. (Of a large
network two of the four quarters show the way there.)

Where feeds are short sequences, the longer ones that are made of them (`longer`) are measured on as well: there a
cell's errors have had time to grow. What is worse counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.budget.point import Budget, Point, point_of
from emp_onnx.calibration.feeding import longer
from emp_onnx.refit.fitting import Fitting, Thin
from emp_onnx.runtime.feeds import Feed

__all__ = ["TURNS", "Turns"]

Says = list[list[NDArray[Any]]]
TURNS = 4
LARGE, TAKEN = 1_000_000, 2  # weights from which on a fit takes long, and how many turns show the way then


class Turns:
    """A fitting taken apart.

    Args:
        fitting: one that learns from all of its feeds (`held` 0).
        how, criterion, update: see `Fitting.thin`.
        count: of the turns; never more than there are feeds. One turn measures on the very feeds that were learnt from.

    Attributes:
        shares: for each turn which feeds are kept back.
        taken: how many turns are taken where not all are asked for.
        dense: what the dense model is like.
    """

    def __init__(self, fitting: Fitting, *, how: str, criterion: str, update: bool, count: int = TURNS) -> None:
        self.fitting, self._how, self._criterion, self._update = fitting, how, criterion, update
        n = len(fitting.kept_back)
        count = min(count, n) if fitting.learns else 1
        # at random, since feeds may come in some order of their own
        turn = np.random.default_rng(n).permutation(n) % count
        self.taken = TAKEN if fitting.total > LARGE and count > TAKEN else count
        self.shares: list[list[int]] = [np.flatnonzero(turn == i).tolist() for i in range(count)]
        self._begun: dict[int, list[list[Says]]] = {}
        self._parts: list[Fitting | None] = [None] * count
        kept = [[fitting.kept_back[i] for i in share] for share in self.shares]
        more = [longer(fitting.model, feeds, fitting.threads) if fitting.joined else [] for feeds in kept]
        self._sets: list[list[list[Feed]]] = [kept, more] if all(more) else [kept]
        self._before = [[fitting.answers.dense(feeds) for feeds in part] for part in self._sets]
        self.dense = self._point(0.0, self._before)

    def thin(self, keep: int) -> Thin:
        """The model fitted to all feeds."""
        return self._fit(self.fitting, keep)

    def point(self, keep: int, budget: Budget, *, every: bool = False) -> Point:
        """What a model with `keep` weights is like, on the feeds of `every` turn or of those that show the way; or on
        those of the first turns, where these lose so much that the others cannot make good for it."""
        found = self._begun.pop(keep, None) or [[] for _ in self._sets]
        turns = len(self.shares) if every else self.taken
        n, sparsity = sum(map(len, self.shares[:turns])), (self.fitting.total - keep) / self.fitting.total
        point, within = self._point(sparsity, found) if found[0] else self.dense, True
        for turn in range(len(found[0]), turns):
            part = self._part(turn)
            changed = self._fit(part, keep).changed
            for answers, feeds in zip(found, self._sets, strict=True):
                answers.append(part.answers(changed, feeds[turn]))
            point = self._point(sparsity, found)
            within = budget.lost(point, self.dense) * (point.feeds or 0) / n <= budget.most
            if not within:
                break
        if within and turns < len(self.shares):
            self._begun = {keep: found}  # may be asked for on all feeds
        return point

    def whole(self, thin: Thin) -> Point:
        """What a model that was fitted to all feeds is like on those that were kept back in turn."""
        found = [[self.fitting.answers(thin.changed, feeds) for feeds in part] for part in self._sets]
        return self._point(thin.sparsity, found)

    def _point(self, sparsity: float, found: Sequence[Sequence[Says]]) -> Point:
        points = [
            point_of(sparsity, _flat(before[: len(after)]), _flat(after), handed=bool(self.fitting.answers.states))
            for before, after in zip(self._before, found, strict=True)
        ]
        return points[0].worst(*points[1:])

    def _fit(self, part: Fitting, keep: int) -> Thin:
        return part.thin(keep, how=self._how, criterion=self._criterion, update=self._update)

    def _part(self, turn: int) -> Fitting:
        found = self._parts[turn]
        if found is None:
            found = self._parts[turn] = self.fitting.without(self.shares[turn])
        return found


def _flat(parts: Sequence[Says]) -> Says:
    return [answer for part in parts for answer in part]
