"""The largest of one long pool: a sample brackets the threshold, one sweep marks what is above and lists what is near.

A partition of the few that are near gives the exact threshold. When ties or bad luck defeat the bracket, two to four
radix passes over the bit patterns find the threshold whatever the data. Nothing of the pool's size is made but the
mask.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from ._bracket import bracket
from ._chunks import Buffers, Chunk, Mask
from ._exact import CHUNK, UNIT, Sums
from ._stream import Stream, Sweep


def select(stream: Stream, beta: Fraction, fixed: int | None = None) -> tuple[Sums, int, list[Mask], float]:
    """Sums, keep count (or the one given), masks and retained mass: a sample guesses the threshold, one sweep does
    the rest."""
    if stream.length <= 4 * CHUNK:
        sums, k = stream.count(beta)
        k = k if fixed is None else fixed
        masks = top_mask(stream, k)
        short = stream.length <= CHUNK
        return sums, k, masks, stream._folded_share(masks, sums) if short else stream.kept_share(masks)
    masks = [np.empty(p.size, bool) for p in stream.parts]
    share = None if fixed is None else fixed / stream.n
    seen = stream.sweep(masks, *bracket(stream, share=share, beta=float(beta)), sums=True)
    sums, k = stream.decide(seen.sums, beta)
    k = k if fixed is None else fixed
    extra = settle(seen, k, masks) if k < stream.n else None
    if extra is None or seen.sums.exact or seen.kept == math.inf:
        masks = masks if extra is not None else top_mask(stream, k)
        return sums, k, masks, stream.kept_share(masks)
    total = seen.sums.total / (1 << UNIT)
    return sums, k, masks, min(1.0, (seen.kept + extra) / total)


def top_mask(stream: Stream, k: int) -> list[Mask]:
    """For each part a mask; exactly ``k`` True in all, the largest magnitudes, ties to the lower index."""
    masks = [np.empty(p.size, bool) for p in stream.parts]
    if k >= stream.n or k <= 0:
        for m, w in zip(masks, stream.where, strict=True):
            m[...] = False if k <= 0 else True if w is None else w
        return masks
    if settle(stream.sweep(masks, *bracket(stream, share=k / stream.n)), k, masks) is None:
        keep_from(stream, kth_largest(stream, k), k, masks)
    return masks


def settle(seen: Sweep, k: int, masks: Sequence[Mask]) -> float | None:
    """Finish ``masks`` with the best of what lay inside the bracket; the mass added, or None if k lies outside."""
    if seen.inside is None or not 0 <= k - seen.above <= sum(v.size for _, v, _ in seen.inside):
        return None
    need = k - seen.above
    if need == 0:
        return 0.0
    values = np.concatenate([v for _, v, _ in seen.inside])
    threshold = np.partition(values, values.size - need)[values.size - need]
    best = values > threshold
    ties = need - int(np.count_nonzero(best))
    best[np.flatnonzero(values == threshold)[:ties]] = True  # values come in the order of their places
    start = 0
    for chunk, value, index in seen.inside:
        masks[chunk.part][chunk.start : chunk.stop][index] = best[start : start + value.size]
        start += value.size
    with np.errstate(over="ignore"):  # the share of such masses is taken exactly
        return float(np.multiply(values, best).sum(dtype=np.float64))


def kth_largest(stream: Stream, k: int) -> Any:
    """The k-th largest magnitude, by radix passes of 16 bits: O(n) whatever the data."""
    kind = np.dtype(np.uint32 if stream.dtype.itemsize == 4 else np.uint64)
    prefix, left = 0, stream.n - k  # how many are smaller, among those that share the prefix
    width = 8 * kind.itemsize
    for shift in range(width - 16, -1, -16):
        counts, lock = np.zeros(1 << 16, np.int64), threading.Lock()

        def work(
            chunk: Chunk, buffers: Buffers, shift: int = shift, prefix: int = prefix, counts: Any = counts,
            lock: Any = lock,
        ) -> None:  # fmt: skip
            magnitude = stream.load(chunk, buffers)
            if stream.where[chunk.part] is not None:
                magnitude = magnitude[magnitude >= 0]
            bits = magnitude.view(kind)
            if shift + 16 < width:
                bits = bits[(bits >> kind.type(shift + 16)) == prefix]
            some = np.bincount(((bits >> kind.type(shift)) & kind.type(0xFFFF)).astype(np.intp), minlength=1 << 16)
            with lock:  # added at once: kept until the end, the counts of all chunks took as much as the scores
                counts[:] += some

        stream.run(work)
        below = np.cumsum(counts)
        digit = int(np.searchsorted(below, left, side="right"))
        left -= int(below[digit - 1]) if digit else 0
        prefix = prefix << 16 | digit
    return np.array(prefix, kind).view(stream.dtype)[()]


def keep_from(stream: Stream, threshold: Any, k: int, masks: list[Mask]) -> None:
    """Fill ``masks`` given the exact threshold: all above it, then ties from the lowest index on."""

    def work(chunk: Chunk, buffers: Buffers) -> tuple[int, int]:
        magnitude = stream.load(chunk, buffers)
        above = masks[chunk.part][chunk.start : chunk.stop]
        np.greater_equal(magnitude, threshold, out=above)
        flag = np.equal(magnitude, threshold, out=buffers.flag[: magnitude.size])
        return int(np.count_nonzero(above)), int(np.count_nonzero(flag))

    counts = stream.run(work, batch=1)
    surplus = sum(kept for _, (kept, _) in counts) - k  # ties to let go, from the highest index down
    buffers = Buffers(stream.dtype, min(CHUNK, max(stream.length, 1)))
    for chunk, (_, ties) in reversed(counts):
        if surplus == 0:
            break
        if ties:
            mask = masks[chunk.part][chunk.start : chunk.stop]
            drop = min(ties, surplus)
            if drop == ties:
                mask &= stream.load(chunk, buffers) != threshold
            else:
                mask[np.flatnonzero(stream.load(chunk, buffers) == threshold)[ties - drop :]] = False
            surplus -= drop
