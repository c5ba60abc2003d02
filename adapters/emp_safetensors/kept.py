"""What is kept of a tensor, as a threshold for each pool: the mask of any piece follows, and no mask is ever stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_core import Cut

__all__ = ["Kept"]


@dataclass(frozen=True)
class Kept:
    """Scores of a larger magnitude than the threshold are kept, and of equal ones those up to a place.

    Attributes:
        length: scores in a pool; pools follow each other. Of a pool that spans several tensors the whole of it.
        base: place of the tensor's first score in its pool.
        threshold: per pool.
        last: per pool, the last place at which an equal score is kept.
    """

    length: int
    base: int
    threshold: NDArray[np.float64]
    last: NDArray[np.int64]

    @classmethod
    def of(cls, cut: Cut, base: int = 0) -> Kept:
        """One pool."""
        return cls(cut.n, base, np.array([cut.threshold]), np.array([cut.last]))

    def mask(self, scores: NDArray[Any], start: int) -> NDArray[np.bool_]:
        """The mask of flat scores, of which the first has this index in the tensor."""
        if self.threshold.size == 1:
            return self._one(0, scores, self.base + start)
        out, at = np.empty(scores.size, bool), 0
        while at < scores.size:
            row, inside = divmod(start + at, self.length)
            rows = (scores.size - at) // self.length
            if inside == 0 and rows:  # whole rows at once
                block = np.abs(scores[at : at + rows * self.length].reshape(rows, self.length))
                threshold = self.threshold[row : row + rows, None].astype(block.dtype)  # exact: it is one of them
                keep = block >= threshold
                if (self.last[row : row + rows] < self.length - 1).any():
                    late = np.arange(self.length) > self.last[row : row + rows, None]
                    keep &= ~((block == threshold) & late)
                out[at : at + keep.size] = keep.reshape(-1)
                at += keep.size
            else:
                count = min(self.length - inside, scores.size - at)
                out[at : at + count] = self._one(row, scores[at : at + count], inside)
                at += count
        return out

    def _one(self, row: int, scores: NDArray[Any], place: int) -> NDArray[np.bool_]:
        size = np.abs(scores if scores.dtype != np.float16 else scores.astype(np.float32))
        wanted, last = float(self.threshold[row]), int(self.last[row])
        threshold = size.dtype.type(wanted)
        if float(threshold) < wanted:  # of another type than this tensor's: the next one that is not below
            threshold = np.nextafter(threshold, size.dtype.type(np.inf))
        keep: NDArray[np.bool_] = size >= threshold
        if float(threshold) == wanted and last < place + size.size - 1:
            late = slice(max(last + 1 - place, 0), None)
            keep[late] &= size[late] != threshold
        return keep
