"""How many components matter: effective size and keep count."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._errors import ArgumentError
from ._namespace import Given, given
from ._pools import pools_along
from ._traced import traced_count, traced_effective_size

Axis = int | tuple[int, ...] | None


def effective_size(scores: Any, /, *, axis: Axis = None, keepdims: bool = False, where: Any = None) -> Any:
    """Effective size ``N_eff = (Σ|s|)² / Σs²``: how many equal scores would be as concentrated as these.

    Args:
        scores: real numbers of any library, any shape; only magnitudes matter. Integers must lie within ±2**53, up to
            which float64 holds all of them.
        axis: axes along which scores form a pool; None: all are one pool.
        keepdims: keep the reduced axes with length 1.
        where: boolean array that broadcasts to ``scores``; False means not in the pool.

    Returns:
        Real numbers in [1, n], in the library and on the device of ``scores``; a float for one NumPy pool. ``n``
        where all scores of a pool are zero. Correctly rounded for pools of up to 65 536 scores, else within 1e-12
        relative.

    Raises:
        PoolError: a pool is empty or holds NaN or ±inf.
        ArgumentError: ``scores`` are not real numbers, or integers beyond ±2**53, or ``axis`` does not exist.

    Also known as the inverse Simpson index, Kish's effective sample size, and the participation ratio of |s|
    (arXiv 2509.25606).

    >>> effective_size([3.0, -1.0, 1.0, 1.0])
    3.0
    >>> effective_size([[1.0, 1.0], [0.0, 5.0]], axis=1).tolist()
    [2.0, 1.0]
    """
    if given(scores).traced:
        return traced_effective_size(given(scores), axis, keepdims, where)
    source, pools, outer, kept, _ = pools_along(scores, axis, where)
    return figure(source, pools.count(Fraction(1)).n_eff, kept if keepdims else outer)


def keep_count(scores: Any, /, *, beta: float = 1.0, axis: Axis = None, where: Any = None) -> Any:
    """Keep count ``k = ⌊β·N_eff⌋``, clamped to [1, n]: exact.

    The count equals the rational one for every finite input, whatever the order of summation, the number of threads or
    the library; it is computed from the scores, never from a rounded ``N_eff``.

    Args:
        scores: real numbers of any library, any shape; only magnitudes matter. Integers must lie within ±2**53, up to
            which float64 holds all of them.
        beta: multiplier of the effective size, > 0, taken as the double that it is.
        axis: axes along which scores form a pool; None: all are one pool.
        where: boolean array that broadcasts to ``scores``; False means not in the pool.

    Returns:
        Integers in [1, n], in the library of ``scores``; an int for one NumPy pool. ``n`` where all scores are zero.

    Raises:
        PoolError: a pool is empty or holds NaN or ±inf.
        ArgumentError: ``beta`` is not a finite number > 0, integer scores lie beyond ±2**53, or ``axis`` does not
            exist.

    >>> keep_count([0.1] * 10)  # in floats, (Σ|s|)²/Σs² is 9.999999999999998
    10
    """
    b = checked_beta(beta)
    if given(scores).traced:
        return traced_count(given(scores), lambda x, w: keep_count(x, beta=beta, axis=axis, where=w), axis, where)
    source, pools, outer, _, _ = pools_along(scores, axis, where)
    return figure(source, pools.count(b).k, outer)


def figure(source: Given, values: NDArray[Any], shape: tuple[int, ...]) -> Any:
    """One value per pool in the caller's library; a Python number for one NumPy pool."""
    values = values.reshape(shape)
    if source.xp is np and not shape and type(source.array).__module__.startswith("numpy"):
        return values.item()
    return source.back(values)


def checked_beta(beta: float) -> Fraction:
    """β as the rational number that the double is."""
    try:
        value = float(beta)
    except (TypeError, ValueError, OverflowError):
        raise ArgumentError(f"beta must be a finite number > 0, got {beta!r}") from None
    if not (math.isfinite(value) and value > 0):
        raise ArgumentError(f"beta must be a finite number > 0, got {beta!r}")
    return Fraction(value)
