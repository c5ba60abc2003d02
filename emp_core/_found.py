"""What a search for the cut of a pool finds: sums, count, threshold and last place, and what is kept of each part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._chunks import PIECE, Part, total_of
from ._exact import UNIT, Sums
from ._namespace import BFLOAT16
from ._stream import Stream

Mask = NDArray[np.bool_]


class Kept(NamedTuple):
    """What is kept of each part: how many, the share of Σ|s|, how many that are not zero."""

    k: list[int]
    mass: list[float]
    nonzero: list[int]


class Pieces(NamedTuple):
    """Sums over the pieces of all parts, one after the other, and for each part where its own begin, and the end."""

    first: list[int]
    totals: NDArray[np.float64]
    squares: NDArray[np.float64]
    above: NDArray[np.float64]

    @classmethod
    def of(cls, stream: Stream) -> Pieces:
        """Room for the sums of these parts."""
        first = np.cumsum([0, *(-(-part.size // PIECE) for part in stream.parts)]).tolist()
        return cls(first, *np.zeros((3, first[-1])))

    def part(self, i: int) -> slice:
        """The pieces of one part."""
        return slice(self.first[i], self.first[i + 1])

    def mass(self, i: int, extra: float = 0.0) -> float | None:
        """What share of Σ|s| lies above in one part, 1 where all is zero; None where float64 overflowed or vanished."""
        total, above = total_of([self.totals[self.part(i)]]), total_of([self.above[self.part(i)]])
        if not total:
            return 1.0
        return min(1.0, (above + extra) / total) if 2.0**-900 < total < math.inf and above < math.inf else None


@dataclass
class Found:
    """What was found out about a pool."""

    sums: Sums
    k: int
    threshold: float
    last: int
    mass: float
    kept: Kept
    pieces: Pieces | None = None
    held: Sequence[Part] | None = None  # the parts, where they were read as a whole
    each: Sequence[Sums] | None = None  # of the parts, where they were taken on the way


def mask_of(size: NDArray[Any], start: int, threshold: float, last: int) -> Mask:
    """What is at least the threshold, without the ties after the last place."""
    least, tied = at_least(threshold, size.dtype)
    keep: Mask = size >= least
    if tied and last < start + size.size - 1:
        flat, same = keep.reshape(-1), (size == least).reshape(-1)
        flat[max(last + 1 - start, 0) :] &= ~same[max(last + 1 - start, 0) :]
    return keep


def magnitudes(piece: NDArray[Any]) -> NDArray[Any]:
    """|s| in a type that orders as the pool does."""
    if piece.dtype == BFLOAT16:  # its bits are the upper half of a float32's; a cast would take them for whole numbers
        piece = (piece["bfloat16"].astype(np.uint32) << 16).view(np.float32)
    elif piece.dtype == np.float16:
        piece = piece.astype(np.float32)
    elif piece.dtype.kind != "f":
        piece = piece.astype(np.float64)
    size: NDArray[Any] = np.abs(piece)
    return size


def at_least(threshold: float, dtype: np.dtype[Any]) -> tuple[Any, bool]:
    """The least number of this type that is not below the threshold, and whether it is the threshold."""
    with np.errstate(over="ignore", under="ignore"):
        found = dtype.type(threshold)
        if float(found) < threshold:
            found = np.nextafter(found, dtype.type(math.inf))
    return found, float(found) == threshold


def float_of(sums: Sums) -> float:
    """Σ|s|, inf beyond float64."""
    try:
        return sums.total / (1 << UNIT)
    except OverflowError:
        return math.inf
