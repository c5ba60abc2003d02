"""Feeds kept back in turn, so that every amount is measured on all of them, each by a fit that did not learn from it.

A quarter of 200 feeds is too few to tell a drop of one point from none. So each quarter is kept back once, while the
others are learnt from; the answers of the four fits together are one measurement on all feeds. The model that is
written is fitted to all feeds, at an amount that four fits to three quarters of them have borne out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.feeding import longer
from emp_onnx.refit.fitting import Fitting, Thin

__all__ = ["TURNS", "Turns"]

Says = list[list[NDArray[Any]]]
TURNS = 4


class Turns:
    """A fitting taken apart.

    Args:
        fitting: one that learns from all of its feeds (`held` 0).
        how, criterion, update: see `Fitting.thin`.
        count: of the turns; never more than there are feeds. One turn measures on the very feeds that were learnt from.

    Attributes:
        shares: for each turn which feeds are kept back.
    """

    def __init__(self, fitting: Fitting, *, how: str, criterion: str, update: bool, count: int = TURNS) -> None:
        self.fitting, self._how, self._criterion, self._update = fitting, how, criterion, update
        n = len(fitting.kept_back)
        count = min(count, n) if fitting.learns else 1
        # at random, since feeds may come in some order of their own
        turn = np.random.default_rng(n).permutation(n) % count
        self.shares: list[list[int]] = [np.flatnonzero(turn == i).tolist() for i in range(count)]
        self.dense = fitting.answers.dense(fitting.kept_back)
        self._parts: list[Fitting | None] = [None] * count

    def thin(self, keep: int) -> Thin:
        """The model fitted to all feeds."""
        return self._fit(self.fitting, keep)

    def answers(self, keep: int, turn: int) -> Says:
        """What a model with `keep` weights answers to the feeds that are kept back in this turn."""
        part = self._part(turn)
        return part.answers(self._fit(part, keep).changed, part.kept_back)

    def before(self, turns: Sequence[int]) -> Says:
        """What the dense model answers to the feeds of these turns, turn by turn."""
        return [self.dense[i] for turn in turns for i in self.shares[turn]]

    def _fit(self, part: Fitting, keep: int) -> Thin:
        return part.thin(keep, how=self._how, criterion=self._criterion, update=self._update)

    def _part(self, turn: int) -> Fitting:
        found = self._parts[turn]
        if found is None:
            found = self._parts[turn] = self._without(self.shares[turn])
        return found

    def _without(self, back: Sequence[int]) -> Fitting:
        """The same fitting, but that it does not learn from some feeds."""
        whole, out = self.fitting, copy.copy(self.fitting)
        out.kept_back = [whole.kept_back[i] for i in back]
        if len(self.shares) > 1:
            used = [feed for i, feed in enumerate(whole.kept_back) if i not in set(back)]
            more = longer(whole.model, used, whole.threads) if whole.joined else []
            out.joined, out.network = len(more), whole.network.on([*used, *more])
        return out
