"""One long pool on a device: nothing of its size is made there but the masks.

As in ``_top``: sums piece by piece decide the count, a sample brackets the threshold, one sweep counts what is above
and gathers what is near. Where ties or bad luck defeat the bracket, the threshold is found by halving: at most one
sweep per bit of a score. Everything is done by the scores' own library; a few numbers per piece come to the host.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._bracket import RUN, bracket_of
from ._errors import PoolError
from ._exact import CHUNK, UNIT, WHOLE, Sums, exact_rows, refuse_rounded, units
from ._namespace import Given, is_long, is_narrow, to_host
from ._rows import parts as folded

PIECE = 1 << 22  # scores that are taken at once: 32 MB in float64
ROW = 1 << 12  # scores that one float64 sum takes
ROOM = 1 << 22  # most scores that are gathered near the threshold
SAMPLE = 1 << 14  # scores that bracket the threshold; the host sorts them, which takes longer than a sweep


class DeviceStream:
    """A pool made of flat arrays of one library.

    Args:
        source: one of them, as it was given.
        parts: 1-D arrays, whose dtypes may differ.
        where: for each part None or booleans of its length; False means not in the pool.
        names: for each part how an error calls it.
    """

    def __init__(self, source: Given, parts: Sequence[Any], where: Sequence[Any | None], names: Sequence[str]) -> None:
        self.source, self.xp, self.parts, self.where, self.names = source, source.xp, parts, where, names
        xp = self.xp
        self.sizes = [int(p.shape[0]) for p in parts]
        masked = [w for w in where if w is not None]
        free = sum(size for size, w in zip(self.sizes, where, strict=True) if w is None)
        self.n = free + self._total([self._count(w) for w in masked])
        self.single = all(is_narrow(xp, p.dtype) for p in parts)
        self.dtype = xp.float32 if self.single else xp.float64
        self._finite = False
        self._l1: float | None = None

    def pieces(self) -> Iterator[tuple[int, slice]]:
        """Every stretch of every part, in order."""
        for i, size in enumerate(self.sizes):
            for start in range(0, size, PIECE):
                yield i, slice(start, min(start + PIECE, size))

    def magnitude(self, part: int, at: slice, outside: float = -1.0) -> Any:
        """Magnitudes in the working dtype."""
        xp, where = self.xp, self.where[part]
        a = xp.abs(xp.astype(self.parts[part][at], self.dtype))
        return a if where is None else xp.where(where[at], a, xp.full_like(a, outside))

    def rows(self, part: int, at: slice, width: int, mask: Any = None) -> Any:
        """Magnitudes as float64 rows of this width, 0 outside the pool (and the mask) and beyond the end."""
        xp = self.xp
        a = self.magnitude(part, at, 0.0)
        a = xp.astype(a if mask is None else xp.where(mask[at], a, xp.zeros_like(a)), xp.float64)
        missing = -int(a.shape[0]) % width
        if missing:
            a = xp.concat([a, xp.zeros((missing,), dtype=xp.float64, device=a.device)])
        return xp.reshape(a, (-1, width))

    # --- the count ------------------------------------------------------------------------------------------------
    def sums(self, beta: Fraction) -> Sums:
        """Sums that decide the count and leave bounds sharp."""
        for known in (self._plain, self._folded):
            found = known()
            if found is not None and found.settled() and found.keep_count(beta) is not None:
                return found
        return self.exact()

    def _plain(self) -> Sums | None:
        """Float64 sums of short rows, with what they may be off by; None where that says nothing."""
        if not self.single:  # squares would be rounded as well
            return None
        xp, totals, squares = self.xp, [], []
        for part, at in self.pieces():
            a = self.rows(part, at, ROW)
            totals.append(xp.sum(a, axis=1))
            squares.append(xp.sum(a * a, axis=1))
        total, square = (math.fsum(to_host(xp.concat(some)).tolist()) for some in (totals, squares))
        if not (math.isfinite(total) and math.isfinite(square)):
            self.refuse_not_finite()
            return None
        self._finite, self._l1 = True, total
        slack = ROW * 2.0**-52  # addends of a row, in any order, round by ROW·2**-53; twice that, for the rest
        return Sums(
            self.n,
            units(total, UNIT),
            units(square, 2 * UNIT),
            units(total * slack, UNIT) + 1 if total else 0,
            units(square * slack, 2 * UNIT) + 1 if total else 0,
        )

    def _folded(self) -> Sums:
        known = Sums(self.n, 0, 0)
        self.refuse_not_finite()
        for part, at in self.pieces():
            known = known + folded(self.xp, self.rows(part, at, CHUNK), self.like, single=self.single).sums(0)
        return known

    def exact(self) -> Sums:
        """Sums without any error."""
        known = Sums(self.n, 0, 0)
        self.refuse_not_finite()
        for part, at in self.pieces():
            totals, squares = exact_rows(self.xp, self.rows(part, at, CHUNK), self.like, single=self.single)
            known = known + Sums(0, sum(totals), sum(squares))
        return known

    def like(self, a: NDArray[Any]) -> Any:
        """A small host array beside the scores."""
        return self.source.back(np.ascontiguousarray(a))

    def refuse_not_finite(self) -> None:
        """An error that names the part, also for integers that float64 would round; looked for once."""
        xp = self.xp
        if self._finite:
            return
        for part, at in self.pieces():
            a = self.magnitude(part, at)
            if is_long(xp, self.parts[part].dtype):
                if bool(xp.any(a >= WHOLE)):
                    refuse_rounded(to_host(self.parts[part][at])[to_host(a) >= 0], self.names[part])
            elif not bool(xp.all(xp.isfinite(a))):
                raise PoolError(f"{self.names[part]} must be finite, got NaN or an infinity")
        self._finite = True

    # --- the mask -------------------------------------------------------------------------------------------------
    def mask(self, k: int) -> list[Any]:
        """For each part a mask; exactly ``k`` True in all, the largest magnitudes, ties to the lower place."""
        xp = self.xp
        self.refuse_not_finite()
        if k <= 0 or k >= self.n:
            return [
                (xp.zeros_like if k <= 0 else xp.ones_like)(p, dtype=xp.bool)
                if k <= 0 or w is None
                else xp.asarray(w, copy=True)
                for p, w in zip(self.parts, self.where, strict=True)
            ]
        threshold = self.threshold(k)
        masks: list[list[Any]] = [[] for _ in self.parts]
        places = list(self.pieces())
        for part, at in places:
            masks[part].append(self.magnitude(part, at) >= threshold)
        surplus = self._total([self._count(m) for some in masks for m in some]) - k
        for part, at in reversed(places):  # ties to let go, from the last place up
            if not surplus:
                break
            same = self.magnitude(part, at) == threshold
            here = int(to_host(self._count(same)))
            if here > surplus:
                order = getattr(xp, "cumulative_sum", None) or xp.cumsum
                same = same & (order(xp.astype(same, xp.int64), axis=0) > here - surplus)
            piece = at.start // PIECE
            masks[part][piece] = masks[part][piece] & ~same
            surplus -= min(here, surplus)
        return [
            some[0] if len(some) == 1 else xp.concat(some) if some else xp.zeros_like(p, dtype=xp.bool)
            for some, p in zip(masks, self.parts, strict=True)
        ]

    def threshold(self, k: int) -> float:
        """The k-th largest magnitude."""
        kind = np.float32 if self.single else np.float64
        low, high = bracket_of(self.sample(), share=k / self.n)
        most = float(np.finfo(kind).max)
        low, high = self._bits(low), self._bits(min(high, most)) + 1  # from here on places among all floats
        at_low, at_high = self._counts([low, high])
        if not at_high < k <= at_low:
            low, high = 0, self._bits(most) + 1
            at_low, at_high = self.n, 0
        while at_low - at_high > ROOM and high - low > 1:
            middle = (low + high) // 2
            (count,) = self._counts([middle])
            if count >= k:
                low, at_low = middle, count
            else:
                high, at_high = middle, count
        if high - low == 1:
            return self._float(low)
        xp, inside = self.xp, []
        first, last = self._float(low), self._float(high - 1)
        for part, at in self.pieces():
            a = self.magnitude(part, at)
            inside.append(a[(a >= first) & (a <= last)])
        ordered = xp.sort(xp.concat(inside))
        return float(ordered[int(ordered.shape[0]) - (k - at_high)])

    def sample(self) -> NDArray[Any]:
        """Magnitudes at some random places, the same each time, in runs as `bracket_of` takes them."""
        random, taken, total = np.random.default_rng(self.n), [], sum(self.sizes)
        for i, size in enumerate(self.sizes):
            runs = min(size // RUN, -(-SAMPLE * size // (RUN * total)))
            if runs:
                first = np.sort(random.integers(0, size - RUN + 1, runs))
                places = self.like((first[:, None] + np.arange(RUN)).reshape(-1))
                xp, where = self.xp, self.where[i]
                a = xp.abs(xp.astype(xp.take(self.parts[i], places, axis=0), self.dtype))
                taken.append(a if where is None else xp.where(xp.take(where, places, axis=0), a, xp.full_like(a, -1.0)))
        if not taken:
            return np.empty((0, RUN), np.float64)
        found: NDArray[Any] = to_host(self.xp.concat(taken)).reshape(-1, RUN)
        return found

    def _counts(self, places: list[int]) -> list[int]:
        """How many scores are at least each of these floats."""
        limits, found = [self._float(p) for p in places], [list[Any]() for _ in places]
        for part, at in self.pieces():
            a = self.magnitude(part, at)
            for limit, counts in zip(limits, found, strict=True):
                counts.append(self._count(a >= limit))
        return [self._total(counts) for counts in found]

    def _total(self, counts: list[Any]) -> int:
        return int(to_host(self.xp.sum(self.xp.stack(counts)))) if counts else 0

    def _count(self, mask: Any) -> Any:
        """How many are True, there."""
        count = getattr(self.xp, "count_nonzero", None)
        return self.xp.sum(self.xp.astype(mask, self.xp.int64)) if count is None else count(mask)

    def _bits(self, value: float) -> int:
        """The place of a float ≥ 0 among all of its kind."""
        a = np.asarray(max(value, 0.0), np.float32 if self.single else np.float64)
        return int(a.view(np.uint32 if self.single else np.uint64))

    def _float(self, bits: int) -> float:
        held = np.asarray(bits, np.uint32 if self.single else np.uint64)
        return float(held.view(np.float32 if self.single else np.float64))

    # --- the mass -------------------------------------------------------------------------------------------------
    def share(self, masks: Sequence[Any]) -> float:
        """Σ|s| of the kept scores over Σ|s| of all; 1 when all are zero."""
        self.refuse_not_finite()
        xp, scale, l1, totals, kept = self.xp, 1.0, self._l1, list[Any](), list[Any]()
        if not self.single:  # sums of the largest numbers would overflow
            scale, l1 = math.ldexp(1.0, -max(math.frexp(self.largest())[1], -1000)), None
        for part, at in self.pieces():
            if l1 is None:
                totals.append(xp.sum(self.rows(part, at, ROW) * scale, axis=1))
            kept.append(xp.sum(self.rows(part, at, ROW, masks[part]) * scale, axis=1))  # all kept: the same sums
        total, some = (math.fsum(to_host(xp.concat(x)).tolist()) if x else l1 or 0.0 for x in (totals, kept))
        return min(1.0, some / total) if total else 1.0

    def largest(self) -> float:
        """The largest magnitude; 0 for an empty pool."""
        found = [self.xp.max(self.magnitude(part, at, 0.0)) for part, at in self.pieces()]
        return float(to_host(self.xp.max(self.xp.stack(found)))) if found else 0.0
