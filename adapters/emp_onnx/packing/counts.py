"""What decides the size of each form of a tensor, counted a stretch at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCKS", "GAPS", "Counts", "bits_of", "stored_mask"]

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
