"""Sums of pools too large for one memory: take them piece by piece, anywhere, and merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._effective import checked_beta
from ._errors import PoolError
from ._exact import UNIT, Sums
from ._namespace import as_mask, given, to_host, wide
from ._pools import _broadcast
from ._select import checked_threads
from ._stream import Stream


@dataclass(frozen=True)
class Moments:
    """``n``, Σ|s|, Σs² and max|s| of a pool, without rounding: merging in any order gives what the whole gives, bit
    for bit.

    Made with :meth:`of`, merged with ``|``; ``Moments()`` is the empty pool. The two sums are integers, in units of
    2**-1200 and 2**-2400, so an instance is a few hundred bytes however many scores it stands for, and can be
    pickled and sent.

    >>> whole = Moments.of([1.0, 2.0, 3.0])
    >>> Moments.of([3.0]) | Moments.of([1.0, 2.0]) == whole
    True
    >>> whole.n, whole.keep_count(beta=0.5), round(whole.n_eff, 4)
    (3, 1, 2.5714)
    """

    n: int = 0
    total: int = 0
    squares: int = 0
    largest: float = 0.0

    @classmethod
    def of(cls, scores: Any, /, *, where: Any = None, threads: int | None = None) -> Moments:
        """The moments of one array of any library; ``where`` False means not in the pool. An empty array is an empty
        pool.

        Raises:
            PoolError: NaN or ±inf among the scores.
            ArgumentError: ``where`` does not broadcast to the scores, or ``threads`` is no integer ≥ 1.
        """
        source = given(scores)
        checked_threads(threads)
        mask = None if where is None else _broadcast(to_host(as_mask(where, "where").array), source.shape)
        if source.host is not None:
            stream = Stream(
                [source.host.reshape(-1)], [None if mask is None else mask.reshape(-1)], ["scores"], threads
            )
            sums = stream.exact()
            return cls(sums.n, sums.total, sums.squares, stream.largest())
        from ._device import DeviceStream  # only where there is a device

        flat = source.xp.reshape(source.array, (-1,))
        if not int(flat.shape[0]) or (mask is not None and not mask.any()):
            return cls()
        with wide(source):
            chosen = None if mask is None else source.back(np.ascontiguousarray(mask.reshape(-1)))
            pool = DeviceStream(source, [flat], [chosen], ["scores"])
            found = pool.exact()
            return cls(found.n, found.total, found.squares, pool.largest())

    def __or__(self, other: Moments) -> Moments:
        if not isinstance(other, Moments):
            return NotImplemented
        return Moments(
            self.n + other.n, self.total + other.total, self.squares + other.squares, max(self.largest, other.largest)
        )

    def _sums(self) -> Sums:
        if self.n == 0:
            raise PoolError("Moments must hold at least one score, got an empty pool")
        return Sums(self.n, self.total, self.squares)

    @property
    def n_eff(self) -> float:
        """Effective size, correctly rounded.

        Raises:
            PoolError: the pool is empty.
        """
        return self._sums().n_eff()

    @property
    def l1(self) -> float:
        """Σ|s|, correctly rounded; inf beyond float64."""
        try:
            return self.total / (1 << UNIT)
        except OverflowError:
            return float("inf")

    def keep_count(self, beta: float = 1.0) -> int:
        """``⌊β·N_eff⌋`` clamped to [1, n], exact.

        Raises:
            PoolError: the pool is empty.
            ArgumentError: ``beta`` is not a finite number > 0.
        """
        k = self._sums().keep_count(checked_beta(beta))
        assert k is not None  # exact sums decide
        return k
