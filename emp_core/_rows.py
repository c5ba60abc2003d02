"""Many pools of one length: the rows of a matrix, all counted at once.

Sums are taken by one fold (see ``_exact``) and kept as pairs of floats, so that ``N_eff`` and ``β·N_eff`` are known
to about 2**-57 relative. Rows that this does not decide (equal scores, a count that falls on an integer) are summed
exactly. ``parts`` runs in any array library; what follows works on one number per row, on the host.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._exact import GRID, UNIT, Sums, exact_rows, fold, row_scale, square_parts, units
from ._namespace import cast, to_host

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Counted(NamedTuple):
    """One figure per pool: size, effective size, two floats that enclose it, keep count."""

    n: Ints
    n_eff: Floats
    low: Floats
    high: Floats
    k: Ints

    def keeping(self, k: Ints | None) -> Counted:
        """The same with these counts, if any are given."""
        return self if k is None else self._replace(k=k)

    @classmethod
    def join(cls, pieces: list[Counted]) -> Counted:
        """The pieces one after the other."""
        pieces = [NOTHING, *pieces]
        return cls(*(np.concatenate(values) for values in zip(*pieces, strict=True)))

    @classmethod
    def of(cls, sums: list[Sums], beta: Fraction) -> Counted:
        """From exact sums, or such as decide the count."""
        ends = [s.n_eff_ends() for s in sums]
        return cls(
            np.array([s.n for s in sums], np.int64),
            np.array([s.n_eff() for s in sums], np.float64),
            np.array([e[0] for e in ends], np.float64),
            np.array([e[1] for e in ends], np.float64),
            np.array([s.keep_count(beta) for s in sums], np.int64),
        )


NOTHING = Counted(np.empty(0, np.int64), np.empty(0), np.empty(0), np.empty(0), np.empty(0, np.int64))


class Parts(NamedTuple):
    """Σ and Σ² of scaled rows as pairs of floats with bounds on their errors; ``exponent`` undoes the scale."""

    exponent: Ints
    total: tuple[Floats, Floats]
    squares: tuple[Floats, Floats]
    total_error: Floats
    squares_error: Floats

    def sums(self, n: int) -> Sums:
        """All rows as one pool."""
        total = squares = total_error = squares_error = 0
        figures = (self.exponent, *self.total, *self.squares, self.total_error, self.squares_error)
        for e, t, u, s, v, a, b in zip(*(f.tolist() for f in figures), strict=True):
            one, two = UNIT + e, 2 * (UNIT + e)
            total += units(t, one) + units(u, one)
            squares += units(s, two) + units(v, two)
            total_error += units(a, one) + (3 if a else 0)
            squares_error += units(b, two) + (3 if b else 0)
        return Sums(n, total, squares, total_error, squares_error)


def parts(xp: Any, a: Any, like: Any, *, single: bool) -> Parts:
    """Fold each row of ``a`` (≥ 0, finite, float64) once; ``single`` says that float32 would hold every value."""
    _, exponent, scaled = row_scale(xp, a, like)
    width = int(a.shape[1])
    total, rest = fold(xp, scaled, 1.0)
    square, low = (scaled * scaled, None) if single else square_parts(scaled)
    squares, rest_square = fold(xp, square, 1.0)
    left, left_square = (to_host(xp.any(r != 0, axis=-1)) for r in (rest, rest_square))
    if low is not None:
        rest_square = rest_square + low
        left_square = np.ones_like(left_square)
    slack = width * width * 2.0 ** -(52 + GRID)  # the sum of the rests: width addends of at most 2**-GRID
    tiny = 0.0 if single else 2.0**-500  # squares of what is far below the largest may underflow
    return Parts(
        exponent,
        (to_host(total), to_host(xp.sum(rest, axis=-1))),
        (to_host(squares), to_host(xp.sum(rest_square, axis=-1))),
        np.where(left, slack, 0.0) + tiny,
        np.where(left_square, slack, 0.0) + tiny,
    )


def count_rows(xp: Any, a: Any, like: Any, n: Ints, beta: Fraction, *, single: bool) -> Counted:
    """Count every row of ``a`` (≥ 0, finite, float64); ``n`` is the size of each pool, zeros beyond it are padding."""
    if int(a.shape[0]) == 0:
        return Counted.join([])
    known = parts(xp, a, like, single=single)
    with np.errstate(divide="ignore", invalid="ignore"):
        size, decided, k = _decide(known, float(beta))
    counted = Counted(
        n,
        np.minimum(size, n),
        np.maximum(np.nextafter(size, 0), 1.0),
        np.minimum(np.nextafter(size, np.inf), n),
        np.clip(np.where(np.isfinite(k), k, 1), 1, n).astype(np.int64),
    )
    zero = (known.total[0] == 0) & (known.total[1] == 0)
    counted.n_eff[zero] = counted.low[zero] = counted.high[zero] = counted.k[zero] = n[zero]
    again = np.flatnonzero(~(decided & (size < n) | zero))  # equal scores: only exact sums give sharp bounds there
    if again.size:
        some = xp.take(a, like(again), axis=0) if again.size < int(a.shape[0]) else a
        totals, squares = exact_rows(xp, some, like, single=single)
        exact = Counted.of([Sums(int(n[i]), t, s) for i, t, s in zip(again, totals, squares, strict=True)], beta)
        for field in ("n_eff", "low", "high", "k"):
            getattr(counted, field)[again] = getattr(exact, field)
    return counted


def _decide(known: Parts, beta: float) -> tuple[Floats, Mask, Floats]:
    """``N_eff``, whether its rounding and the count are decided, and the count."""
    a, a_low = _two_sum(*known.total)
    b, b_low = _two_sum(*known.squares)
    error = 2.0**-98 + 2 * known.total_error / a + known.squares_error / b
    p, p_low = _two_product(a, a)
    p_low = p_low + 2 * a * a_low
    q = p / b
    r, r_low = _two_product(q, b)
    q, q_low = _two_sum(q, (((p - r) - r_low) + p_low - q * b_low) / b)
    rounded = np.abs(q_low) + error * q < 0.5 * (q - np.nextafter(q, 0))
    c, c_low = _two_product(np.full_like(q, beta), q)
    c, c_low = _two_sum(c, c_low + beta * q_low)
    floor = np.floor(c)
    floor = np.where((floor == c) & (c_low < 0), floor - 1, floor)
    gap = np.abs((c - np.rint(c)) + c_low)
    return q, rounded & (gap > 2 * error * c), floor


def _two_sum(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _two_product(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    p = a * b
    c, d = a * 134217729.0, b * 134217729.0
    a_high, b_high = c - (c - a), d - (d - b)
    a_low, b_low = a - a_high, b - b_high
    return p, ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


def mask_rows(xp: Any, magnitude: Any, k: Any) -> Any:
    """Exactly ``k[i]`` True in row i: the largest, ties to the lower index. ``magnitude`` is −1 outside the pool.

    ``k`` is an integer array of the same library, shape (rows, 1).
    """
    rows, width = int(magnitude.shape[0]), int(magnitude.shape[1])
    if rows == 0 or width == 0:
        return magnitude >= 0
    order = getattr(xp, "cumulative_sum", None) or xp.cumsum
    ordered = xp.sort(magnitude, axis=-1)
    first = (order(xp.ones_like(k), axis=0) - 1) * width  # not by arange: that would be on the library's own device
    place = xp.where(k > 0, width - k, width - 1) + first
    threshold = xp.reshape(xp.take(xp.reshape(ordered, (-1,)), xp.reshape(place, (-1,)), axis=0), (rows, 1))
    above = magnitude > threshold
    tied = magnitude == threshold
    room = k - xp.sum(cast(xp, above, k.dtype), axis=-1, keepdims=True)
    return above | (tied & (order(cast(xp, tied, k.dtype), axis=-1) <= room))
