"""One pool, however long, in host memory: sums, the k-th largest, the mask, in cache-sized chunks and several threads.

Nothing of the pool's size is made but the mask. Each chunk (2**16 scores) is loaded as magnitudes into a buffer that
stays in cache; NumPy releases the interpreter lock inside its loops, so threads share the chunks. Results do not
depend on the number of threads: sums are exact or carry an error bound, and the selection is by value and index.

The k-th largest is found between two values. A random sample brackets it; one pass counts what lies above the bracket
and lists what lies inside (about 1 %); a partition of these few gives the threshold. When ties or bad luck defeat
the bracket, two to four radix passes over the bit patterns find the threshold whatever the data.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ._errors import ArgumentError, PoolError
from ._exact import CHUNK, UNIT, Sums, exact_rows, units
from ._namespace import BFLOAT16
from ._rows import parts

T = TypeVar("T")
Mask = NDArray[np.bool_]
PIECE = 4096  # scores summed in one go
BATCH = 4  # chunks that a thread takes at a time where there are several
SAMPLE = 1 << 16  # scores looked at to bracket the threshold, at most; of a pool of 2**22 half as many
ROOM = 6 << 20  # most scores that are listed
RUN = 16  # neighbours in a sample: one line of cache
THREAD_FROM = 1 << 21  # scores that are worth a further thread
READ_FROM = 1 << 23  # the same where they are read: two threads for 2²² cost a quarter more, and end no earlier


class Part(Protocol):
    """Flat scores that can be read a stretch at a time: an array, or something that reads a file when it is sliced."""

    @property
    def size(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __getitem__(self, stretch: slice, /) -> NDArray[Any]: ...


class Products(NamedTuple):
    """Sums over pieces: Σs, Σs², and Σs of those above the bracket."""

    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    above: NDArray[np.float64]


class Buffers:
    """Scratch space of one thread for chunks of at most ``size`` scores."""

    def __init__(self, dtype: np.dtype[Any], size: int) -> None:
        size = -(-size // PIECE) * PIECE
        self.magnitude = np.empty(size, dtype)
        self.wide = aligned(size)  # magnitudes in float64
        self.chosen = aligned(size)  # 1 for the scores of which a sum is taken, 0 for the others
        self.flag = np.empty(size, bool)
        self.near = np.empty(size, bool)

    def products(self, size: int, above: Mask | None) -> Products:
        """Σs, Σs² and, given a mask, Σs under it, for each PIECE of the first ``size`` scores in ``wide``.

        The last piece is filled up with zeros. The sums of a piece are the same in whatever chunk it came: pieces
        begin at even addresses, and are too short for a BLAS to set its own threads on them.
        """
        wide = self._pieces(size)
        total, squares = np.einsum("ij->i", wide), dots(wide, wide)
        return Products(total, squares, NO_PRODUCTS if above is None else self._under(size, above))

    def shares(self, size: int, keep: Mask) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Σs and Σ of the kept, for each PIECE of the first ``size`` scores in ``wide``."""
        return np.einsum("ij->i", self._pieces(size)), self._under(size, keep)

    def _under(self, size: int, keep: Mask) -> NDArray[np.float64]:
        wide = self._pieces(size)
        np.copyto(self.chosen[:size], keep)
        self.chosen[size : wide.size] = 0
        return dots(wide, self.chosen[: wide.size].reshape(wide.shape))

    def _pieces(self, size: int) -> NDArray[np.float64]:
        end = -(-size // PIECE) * PIECE
        self.wide[size:end] = 0
        return self.wide[:end].reshape(-1, PIECE)


def aligned(size: int) -> NDArray[np.float64]:
    """Room for so many numbers, at an address that all pieces of it keep modulo a line of cache."""
    room = np.empty(size + 8)
    start = -(room.ctypes.data // 8) % 8
    return room[start : start + size]


def dots(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σab of each row. A stack of products of one row and one column is what every NumPy gives to its BLAS as it is;
    measured: 2.5 times as fast as einsum."""
    out: NDArray[np.float64] = np.matmul(a[:, None, :], b[:, :, None]).reshape(-1)
    return out


class Chunk(NamedTuple):
    """``parts[part][start:stop]``; ``order`` counts chunks from the first score of the pool."""

    order: int
    part: int
    start: int
    stop: int


Keep = Callable[[Chunk, NDArray[Any]], Mask]  # makes the mask of a chunk from its magnitudes


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
            if source.dtype.kind in "iu" and source.dtype.itemsize == 8 and out.size and out.max() > 2.0**53:
                raise ArgumentError(f"integer {self.names[chunk.part]} must be within ±2**53, got {out.max():.17g}")
        where = self.where[chunk.part]
        if where is not None:
            np.copyto(out, -1, where=~where[chunk.start : chunk.stop])
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

    # --- selection ------------------------------------------------------------------------------------------------
    def select(self, beta: Fraction, fixed: int | None = None) -> tuple[Sums, int, list[Mask], float]:
        """Sums, keep count (or the one given), masks and retained mass: a sample guesses the threshold, one sweep does
        the rest."""
        if self.length <= 4 * CHUNK:
            sums, k = self.count(beta)
            k = k if fixed is None else fixed
            masks = self.top_mask(k)
            short = self.length <= CHUNK
            return sums, k, masks, self._folded_share(masks, sums) if short else self.kept_share(masks)
        masks = [np.empty(p.size, bool) for p in self.parts]
        seen = self.sweep(masks, *self.bracket(beta, fixed), sums=True)
        sums, k = self.decide(seen.sums, beta)
        k = k if fixed is None else fixed
        extra = self._settle(seen, k, masks) if k < self.n else None
        if extra is None or seen.sums.exact or seen.kept == math.inf:
            masks = masks if extra is not None else self.top_mask(k)
            return sums, k, masks, self.kept_share(masks)
        total = seen.sums.total / (1 << UNIT)
        return sums, k, masks, min(1.0, (seen.kept + extra) / total)

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

    def top_mask(self, k: int) -> list[Mask]:
        """For each part a mask; exactly ``k`` True in all, the largest magnitudes, ties to the lower index."""
        masks = [np.empty(p.size, bool) for p in self.parts]
        if k >= self.n or k <= 0:
            for m, w in zip(masks, self.where, strict=True):
                m[...] = False if k <= 0 else True if w is None else w
            return masks
        if self._settle(self.sweep(masks, *bracket(self.sample(), share=k / self.n)), k, masks) is None:
            self._at(self.kth_largest(k), k, masks)
        return masks

    def _settle(self, seen: Sweep, k: int, masks: Sequence[Mask]) -> float | None:
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

    def bracket(self, beta: Fraction, fixed: int | None = None) -> tuple[float, float]:
        """Two values between which the threshold of a selection probably lies."""
        return bracket(self.sample(), share=None if fixed is None else fixed / self.n, beta=float(beta))

    def sample(self) -> NDArray[Any]:
        """Magnitudes at some random places, the same each time, as runs of neighbours, a row each; −1 outside of it.

        Empty for a pool that needs no bracket.
        """
        taken = [np.empty((0, RUN), self.dtype)]
        runs = [part.size // RUN if self.length > 4 * CHUNK else 0 for part in self.parts]
        last = np.cumsum([0, *runs])
        wanted = min(max(self.length >> 7, SAMPLE // 4), SAMPLE) * max(1, self.length >> 28)
        # the bracket holds some 3.5/√sample of the scores: about half of what there is room for
        wanted = max(wanted, min((6 * self.length // ROOM) ** 2, 8 * SAMPLE)) // RUN if last[-1] else 0
        pick = np.sort(np.random.default_rng(self.length).integers(0, max(last[-1], 1), wanted))
        edges = np.searchsorted(pick, last)
        for i in np.flatnonzero(np.diff(edges)).tolist():
            mine, where = pick[edges[i] : edges[i + 1]] - last[i], self.where[i]
            for start in range(0, mine.size, CHUNK // RUN):
                some = mine[start : start + CHUNK // RUN]
                few = _runs(self.parts[i], runs[i], some)
                inside = None if where is None else where[: runs[i] * RUN].reshape(runs[i], RUN)[some].reshape(-1)
                stream = Stream([few], [inside], [self.names[i]], 1, self.dtype)
                taken.append(stream.magnitudes().reshape(-1, RUN))
        return np.concatenate(taken)

    def kth_largest(self, k: int) -> Any:
        """The k-th largest magnitude, by radix passes of 16 bits: O(n) whatever the data."""
        kind = np.dtype(np.uint32 if self.dtype.itemsize == 4 else np.uint64)
        prefix, left = 0, self.n - k  # how many are smaller, among those that share the prefix
        width = 8 * kind.itemsize
        for shift in range(width - 16, -1, -16):
            counts, lock = np.zeros(1 << 16, np.int64), threading.Lock()

            def work(
                chunk: Chunk, buffers: Buffers, shift: int = shift, prefix: int = prefix, counts: Any = counts,
                lock: Any = lock,
            ) -> None:  # fmt: skip
                magnitude = self.load(chunk, buffers)
                if self.where[chunk.part] is not None:
                    magnitude = magnitude[magnitude >= 0]
                bits = magnitude.view(kind)
                if shift + 16 < width:
                    bits = bits[(bits >> kind.type(shift + 16)) == prefix]
                some = np.bincount(((bits >> kind.type(shift)) & kind.type(0xFFFF)).astype(np.intp), minlength=1 << 16)
                with lock:  # added at once: kept until the end, the counts of all chunks took as much as the scores
                    counts[:] += some

            self.run(work)
            below = np.cumsum(counts)
            digit = int(np.searchsorted(below, left, side="right"))
            left -= int(below[digit - 1]) if digit else 0
            prefix = prefix << 16 | digit
        return np.array(prefix, kind).view(self.dtype)[()]

    def _at(self, threshold: Any, k: int, masks: list[Mask]) -> None:
        """Fill ``masks`` given the exact threshold: all above it, then ties from the lowest index on."""

        def work(chunk: Chunk, buffers: Buffers) -> tuple[int, int]:
            magnitude = self.load(chunk, buffers)
            above = masks[chunk.part][chunk.start : chunk.stop]
            np.greater_equal(magnitude, threshold, out=above)
            flag = np.equal(magnitude, threshold, out=buffers.flag[: magnitude.size])
            return int(np.count_nonzero(above)), int(np.count_nonzero(flag))

        counts = self.run(work, batch=1)
        surplus = sum(kept for _, (kept, _) in counts) - k  # ties to let go, from the highest index down
        buffers = Buffers(self.dtype, min(CHUNK, max(self.length, 1)))
        for chunk, (_, ties) in reversed(counts):
            if surplus == 0:
                break
            if ties:
                mask = masks[chunk.part][chunk.start : chunk.stop]
                drop = min(ties, surplus)
                if drop == ties:
                    mask &= self.load(chunk, buffers) != threshold
                else:
                    mask[np.flatnonzero(self.load(chunk, buffers) == threshold)[ties - drop :]] = False
                surplus -= drop


NO_PRODUCTS = np.empty(0)
NOTHING = Products(NO_PRODUCTS, NO_PRODUCTS, NO_PRODUCTS)
NO_INDEX = np.empty(0, np.intp)


def _runs(part: Part, runs: int, some: NDArray[np.intp]) -> NDArray[Any]:
    """Some runs of neighbours, one after the other."""
    if isinstance(part, np.ndarray):
        few: NDArray[Any] = part[: runs * RUN].reshape(runs, RUN)[some].reshape(-1)
        return few
    each, found = CHUNK // RUN, [part[:0]]
    for first in range(0, runs, each):
        here = some[np.searchsorted(some, first) : np.searchsorted(some, first + each)]  # sorted
        if here.size > 8:  # more would be read one by one than all at once
            chunk = part[first * RUN : min(first + each, runs) * RUN].reshape(-1, RUN)
            found.append(chunk[here - first].reshape(-1))
        else:
            found += [part[i * RUN : (i + 1) * RUN] for i in here.tolist()]
    return np.concatenate(found)


def total_of(pieces: list[NDArray[np.float64]]) -> float:
    """The correctly rounded sum of all numbers, in whatever order; inf where one is not finite or the sum overflows."""
    numbers = np.concatenate([NO_PRODUCTS, *pieces])
    try:
        return math.fsum(numbers.tolist()) if np.isfinite(numbers).all() else math.inf
    except OverflowError:
        return math.inf


def share_of(totals: list[NDArray[np.float64]], kept: list[NDArray[np.float64]]) -> float | None:
    """Σ of the kept over Σ of all; None where float64 overflowed or vanished."""
    whole = total_of(totals)
    return min(1.0, total_of(kept) / whole) if 2.0**-900 < whole < math.inf else None


def fits_float32(part: Part | NDArray[Any]) -> bool:
    """True when float32 holds every value of this dtype."""
    return part.dtype == BFLOAT16 or part.dtype.itemsize * (1 if part.dtype.kind == "f" else 2) <= 4


def bracket(runs: NDArray[Any], *, share: float | None = None, beta: float = 1.0) -> tuple[float, float]:
    """Two values that very probably hold the threshold between them; were they wrong, only time is lost.

    The threshold keeps ``share`` of the scores, or what the rule will keep, as the sample sees it. Neighbouring scores
    may be alike, so the error is estimated from run to run.
    """
    inside = runs >= 0
    ordered = np.sort(runs[inside])
    if ordered.size < 64 * RUN:
        return 0.0, math.inf
    a = np.maximum(runs, 0, dtype=np.float64)
    influence = np.zeros(len(runs))
    if share is None:
        with np.errstate(all="ignore"):
            total, squares = float(a.sum()), float(np.einsum("ij,ij->", a, a))
            rule = beta * total * total / squares / ordered.size if squares else 1.0
            if not math.isfinite(rule):
                return 0.0, math.inf
            scale = rule * ordered.size
            influence = (
                scale * (2 * a.sum(axis=1) / total - np.einsum("ij,ij->i", a, a) / squares) if squares else influence
            )
        share = min(rule, 1.0)
    place = ordered.size * (1 - share)
    middle = ordered[min(int(place), ordered.size - 1)]
    above = np.count_nonzero(runs > middle, axis=1) - share * np.count_nonzero(inside, axis=1)
    spread = 3.5 * float(np.std(influence - above)) * len(runs) ** 0.5 + 8
    low, high = math.floor(place - spread), math.ceil(place + spread)
    return (
        float(ordered[low]) if 0 <= low < ordered.size else 0.0,
        float(ordered[high]) if 0 <= high < ordered.size else math.inf,
    )


def batched(chunks: Sequence[Chunk], most: int) -> Iterator[Chunk]:
    """Neighbours of one part joined, up to ``most`` at a time."""
    start = 0
    while start < len(chunks):
        first = last = chunks[start]
        end = start
        while end < len(chunks) and end - start < most and chunks[end].part == first.part:
            last = chunks[end]
            end += 1
        yield Chunk(first.order, first.part, first.start, last.stop)
        start = end


def processors() -> int:
    """How many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
