"""Scores under ``jax.jit``: shapes are known, values are not, so nothing here looks at one.

Sums are taken in JAX's own precision (float32 unless 64 bits are enabled). The count must be exact, which float32
cannot give: it is asked back from the host, where the exact road runs (``jax.pure_callback``). XLA may take
subnormals for zeros.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from ._namespace import Given
from ._rows import mask_rows


def _pools(source: Given, axis: Any, where: Any) -> tuple[Any, Any, tuple[int, ...], tuple[int, ...], Any]:
    """Magnitudes (pools, length) with 0 outside the pool, sizes, figure shapes, and the way back for masks."""
    import jax.numpy as jnp

    from ._pools import normal_axes

    x = source.array
    axes = normal_axes(axis, x.ndim)
    rest = tuple(d for d in range(x.ndim) if d not in axes)
    order = rest + axes
    outer = tuple(x.shape[d] for d in rest)
    kept = tuple(1 if d in axes else x.shape[d] for d in range(x.ndim))
    rows, length = int(np.prod(outer, dtype=int)), int(np.prod([x.shape[d] for d in axes], dtype=int))
    kind = jnp.result_type(x.dtype, jnp.float32)
    a = jnp.abs(x.astype(kind)).transpose(order).reshape(rows, length)
    inside = jnp.ones((rows, length), bool)
    if where is not None:
        inside = jnp.broadcast_to(jnp.asarray(where), x.shape).transpose(order).reshape(rows, length)

    def restore(m: Any) -> Any:
        return m.reshape([x.shape[d] for d in order]).transpose(np.argsort(order))

    return a, inside, outer, kept, restore


def traced_effective_size(source: Given, axis: Any, keepdims: bool, where: Any) -> Any:
    import jax.numpy as jnp

    a, inside, outer, kept, _ = _pools(source, axis, where)
    a = jnp.where(inside, a, 0)
    n = inside.sum(axis=1)
    peak = a.max(axis=1, keepdims=True)
    a = a / jnp.where(peak > 0, peak, 1)
    size = a.sum(axis=1) ** 2 / jnp.where(peak[:, 0] > 0, (a * a).sum(axis=1), 1)
    return jnp.where(peak[:, 0] > 0, jnp.clip(size, 1, n), n).reshape(kept if keepdims else outer)


def traced_count(source: Given, beta: Fraction, axis: Any, where: Any) -> Any:
    import jax
    import jax.numpy as jnp

    from ._effective import keep_count

    outer = _pools(source, axis, where)[2]
    kind = jnp.asarray(0).dtype

    def host(x: Any, w: Any) -> Any:
        return np.asarray(keep_count(np.asarray(x), beta=float(beta), axis=axis, where=np.asarray(w)), kind)

    inside = jnp.broadcast_to(jnp.asarray(True if where is None else where), source.array.shape)
    answer: Any = jax.ShapeDtypeStruct(outer, kind)  # type: ignore[no-untyped-call,unused-ignore]
    return jax.pure_callback(host, answer, source.array, inside, vmap_method="sequential")


def traced_hill(source: Given, order: float, axis: Any, keepdims: bool, where: Any) -> Any:
    import jax.numpy as jnp

    from ._hill import hill_of_rows

    a, inside, outer, kept, _ = _pools(source, axis, where)
    d = hill_of_rows(jnp, jnp.where(inside, a, 0), inside.sum(axis=1).astype(a.dtype), order)
    return d.reshape(kept if keepdims else outer)


def traced_mask(source: Given, k: Any, axis: Any, where: Any) -> Any:
    import jax.numpy as jnp

    a, inside, outer, _, restore = _pools(source, axis, where)
    count = jnp.broadcast_to(jnp.asarray(k), outer).reshape(-1, 1)
    return restore(mask_rows(jnp, jnp.where(inside, a, -1), count))


def traced_mass(source: Given, mask: Any, axis: Any, keepdims: bool) -> Any:
    import jax.numpy as jnp

    a, kept_mask, outer, kept, _ = _pools(source, axis, mask)
    peak = a.max(axis=1, keepdims=True)
    a = a / jnp.where(peak > 0, peak, 1)
    total = a.sum(axis=1)
    share = jnp.where(kept_mask, a, 0).sum(axis=1) / jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, share, 1).reshape(kept if keepdims else outer)


def select_traced(
    source: Given, beta: Fraction, order: float, share: Fraction | None, scope: Any, where: Any
) -> tuple[Any, ...]:
    """The fields of a Selection."""
    import jax.numpy as jnp

    from ._bound import mass_lower_bound, mass_upper_bound

    axis = scope.within(source.array.ndim)
    inside = jnp.broadcast_to(jnp.asarray(True if where is None else where), source.array.shape)
    n = inside.sum(axis=axis)
    n_eff = traced_effective_size(source, axis, False, where)
    if share is not None:
        k = jnp.maximum(n - jnp.round(float(share) * n).astype(n.dtype), 1)
    elif order == 2:
        k = traced_count(source, beta, axis, where)
    else:
        size = traced_hill(source, order, axis, False, where)
        zero = jnp.max(jnp.where(inside, jnp.abs(source.array), 0), axis=axis) == 0
        k = jnp.where(zero, n, jnp.clip(jnp.floor(float(beta) * size * (1 + 1e-6)).astype(n.dtype), 1, n))
    mask = traced_mask(source, k, axis, where)
    mass = traced_mass(source, mask, axis, False)
    if where is not None:
        mass = traced_mass(Given(jnp.where(inside, source.array, 0), jnp, None, jnp.asarray, True), mask, axis, False)
    lower, upper = mass_lower_bound(n_eff, n=n, k=k), mass_upper_bound(n_eff, n=n, k=k)
    return mask, n, n_eff, k, None if share is not None else float(beta), order, mass, lower, upper
