"""The cut of a pool that does not fit the cache, in two or three sweeps: one brackets the threshold, one settles it."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _top
from ._bracket import bracket
from ._chunks import PIECE, Buffers, Chunk, Keep, share_of, total_of
from ._found import Found, Kept, Mask, Pieces, float_of, mask_of
from ._stream import Listed, Stream


def large(stream: Stream, beta: Fraction, fixed: int | None) -> Found:
    """One sweep takes sums, counts what lies above a bracket and lists what lies inside."""
    low, high = bracket(stream, share=None if fixed is None else fixed / stream.n, beta=float(beta))
    pieces = Pieces.of(stream)
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
        return Found(sums, k, 0.0, stream.n, 1.0, _counted_again(stream, 0.0, stream.n)[1], pieces)
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
                mass, parts = _counted_again(stream, threshold, last)
            else:
                mass = min(1.0, (kept + extra) / float_of(sums))
            return Found(sums, k, threshold, last, mass, parts, pieces)
    threshold, last = _by_radix(stream, k)
    mass, parts = _counted_again(stream, threshold, last)
    return Found(sums, k, threshold, last, mass, parts, pieces)


def _settle(
    stream: Stream,
    inside: list[tuple[Chunk, NDArray[Any]]],
    k: int,
    above: list[int],
    high: float,
    pieces: Pieces,
) -> tuple[float, int, float, Kept] | None:
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
    return *cut, extra, Kept(counts, _masses(stream, pieces, cut, masses), nonzero)


def _masses(stream: Stream, pieces: Pieces, cut: tuple[float, int], extra: list[float]) -> list[float]:
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
    return lambda chunk, magnitude: mask_of(magnitude, start + chunk.start, *cut)


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


def _counted_again(stream: Stream, threshold: float, last: int) -> tuple[float, Kept]:
    """Retained mass, and what is kept of each part, by one more pass."""
    starts = np.cumsum([0, *(part.size for part in stream.parts)]).tolist()
    pieces = Pieces.of(stream)

    def mask(chunk: Chunk, magnitude: NDArray[Any]) -> Mask:
        return mask_of(magnitude, starts[chunk.part] + chunk.start, threshold, last)

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
    return stream._folded_share(mask) if share is None else share, Kept(k, masses, nonzero)
