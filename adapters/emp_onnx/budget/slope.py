"""Which amount to look at next: what is lost grows about as a power of one over the density."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

__all__ = ["Slope"]

POWER = 5.0  # that power, as long as only one point of it is known
FAR = math.log(4)  # how many times fewer weights one step may try where no end is known
EDGE = 0.1  # share of what is left between a good amount and a bad one that a step keeps from either
MANY = 12  # amounts looked at; from then on what is left is halved
NEAR = 0.01  # amounts with a ratio nearer to one than this are not told apart
LEAST, NONE = 1e-3, 1e-9  # share of the budget that stands for no loss at all, where the budget is not nothing itself


@dataclass
class Slope:
    """Losses that were seen, and where the largest one that is allowed should lie.

    Args:
        total: weights that there are; keeping all of them loses nothing.
        fewest: weights that a step keeps at least.
        most: the largest loss that is within.
        aim: the loss that a step aims at.

    Attributes:
        seen: losses by how many weights were kept.
    """

    total: int
    fewest: int
    most: float
    aim: float
    seen: dict[int, float] = field(default_factory=dict)

    @property
    def best(self) -> int:
        """The fewest weights that were within, and fewer than which were not, as far as was seen."""
        return min(k for k in (self.total, *self.seen) if k > self._worst and self._within(k))

    @property
    def _worst(self) -> int:
        return max((k for k in self.seen if not self._within(k)), default=0)

    def _within(self, keep: int) -> bool:
        return keep == self.total or self.seen[keep] <= self.most

    def next(self, first: int) -> int | None:
        """How many weights to keep next (`first` where nothing was seen), or None where nothing new is left to try."""
        if not self.seen:
            keep = min(max(first, self.fewest), self.total - 1)
            return keep if keep > 0 else None
        best, worst = self.best, self._worst
        here, there = self._at(best), self._at(worst) if worst else math.log(self.total / self.fewest)
        if there - here < NEAR:
            return None
        low, high, aim = self._loss(best), self._loss(worst) if worst else math.inf, self._floor(self.aim)
        gap = (EDGE if len(self.seen) < MANY else 0.5) * (there - here)
        if not worst:
            to = here + min(FAR, max((aim - low) / POWER, gap))
        elif best == self.total or low <= self._floor(0):  # nothing is known of where it starts to rise
            to = max(there - (high - aim) / POWER, (here + there) / 2)
        else:
            to = here + (there - here) * (aim - low) / max(high - low, 1e-12)
        to = min(max(to, here + gap), there - gap if worst else there)
        least = max(self.fewest, worst + 1)
        keep = min(max(least, round(self.total * math.exp(-to))), best - 1)  # of a few weights, rounded, the next one
        return keep if keep >= least else None

    def _at(self, keep: int) -> float:
        return math.log(self.total / keep)

    def _floor(self, loss: float) -> float:
        return math.log(max(loss, self.most * LEAST, NONE))

    def _loss(self, keep: int) -> float:
        return self._floor(0 if keep == self.total else self.seen[keep])
