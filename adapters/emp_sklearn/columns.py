"""Variances and norms of the columns of a table, dense or sparse, in float64 and without cancellation.

Each is taken in passes over stretches of the table, so what is made beside it stays small. Columns are scaled to at
most 1 by a power of two (exact), so no square overflows, and deviations are taken from the mean before they are
squared: a mean of squares less a squared mean loses every digit where the mean is large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["norms", "variances"]

Floats = NDArray[np.float64]
Columns = NDArray[np.intp] | slice
STRETCH = 1 << 18  # numbers that are taken at once


def variances(x: Any, /) -> Floats:
    """Variance of each column (of all n rows, divided by n); exactly 0 where a column is constant."""
    x, rows = _canonical(x), x.shape[0]
    low, high = _ends(x)
    exponent = _exponent(low, high)
    absent = rows - _stored(x)  # zeros of a sparse table
    middle = np.ldexp(low, -exponent) / 2 + np.ldexp(high, -exponent) / 2  # sums about it cannot lose the mean
    mean = middle + (_sum(x, exponent, lambda a, at: a - middle[at]) - absent * middle) / rows
    squares = _sum(x, exponent, lambda a, at: (a - mean[at]) ** 2) + absent * mean**2
    off = (_sum(x, exponent, lambda a, at: a - mean[at]) - absent * mean) / rows  # the mean is rounded, and by so much
    with np.errstate(over="ignore"):
        out: Floats = np.ldexp(np.maximum(squares / rows - off**2, 0.0), 2 * exponent)
    return np.where(low == high, 0.0, out)


def norms(x: Any, /) -> Floats:
    """The root of the sum of squares of each column."""
    x = _canonical(x)
    exponent = _exponent(*_ends(x))
    with np.errstate(over="ignore"):
        out: Floats = np.ldexp(np.sqrt(_sum(x, exponent, lambda a, _: a * a)), exponent)
    return out


def _canonical(x: Any) -> Any:
    """A sparse table with one number per place."""
    if _is_sparse(x) and not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    return x


def _is_sparse(x: Any) -> bool:
    return hasattr(x, "indptr")


def _stored(x: Any) -> NDArray[Any]:
    """How many numbers of each column are stored."""
    columns = x.shape[1]
    if not _is_sparse(x):
        return np.full(columns, x.shape[0])
    return np.bincount(x.indices, minlength=columns) if x.format == "csr" else np.diff(x.indptr)


def _stretches(x: Any) -> Iterator[tuple[Floats, Columns]]:
    """What is stored, in float64: rows of all columns, or, of a sparse table, numbers and the column of each."""
    if not _is_sparse(x):
        step = max(1, STRETCH // max(1, x.shape[1]))
        for at in range(0, x.shape[0], step):
            yield np.asarray(x[at : at + step], np.float64), slice(None)
        return
    for at in range(0, x.data.size, STRETCH):
        data = np.asarray(x.data[at : at + STRETCH], np.float64)
        if x.format == "csr":
            yield data, x.indices[at : at + STRETCH]
        else:
            yield data, np.searchsorted(x.indptr, np.arange(at, at + data.size), side="right") - 1


def _ends(x: Any) -> tuple[Floats, Floats]:
    """The least and the largest number of each column, zeros that are not stored among them."""
    low, high = np.full(x.shape[1], np.inf), np.full(x.shape[1], -np.inf)
    for a, at in _stretches(x):
        if isinstance(at, slice):
            low, high = np.minimum(low, a.min(axis=0)), np.maximum(high, a.max(axis=0))
        else:
            np.minimum.at(low, at, a)
            np.maximum.at(high, at, a)
    zeros = _stored(x) < x.shape[0]
    return np.where(zeros, np.minimum(low, 0), low), np.where(zeros, np.maximum(high, 0), high)


def _exponent(low: Floats, high: Floats) -> NDArray[Any]:
    """The power of two that brings each column to at most 1."""
    out: NDArray[Any] = np.frexp(np.maximum(-low, high))[1]
    return out


def _sum(x: Any, exponent: NDArray[Any], of: Callable[[Floats, Columns], Floats]) -> Floats:
    """Σ of(numbers, columns) over what is stored, by column; numbers are scaled."""
    total = np.zeros(x.shape[1])
    for a, at in _stretches(x):
        terms = of(np.ldexp(a, -exponent[at]), at)
        total += terms.sum(axis=0) if isinstance(at, slice) else np.bincount(at, terms, minlength=total.size)
    return total
