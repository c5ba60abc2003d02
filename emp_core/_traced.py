"""Scores under ``jax.jit``: shapes are known, values are not, so nothing here looks at one.

Sums are taken in JAX's own precision (float32 unless 64 bits are enabled). The count must be exact, which float32
cannot give: it is asked back from the host, where the exact road runs (``jax.pure_callback``). XLA may take
subnormals for zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from ._namespace import Given, is_traced, to_host
from ._rows import mask_rows


def _pools(
    source: Given, axis: Any, where: Any, exact: bool = False
) -> tuple[Any, Any, tuple[int, ...], tuple[int, ...], Any]:
    """Magnitudes (pools, length), what is inside, figure shapes, and the way back for masks.

    ``exact`` keeps integers, as unsigned ones that hold every magnitude; elsewhere they are numbers as others.
    """
    import jax.numpy as jnp

    from ._pools import normal_axes

    x = source.array
    axes = normal_axes(axis, x.ndim)
    rest = tuple(d for d in range(x.ndim) if d not in axes)
    order = rest + axes
    outer = tuple(x.shape[d] for d in rest)
    kept = tuple(1 if d in axes else x.shape[d] for d in range(x.ndim))
    rows, length = int(np.prod(outer, dtype=int)), int(np.prod([x.shape[d] for d in axes], dtype=int))
    if exact and not jnp.issubdtype(x.dtype, jnp.floating):
        kind = jnp.dtype(f"u{x.dtype.itemsize}")
        magnitude = x.astype(kind) if x.dtype == bool else jnp.abs(x).astype(kind)  # |−2³¹| is right as unsigned
    else:
        magnitude = jnp.abs(x.astype(jnp.result_type(x.dtype, jnp.float32)))
    a = magnitude.transpose(order).reshape(rows, length)
    inside = jnp.ones((rows, length), bool)
    if where is not None:
        inside = jnp.broadcast_to(jnp.asarray(where), x.shape).transpose(order).reshape(rows, length)

    def restore(m: Any) -> Any:
        return m.reshape([x.shape[d] for d in order]).transpose(np.argsort(order))

    return a, inside, outer, kept, restore


def traced_effective_size(source: Given, axis: Any, keepdims: bool, where: Any) -> Any:
    """`effective_size`, in JAX's precision."""
    import jax.numpy as jnp

    a, inside, outer, kept, _ = _pools(source, axis, where)
    a = jnp.where(inside, a, 0)
    n = inside.sum(axis=1)
    peak = a.max(axis=1, keepdims=True)
    a = a / jnp.where(peak > 0, peak, 1)
    size = a.sum(axis=1) ** 2 / jnp.where(peak[:, 0] > 0, (a * a).sum(axis=1), 1)
    return jnp.where(peak[:, 0] > 0, jnp.clip(size, 1, n), n).reshape(kept if keepdims else outer)


def traced_count(source: Given, count: Callable[[Any, Any], Any], axis: Any, where: Any) -> Any:
    """``count(scores, where)``, computed by the host on NumPy arrays when the compiled function runs.

    A count does not change by small steps: no gradient passes through it, and none is asked of the host.
    """
    import jax
    import jax.numpy as jnp

    outer = _pools(source, axis, where)[2]
    kind = jnp.asarray(0).dtype
    inside = jnp.broadcast_to(jnp.asarray(True if where is None else where), source.array.shape)
    answer: Any = jax.ShapeDtypeStruct(outer, kind)  # type: ignore[no-untyped-call,unused-ignore]

    def host(x: Any, w: Any) -> Any:
        return np.asarray(count(np.asarray(x), np.asarray(w)), kind)

    return jax.pure_callback(host, answer, jax.lax.stop_gradient(source.array), inside, vmap_method="sequential")


def traced_remaining(source: Given, share: Fraction, axis: Any, where: Any) -> Any:
    """How many stay in each pool for a sparsity: counted in rational numbers, since a product of float32 rounds to
    another count."""
    import jax
    import jax.numpy as jnp

    kind, shape = jnp.asarray(0).dtype, source.array.shape

    def remaining(n: Any) -> Any:
        counts = [max(1, int(m) - round(share * int(m))) for m in np.asarray(n).reshape(-1)]
        return np.array(counts, kind).reshape(np.shape(n))

    if where is not None and is_traced(where):
        n = jnp.broadcast_to(where, shape).sum(axis=axis)
        answer: Any = jax.ShapeDtypeStruct(n.shape, kind)  # type: ignore[no-untyped-call,unused-ignore]
        return jax.pure_callback(remaining, answer, n, vmap_method="sequential")
    inside = np.broadcast_to(True if where is None else to_host(where), shape)
    return jnp.asarray(remaining(np.count_nonzero(inside, axis=axis)))


def traced_rows(source: Given, figure: Callable[[Any, Any], Any], axis: Any, keepdims: bool, where: Any) -> Any:
    """``figure(magnitudes, n)`` of the pools as rows of a matrix."""
    import jax.numpy as jnp

    a, inside, outer, kept, _ = _pools(source, axis, where)
    d = figure(jnp.where(inside, a, 0), inside.sum(axis=1).astype(a.dtype))
    return d.reshape(kept if keepdims else outer)


def traced_mask(source: Given, k: Any, axis: Any, where: Any) -> Any:
    """`top_mask`; ``k`` may be traced too."""
    import jax.numpy as jnp

    a, inside, outer, _, restore = _pools(source, axis, where, exact=True)
    count = jnp.broadcast_to(jnp.asarray(k), outer).reshape(-1, 1)
    if jnp.issubdtype(a.dtype, jnp.floating):
        return restore(mask_rows(jnp, jnp.where(inside, a, -1), count))
    order = jnp.lexsort((~a, ~inside), axis=-1)  # the largest inside first, ties as they come; −1 has no place here
    return restore(jnp.argsort(order, axis=-1) < count)


def traced_mass(source: Given, mask: Any, axis: Any, keepdims: bool) -> Any:
    """`retained_mass`."""
    import jax.numpy as jnp

    a, kept_mask, outer, kept, _ = _pools(source, axis, mask)
    peak = a.max(axis=1, keepdims=True)
    a = a / jnp.where(peak > 0, peak, 1)
    total = a.sum(axis=1)
    share = jnp.where(kept_mask, a, 0).sum(axis=1) / jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, share, 1).reshape(kept if keepdims else outer)
