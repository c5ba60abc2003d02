"""Sums without rounding: Σ|s| and Σs² of a pool, and the decisions that rest on them.

The count ``⌊β·N_eff⌋`` jumps at integers, so it must be decided on the true value. Two steps reach it.

*Folding* splits the addends on a grid. With ``|a| ≤ top`` (a power of two) and at most ``2**WIDTH`` addends,
``h = (a + σ) − σ`` with ``σ = 1.5·2**WIDTH·top`` rounds ``a`` to multiples of ``u = 2**(WIDTH − 52)·top``; every
partial sum of ``h`` is such a multiple below ``2**53·u`` and therefore exact in float64, in whatever order it is
taken. What is left, ``a − h``, is exact too and at most ``u/2``: fold it again. One fold and a plain sum of the rest
give about 2**-70 relative; folding until nothing is left gives the exact sum. Only +, −, ×, max and sum are used, so
this runs wherever float64 does, on any device.

*Deciding* is done on Python integers: sums are kept in units of ``2**-UNIT`` (squares: ``2**-(2·UNIT)``) with an
error of whole units. When both ends of the interval give the same answer it is the answer; else the sums are taken
exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._errors import ArgumentError
from ._namespace import to_host

WIDTH = 16  # log2 of the most addends that one fold may take
CHUNK = 1 << WIDTH
GRID = 53 - WIDTH  # bits that one fold takes off: |rest| ≤ top·2**-GRID
UNIT = 1200  # below 2**-1074, with room for the tails of products
BAND = 400  # exponents that one exact pass covers: squares of scaled values stay far above underflow

WHOLE = 1 << 53  # up to here float64 holds every integer

Rows = NDArray[np.float64]


def refuse_rounded(scores: NDArray[Any], name: str) -> None:
    """An error where integers are so large that float64 would round some. The next one after 2**53 rounds to it, so
    this looks at the integers themselves; callers look for rounded magnitudes of 2**53 first.

    Raises:
        ArgumentError: there is one; the message names the scores.
    """
    if scores.dtype.kind in "iu" and scores.size:
        least, most = int(scores.min()), int(scores.max())
        worst = most if most >= -least else least
        if abs(worst) > WHOLE:
            raise ArgumentError(f"integer {name} must be within ±2**53, got {worst}")


@dataclass(frozen=True)
class Sums:
    """What is known of a pool: its size, and Σ|s| and Σs² in integer units, each with the error it may have."""

    n: int
    total: int
    squares: int
    total_error: int = 0
    squares_error: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.n + other.n,
            self.total + other.total,
            self.squares + other.squares,
            self.total_error + other.total_error,
            self.squares_error + other.squares_error,
        )

    @property
    def zero(self) -> bool:
        """True when all scores are zero."""
        return self.total == 0 and self.total_error == 0

    @property
    def exact(self) -> bool:
        """True when the sums carry no error."""
        return self.total_error == 0 and self.squares_error == 0

    def ends(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """``N_eff`` as numerator and denominator, at both ends of the interval."""
        low = max(self.total - self.total_error, 0) ** 2, self.squares + self.squares_error
        high = (self.total + self.total_error) ** 2, max(self.squares - self.squares_error, 1)
        return low, high

    def settled(self) -> bool:
        """True when no integer lies within the interval of ``N_eff``: bounds that rest on it are sharp."""
        if self.exact:
            return True
        (a, b), (c, d) = self.ends()
        return a // b == c // d and c < d * self.n

    def rounded(self) -> bool:
        """True when both ends of the interval of ``N_eff`` round to the same float."""
        if self.exact:
            return True
        (a, b), (c, d) = self.ends()
        return a / b == c / d

    def n_eff(self) -> float:
        """The effective size; correctly rounded when the sums are exact."""
        return float(self.n) if self.zero else min(self.total**2 / self.squares, float(self.n))

    def n_eff_ends(self) -> tuple[float, float]:
        """Two floats that certainly enclose the effective size."""
        if self.zero or (self.exact and self.total**2 == self.n * self.squares):
            return float(self.n), float(self.n)
        (a, b), (c, d) = self.ends()
        low, high = math.nextafter(a / b, 0.0), math.nextafter(c / d, math.inf)
        return max(low, 1.0), min(high, float(self.n))

    def keep_count(self, beta: Fraction) -> int | None:
        """``⌊β·N_eff⌋`` clamped to [1, n]; None when the interval does not decide it."""
        if self.zero:
            return self.n
        low, high = (min(max(beta.numerator * a // (beta.denominator * b), 1), self.n) for a, b in self.ends())
        return low if low == high else None


def units(x: float, shift: int) -> int:
    """``x·2**shift`` as an integer; exact when ``x`` is a multiple of ``2**-shift``."""
    mantissa, exponent = math.frexp(x)
    exponent += shift - 53
    whole = int(mantissa * 9007199254740992.0)
    return whole << exponent if exponent >= 0 else whole >> -exponent


def square_parts(a: Any) -> tuple[Any, Any]:
    """``p + e = a²`` exactly, by Veltkamp's split and Dekker's product; needs ``2**-450 < |a| < 2**450`` or 0."""
    c = a * 134217729.0
    high = c - (c - a)
    low = a - high
    p = a * a
    return p, ((high * high - p) + 2.0 * high * low) + low * low


def fold(xp: Any, a: Any, top: Any) -> tuple[Any, Any]:
    """One fold along the last axis: exact sums of the upper parts, and the rests, each at most ``top·2**-GRID``."""
    sigma = top * (1.5 * 2.0**WIDTH)
    upper = (a + sigma) - sigma
    return xp.sum(upper, axis=-1), a - upper


def row_scale(xp: Any, a: Any, like: Any) -> tuple[Rows, NDArray[np.int64], Any]:
    """Largest value and exponent of each row (on the host), and ``a`` scaled by ``2**-exponent``, so below 1."""
    largest = to_host(xp.max(a, axis=-1)).astype(np.float64)
    exponent = np.frexp(largest)[1].astype(np.int64)
    half = exponent // 2  # two factors: 2**-exponent alone may overflow
    first, second = (like(np.ldexp(1.0, -e)[:, None]) for e in (half, exponent - half))
    return largest, exponent, a * first * second


def exact_rows(xp: Any, a: Any, like: Any, *, single: bool = False) -> tuple[list[int], list[int]]:
    """Exact Σa and Σa², in units, of each row of ``a``: finite, ≥ 0, float64, shape (rows, ≤ CHUNK).

    ``like`` brings a small host array beside ``a``; ``single`` says that float32 would hold every value (so that
    squares are exact as they are). Values far below a row's largest are taken in later bands, so
    that no square underflows: right from the smallest subnormal to the largest finite number within one row.
    """
    count = int(a.shape[0])
    totals, squares = [0] * count, [0] * count
    while True:
        largest, exponent, band = row_scale(xp, a, like)
        if not largest.any():
            return totals, squares
        if not single:
            here = band >= 2.0**-BAND
            zero = xp.zeros_like(a)
            band, a = xp.where(here, band, zero), xp.where(here, zero, a)
        _fold_out(xp, band, totals, [UNIT + e for e in exponent.tolist()])
        for part in (band * band,) if single else square_parts(band):
            _fold_out(xp, part, squares, [2 * (UNIT + e) for e in exponent.tolist()])
        if single:
            return totals, squares


def _fold_out(xp: Any, a: Any, into: list[int], shifts: list[int]) -> None:
    """Fold ``|a| ≤ 1`` until nothing is left, adding row by row into integers of ``2**-shift``."""
    top = 1.0
    while bool(xp.any(a != 0)):
        sums, a = fold(xp, a, top)
        for i, value in enumerate(to_host(sums).tolist()):
            if value:
                into[i] += units(value, shifts[i])
        top *= 2.0**-GRID
