"""Selection in every row of a matrix that is read a stretch at a time: a threshold for each row, and no mask.

One sort of the bit patterns of magnitudes (they order as magnitudes do, and short integers sort fastest) gives all
that a row's cut needs: its largest, its threshold, what lies below it, and the kept ones side by side. Sums are taken
plainly, with a bound on their rounding, and exactly where that bound leaves the count in doubt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._chunks import PIECE, Part, dots, refuse_unreadable
from ._cut import RuleOf, rule_of, select_stream
from ._errors import ArgumentError, PoolError
from ._exact import CHUNK
from ._hill import order_count
from ._namespace import BFLOAT16
from ._pools import HostPools, share_rows
from ._rows import Counted, count_rows, parts
from ._select import bounds, checked_threads
from ._stream import Stream

SLAB = 1 << 17  # scores taken together: of fewer, beginning each step takes longer than the step


@dataclass(frozen=True, eq=False)
class RowCuts:
    """What is kept of every row, as a rule for every score, and the figures that say why; one number per row.

    Attributes:
        length: scores in a row.
        n_eff: effective size, in [1, length].
        k: scores kept, in [1, length].
        mass, mass_lower, mass_upper: retained mass and its bounds.
        threshold: scores of a larger magnitude are kept, float64.
        last: of those of exactly this magnitude the ones whose place in the row is at most this.
        l1: Σ|s|.
    """

    length: int
    n_eff: NDArray[np.float64]
    k: NDArray[np.int64]
    mass: NDArray[np.float64]
    mass_lower: NDArray[np.float64]
    mass_upper: NDArray[np.float64]
    threshold: NDArray[np.float64]
    last: NDArray[np.int64]
    l1: NDArray[np.float64]


def select_rows(
    scores: Part,
    length: int,
    /,
    *,
    beta: float = 1.0,
    order: float = 2,
    sparsity: float | None = None,
    name: str = "scores",
    threads: int | None = None,
) -> RowCuts:
    """:func:`select` with the scope "rows" for a matrix that is not in memory: it is read once, some rows at a time.

    Args:
        scores: its rows, one after the other: a flat NumPy array, or what can be sliced like one, of float16, bfloat16
            (under that name), float32, float64, or integers.
        length: scores in a row.
        beta, order, sparsity: as for :func:`select`.
        name: what an error calls the matrix.
        threads: most threads, for rows that are too long to be taken together.

    Returns:
        The cuts. Counts and masks are those of :func:`select`; ``n_eff``, masses and bounds may differ from them by
        about one part in 10**12, and never are on the wrong side of an integer.

    Raises:
        PoolError: a row is empty or holds NaN or ±inf; the message names it.
        ArgumentError: a parameter is outside what it allows, or the rows do not fill the scores.

    >>> cuts = select_rows(np.array([4.0, -3.0, 0.5, 1.0, 1.0, 1.0]), 3)
    >>> cuts.k.tolist(), cuts.threshold.tolist()
    ([2, 3], [3.0, 1.0])
    """
    rule = rule_of(beta, order, sparsity)
    checked_threads(threads)
    refuse_unreadable(scores, name)
    if not isinstance(length, (int, np.integer)) or length < 1 or scores.size % length:
        raise ArgumentError(f"length must divide the {scores.size} scores, got {length!r}")
    rows = scores.size // length
    if length > CHUNK:
        return _long(scores, rows, length, name, threads, beta=beta, order=order, sparsity=sparsity)
    step = max(1, SLAB // length)
    room = np.empty(min(step, rows) * length)
    found = [NONE]
    for first in range(0, rows, step):
        block = scores[first * length : min(first + step, rows) * length].reshape(-1, length)
        found.append(_cut(rule, block, room, name, first))
    joined = _Cuts(*(np.concatenate(column) for column in zip(*found, strict=True)))
    counted = Counted(np.full(rows, length), joined.n_eff, joined.low, joined.high, joined.k)
    return RowCuts(
        length, joined.n_eff, joined.k, joined.mass, *bounds(counted), joined.threshold, joined.last, joined.l1
    )


def _long(scores: Part, rows: int, length: int, name: str, threads: int | None, **rule: Any) -> RowCuts:
    """Rows too long for the cache, one by one."""
    cuts = [
        select_stream([_Row(scores, i, length)], names=[f"row {i} of {name}"], threads=threads, **rule)
        for i in range(rows)
    ]

    def real(what: str) -> NDArray[np.float64]:
        return np.array([getattr(cut, what) for cut in cuts], np.float64)

    def whole(what: str) -> NDArray[np.int64]:
        return np.array([getattr(cut, what) for cut in cuts], np.int64)

    return RowCuts(
        length, real("n_eff"), whole("k"), real("mass"), real("mass_lower"), real("mass_upper"), real("threshold"),
        np.minimum(whole("last"), length - 1), real("l1"),
    )  # fmt: skip


class _Row:
    """One row as flat scores."""

    def __init__(self, scores: Part, row: int, length: int) -> None:
        self.scores, self.start, self.size, self.dtype = scores, row * length, length, scores.dtype

    def __getitem__(self, stretch: slice, /) -> NDArray[Any]:
        start, stop, _ = stretch.indices(self.size)
        return self.scores[self.start + start : self.start + stop]


class _Cuts(NamedTuple):
    """The columns of `RowCuts`, and two floats that enclose the effective size."""

    n_eff: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    k: NDArray[np.int64]
    mass: NDArray[np.float64]
    threshold: NDArray[np.float64]
    last: NDArray[np.int64]
    l1: NDArray[np.float64]


NO, NO_PLACE = np.empty(0), np.empty(0, np.int64)
NONE = _Cuts(NO, NO, NO, NO_PLACE, NO, NO, NO_PLACE, NO)


def _cut(rule: RuleOf, block: NDArray[Any], room: NDArray[np.float64], name: str, first: int) -> _Cuts:
    """Some rows, of which the first has this number."""
    rows, length = block.shape
    keys = _Keys.of(block)
    ordered = np.sort(keys.bits, axis=1)
    if ordered[:, -1].max() >= keys.infinity:
        _refuse(keys, name, first)
    numbers = keys.numbers(ordered)
    sums = _wide(numbers, rule.beta) if numbers.dtype == np.float64 else _narrow(numbers, rule.beta, room)
    counted = sums.counted
    if rule.share is not None:
        counted = counted.keeping(np.full(rows, max(1, length - round(rule.share * length)), np.int64))
    elif rule.order != 2:
        counted = counted.keeping(order_count(HostPools(block, None, str, 1), rule.beta, rule.order))
    cut, row = length - counted.k, np.arange(rows)
    threshold = ordered[row, cut]
    last = np.full(rows, length - 1)
    tied = np.flatnonzero((cut > 0) & (ordered[row, np.maximum(cut - 1, 0)] == threshold))
    if tied.size:
        last[tied] = _last(keys.bits[tied], ordered[tied], threshold[tied], cut[tied])
    figures = counted.n_eff, counted.low, counted.high, counted.k, sums.mass(cut)
    return _Cuts(*figures, keys.numbers(threshold).astype(np.float64), last, sums.l1)


class _Keys(NamedTuple):
    """Magnitudes as integers that order as they do, and the pattern of infinity."""

    bits: NDArray[Any]
    infinity: int
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, block: NDArray[Any]) -> _Keys:
        """Of scores of any type."""
        if block.dtype == BFLOAT16:
            return cls(block.view(np.int16) & np.int16(0x7FFF), 0x7F80, BFLOAT16)
        if block.dtype not in (np.float16, np.float32, np.float64):
            flat = np.ascontiguousarray(block).reshape(-1)
            block = Stream([flat], [None], ["scores"], 1).magnitudes().reshape(block.shape)
        kind = np.dtype(f"i{block.dtype.itemsize}")
        infinity = int(np.array(np.inf, block.dtype).view(kind))
        return cls(block.view(kind) & np.iinfo(kind).max, infinity, block.dtype)

    def numbers(self, bits: NDArray[Any]) -> NDArray[Any]:
        """Magnitudes again, in a type with which NumPy computes."""
        if self.dtype == BFLOAT16:
            return np.asarray(np.left_shift(bits, 16, dtype=np.uint32, casting="unsafe")).view(np.float32)
        return np.asarray(bits.view(self.dtype))


def _refuse(keys: _Keys, name: str, first: int) -> None:
    row, at = (int(x[0]) for x in np.nonzero(keys.bits >= keys.infinity))
    what = "NaN" if keys.bits[row, at] > keys.infinity else "an infinity"
    raise PoolError(f"row {first + row} of {name} must be finite, got {what} at index {at} of the row")


def _last(bits: NDArray[Any], ordered: NDArray[Any], threshold: NDArray[Any], cut: NDArray[Any]) -> NDArray[np.int64]:
    """Of rows that let go some of the scores at the threshold, the place of the last one that stays."""
    rows, length = bits.shape
    place = np.flatnonzero(bits == threshold[:, None])
    ties = np.bincount(place // length, minlength=rows)
    below = np.add.reduce(ordered < threshold[:, None], axis=1, dtype=np.uint16).astype(np.int64)  # fewer than CHUNK
    stay = ties - (cut - below)
    found: NDArray[np.int64] = place[np.cumsum(ties) - ties + stay - 1] - np.arange(rows) * length
    return found


class _Sums(NamedTuple):
    """What sums of ordered rows say: the counts, Σ|s|, and the share of it that lies from a place in each row on."""

    counted: Counted
    l1: NDArray[np.float64]
    mass: Callable[[NDArray[np.int64]], NDArray[np.float64]]


def _narrow(numbers: NDArray[Any], beta: Fraction, room: NDArray[np.float64]) -> _Sums:
    """Of numbers that float32 holds, of which no square vanishes or overflows in float64: plain sums, which round by
    at most ``length`` last digits; where that leaves a doubt, exact ones."""
    rows, length = numbers.shape
    wide = room[: numbers.size].reshape(rows, length)
    np.copyto(wide, numbers)
    total = np.einsum("ij->i", wide)
    squares = dots(wide, wide) if length <= PIECE else np.einsum("ij,ij->i", wide, wide)
    slack = (length + 8) * 2.0**-50
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        size = total * total / squares
        low, high = size * (1 - slack), size * (1 + slack)
        least, most = np.floor(float(beta) * (1 - slack) * low), np.floor(float(beta) * (1 + slack) * high)
        decided = (np.floor(low) == np.floor(high)) & (high < length) & (least == most)
    n = np.full(rows, length)
    counted = Counted(n, size, low, high, np.clip(np.where(decided, least, 1), 1, length).astype(np.int64))
    again = np.flatnonzero(~decided)
    some = wide[again]
    exact = count_rows(np, some, np.asarray, n[again], beta, single=True)
    for mine, sharp in zip(counted[1:], exact[1:], strict=True):
        mine[again] = sharp

    def mass(cut: NDArray[np.int64]) -> NDArray[np.float64]:
        first = np.arange(rows) * length
        ends = np.stack([first, first + cut], axis=1).reshape(-1)
        kept = np.add.reduceat(wide.reshape(-1), ends)[1::2]
        share = np.minimum(kept / np.where(total > 0, total, 1.0), 1.0)
        share[again] = share_rows(np, some, np.arange(length) >= cut[again, None], np.asarray, single=True)
        return share

    return _Sums(counted, total, mass)


def _wide(numbers: NDArray[Any], beta: Fraction) -> _Sums:
    """Of any numbers of float64."""
    rows, length = numbers.shape

    def mass(cut: NDArray[np.int64]) -> NDArray[np.float64]:
        return share_rows(np, numbers, np.arange(length) >= cut[:, None], np.asarray, single=False)

    known = parts(np, numbers, np.asarray, single=False)
    with np.errstate(over="ignore"):
        l1 = np.ldexp(known.total[0] + known.total[1], known.exponent)
    return _Sums(count_rows(np, numbers, np.asarray, np.full(rows, length), beta, single=False), l1, mass)
