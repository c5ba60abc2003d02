"""Which components are kept, and how much mass they hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._effective import Axis, figure
from ._errors import ArgumentError
from ._namespace import as_mask, given, is_traced, to_host
from ._pools import HostPools, pools_along
from ._traced import traced_mask, traced_mass


def top_mask(scores: Any, /, k: Any, *, axis: Axis = None, where: Any = None) -> Any:
    """The mask of the k largest magnitudes: exactly k True, ties to the lower index.

    Args:
        scores: real numbers of any library, any shape.
        k: how many to keep, 0 ≤ k ≤ n; an integer, or one per pool (as ``keep_count`` gives them).
        axis: axes along which scores form a pool; None: all are one pool.
        where: boolean array that broadcasts to ``scores``; False means not in the pool, hence not kept.

    Returns:
        Booleans of the shape of ``scores``, True = kept, in its library and on its device.

    Raises:
        PoolError: a pool is empty or holds NaN or ±inf.
        ArgumentError: ``k`` is no integer in [0, n].

    >>> top_mask([1.0, -3.0, 1.0, 2.0], 3).tolist()
    [True, True, False, True]
    """
    if given(scores).traced or is_traced(k):
        return traced_mask(given(scores), k, axis, where)
    source, pools, outer, _, restore = pools_along(scores, axis, where)
    counts = np.asarray(to_host(k))
    if counts.dtype.kind not in "iu":
        raise ArgumentError(f"k must be an integer or an array of integers, got {k!r}")
    try:
        counts = np.broadcast_to(counts, outer).reshape(-1).astype(np.int64)
    except ValueError:
        raise ArgumentError(f"k must have one value per pool, shape {outer}, got shape {counts.shape}") from None
    if ((counts < 0) | (counts > pools.n)).any():
        i = int(np.argmax((counts < 0) | (counts > pools.n)))
        raise ArgumentError(f"k must be between 0 and n = {pools.n[i]}, got {counts[i]}")
    return mask_back(source, restore(pools.mask(counts)))


def retained_mass(scores: Any, mask: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
    """The share of Σ|s| that the kept scores hold, in [0, 1]; 1 where all scores of a pool are zero.

    Args:
        scores: real numbers of any library, any shape.
        mask: booleans of the same shape, True = kept.
        axis: axes along which scores form a pool; None: all are one pool.
        keepdims: keep the reduced axes with length 1.

    Raises:
        PoolError: a pool is empty or holds NaN or ±inf.
        ArgumentError: ``mask`` is not boolean, or has another shape.

    >>> retained_mass([4.0, -3.0, 2.0, 1.0], [True, True, False, False])
    0.7
    """
    if given(scores).traced or is_traced(mask):
        return traced_mass(given(scores), mask, axis, keepdims)
    source, pools, outer, kept, _ = pools_along(scores, axis, None)
    chosen = as_mask(mask, "mask")
    if chosen.shape != source.shape:
        raise ArgumentError(f"mask must have the shape of the scores {source.shape}, got {chosen.shape}")
    # the same view of the mask as of the scores
    _, masks, _, _, _ = pools_along(
        chosen if chosen.host is not None or source.host is None else to_host(chosen.array), axis, None
    )
    matrix = masks.matrix
    if isinstance(pools, HostPools) and not isinstance(matrix, np.ndarray):
        matrix = to_host(matrix)
    elif not isinstance(pools, HostPools) and isinstance(matrix, np.ndarray):
        matrix = source.back(matrix)
    return figure(source, pools.share(matrix), kept if keepdims else outer)


def mask_back(source: Any, mask: Any) -> Any:
    """A mask in the caller's library."""
    return source.back(mask) if source.host is not None else mask
