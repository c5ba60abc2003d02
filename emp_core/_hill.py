"""Hill numbers of every order, and the keep counts that they give."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._effective import Axis, effective_size, figure
from ._errors import ArgumentError
from ._namespace import given, to_host, wide
from ._pools import DevicePools, HostPools, pools_along
from ._stream import Stream
from ._traced import traced_rows

VANISHING = Fraction(1, 2**2000)  # with this β, k is 1 for every pool but one of zeros, which keeps all


def hill_number(scores: Any, /, *, order: float, axis: Axis = None, keepdims: bool = False, where: Any = None) -> Any:
    """Hill number ``D_q = (Σ ω^q)^(1/(1−q))`` of the shares ``ω = |s|/Σ|s|``.

    ``D_0`` counts nonzeros, ``D_1`` is the exponential of the entropy, ``D_2`` is the effective size, ``D_∞ = 1/max
    ω``; they do not increase in ``order``.

    Args:
        scores: real numbers of any library, any shape; only magnitudes matter.
        order: q ≥ 0, ``math.inf`` included.
        axis: axes along which scores form a pool; None: all are one pool.
        keepdims: keep the reduced axes with length 1.
        where: boolean array that broadcasts to ``scores``; False means not in the pool.

    Returns:
        Real numbers in [1, n]; ``n`` where all scores of a pool are zero.

    Raises:
        PoolError: a pool is empty or holds NaN or ±inf.
        ArgumentError: ``order`` is negative or NaN, or ``axis`` does not exist.

    >>> [round(hill_number([4.0, 2.0, 1.0, 1.0, 0.0], order=q), 3) for q in (0, 1, 2, math.inf)]
    [4.0, 3.364, 2.909, 2.0]
    """
    q = checked_order(order)
    if q == 2:
        return effective_size(scores, axis=axis, keepdims=keepdims, where=where)
    if given(scores).traced:
        xp = given(scores).xp
        return traced_rows(given(scores), lambda a, n: hill_of_rows(xp, a, n, q), axis, keepdims, where)
    source, pools, outer, kept, _ = pools_along(scores, axis, where)
    return figure(source, hill_of(pools, q), kept if keepdims else outer)


def hill_of(pools: Any, q: float) -> NDArray[np.float64]:
    """``D_q`` of every pool, whatever its kind."""
    members = getattr(pools, "members", None)
    if members is not None:
        return np.concatenate([np.empty(0), *(hill_of(m, q) for m in members)])
    if getattr(pools, "stream", None) is not None:
        return np.array([hill_of_stream(pools.stream, q)])
    if isinstance(pools, HostPools):
        if pools.long:
            return np.array([hill_of_stream(s, q) for s in pools.streams()], np.float64)
        slabs = [(np.maximum(pools.magnitude(s), 0, dtype=np.float64), pools.n[s]) for s in pools.slabs()]
        return np.concatenate([np.empty(0), *(hill_of_rows(np, a, n, q) for a, n in slabs)])
    with wide(pools.source if isinstance(pools, DevicePools) else pools.device.source):
        device: DevicePools = pools if isinstance(pools, DevicePools) else pools.joined()
        found = [
            hill_of_rows(device.xp, device.magnitude(s), device.like(device.n[s].astype(float)), q)
            for s in device.slabs()
        ]
        return np.concatenate([np.empty(0), *map(to_host, found)])


def hill_of_rows(xp: Any, a: Any, n: Any, q: float) -> Any:
    """``D_q`` of each row of magnitudes (0 outside the pool)."""
    one = xp.ones_like(a[:, 0])
    peak = xp.max(a, axis=1)
    zero = peak == 0
    if q == 0:  # before scaling, which may make the smallest vanish
        return xp.where(zero, n * one, xp.sum(xp.where(a > 0, xp.ones_like(a), xp.zeros_like(a)), axis=1))
    a = a / xp.where(zero, one, peak)[:, None]
    total = xp.where(zero, one, xp.sum(a, axis=1))
    if math.isinf(q):
        d = total
    else:
        d = _from_terms(xp, xp.sum(_terms(xp, a, total[:, None], q), axis=1), total, q)
    return xp.where(zero, n * one, xp.minimum(xp.maximum(d, one), n * one))


def hill_of_stream(stream: Stream, q: float) -> float:
    """``D_q`` of one long pool, in two passes over its chunks."""
    stream.sums()  # refuses what is not finite
    peak = stream.largest()
    if peak == 0:
        return float(stream.n)
    if q == 0:
        return _sum(stream, lambda c, b: np.count_nonzero(stream.load(c, b) > 0))

    def scaled(chunk: Any, buffers: Any) -> NDArray[np.float64]:
        return np.asarray(np.maximum(stream.load(chunk, buffers), 0, dtype=np.float64) / peak)

    total = _sum(stream, lambda c, b: scaled(c, b).sum())
    d = total
    if not math.isinf(q):
        terms = _sum(stream, lambda c, b: _terms(np, scaled(c, b), total, q).sum())
        d = float(_from_terms(np, np.float64(terms), np.float64(total), q))
    return min(max(d, 1.0), float(stream.n))


def _sum(stream: Stream, of: Any) -> float:
    return math.fsum(float(x) for _, x in stream.run(of))


def _terms(xp: Any, a: Any, total: Any, q: float) -> Any:
    """What is summed over magnitudes ``a`` ≤ 1: a form for each order that keeps its digits.

    ω ln ω (q = 1); ω·(ω^(q−1) − 1) near 1, where Σω^q is near 1 too; a^q elsewhere.
    """
    zero, one = xp.zeros_like(a), xp.ones_like(a)
    if abs(q - 1) > 0.25:
        return xp.where(a > 0, xp.exp(q * xp.log(xp.where(a > 0, a, one))), zero)
    share = a / total
    log = xp.log(xp.where(share > 0, share, one))
    return share * log if q == 1 else xp.where(share > 0, share * xp.expm1((q - 1) * log), zero)


def _from_terms(xp: Any, terms: Any, total: Any, q: float) -> Any:
    """``D_q`` from the sum of the terms and Σa."""
    if abs(q - 1) > 0.25:
        some = terms > 0
        safe = xp.where(some, terms, xp.ones_like(terms))
        return xp.exp((q * xp.log(total) - xp.log(safe)) / (q - 1))
    return xp.exp(-terms) if q == 1 else xp.exp(xp.log1p(terms) / (1 - q))


def order_count(pools: Any, beta: Fraction, q: float) -> NDArray[np.int64]:
    """``⌊β·D_q⌋`` clamped to [1, n]: exact for order 0, elsewhere rounded up where float64 leaves a doubt."""
    size, n = hill_of(pools, q), pools.n
    if q == 0:
        k = [math.floor(beta * int(d)) for d in size.tolist()]
    else:
        k = [math.floor(min(float(beta) * d * (1 + 1e-12), 2.0**62)) for d in size.tolist()]
    zero = pools.count(VANISHING).k == n
    return np.where(zero, n, np.clip(np.array(k, np.int64), 1, n))


def checked_order(order: float) -> float:
    """q as a float."""
    try:
        value = float(order)
    except (TypeError, ValueError, OverflowError):
        raise ArgumentError(f"order must be a number ≥ 0, got {order!r}") from None
    if not value >= 0:
        raise ArgumentError(f"order must be a number ≥ 0, got {order!r}")
    return value
