"""Attention edges: which keys each query looks at, by the rule, row by row.

A row of softmax weights is a distribution, so its effective size is the number of keys that a query really uses.
Keeping that many and sharing the rest among them changes the output by at most 2·(1 − retained mass)·max‖v‖.
"""

from __future__ import annotations

from typing import Any

from ._effective import keep_count
from ._errors import ArgumentError
from ._mask import top_mask
from ._namespace import Given, given, namespace
from ._scope import Rows
from ._select import Selection, select

__all__ = ["edges", "prune_weights", "weights_of"]


def edges(weights: Any, /, *, beta: float = 1.0, order: float = 2) -> Selection:
    """Which attention weights each query keeps: one pool per row of the last axis.

    Entries that are exactly 0, as softmax gives them for keys masked with −∞, are never kept beyond the count of
    nonzero ones, since the effective size is at most that. A row that is all zero or all NaN (every key masked) is
    kept as it is.

    Args:
        weights: softmax weights, (…, queries, keys), of any library.
        beta, order: as for :func:`emp_core.select`.

    Returns:
        A Selection with one pool per query. Its mask has the shape of ``weights``.

    >>> edges([[0.97, 0.01, 0.01, 0.01], [0.25, 0.25, 0.25, 0.25]]).k.tolist()
    [1, 4]
    """
    source = given(weights, "weights")
    if len(source.shape) < 1:
        raise ArgumentError("weights must have an axis of keys, got a single number")
    return select(_counted(source), beta=beta, order=order, scope=Rows(tuple(range(len(source.shape) - 1))))


def _counted(source: Given) -> Any:
    """The weights as they are counted: of a row that is all NaN, zeros, of which all are kept."""
    if source.host is not None:
        array: Any = source.host if source.host.dtype.names is None else source.array
    else:
        array = source.array
    xp = namespace(array)
    dead = xp.all(xp.isnan(array), axis=-1, keepdims=True)  # softmax over nothing but −∞
    finite = xp.where(dead, xp.zeros_like(array), array)
    return source.back(finite) if array is source.host else finite


def prune_weights(weights: Any, /, *, beta: float = 1.0, renormalise: bool = True) -> Any:
    """Softmax weights with only the edges that the rule keeps; each row sums to 1 again unless told otherwise.

    Args:
        weights: (…, queries, keys) ≥ 0, of any library; also under ``jax.jit``.
        beta: multiplier of each row's effective size.
        renormalise: divide by what is kept.

    >>> [round(x, 4) for x in prune_weights([0.6, 0.3, 0.05, 0.05]).tolist()]
    [0.6667, 0.3333, 0.0, 0.0]
    """
    source = given(weights, "weights")
    if source.traced:
        xp, array = source.xp, source.array
        counted = _counted(source)
        mask = top_mask(counted, keep_count(counted, beta=beta, axis=-1), axis=-1)
    else:
        mask = edges(weights, beta=beta).mask
        array = weights if hasattr(weights, "dtype") else source.array  # as it came: with its gradient
        xp = namespace(array)
    kept = xp.where(mask, array, xp.zeros_like(array))
    if not renormalise:
        return kept
    total = xp.sum(kept, axis=-1, keepdims=True)
    return kept / xp.where(total > 0, total, xp.ones_like(total))


def weights_of(logits: Any, /) -> Any:
    """Softmax over the last axis that is safe with −∞: rows of nothing but −∞ give zeros, not NaN.

    >>> weights_of([[0.0, float("-inf")], [float("-inf"), float("-inf")]]).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    source = given(logits, "logits")
    array = logits if hasattr(logits, "dtype") else source.array  # as it came: with its gradient
    xp = namespace(array)
    peak = xp.max(array, axis=-1, keepdims=True)
    peak = xp.where(xp.isfinite(peak), peak, xp.zeros_like(peak))
    grown = xp.exp(array - peak)
    total = xp.sum(grown, axis=-1, keepdims=True)
    return grown / xp.where(total > 0, total, xp.ones_like(total))
