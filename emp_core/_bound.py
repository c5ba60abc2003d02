"""Tight bounds on the retained mass, given only n, N_eff and k; and the vectors that attain them.

Let ``P`` be the ordered simplex and ``V_j = (1/j, …, 1/j, 0, …, 0)`` its vertices. Retained mass is linear on ``P``,
and the set ``‖ω‖² ≥ 1/ν`` cuts ``P`` by one reverse convex constraint, so the least mass lies on an edge ``t·V_i +
(1 − t)·V_j`` with ``i ≤ ν ≤ j``, where

    t(i, j) = sqrt((1/ν − 1/j) / (1/i − 1/j)),      g(i, j) = (1 − t)·min(1, k/j) + t·min(1, k/i).

For ``i ≤ k ≤ j`` this is concave in ``t`` and least at ``i = 1`` with ``j`` at an end of its range; for ``k < i`` it
falls in ``i`` and rises in ``j``. Three edges remain:

    lower = min{ g(1, n),  g(1, max(⌈ν⌉, k)),  g(⌊ν⌋, ⌈ν⌉) if k ≤ ⌊ν⌋ },      lower = 1 for k = n.

The greatest mass, on the sphere ``‖ω‖² = 1/ν``, has k equal entries and n − k equal ones:

    upper = min(1, k/n + sqrt(k(n − k)/n · (1/ν − 1/n))).

**Rounding.** Both bounds fall as ν grows, with infinite slope where ν reaches an integer from below. A float ν
stands for every real that rounds to it, so the lower bound is taken at the next float above and the upper bound at
the next below (``ν = n`` means equal scores and is taken as it is). Then ``lower ≤ retained mass ≤ upper`` holds for
the true vector, not only for the rounded one; away from integers the shift is below 1e-15. The witnesses use the
same shift and attain the bounds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._errors import ArgumentError
from ._namespace import given, is_standard, is_tensorflow, is_traced, namespace


def mass_lower_bound(n_eff: Any, /, *, n: Any, k: Any) -> Any:
    """The least mass that the k largest of n scores can hold, given their effective size. Tight.

    Args:
        n_eff: effective size, a number or an array of any library; 1 ≤ n_eff ≤ n.
        n: number of scores; an integer or an array that broadcasts with ``n_eff``.
        k: number of scores kept, 1 ≤ k ≤ n; likewise.

    Returns:
        The bound, in (0, 1], in the library of ``n_eff``; a float for a number.

    Raises:
        ArgumentError: when ``n_eff``, ``n`` or ``k`` is out of range.

    The published form, with ν̂ = ⌊N_eff⌋ and k = ν̂, is the infimum of this one over N_eff in [ν̂, ν̂ + 1) for ν̂ ≥ 2.

    >>> round(mass_lower_bound(6366.2, n=10_000, k=6366), 4)
    0.6393
    """
    xp, v, n, k = _checked(n_eff, n, k)
    v = xp.minimum(_next(xp, v, 1), n)
    low, high = xp.floor(v), xp.ceil(v)
    one = xp.ones_like(v)
    best = xp.minimum(_edge(xp, v, k, one, n), _edge(xp, v, k, one, xp.maximum(high, k)))
    best = xp.minimum(best, xp.where(k <= low, _edge(xp, v, k, low, high), one))
    return _out(xp, xp.where(k >= n, one, best), n_eff)


def mass_upper_bound(n_eff: Any, /, *, n: Any, k: Any) -> Any:
    """The greatest mass that the k largest of n scores can hold, given their effective size. Tight.

    Arguments, result and errors as in :func:`mass_lower_bound`.

    >>> mass_upper_bound(4.0, n=4, k=3)
    0.75
    """
    xp, v, n, k = _checked(n_eff, n, k)
    v = xp.where(v < n, xp.maximum(_next(xp, v, -1), xp.ones_like(v)), n)
    rise = xp.sqrt(k * (n - k) / n * ((n - v) / (n * v)))
    return _out(xp, xp.where(k >= n, xp.ones_like(v), xp.minimum(k / n + rise, xp.ones_like(v))), n_eff)


def lower_witness(n_eff: float, /, *, n: int, k: int) -> NDArray[np.float64]:
    """A vector of n shares (≥ 0, descending, sum 1) with this effective size whose k largest hold just the lower bound.

    >>> w = lower_witness(2.5, n=4, k=2)
    >>> bool(abs(w[:2].sum() - mass_lower_bound(2.5, n=4, k=2)) < 1e-12)
    True
    """
    n_eff, n, k = _single(n_eff, n, k)
    v = min(math.nextafter(n_eff, math.inf), float(n))
    if k >= n:
        edges = [(math.floor(v), math.ceil(v))]
    else:
        edges = [(1, n), (1, max(math.ceil(v), k))]
        if k <= math.floor(v):
            edges.append((math.floor(v), math.ceil(v)))
    i, j = min(edges, key=lambda e: float(_edge(np, np.float64(v), np.float64(k), np.float64(e[0]), np.float64(e[1]))))
    t = float(_weight(np, np.float64(v), np.float64(i), np.float64(j)))
    witness = np.zeros(n)
    witness[:j] = (1 - t) / j
    witness[:i] += t / i
    return witness


def upper_witness(n_eff: float, /, *, n: int, k: int) -> NDArray[np.float64]:
    """A vector of n shares with this effective size whose k largest hold just the upper bound.

    >>> float(upper_witness(4.0, n=4, k=3)[:3].sum())
    0.75
    """
    n_eff, n, k = _single(n_eff, n, k)
    v = n_eff if n_eff >= n else max(math.nextafter(n_eff, 0.0), 1.0)
    mass = float(mass_upper_bound(n_eff, n=n, k=k))
    witness = np.zeros(n)
    if mass < 1:
        witness[:k] = mass / k
        witness[k:] = (1 - mass) / (n - k)
        return witness
    # the bound is 1: any vector on the first k entries with this effective size; 1 spike and equal others
    m = min(k, n)
    m = max(m, math.ceil(v))
    t = math.sqrt(max(0.0, (m - v) / ((m - 1) * v))) if m > 1 else 1.0
    witness[:m] = (1 - t) / m
    witness[0] += t
    return witness


def _weight(xp: Any, v: Any, i: Any, j: Any) -> Any:
    """t(i, j): how far the vector with effective size v lies from V_j towards V_i; differences are exact near j."""
    apart = xp.where(j > i, j - i, xp.ones_like(v))
    t2 = xp.where(j > i, (j - v) * i / (v * apart), xp.ones_like(v))
    return xp.sqrt(xp.clip(t2, 0.0, 1.0))


def _edge(xp: Any, v: Any, k: Any, i: Any, j: Any) -> Any:
    """g(i, j): retained mass at the point of the edge from V_i to V_j whose effective size is v."""
    one = xp.ones_like(v)
    t = _weight(xp, v, i, j)
    at_i, at_j = xp.minimum(one, k / i), xp.minimum(one, k / j)
    return at_j + t * (at_i - at_j)


def _next(xp: Any, v: Any, direction: int) -> Any:
    """The next float above or below; where the library lacks nextafter, at least that far."""
    if is_traced(v):  # a step that is added, since JAX has no gradient of nextafter
        import jax

        at = jax.lax.stop_gradient(v)
        return v + (xp.nextafter(at, xp.full_like(at, math.inf if direction > 0 else 0.0)) - at)
    if hasattr(xp, "nextafter"):
        return xp.nextafter(v, xp.full_like(v, math.inf if direction > 0 else 0.0))
    return v * (1 + direction * 2 * xp.finfo(v.dtype).eps)


def _checked(n_eff: Any, n: Any, k: Any) -> tuple[Any, Any, Any, Any]:
    """The namespace and the three as floating arrays of it; out of range is an ArgumentError."""
    arrays = [a for a in (n_eff, n, k) if not isinstance(a, (int, float, np.generic)) and is_standard(a)]
    kinds = {type(a).__module__.split(".")[0].removesuffix("lib") for a in arrays}  # jaxlib's arrays are jax's
    if len(kinds) > 1:
        came = " and ".join(sorted(kinds))
        raise ArgumentError(f"n_eff, n and k must be numbers or arrays of one library, got arrays of {came}")
    xp = namespace(*arrays)
    if xp is np:
        v, size, kept = np.broadcast_arrays(*(np.asarray(a, np.float64) for a in (n_eff, n, k)))
    else:
        like, wide = arrays[0], xp.float64
        if "jax" in type(like).__module__:  # its widest, float32 unless 64 bits are enabled
            wide = xp.asarray(0.0).dtype
        device = None if is_traced(like) else like.device
        v, size, kept = xp.broadcast_arrays(
            *(
                xp.astype(a, wide) if any(a is b for b in arrays) else xp.asarray(float(a), dtype=wide, device=device)
                for a in (n_eff, n, k)
            )
        )
    if not any(map(is_traced, (v, size, kept))):
        for name, came, bad, allowed in (
            ("n", n, ~((size >= 1) & (size < math.inf) & (xp.floor(size) == size)), "an integer ≥ 1"),
            ("k", k, ~((kept >= 1) & (kept <= size) & (xp.floor(kept) == kept)), "an integer between 1 and n"),
            ("n_eff", n_eff, ~((v >= 1 - 1e-9) & (v <= size * (1 + 1e-9))), "between 1 and n"),
        ):
            if bool(xp.any(bad)):
                raise ArgumentError(f"{name} must be {allowed}, got {came}" + (f" with n = {n}" if name != "n" else ""))
    return xp, xp.minimum(xp.maximum(v, xp.ones_like(v)), size), size, kept


def _single(n_eff: Any, n: Any, k: Any) -> tuple[float, int, int]:
    """The three as plain numbers, for a single vector."""
    for name, value in (("n_eff", n_eff), ("n", n), ("k", k)):
        if getattr(value, "shape", ()) or isinstance(value, (list, tuple)):
            raise ArgumentError(f"{name} must be one number for a witness, got {value}")
    _checked(n_eff, n, k)
    return float(n_eff), int(n), int(k)


def _out(xp: Any, value: Any, n_eff: Any) -> Any:
    if is_tensorflow(n_eff):
        return given(n_eff).back(np.asarray(value))
    return float(value) if xp is np and np.ndim(value) == 0 and not isinstance(n_eff, np.ndarray) else value
