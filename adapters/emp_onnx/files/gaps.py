"""Gaps as codes: for each stored element how many are skipped before it, made and read a stretch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["GapDecoder", "gap_codes", "join", "split"]

Bits = NDArray[np.bool_]


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
