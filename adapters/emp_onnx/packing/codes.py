"""What a packed tensor's inputs hold, made from its elements a stretch at a time, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCKS", "GAPS", "Counts", "GapDecoder", "bits_of", "gap_codes", "join", "split", "stored_mask"]

GAPS = (4, 6, 8)  # bits of a code that counts skipped elements
BLOCKS = (8, 16, 32, 64, 128, 256)  # neighbouring elements that are stored together or not at all
SPARSE = 0.35  # densities above which codes for gaps are never the shortest
Bits = NDArray[np.bool_]
Values = NDArray[Any]


def stored_mask(values: Values, fill: Values) -> Bits:
    """Which elements differ from the fill in their bits: −0.0 does, and every NaN."""
    plain = bits_of(values)
    mask: Bits = np.not_equal(plain, bits_of(fill.reshape(1))[0])
    return mask


def bits_of(values: Values) -> Values:
    """The elements' bits, as whole numbers."""
    return values.view(f"u{values.dtype.itemsize}")


@dataclass
class Counts:
    """What decides the size of each form, added up over stretches that follow each other.

    Attributes:
        size: elements seen.
        stored: how many of them differ from the fill.
        codes: how many codes of so many bits say where they are.
        blocks: how many blocks of so many elements hold at least one.
        dense: whether so many were stored in some stretch that codes were no longer counted.
        cuts: where parts of the tensor begin, and where the last ends; nothing where it has none.
        parts: how many elements of each part are stored.
    """

    size: int = 0
    stored: int = 0
    codes: dict[int, int] = field(default_factory=lambda: dict.fromkeys(GAPS, 0))
    blocks: dict[int, int] = field(default_factory=lambda: dict.fromkeys(BLOCKS, 0))
    dense: bool = False
    cuts: tuple[int, ...] = ()
    parts: list[int] = field(default_factory=list)
    _end: int = -1  # where the last stored element was

    def add(self, mask: Bits) -> None:
        """Count a stretch; its length is a multiple of the largest block, unless it is the last."""
        many = self._many(mask)
        self.dense |= many > SPARSE * mask.size
        if many and not self.dense:
            place = np.flatnonzero(mask) + self.size
            gap = np.diff(place, prepend=self._end) - 1
            for bits in GAPS:
                self.codes[bits] += many + int((gap // ((1 << bits) - 1)).sum())
            self._end = int(place[-1])
        some = np.concatenate([mask, np.zeros(-mask.size % 8, bool)]) if mask.size % 8 else mask
        some = some.view(np.uint64) != 0
        for width in BLOCKS:
            if width > 8:
                some = np.append(some, False) if some.size % 2 else some
                some = some[::2] | some[1::2]
            self.blocks[width] += int(np.count_nonzero(some))
        self.stored += many
        self.size += mask.size

    def _many(self, mask: Bits) -> int:
        """How many are set, counted for each part."""
        stop = self.size + mask.size
        if not self.cuts:
            return int(np.count_nonzero(mask))
        self.parts = self.parts or [0] * (len(self.cuts) - 1)
        many = 0
        for i, (first, last) in enumerate(pairwise(self.cuts)):
            if first < stop and last > self.size:
                found = int(np.count_nonzero(mask[max(first - self.size, 0) : last - self.size]))
                self.parts[i] += found
                many += found
        return many


def gap_codes(mask: Bits, base: int, end: int, bits: int) -> tuple[NDArray[np.uint8], int]:
    """The codes of a stretch that begins at `base`, where the last stored element was at `end`; and the new `end`.

    >>> gap_codes(np.array([0, 1, 1] + 16 * [0] + [1], bool), 0, -1, 4)
    (array([ 1,  0, 15,  1], dtype=uint8), 19)
    """
    escape = (1 << bits) - 1
    place = np.flatnonzero(mask) + base
    if not place.size:
        return np.empty(0, np.uint8), end
    gap = np.diff(place, prepend=end) - 1
    skips = gap // escape
    codes = np.full(place.size + int(skips.sum()), escape, np.uint8)
    codes[np.cumsum(skips + 1) - 1] = gap - skips * escape
    return codes, int(place[-1])


def split(codes: NDArray[np.uint8], bits: int) -> tuple[NDArray[np.uint8], ...]:
    """Codes as the bytes that are stored; their number must be a multiple of 4, unless these are the last."""
    if bits == 8:
        return (codes,)
    low = codes & 15
    if low.size % 2:
        low = np.append(low, np.uint8(0))
    halves = (low[::2] | low[1::2] << 4).astype(np.uint8)
    if bits == 4:
        return (halves,)
    high = codes >> 4
    high = np.concatenate([high, np.zeros(-high.size % 4, np.uint8)])
    return halves, (high[::4] | high[1::4] << 2 | high[2::4] << 4 | high[3::4] << 6).astype(np.uint8)


def join(planes: tuple[NDArray[np.uint8], ...], bits: int) -> NDArray[np.uint8]:
    """The codes of some bytes."""
    if bits == 8:
        return planes[0]
    low: NDArray[np.uint8] = np.stack([planes[0] & 15, planes[0] >> 4], axis=1).reshape(-1)
    if bits == 4:
        return low
    high = np.stack([planes[1] >> shift & 3 for shift in (0, 2, 4, 6)], axis=1).reshape(-1)
    count = min(low.size, high.size)
    return (low[:count] | high[:count] << 4).astype(np.uint8)


@dataclass(frozen=True)
class GapDecoder:
    """Codes read a stretch at a time: `read(start, stop)` gives codes, from an even multiple of 4 on."""

    read: Callable[[int, int], NDArray[np.uint8]]
    count: int
    bits: int

    def places(self, at: int, end: int, stop: int, step: int = 1 << 16) -> Iterator[tuple[NDArray[np.int64], int, int]]:
        """Where values are stored, from code `at` on, which follows element `end`, until element `stop`.

        Yields the places, the number of the next code, and the last element passed.
        """
        escape = (1 << self.bits) - 1
        while at < self.count and end < stop - 1:
            codes = self.read(at, min(at + step, self.count))
            is_value = codes != escape
            ends = np.cumsum(codes.astype(np.int64) + is_value) + end
            yield ends[is_value], at + codes.size, int(ends[-1])
            at, end = at + codes.size, int(ends[-1])
