"""Selection over scores that are read a stretch at a time: no mask is made, only the threshold that decides it.

What is kept is everything above the threshold, and of the scores equal to it those up to one place. Two numbers, from
which the mask of any stretch follows; so a pool of any length takes a few megabytes. Counts, figures and masks are
those of :func:`select`, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _top
from ._bracket import bracket
from ._chunks import PIECE, Buffers, Chunk, Keep, Part, share_of, total_of
from ._each import SHORT, sums_each
from ._effective import checked_beta
from ._errors import ArgumentError, PoolError
from ._exact import CHUNK, UNIT, Sums
from ._hill import checked_order, hill_of_stream
from ._namespace import BFLOAT16
from ._patterns import Kind, kind_of
from ._patterns import cut as cut_patterns
from ._rows import Counted
from ._select import bounds, checked_sparsity, checked_threads
from ._stream import Listed, Stream
from .quick import quick

Mask = NDArray[np.bool_]


@quick
@dataclass(frozen=True)
class Cut:
    """What is kept of one pool, as a rule for every score, and the figures that say why.

    Attributes:
        n: scores in the pool.
        n_eff: effective size, in [1, n].
        k: scores kept, in [1, n].
        beta, order: as asked for; ``beta`` is None when a sparsity was.
        mass, mass_lower, mass_upper: retained mass and its bounds.
        threshold: scores of a larger magnitude are kept.
        last: of those of exactly this magnitude the ones whose place in the pool is at most this.
        l1: Σ|s|.
        nonzero: of the kept, those that are not zero.
        part_n_eff: the effective size of each part taken alone.
        part_l1: Σ|s| of each part.
        part_k: what is kept of each part.
        part_mass: what share of its own Σ|s| each part retains.
        part_nonzero: `nonzero` of each part.
    """

    n: int
    n_eff: float
    k: int
    beta: float | None
    order: float
    mass: float
    mass_lower: float
    mass_upper: float
    threshold: float
    last: int
    l1: float
    nonzero: int
    part_n_eff: tuple[float, ...]
    part_l1: tuple[float, ...]
    part_k: tuple[int, ...]
    part_mass: tuple[float, ...]
    part_nonzero: tuple[int, ...]

    @property
    def density(self) -> float:
        """k/n."""
        return self.k / self.n

    @property
    def sparsity(self) -> float:
        """1 − k/n."""
        return (self.n - self.k) / self.n

    def mask(self, piece: NDArray[Any], /, start: int = 0) -> Mask:
        """What is kept of a stretch of the pool, whose first score has the place ``start``.

        >>> cut = select_stream([np.array([2.0, -1.0, 1.0, 0.5])], sparsity=0.5)
        >>> cut.mask(np.array([-1.0, 1.0]), 1).tolist()
        [True, False]
        """
        return _mask(magnitudes(piece), start, self.threshold, self.last)


def _mask(size: NDArray[Any], start: int, threshold: float, last: int) -> Mask:
    """What is at least the threshold, without the ties after the last place."""
    least, tied = at_least(threshold, size.dtype)
    keep: Mask = size >= least
    if tied and last < start + size.size - 1:
        flat, same = keep.reshape(-1), (size == least).reshape(-1)
        flat[max(last + 1 - start, 0) :] &= ~same[max(last + 1 - start, 0) :]
    return keep


def magnitudes(piece: NDArray[Any]) -> NDArray[Any]:
    """|s| in a type that orders as the pool does."""
    if piece.dtype == BFLOAT16 or piece.dtype == np.float16:
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


def select_stream(
    parts: Sequence[Part],
    /,
    *,
    beta: float = 1.0,
    order: float = 2,
    sparsity: float | None = None,
    names: Sequence[str] | None = None,
    threads: int | None = None,
) -> Cut:
    """:func:`select` for a pool that is not in memory: its parts are read a stretch at a time, two or three times.

    Args:
        parts: flat scores, one after the other: NumPy arrays, or anything with ``size`` and ``dtype`` that gives
            a NumPy array when it is sliced (``part[start:stop]``), as memory-mapped files and HDF5 data sets do.
            Slicing must be safe from several threads.
        beta, order, sparsity: as for :func:`select`.
        names: what an error calls each part.
        threads: most threads; None: one per processor. The result does not depend on it.

    Returns:
        A :class:`Cut`: the figures of :func:`select`, and the mask of any stretch. Of long pools of 16-bit numbers,
        whose magnitudes are counted one by one, figures are correctly rounded, those of :func:`select` nearly so.

    Raises:
        PoolError: the pool is empty or holds NaN or ±inf; the message names the part.
        ArgumentError: a parameter is outside what it allows.

    >>> cut = select_stream([np.array([4.0, -3.0, 0.5]), np.array([0.5, 0.0, 0.0])])
    >>> cut.k, cut.threshold
    (2, 3.0)
    """
    rule = rule_of(beta, order, sparsity)
    checked_threads(threads)
    called = list(names) if names is not None else [f"part {i}" for i in range(len(parts))]
    stream = Stream(parts, [None] * len(parts), called, threads)
    if not stream.n:
        raise PoolError("scores must hold at least one score, got an empty pool")
    fixed = None
    if rule.share is not None:
        fixed = max(1, stream.n - round(rule.share * stream.n))
    elif rule.order != 2:
        fixed = _order_count(stream, rule.beta, rule.order)
    kind = None if stream.length <= 4 * CHUNK else kind_of(stream)
    if kind is not None:
        found = _counted(stream, kind, rule.beta, fixed)
    else:
        found = _small(stream, rule.beta, fixed) if stream.length <= 4 * CHUNK else _large(stream, rule.beta, fixed)
    counted = Counted.of([found.sums], rule.beta).keeping(np.array([found.k]))
    lower, upper = bounds(counted)
    sizes, kept = _each(stream, found), found.kept
    return Cut(
        stream.n, float(counted.n_eff[0]), found.k, rule.said, rule.order,
        found.mass, float(lower[0]), float(upper[0]), found.threshold, found.last,
        _float(found.sums), sum(kept.nonzero), tuple(size for size, _ in sizes), tuple(l1 for _, l1 in sizes),
        tuple(kept.k), tuple(kept.mass), tuple(kept.nonzero),
    )  # fmt: skip


class RuleOf(NamedTuple):
    """A rule, checked: multiplier, order, and the share to remove or None."""

    beta: Fraction
    order: float
    share: Fraction | None

    @property
    def said(self) -> float | None:
        """The multiplier that a result names: none where a share was asked for."""
        return float(self.beta) if self.share is None else None


def rule_of(beta: float, order: float, sparsity: float | None) -> RuleOf:
    """The rule that these stand for.

    Raises:
        ArgumentError: one is outside what it allows, or two contradict each other.
    """
    rule = RuleOf(checked_beta(beta), checked_order(order), checked_sparsity(sparsity))
    if rule.share is not None and (rule.beta != 1 or rule.order != 2):
        raise ArgumentError(
            f"sparsity fixes the count, so beta and order must be left alone, got beta={beta}, order={order}"
        )
    return rule


class _Kept(NamedTuple):
    """What is kept of each part: how many, the share of Σ|s|, how many that are not zero."""

    k: list[int]
    mass: list[float]
    nonzero: list[int]


class _Pieces(NamedTuple):
    """Sums over the pieces of all parts, one after the other, and for each part where its own begin, and the end."""

    first: list[int]
    totals: NDArray[np.float64]
    squares: NDArray[np.float64]
    above: NDArray[np.float64]

    @classmethod
    def of(cls, stream: Stream) -> _Pieces:
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
class _Found:
    sums: Sums
    k: int
    threshold: float
    last: int
    mass: float
    kept: _Kept
    pieces: _Pieces | None = None
    held: Sequence[Part] | None = None  # the parts, where they were read as a whole
    each: Sequence[Sums] | None = None  # of the parts, where they were taken on the way


def _order_count(stream: Stream, beta: Fraction, q: float) -> int:
    size, n = hill_of_stream(stream, q), stream.n
    if stream.sums().zero:
        return n
    k = math.floor(beta * int(size)) if q == 0 else math.floor(min(float(beta) * size * (1 + 1e-12), 2.0**62))
    return min(max(k, 1), n)


def _each(stream: Stream, found: _Found) -> list[tuple[float, float]]:
    """Effective size and Σ|s| of each part taken alone."""
    if found.each is not None:
        return [(sums.n_eff(), _float(sums)) for sums in found.each]
    if len(stream.parts) == 1:
        return [(found.sums.n_eff(), _float(found.sums))]
    out, parts = [(0.0, 0.0)] * len(stream.parts), found.held or stream.parts
    short = [i for i, part in enumerate(parts) if part.size <= SHORT]
    names = [stream.names[i] for i in short]
    for i, figures in zip(short, sums_each([parts[i] for i in short], names), strict=True):
        out[i] = figures
    for i, part in enumerate(parts):
        if part.size > SHORT:
            alone = Stream([part], [None], [stream.names[i]], stream.threads)
            if found.pieces is None:
                sums = alone.sums()
            else:
                mine = found.pieces.part(i)
                sums = alone._settled([found.pieces.totals[mine]], [found.pieces.squares[mine]])
            out[i] = sums.n_eff(), _float(sums)
    return out


def _small(stream: Stream, beta: Fraction, fixed: int | None) -> _Found:
    """A pool that fits the cache: its masks are made, and the cut read from them."""
    held = [np.asarray(part[0 : part.size]) for part in stream.parts]
    memory = Stream(held, stream.where, stream.names, stream.threads, stream.dtype)
    sums, k, masks, mass = _top.select(memory, beta, fixed)
    magnitude, mask = memory.magnitudes(), np.concatenate(masks)
    threshold, last = 0.0, stream.n
    if k < stream.n:
        least = magnitude[mask].min()
        same = magnitude == least
        threshold = float(least)
        if not mask[same].all():
            last = int(np.flatnonzero(same & mask)[-1])
    if len(held) == 1:
        kept = _Kept([k], [mass], [int(np.count_nonzero(magnitude[mask]))])
        return _Found(sums, k, threshold, last, mass, kept)
    kept, start = _Kept([], [], []), 0
    for part, chosen in zip(held, masks, strict=True):
        size = np.where(chosen, magnitude[start : start + part.size], 0)
        kept.k.append(int(np.count_nonzero(chosen)))
        kept.nonzero.append(int(np.count_nonzero(size)))
        kept.mass.append(_ratio(size, magnitude[start : start + part.size]))
        start += part.size
    return _Found(sums, k, threshold, last, mass, kept, held=held)


def _ratio(kept: NDArray[Any], whole: NDArray[Any]) -> float:
    """Σ of the one over Σ of the other, of magnitudes so few that they can be scaled; 1 when all are zero."""
    peak = float(whole.max(initial=0))
    if not peak or not math.isfinite(peak):
        return 1.0
    exponent = -math.frexp(peak)[1]
    parts = [math.fsum(np.ldexp(a.astype(np.float64), exponent).tolist()) for a in (kept, whole)]
    return min(1.0, parts[0] / parts[1])


def _counted(stream: Stream, kind: Kind, beta: Fraction, fixed: int | None) -> _Found:
    """A pool of 16-bit numbers."""
    found = cut_patterns(stream, kind, beta, fixed)
    kept = _Kept([p.k for p in found.parts], [p.mass for p in found.parts], [p.nonzero for p in found.parts])
    return _Found(
        found.sums, found.k, found.threshold, found.last, found.mass, kept, each=[p.sums for p in found.parts]
    )


def _large(stream: Stream, beta: Fraction, fixed: int | None) -> _Found:
    """One sweep takes sums, counts what lies above a bracket and lists what lies inside."""
    low, high = bracket(stream, share=None if fixed is None else fixed / stream.n, beta=float(beta))
    pieces = _Pieces.of(stream)
    listed = Listed(stream.room())

    def work(chunk: Chunk, buffers: Buffers) -> tuple[int, NDArray[Any]]:
        magnitude = stream.load(chunk, buffers)
        values, count = magnitude[:0], 0
        above: Mask | None = None
        if not listed.full:
            above = np.greater(magnitude, high, out=buffers.flag[: magnitude.size])
            count = int(np.count_nonzero(above))
            near = np.greater_equal(magnitude, low, out=buffers.near[: magnitude.size])
            values = magnitude[np.not_equal(near, above, out=near)]
            listed.add(values.size)
        stream._wide(chunk, magnitude, buffers)
        products = buffers.products(magnitude.size, above)
        at = pieces.first[chunk.part] + chunk.start // PIECE
        for into, some in zip(pieces[1:], products, strict=True):
            into[at : at + some.size] = some
        return count, values

    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        found = stream.run(work)
    sums, k = stream.decide(stream._bounded([pieces.totals], [pieces.squares]), beta)
    k = k if fixed is None else fixed
    if k >= stream.n:
        return _Found(sums, k, 0.0, stream.n, 1.0, _again(stream, 0.0, stream.n)[1], pieces)
    if not listed.full:
        above = [0] * len(stream.parts)
        for chunk, (count, _) in found:
            above[chunk.part] += count
        inside = [(chunk, values) for chunk, (_, values) in found if values.size]
        del found
        settled = _settle(stream, inside, k, above, high, pieces)
        kept = total_of([pieces.above])
        if settled is not None:
            threshold, last, extra, parts = settled
            if sums.exact or kept == math.inf:
                mass, parts = _again(stream, threshold, last)
            else:
                mass = min(1.0, (kept + extra) / _float(sums))
            return _Found(sums, k, threshold, last, mass, parts, pieces)
    threshold, last = _by_radix(stream, k)
    mass, parts = _again(stream, threshold, last)
    return _Found(sums, k, threshold, last, mass, parts, pieces)


def _settle(
    stream: Stream,
    inside: list[tuple[Chunk, NDArray[Any]]],
    k: int,
    above: list[int],
    high: float,
    pieces: _Pieces,
) -> tuple[float, int, float, _Kept] | None:
    """Threshold, last place, mass added, and what that is of each part; None if the count lies outside the bracket.

    Takes the scores out of ``inside``.
    """
    need = k - sum(above)
    ends = np.cumsum([0, *(some.size for _, some in inside)]).tolist()
    if not 0 <= need <= ends[-1]:
        return None
    values, chunks = np.empty(ends[-1], stream.dtype), list[tuple[Chunk, slice]]()
    for i, (chunk, some) in enumerate(inside):
        chunks.append((chunk, slice(ends[i], ends[i + 1])))
        values[chunks[i][1]] = some
        inside[i] = chunk, some[:0].copy()  # these lists are the largest thing there is: never twice
    best, same = np.zeros(values.size, bool), np.zeros(values.size, bool)
    threshold = np.nextafter(stream.dtype.type(high), stream.dtype.type(math.inf))
    last = stream.n
    if need:
        threshold = np.partition(values, values.size - need)[values.size - need]
        np.greater(values, threshold, out=best)
        np.equal(values, threshold, out=same)
        ties = need - int(np.count_nonzero(best))
        if ties < int(np.count_nonzero(same)):
            best[np.flatnonzero(same)[:ties]] = True
            last = _place(stream, [(c, int(np.count_nonzero(same[mine]))) for c, mine in chunks], threshold, ties)
        else:
            best |= same
    chosen = np.multiply(values, best, out=values)
    with np.errstate(over="ignore"):
        extra = float(chosen.sum(dtype=np.float64))
    counts, masses = list(above), [0.0] * len(above)
    nonzero = list(above)
    for chunk, mine in chunks:
        count = int(np.count_nonzero(best[mine]))
        counts[chunk.part] += count
        nonzero[chunk.part] += count if threshold > 0 else int(np.count_nonzero(chosen[mine]))
        masses[chunk.part] += float(chosen[mine].sum(dtype=np.float64))
    cut = float(threshold), last
    return *cut, extra, _Kept(counts, _masses(stream, pieces, cut, masses), nonzero)


def _masses(stream: Stream, pieces: _Pieces, cut: tuple[float, int], extra: list[float]) -> list[float]:
    """What each part retains of its own Σ|s|: what lies above in its pieces, and the rest given."""
    out, start = [], 0
    for i, part in enumerate(stream.parts):
        mass = pieces.mass(i, extra[i])
        if mass is None:
            alone = Stream([part], [None], [stream.names[i]], stream.threads)
            mass = alone._folded_share(_masked(start, cut))
        out.append(mass)
        start += part.size
    return out


def _masked(start: int, cut: tuple[float, int]) -> Keep:
    """What makes the mask of a chunk of the part that begins at ``start``."""
    return lambda chunk, magnitude: _mask(magnitude, start + chunk.start, *cut)


def _place(stream: Stream, ties: list[tuple[Chunk, int]], threshold: Any, count: int) -> int:
    """The place in the pool of the ``count``-th score that equals the threshold."""
    before = 0
    for chunk, some in ties:
        if before + some >= count:
            magnitude = stream.load(chunk, Buffers(stream.dtype, chunk.stop - chunk.start))
            start = sum(part.size for part in stream.parts[: chunk.part]) + chunk.start
            return start + int(np.flatnonzero(magnitude == threshold)[count - before - 1])
        before += some
    raise AssertionError("fewer ties than counted")


def _by_radix(stream: Stream, k: int) -> tuple[float, int]:
    """Threshold and last place whatever the data: passes over the bit patterns, and one that counts."""
    threshold = _top.kth_largest(stream, k)

    def work(chunk: Chunk, buffers: Buffers) -> tuple[int, int]:
        magnitude, flag = stream.load(chunk, buffers), buffers.flag
        above = np.greater(magnitude, threshold, out=flag[: magnitude.size])
        count = int(np.count_nonzero(above))
        return count, int(np.count_nonzero(np.equal(magnitude, threshold, out=flag[: magnitude.size])))

    found = stream.run(work)
    ties = [(chunk, some) for chunk, (_, some) in found]
    count = k - sum(above for _, (above, _) in found)
    last = stream.n if count >= sum(some for _, some in ties) else _place(stream, ties, threshold, count)
    return float(threshold), last


def _again(stream: Stream, threshold: float, last: int) -> tuple[float, _Kept]:
    """Retained mass, and what is kept of each part, by one more pass."""
    starts = np.cumsum([0, *(part.size for part in stream.parts)]).tolist()
    pieces = _Pieces.of(stream)

    def mask(chunk: Chunk, magnitude: NDArray[Any]) -> Mask:
        return _mask(magnitude, starts[chunk.part] + chunk.start, threshold, last)

    def work(chunk: Chunk, buffers: Buffers) -> tuple[int, int]:
        magnitude = stream.load(chunk, buffers)
        keep = mask(chunk, magnitude)
        stream._wide(chunk, magnitude, buffers)
        at = pieces.first[chunk.part] + chunk.start // PIECE
        for into, some in zip((pieces.totals, pieces.above), buffers.shares(magnitude.size, keep), strict=True):
            into[at : at + some.size] = some
        keep_nonzero = np.logical_and(keep, magnitude, out=buffers.flag[: magnitude.size])
        return int(np.count_nonzero(keep)), int(np.count_nonzero(keep_nonzero))

    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        found = stream.run(work)
    k, nonzero = [0] * len(starts[1:]), [0] * len(starts[1:])
    for chunk, (kept, some) in found:
        k[chunk.part] += kept
        nonzero[chunk.part] += some
    masses = _masses(stream, pieces, (threshold, last), [0.0] * len(k))
    share = share_of([pieces.totals], [pieces.above])
    return stream._folded_share(mask) if share is None else share, _Kept(k, masses, nonzero)


def _float(sums: Sums) -> float:
    try:
        return sums.total / (1 << UNIT)
    except OverflowError:
        return math.inf
