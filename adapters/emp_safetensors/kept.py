"""What is kept of a tensor, as a threshold for each pool: the mask of any piece follows, and no mask is ever stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_core import Cut
from emp_core.certificates import BFLOAT16

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

    def mask(self, stored: NDArray[Any], start: int) -> NDArray[np.bool_]:
        """The mask of flat elements as they are stored, of which the first has this index in the tensor."""
        kind = np.dtype(f"u{stored.dtype.itemsize}")
        size = stored.view(kind) & kind.type(np.iinfo(kind).max >> 1)  # bit patterns of magnitudes order as they do
        if self.threshold.size == 1:
            cut = _patterns(self.threshold, stored.dtype)
            return _kept(size[None], *cut, self.last, self.base + start).reshape(-1)
        out, at = np.empty(size.size, bool), 0
        while at < size.size:
            row, inside = divmod(start + at, self.length)
            rows = (size.size - at) // self.length if inside == 0 else 0  # whole rows at once
            count = rows * self.length or min(self.length - inside, size.size - at)
            here = slice(row, row + max(rows, 1))
            cut = _patterns(self.threshold[here], stored.dtype)
            block = size[at : at + count].reshape(max(rows, 1), -1)
            out[at : at + count] = _kept(block, *cut, self.last[here], inside).reshape(-1)
            at += count
        return out


def _patterns(threshold: NDArray[np.float64], dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The bit patterns of the least numbers of this type that are not below, and whether they are the thresholds."""
    wide = np.dtype(np.float32) if dtype == BFLOAT16 else dtype
    with np.errstate(over="ignore", under="ignore"):
        least = threshold.astype(wide)
        least = np.where(least < threshold, np.nextafter(least, wide.type(np.inf)), least)
    bits = least.view(f"u{wide.itemsize}")
    if dtype == BFLOAT16:
        bits = (bits + np.uint32(0xFFFF)) >> np.uint32(16)
        return bits.astype(np.uint16), (bits << np.uint32(16)).view(np.float32) == threshold
    return bits, least == threshold


def _kept(
    size: NDArray[Any], least: NDArray[Any], exact: NDArray[np.bool_], last: NDArray[np.int64], start: int
) -> NDArray[np.bool_]:
    """The mask of some of each row, from this place in the row on."""
    keep: NDArray[np.bool_] = size >= least[:, None]
    cut = np.flatnonzero(exact & (last < start + size.shape[1] - 1))
    if cut.size:
        late = np.arange(start, start + size.shape[1]) > last[cut, None]
        keep[cut] &= ~(late & (size[cut] == least[cut, None]))
    return keep
