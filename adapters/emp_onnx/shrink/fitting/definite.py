"""Symmetric matrices, added to, solved and inverted where they lie: one copy of a large one is room enough.

LAPACK takes columns first, so what it calls the lower triangle is the upper one here, and the other is left alone.
Where rounding, or what is not finite, has made a matrix indefinite, it is put together again from the triangle that was
left alone, and elimination is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

__all__ = ["BLOCK", "add_products", "invert_in_place", "mirror", "solve_in_place", "take_off"]

Wide = NDArray[np.float64]
BLOCK = 512  # rows at once, where a whole matrix would be copied


def take_off(a: Wide, v: Wide) -> None:
    """a − v·vᵀ, in place."""
    for start in range(0, len(a), BLOCK):
        a[start : start + BLOCK] -= np.outer(v[start : start + BLOCK], v)


def solve_in_place(a: Wide, right: Wide) -> Wide:
    """X of a·X = right. `a`, contiguous, is overwritten.

    >>> solve_in_place(np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[3.0], [3.0]])).round(12).tolist()
    [[1.0], [1.0]]
    """
    diagonal = np.diagonal(a).copy()
    factor, fault = lapack.dpotrf(a.T, lower=1, clean=0, overwrite_a=1)
    if fault:
        return np.asarray(np.linalg.solve(_whole(a, diagonal), right))
    found: Any = lapack.dpotrs(factor, right, lower=1)[0]
    return np.ascontiguousarray(found)


def invert_in_place(a: Wide) -> Wide:
    """The inverse of `a`, contiguous, in its place.

    >>> invert_in_place(np.array([[2.0, 1.0], [1.0, 2.0]])).round(3).tolist()
    [[0.667, -0.333], [-0.333, 0.667]]
    """
    diagonal = np.diagonal(a).copy()
    factor, fault = lapack.dpotrf(a.T, lower=1, clean=0, overwrite_a=1)
    if fault:
        return np.asarray(np.linalg.inv(_whole(a, diagonal)))
    out = lapack.dpotri(factor, lower=1, overwrite_c=1)[0].T
    mirror(out)
    return np.asarray(out)


def add_products(a: Wide, z: Wide) -> None:
    """a + zᵀ·z in the upper triangle of `a`, in place; `a` and `z` contiguous."""
    blas.dsyrk(1.0, z.T, beta=1.0, c=a.T, lower=1, overwrite_c=1)


def mirror(a: Wide) -> None:
    """The upper triangle below the diagonal too, in place."""
    for start in range(0, len(a), BLOCK):
        rows, stop = a[start : start + BLOCK], start + BLOCK
        square = rows[:, start:stop]
        square[...] = np.triu(square) + np.triu(square, 1).T
        a[stop:, start:stop] = rows[:, stop:].T


def _whole(a: Wide, diagonal: Wide) -> Wide:
    """The matrix as it was, from the triangle that LAPACK left alone."""
    left = np.tril(a, -1)
    return np.asarray(left + left.T + np.diag(diagonal))
