"""A long pool of 16-bit numbers: each of its 32 768 possible magnitudes is counted, and all else follows.

One look at every score. The sums are exact, so the count is; the threshold is a magnitude with its count; only where
ties are cut is a part of the pool looked at again, for the place of the last one that stays.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._chunks import Buffers, Chunk, Part
from ._exact import CHUNK, UNIT, Sums
from ._namespace import BFLOAT16
from ._stream import Stream

Counts = NDArray[np.int64]
PATTERNS = 1 << 15


class Kind(NamedTuple):
    """How 15 bits say a magnitude: `mantissa` of so many bits, and what is taken off the exponent above it."""

    mantissa: int
    bias: int

    @property
    def infinity(self) -> int:
        """The pattern of infinity; those above are NaN."""
        return PATTERNS - (1 << self.mantissa)

    def sums(self, counts: Counts) -> Sums:
        """Exact sums over scores of which each pattern has so many."""
        rows = counts.reshape(-1, 1 << self.mantissa)
        digits = np.arange(rows.shape[1]) + np.where(np.arange(len(rows)) > 0, rows.shape[1], 0)[:, None]
        total = squares = 0
        for exponent in np.flatnonzero(rows.any(axis=1)).tolist():
            shift = UNIT + max(exponent, 1) - self.bias - self.mantissa
            row, digit = rows[exponent], digits[exponent]  # at most 2**11 each: sums of 2**41 scores fit an integer
            total += int(row @ digit) << shift
            squares += int(row @ (digit * digit)) << 2 * shift
        return Sums(int(counts.sum()), total, squares)


KINDS = {np.dtype(np.float16): Kind(10, 15), BFLOAT16: Kind(7, 127)}


class Share(NamedTuple):
    """Of a part: its sums, and what is kept of it."""

    sums: Sums
    k: int
    mass: float
    nonzero: int


class Found(NamedTuple):
    """Of the pool: exact sums, how many are kept, the cut, the retained mass; and the shares of its parts."""

    sums: Sums
    k: int
    threshold: float
    last: int
    mass: float
    parts: list[Share]


def kind_of(stream: Stream) -> Kind | None:
    """How a pool stores its numbers, if all of them in the same 16 bits, and in parts so long that it pays."""
    dtypes = {part.dtype for part in stream.parts}
    return KINDS.get(dtypes.pop()) if len(dtypes) == 1 and stream.length >= PATTERNS * len(stream.parts) else None


def cut(stream: Stream, kind: Kind, beta: Fraction, fixed: int | None) -> Found:
    """Count every pattern, and find the cut."""
    held = [_Held.of(_counted(stream, i, kind)) for i in range(len(stream.parts))]
    whole: Counts = np.zeros(PATTERNS, np.int64)
    for part in held:
        whole[part.patterns] += part.counts
    sums, k = stream.decide(kind.sums(whole), beta)
    k = k if fixed is None else fixed
    larger = np.cumsum(whole[::-1])[::-1] - whole  # of each pattern, the scores above it
    pattern = int(np.flatnonzero(larger < k)[0]) if k < stream.n else 0
    ties, last = k - int(larger[pattern]), stream.n
    if ties < whole[pattern]:
        last = _place(stream, held, pattern, ties)
    shares, kept = [], 0
    for part in held:
        counts = part.dense()
        mine = kind.sums(counts)
        counts[pattern] = min(ties, int(counts[pattern]))
        counts[:pattern] = 0
        ties -= int(counts[pattern])
        left = kind.sums(counts)
        kept += left.total
        shares.append(Share(mine, left.n, _ratio(left, mine), left.n - int(counts[0])))
    number = np.array([pattern], np.uint16).view(np.float16) if kind.mantissa == 10 else _bfloat16(pattern)
    return Found(sums, k, float(number[0]), last, min(1.0, kept / sums.total) if sums.total else 1.0, shares)


class _Held(NamedTuple):
    """The counts of a part, without those that are 0: weights fill a few thousand patterns at most."""

    patterns: NDArray[np.intp]
    counts: Counts

    @classmethod
    def of(cls, counts: Counts) -> _Held:
        patterns = np.flatnonzero(counts)
        return cls(patterns, counts[patterns])

    def dense(self) -> Counts:
        """One count for each pattern."""
        counts = np.zeros(PATTERNS, np.int64)
        counts[self.patterns] = self.counts
        return counts


def _counted(stream: Stream, i: int, kind: Kind) -> Counts:
    """How many scores of a part have each pattern."""
    counts, lock = np.zeros(PATTERNS, np.int64), threading.Lock()
    alone = Stream([stream.parts[i]], [None], [stream.names[i]], stream.threads)

    def work(chunk: Chunk, buffers: Buffers) -> None:
        some = np.bincount(_patterns(stream.parts[i], chunk.start, chunk.stop), minlength=PATTERNS)
        if some[kind.infinity :].any():
            alone._refuse_not_finite(chunk, alone.load(chunk, buffers))
        with lock:
            counts[:] += some

    alone.run(work)
    return counts


def _patterns(part: Part, start: int, stop: int) -> NDArray[np.uint16]:
    return np.asarray(part[start:stop]).view(np.uint16) & np.uint16(PATTERNS - 1)


def _place(stream: Stream, held: Sequence[_Held], pattern: int, count: int) -> int:
    """The place in the pool of the ``count``-th score with this pattern."""
    start = 0
    for part, mine in zip(stream.parts, held, strict=True):
        here = int(mine.counts[mine.patterns == pattern].sum())
        if here >= count:
            for chunk in range(0, part.size, CHUNK):
                places = np.flatnonzero(_patterns(part, chunk, min(chunk + CHUNK, part.size)) == pattern)
                if places.size >= count:
                    return start + chunk + int(places[count - 1])
                count -= places.size
        count -= here
        start += part.size
    raise AssertionError("fewer ties than counted")


def _ratio(kept: Sums, whole: Sums) -> float:
    return min(1.0, kept.total / whole.total) if whole.total else 1.0


def _bfloat16(pattern: int) -> NDArray[np.float32]:
    return (np.array([pattern], np.uint32) << 16).view(np.float32)
