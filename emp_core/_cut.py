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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._effective import checked_beta
from ._errors import ArgumentError, PoolError
from ._exact import CHUNK, UNIT, Sums
from ._hill import checked_order, hill_of_stream
from ._namespace import BFLOAT16
from ._rows import Counted
from ._select import bounds, checked_sparsity, checked_threads
from ._stream import PIECE, Buffers, Chunk, Part, Stream, share_of, total_of

Mask = NDArray[np.bool_]


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
        part_n_eff: the effective size of each part taken alone.
        part_l1: Σ|s| of each part.
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
    part_n_eff: tuple[float, ...]
    part_l1: tuple[float, ...]

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
        size = magnitudes(piece)
        threshold, tied = at_least(self.threshold, size.dtype)
        keep: Mask = size >= threshold
        if tied and self.last < start + size.size - 1:
            flat, same = keep.reshape(-1), (size == threshold).reshape(-1)
            flat[max(self.last + 1 - start, 0) :] &= ~same[max(self.last + 1 - start, 0) :]
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
        parts: flat scores, one after the other: NumPy arrays, or anything with ``size`` and ``dtype`` that gives a
        NumPy
            array when it is sliced (``part[start:stop]``), as memory-mapped files and HDF5 data sets do. Slicing must
            be safe from several threads.
        beta, order, sparsity: as for :func:`select`.
        names: what an error calls each part.
        threads: most threads; None: one per processor. The result does not depend on it.

    Returns:
        A :class:`Cut`: the figures of :func:`select`, and the mask of any stretch.

    Raises:
        PoolError: the pool is empty or holds NaN or ±inf; the message names the part.
        ArgumentError: a parameter is outside what it allows.

    >>> cut = select_stream([np.array([4.0, -3.0, 0.5]), np.array([0.5, 0.0, 0.0])])
    >>> cut.k, cut.threshold
    (2, 3.0)
    """
    multiplier, q, share = checked_beta(beta), checked_order(order), checked_sparsity(sparsity)
    if share is not None and (multiplier != 1 or q != 2):
        raise ArgumentError(
            f"sparsity fixes the count, so beta and order must be left alone, got beta={beta}, order={order}"
        )
    checked_threads(threads)
    called = list(names) if names is not None else [f"part {i}" for i in range(len(parts))]
    stream = Stream(parts, [None] * len(parts), called, threads)
    if not stream.n:
        raise PoolError("scores must hold at least one score, got an empty pool")
    fixed = None
    if share is not None:
        fixed = max(1, stream.n - round(share * stream.n))
    elif q != 2:
        fixed = _order_count(stream, multiplier, q)
    small = stream.length <= 4 * CHUNK
    found = _small(stream, multiplier, fixed) if small else _large(stream, multiplier, fixed)
    counted = Counted.of([found.sums], multiplier).keeping(np.array([found.k]))
    lower, upper = bounds(counted)
    return Cut(
        stream.n, float(counted.n_eff[0]), found.k, float(multiplier) if share is None else None, q,
        found.mass, float(lower[0]), float(upper[0]), found.threshold, found.last,
        _float(found.sums), tuple(s.n_eff() if s.n else 0.0 for s in found.parts), tuple(map(_float, found.parts)),
    )  # fmt: skip


@dataclass
class _Found:
    sums: Sums
    k: int
    threshold: float
    last: int
    mass: float
    parts: list[Sums]


def _order_count(stream: Stream, beta: Fraction, q: float) -> int:
    size, n = hill_of_stream(stream, q), stream.n
    if stream.sums().zero:
        return n
    k = math.floor(beta * int(size)) if q == 0 else math.floor(min(float(beta) * size * (1 + 1e-12), 2.0**62))
    return min(max(k, 1), n)


def _small(stream: Stream, beta: Fraction, fixed: int | None) -> _Found:
    """A pool that fits the cache: its masks are made, and the cut read from them."""
    held = [np.asarray(part[0 : part.size]) for part in stream.parts]
    memory = Stream(held, stream.where, stream.names, stream.threads, stream.dtype)
    sums, k, masks, mass = memory.select(beta, fixed)
    magnitude = memory.magnitudes()
    threshold, last = 0.0, stream.n
    if k < stream.n:
        mask = np.concatenate(masks)
        least = magnitude[mask].min()
        same = magnitude == least
        threshold = float(least)
        if not mask[same].all():
            last = int(np.flatnonzero(same & mask)[-1])
    parts = [Stream([part], [None], [name], 1).sums() for part, name in zip(held, stream.names, strict=True)]
    return _Found(sums, k, threshold, last, mass, parts)


def _large(stream: Stream, beta: Fraction, fixed: int | None) -> _Found:
    """One sweep takes sums, counts what lies above a bracket and lists what lies inside."""
    low, high = stream.bracket(beta, fixed)
    totals, squares, raised = np.zeros((3, sum(-(-part.size // PIECE) for part in stream.parts)))
    first = _first_pieces(stream)
    room, held, full = stream.room(), 0, False

    def work(chunk: Chunk, buffers: Buffers) -> tuple[int, NDArray[Any]]:
        nonlocal held, full
        magnitude = stream.load(chunk, buffers)
        values, above = magnitude[:0], 0
        if not full:
            flag = buffers.flag[: magnitude.size]
            np.greater(magnitude, high, out=flag)
            above = int(np.count_nonzero(flag))
            np.greater_equal(magnitude, low, out=flag)
            if int(np.count_nonzero(flag)) > above:
                flag &= magnitude <= high
                values = magnitude[flag]
                held += values.size
                if held > room:  # never taken back: threads may lose an addition to `held`, but not this
                    full = True
        stream._wide(chunk, magnitude, buffers)
        products = buffers.products(magnitude.size, high)
        at = first[chunk.part] + chunk.start // PIECE
        for into, some in zip((totals, squares, raised), products, strict=True):
            into[at : at + some.size] = some
        return above, values

    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        found = stream.run(work)
    above = sum(count for _, (count, _) in found)
    sums, k = stream.decide(stream._bounded([totals], [squares]), beta)
    k = k if fixed is None else fixed
    parts = [
        Stream([part], [None], [name], stream.threads)._settled([totals[a:b]], [squares[a:b]])
        for part, name, a, b in zip(stream.parts, stream.names, first, [*first[1:], totals.size], strict=True)
    ]
    if k >= stream.n:
        return _Found(sums, k, 0.0, stream.n, 1.0, parts)
    inside = [(chunk, values) for chunk, (_, values) in found if values.size] if not full else None
    del found
    kept = math.inf
    if high < math.inf and above * 1000 > stream.length:
        others = PIECE * raised.size - above
        kept = total_of([raised, np.array([-high * others])])
    settled = _settle(stream, inside, k - above, high)
    if settled is None:
        threshold, last = _by_radix(stream, k)
        return _Found(sums, k, threshold, last, _share(stream, threshold, last), parts)
    threshold, last, extra = settled
    if sums.exact or kept == math.inf:
        return _Found(sums, k, threshold, last, _share(stream, threshold, last), parts)
    return _Found(sums, k, threshold, last, min(1.0, (kept + extra) / _float(sums)), parts)


def _settle(
    stream: Stream, inside: list[tuple[Chunk, NDArray[Any]]] | None, need: int, high: float
) -> tuple[float, int, float] | None:
    """Threshold, last place and mass added from what lay inside the bracket; None if the count lies outside."""
    if inside is None or not 0 <= need <= sum(values.size for _, values in inside):
        return None
    if need == 0:
        return float(np.nextafter(stream.dtype.type(high), stream.dtype.type(math.inf))), stream.n, 0.0
    values = np.concatenate([values for _, values in inside])
    threshold = np.partition(values, values.size - need)[values.size - need]
    best, same = values > threshold, values == threshold
    ties = need - int(np.count_nonzero(best))
    last = stream.n
    if ties < int(np.count_nonzero(same)):
        best[np.flatnonzero(same)[:ties]] = True
        last = _place(stream, [(c, int(np.count_nonzero(v == threshold))) for c, v in inside], threshold, ties)
    else:
        best |= same
    with np.errstate(over="ignore"):
        return float(threshold), last, float(np.multiply(values, best).sum(dtype=np.float64))


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
    threshold = stream.kth_largest(k)

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


def _share(stream: Stream, threshold: float, last: int) -> float:
    """Retained mass, by one more pass."""
    starts = np.cumsum([0, *(part.size for part in stream.parts)]).tolist()
    cut = Cut(0, 0.0, 0, None, 2, 0.0, 0.0, 0.0, threshold, last, 0.0, (), ())

    def work(chunk: Chunk, buffers: Buffers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        magnitude = stream.load(chunk, buffers)
        keep = cut.mask(magnitude, starts[chunk.part] + chunk.start)
        stream._wide(chunk, magnitude, buffers)
        return buffers.shares(magnitude.size, keep)

    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        found = [sums for _, sums in stream.run(work)]
    share = share_of([total for total, _ in found], [kept for _, kept in found])
    if share is not None:
        return share
    return stream._folded_share(lambda chunk, magnitude: cut.mask(magnitude, starts[chunk.part] + chunk.start))


def _first_pieces(stream: Stream) -> list[int]:
    """For each part the number of pieces before it."""
    counts = [-(-part.size // PIECE) for part in stream.parts]
    return np.cumsum([0, *counts])[:-1].tolist() if counts else []


def _float(sums: Sums) -> float:
    try:
        return sums.total / (1 << UNIT)
    except OverflowError:
        return math.inf
