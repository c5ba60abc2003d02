"""One pool, however long, in host memory: its sums, in cache-sized chunks and several threads.

Nothing of the pool's size is made. Each chunk (2**16 scores) is loaded as magnitudes into a buffer that stays in
cache; NumPy releases the interpreter lock inside its loops, so threads share the chunks. Results do not depend on the
number of threads: sums are exact or carry an error bound. What is selected from a pool is found in `_top`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ._chunks import (
    NOTHING,
    PIECE,
    Buffers,
    Chunk,
    Keep,
    Mask,
    Part,
    Products,
    batched,
    fits_float32,
    processors,
    share_of,
    total_of,
)  # fmt: skip
from ._errors import PoolError
from ._exact import CHUNK, UNIT, WHOLE, Sums, exact_rows, refuse_rounded, units
from ._namespace import BFLOAT16
from ._rows import parts

T = TypeVar("T")
BATCH = 4  # chunks that a thread takes at a time where there are several
ROOM = 6 << 20  # most scores that are listed
THREAD_FROM = 1 << 21  # scores that are worth a further thread
READ_FROM = 1 << 23  # the same where they are read: two threads for 2²² cost a quarter more, and end no earlier
NO_INDEX = np.empty(0, np.intp)


class Sweep(NamedTuple):
    """What one look at every score found: sums, mass (inf: not taken) and count above the bracket, what is inside."""

    sums: Sums
    kept: float
    above: int
    inside: list[tuple[Chunk, NDArray[Any], NDArray[np.intp]]] | None


class Listed:
    """How many scores all threads together have listed, and whether that is more than there is room for.

    A thread that sees ``full`` too late lists a chunk in vain; whether it is full at the end depends on the scores
    alone.
    """

    def __init__(self, room: int) -> None:
        self.full, self._left, self._lock = False, room, threading.Lock()

    def add(self, count: int) -> None:
        """So many more."""
        with self._lock:
            self._left -= count
            self.full = self._left < 0


class Stream:
    """A pool made of flat arrays, one after the other.

    Args:
        parts: 1-D arrays, or what can be sliced like one, of dtypes that may differ.
        where: for each part None or a boolean array of its length; False means not in the pool.
        names: for each part how an error calls it.
        threads: most threads to use; None means one per processor that this process may use.
        dtype: the working dtype of magnitudes; None means the narrowest that holds every part exactly.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        where: Sequence[Mask | None],
        names: Sequence[str],
        threads: int | None = None,
        dtype: np.dtype[Any] | None = None,
    ) -> None:
        self.parts = parts
        self.where = where
        self.names = names
        self.length = sum(p.size for p in parts)
        self.n = sum(p.size if w is None else int(np.count_nonzero(w)) for p, w in zip(parts, where, strict=True))
        self.dtype = dtype or np.dtype(np.float32 if all(map(fits_float32, parts)) else np.float64)
        self.threads = processors() if threads is None else threads
        self.chunks: list[Chunk] = []
        for i, p in enumerate(parts):
            for start in range(0, p.size, CHUNK):
                self.chunks.append(Chunk(len(self.chunks), i, start, min(start + CHUNK, p.size)))

    # --- chunks and threads ---------------------------------------------------------------------------------------
    def load(self, chunk: Chunk, buffers: Buffers) -> NDArray[Any]:
        """Magnitudes of a chunk in the working dtype; −1 where a score is not in the pool."""
        source = self.parts[chunk.part][chunk.start : chunk.stop]
        out = buffers.magnitude[: source.size]
        if source.dtype == out.dtype:
            np.abs(source, out=out)
        elif source.dtype == BFLOAT16:
            bits = out.view(np.uint32) if self.dtype.itemsize == 4 else np.empty(source.size, np.uint32)
            np.left_shift(source.view(np.uint16), 16, out=bits, dtype=np.uint32, casting="unsafe")
            np.abs(bits.view(np.float32), out=out)
        else:
            np.copyto(out, source, casting="unsafe")
            np.abs(out, out=out)
        where = self.where[chunk.part]
        if where is not None:
            np.copyto(out, -1, where=~where[chunk.start : chunk.stop])
        if source.dtype.kind in "iu" and source.dtype.itemsize == 8 and out.size and out.max() >= WHOLE:
            refuse_rounded(source if where is None else source[out >= 0], self.names[chunk.part])
        return out

    def run(self, work: Callable[[Chunk, Buffers], T], *, batch: int = BATCH) -> list[tuple[Chunk, T]]:
        """``work`` on every chunk, in threads; chunks and results in order.

        One thread takes single chunks, which stay in its cache. Several threads take up to ``batch`` chunks of a part
        at a time: NumPy lets go of the interpreter's lock inside its loops only, and threads that make short loops wait
        for each other at every one of them (measured: four chunks of 2**16 scores are best, single ones no gain).
        """
        size = min(CHUNK, max((p.size for p in self.parts), default=1))
        held = all(isinstance(part, np.ndarray) for part in self.parts)
        threads = min(self.threads, len(self.chunks), 1 + self.length // (THREAD_FROM if held else READ_FROM))
        if threads <= 1 or batch <= 1:
            buffers = Buffers(self.dtype, size)
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                return [(c, work(c, buffers)) for c in self.chunks]
        todo = iter(batched(self.chunks, batch))
        lock = threading.Lock()

        def several() -> list[tuple[Chunk, T]]:
            buffers = Buffers(self.dtype, size * batch)
            results: list[tuple[Chunk, T]] = []
            while True:
                with lock:
                    chunk = next(todo, None)
                if chunk is None:
                    return results
                with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # each thread has its own
                    results.append((chunk, work(chunk, buffers)))

        from concurrent.futures import ThreadPoolExecutor  # not at import: it takes longer than all of this package

        with ThreadPoolExecutor(threads) as pool:
            found = [pool.submit(several) for _ in range(threads)]
            return sorted((r for f in found for r in f.result()), key=lambda r: r[0].order)

    def magnitudes(self) -> NDArray[Any]:
        """All magnitudes, for pools that are short."""
        buffers = Buffers(self.dtype, min(CHUNK, max(self.length, 1)))
        return np.concatenate([self.load(c, buffers).copy() for c in self.chunks] or [np.empty(0, self.dtype)])

    # --- sums -----------------------------------------------------------------------------------------------------
    def sums(self) -> Sums:
        """Σ|s| and Σs² with a bound on their rounding; for a short pool, good enough to round N_eff."""
        if self.length <= CHUNK:
            known = self.folded()
            return known if known.settled() and known.rounded() else self.exact()
        known = self.sweep(sums=True).sums
        return known if known.settled() else self.exact()

    def folded(self, keep: Sequence[Mask] | Keep | None = None) -> Sums:
        """Sums with an error of about 2**-57; with ``keep``, of the kept scores only."""
        return self._summed(keep, lambda rows, single: parts(np, rows, np.asarray, single=single).sums(0))

    def exact(self, keep: Sequence[Mask] | Keep | None = None) -> Sums:
        """Sums without any error; with ``keep`` (masks, or what makes the mask of a chunk), of the kept scores only."""

        def taken(rows: NDArray[np.float64], single: bool) -> Sums:
            totals, squares = exact_rows(np, rows, np.asarray, single=single)
            return Sums(0, sum(totals), sum(squares))

        return self._summed(keep, taken)

    def _summed(self, keep: Sequence[Mask] | Keep | None, take: Callable[[NDArray[np.float64], bool], Sums]) -> Sums:
        single = self.dtype.itemsize == 4

        def work(chunk: Chunk, buffers: Buffers) -> Sums:
            magnitude = self.load(chunk, buffers)
            wide = self._wide(chunk, magnitude, buffers)
            self._refuse_not_finite(chunk, wide)
            n, where = wide.size, self.where[chunk.part]
            if keep is not None:
                mask = keep(chunk, magnitude) if callable(keep) else keep[chunk.part][chunk.start : chunk.stop]
                n = int(np.count_nonzero(mask))
                wide *= mask
            elif where is not None:
                n = int(np.count_nonzero(where[chunk.start : chunk.stop]))
            whole = wide.size & -CHUNK  # a fold takes CHUNK addends at most
            pieces = (wide[:whole].reshape(-1, CHUNK), wide[None, whole:])
            return sum((take(rows, single) for rows in pieces if rows.size), Sums(n, 0, 0))

        return sum((found for _, found in self.run(work)), Sums(0, 0, 0))

    def largest(self) -> float:
        """max|s|."""
        peaks = self.run(lambda chunk, buffers: float(self.load(chunk, buffers).max(initial=0)))
        return max((peak for _, peak in peaks), default=0.0)

    def kept_share(self, masks: Sequence[Mask]) -> float:
        """Σ|s| of the kept scores over Σ|s| of all; 1 when all are zero."""

        def work(chunk: Chunk, buffers: Buffers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            size = self._wide(chunk, self.load(chunk, buffers), buffers).size
            return buffers.shares(size, masks[chunk.part][chunk.start : chunk.stop])

        if self.length <= CHUNK:
            return self._folded_share(masks)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            found = [sums for _, sums in self.run(work)]
        share = share_of([total for total, _ in found], [kept for _, kept in found])
        return self._folded_share(masks) if share is None else share

    def _folded_share(self, masks: Sequence[Mask] | Keep, whole: Sums | None = None) -> float:
        """`kept_share` for short pools, and where float64 sums would overflow or vanish."""
        whole, part = whole or self.folded(), self.folded(masks)
        return min(1.0, part.total / whole.total) if whole.total else 1.0

    def _wide(self, chunk: Chunk, magnitude: NDArray[Any], buffers: Buffers) -> NDArray[np.float64]:
        """Magnitudes as float64, 0 for what is not in the pool."""
        wide: NDArray[np.float64] = buffers.wide[: magnitude.size]
        if self.where[chunk.part] is None:
            np.copyto(wide, magnitude)
        else:
            np.maximum(magnitude, 0, out=wide)  # keeps NaN
        return wide

    def _refuse_not_finite(self, chunk: Chunk, magnitude: NDArray[Any]) -> None:
        finite = np.isfinite(magnitude)
        if not finite.all():
            i = int(np.argmin(finite))
            what = "NaN" if np.isnan(magnitude[i]) else "an infinity"
            raise PoolError(f"{self.names[chunk.part]} must be finite, got {what} at flat index {chunk.start + i}")

    def _refuse_unordered(self, chunk: Chunk, magnitude: NDArray[Any]) -> None:
        """Magnitudes order as their bit patterns do, with NaN above inf: one integer maximum finds both."""
        kind = np.int32 if magnitude.itemsize == 4 else np.int64
        if magnitude.size and magnitude.view(kind).max() >= np.array(np.inf, magnitude.dtype).view(kind):
            self._refuse_not_finite(chunk, magnitude)

    # --- one look at every score ----------------------------------------------------------------------------------
    def sweep(
        self, masks: Sequence[Mask] | None = None, low: float = 0.0, high: float = 0.0, *, sums: bool = False
    ) -> Sweep:
        """Fetch each score once, and take from it all that is asked for.

        With ``sums``: Σ|s| and Σs². With ``masks``: fill them with what is above ``high``, and list what lies from
        ``low`` to ``high``. The list is given up (``inside`` is None) when it outgrows 1/32 of the pool.
        """
        listed = Listed(self.room())

        def work(chunk: Chunk, buffers: Buffers) -> tuple[Products, int, NDArray[Any], NDArray[np.intp]]:
            magnitude = self.load(chunk, buffers)
            if not sums:  # with sums, these tell
                self._refuse_unordered(chunk, magnitude)
            products, count, values, index = NOTHING, 0, magnitude[:0], NO_INDEX
            above: Mask | None = None
            if masks is not None and not listed.full:
                above, flag = masks[chunk.part][chunk.start : chunk.stop], buffers.flag[: magnitude.size]
                np.greater(magnitude, high, out=above)
                count = int(np.count_nonzero(above))
                np.greater_equal(magnitude, low, out=flag)
                np.not_equal(flag, above, out=flag)
                index = flag.nonzero()[0]
                values = magnitude[index]
                listed.add(index.size)
            if sums:
                self._wide(chunk, magnitude, buffers)
                products = buffers.products(magnitude.size, above)
            return products, count, values, index

        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            found = self.run(work)
        inside = [(chunk, values, index) for chunk, (_, _, values, index) in found] if not listed.full else None
        above = sum(count for _, (_, count, _, _) in found)
        if not sums:
            return Sweep(Sums(self.n, 0, 0), 0.0, above, inside)
        products = [f[0] for _, f in found]
        kept = math.inf if masks is None or inside is None else total_of([p.above for p in products])
        return Sweep(self._bounded([p.total for p in products], [p.squares for p in products]), kept, above, inside)

    def room(self) -> int:
        """How many scores inside a bracket are listed before it is given up."""
        return min(max(4 * CHUNK, self.length // 32), ROOM)

    def _bounded(self, totals: list[NDArray[np.float64]], squares: list[NDArray[np.float64]]) -> Sums:
        """What float64 sums of the pieces say; exact sums where they overflowed, vanished or are not finite."""
        if not any(t.any() for t in totals):
            return Sums(self.n, 0, 0)
        total, square = total_of(totals), total_of(squares)
        if not (total < math.inf and 2.0**-900 < square < math.inf):
            return self.exact()
        slack = PIECE * 2.0**-52  # PIECE addends in any order round by at most PIECE·2**-53; twice that, for the rest
        return Sums(
            self.n,
            units(total, UNIT),
            units(square, 2 * UNIT),
            units(total * slack, UNIT) + 1,
            units(square * slack, 2 * UNIT) + 1,
        )

    def _settled(self, totals: list[NDArray[np.float64]], squares: list[NDArray[np.float64]]) -> Sums:
        """Sums of the pieces, or exact ones where these leave bounds in doubt: what ``sums`` gives."""
        if self.length <= CHUNK:
            return self.exact()
        known = self._bounded(totals, squares)
        return known if known.settled() else self.exact()

    # --- the count -------------------------------------------------------------------------------------------------
    def count(self, beta: Fraction) -> tuple[Sums, int]:
        """The keep count, and the sums that decide it."""
        return self.decide(self.sums(), beta)

    def decide(self, sums: Sums, beta: Fraction) -> tuple[Sums, int]:
        """The keep count from ``sums``, or from exact ones where these do not decide."""
        k = sums.keep_count(beta) if sums.settled() else None
        if k is None:
            sums = self.exact()
            k = sums.keep_count(beta)
        assert k is not None  # exact sums decide
        return sums, k
