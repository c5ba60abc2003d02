"""Many short pools of any lengths: laid side by side as the rows of a few matrices, and counted all at once.

A function of NumPy takes microseconds to begin, whatever it works on; ten thousand pools of a hundred scores, taken
one by one, cost a thousand times what their scores do. Pools of about one length become rows of one matrix, filled
up with −1, which is no magnitude.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._chunks import Part, fits_float32
from ._errors import PoolError
from ._exact import CHUNK
from ._pools import SLAB, HostPools
from ._rows import parts as row_sums
from ._stream import Stream

ONE = Fraction(1)
SHORT = CHUNK // 4  # the longest pool that is laid beside others
SPREAD = 1.25  # how much longer than the shortest the longest row of a matrix is


class Rows(NamedTuple):
    """Pools of about one length: which they are, their magnitudes (−1 beyond the end of a pool), their lengths."""

    which: list[int]
    magnitude: NDArray[Any]
    n: NDArray[np.int64]

    def pools(self, names: Sequence[str]) -> HostPools:
        """Them as the core takes pools."""
        mine = [names[i] for i in self.which]
        where = None if int(self.n.min()) == self.magnitude.shape[1] else self.magnitude >= 0
        return HostPools(self.magnitude, where, mine.__getitem__, 1)

    def wide(self) -> NDArray[np.float64]:
        """Magnitudes in float64, 0 beyond the end."""
        wide: NDArray[np.float64] = np.maximum(self.magnitude, 0, dtype=np.float64)
        return wide


def laid(pools: Sequence[Part], names: Sequence[str]) -> Iterator[Rows]:
    """Pools of at most SHORT scores as matrices.

    Raises:
        PoolError: a pool holds NaN or ±inf.
    """
    order = sorted(range(len(pools)), key=lambda i: (not fits_float32(pools[i]), pools[i].size))
    start = 0
    while start < len(order):
        first = pools[order[start]]
        single, longest, stop = fits_float32(first), max(first.size, 1), start
        while stop < len(order):
            pool = pools[order[stop]]
            size = max(pool.size, 1)
            wider = size > SPREAD * max(first.size, 8) or size * (stop + 1 - start) > SLAB
            if fits_float32(pool) != single or (wider and stop > start):
                break
            longest, stop = size, stop + 1
        yield _rows(pools, names, order[start:stop], longest, np.dtype(np.float32 if single else np.float64))
        start = stop


def _rows(pools: Sequence[Part], names: Sequence[str], which: list[int], width: int, dtype: np.dtype[Any]) -> Rows:
    held = [pools[i][0 : pools[i].size] for i in which]
    flat = Stream(held, [None] * len(held), ["scores"] * len(held), 1, dtype)
    n = np.array([part.size for part in held], np.int64)
    if len({part.dtype for part in held}) == 1:
        flat = Stream([np.concatenate(held)], [None], ["scores"], 1, dtype)
    magnitude = np.full((len(which), width), -1, dtype)
    magnitude[np.arange(width) < n[:, None]] = flat.magnitudes()
    finite = np.isfinite(magnitude)
    if not finite.all():
        i, j = (int(x[0]) for x in np.nonzero(~finite))
        what = "NaN" if np.isnan(magnitude[i, j]) else "an infinity"
        raise PoolError(f"{names[which[i]]} must be finite, got {what} at flat index {j}")
    return Rows(which, magnitude, n)


def sums_each(pools: Sequence[Part], names: Sequence[str]) -> list[tuple[float, float]]:
    """Effective size, correctly rounded, and Σ|s| of each pool; (0, 0) for an empty one, n and 0 for one of zeros."""
    out = [(0.0, 0.0)] * len(pools)
    full = [i for i, pool in enumerate(pools) if pool.size]
    for rows in laid([pools[i] for i in full], [names[i] for i in full]):
        counted = rows.pools(names).count(ONE)
        for i, size, l1 in zip(rows.which, counted.n_eff.tolist(), totals(rows), strict=True):
            out[full[i]] = size, l1
    return out


def totals(rows: Rows) -> list[float]:
    """Σ|s| of each row."""
    sums = row_sums(np, rows.wide(), np.asarray, single=rows.magnitude.dtype == np.float32)
    with np.errstate(over="ignore"):
        whole: list[float] = np.ldexp(sums.total[0] + sums.total[1], sums.exponent).tolist()
    return whole
