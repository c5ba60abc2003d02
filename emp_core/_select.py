"""Scores in, a Selection out: count, mask, retained mass and its bounds, together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._bound import mass_lower_bound, mass_upper_bound
from ._effective import checked_beta, effective_size, figure, keep_count
from ._errors import ArgumentError
from ._hill import checked_order, hill_number, order_count
from ._mask import mask_back, retained_mass, top_mask
from ._namespace import Given, given
from ._rows import Counted
from ._scope import Model, Scope, scope_of
from ._traced import traced_remaining

ROUNDING = 2.0**-44  # what retained mass and bounds may be off by, relative


@dataclass(frozen=True, eq=False)
class Selection:
    """What is kept, and every figure that says why. One value per pool; plain numbers where there is one NumPy pool.

    Attributes:
        mask: booleans of the shape of the scores, True = kept (scope model: a dict of such).
        n: scores in the pool.
        n_eff: effective size, in [1, n].
        k: scores kept, in [1, n].
        beta: multiplier of the effective size that was asked for; None when a sparsity was.
        order: the Hill number that gave the count; 2 is the effective size.
        mass: retained mass, in [0, 1].
        mass_lower: what the k largest of n scores hold at least, given n_eff.
        mass_upper: what they hold at most.
    """

    mask: Any = field(repr=False)
    n: Any
    n_eff: Any
    k: Any
    beta: float | None
    order: float
    mass: Any
    mass_lower: Any
    mass_upper: Any

    @property
    def density(self) -> Any:
        """k/n."""
        return self.k / self.n

    @property
    def sparsity(self) -> Any:
        """1 − k/n."""
        return (self.n - self.k) / self.n


def select(
    scores: Any,
    /,
    *,
    beta: float = 1.0,
    order: float = 2,
    sparsity: float | None = None,
    scope: str | Scope = "whole",
    where: Any = None,
    threads: int | None = None,
) -> Selection:
    """Keep the ``⌊β·N_eff⌋`` largest scores of every pool, and say what that holds.

    Args:
        scores: real numbers of any library, any shape; only magnitudes matter. Integers must lie within ±2**53, up to
            which float64 holds all of them. With scope "model" a mapping of names to arrays.
        beta: multiplier of the effective size, > 0.
        order: Hill number that gives the count, ≥ 0; 2 is the effective size. Counts of orders other than 0 and 2
            are taken in float64, and rounded up where its error bound leaves a doubt: never one component fewer than
            the rule keeps.
        sparsity: instead of ``beta``, prune exactly this share of every pool: ``n − round(sparsity·n)`` stay, at
            least one; in [0, 1).
        scope: which scores compete: "whole", "rows" (first axis), "columns" (last axis), "model", or ``Rows(axis)``,
            ``Blocks(shape)``, ``Groups(m, keep)``, ``Labels(labels)``.
        where: boolean array that broadcasts to ``scores``; False means not in a pool, hence not kept.
        threads: most threads for arrays in host memory; None: one per processor. The result does not depend on it.

    Returns:
        A :class:`Selection`; mask and figures in the library and on the device of ``scores``.

    Raises:
        PoolError: a pool is empty or holds NaN or ±inf; the message names it.
        ArgumentError: a parameter is outside what it allows.

    >>> chosen = select([4.0, -3.0, 0.5, 0.5, 0.0, 0.0])
    >>> chosen.k, chosen.mask.tolist()
    (2, [True, True, False, False, False, False])
    >>> chosen.mass_lower <= chosen.mass <= chosen.mass_upper
    True
    """
    multiplier, q, share = checked_beta(beta), checked_order(order), checked_sparsity(sparsity)
    if share is not None and (multiplier != 1 or q != 2):
        raise ArgumentError(
            f"sparsity fixes the count, so beta and order must be left alone, got beta={beta}, order={order}"
        )
    checked_threads(threads)
    layout = scope_of(scope)
    if isinstance(scores, Mapping) and not isinstance(layout, Model):
        raise ArgumentError(f"scope must be model for a mapping of arrays, got {scope!r}")
    if not isinstance(layout, Model) and given(scores).traced:
        return _select_traced(given(scores), float(multiplier), q, share, layout, where)
    laid = layout.lay(scores, where, threads)
    fixed = layout.limit(laid.pools.n)
    if fixed is not None and (share is not None or multiplier != 1 or q != 2):
        raise ArgumentError(
            f"keep of {layout} fixes the count, so beta, order and sparsity must be left alone, "
            f"got beta={beta}, order={order}, sparsity={sparsity}"
        )
    if share is not None:
        fixed = np.array([max(1, n - round(share * n)) for n in laid.pools.n.tolist()], np.int64)
    if fixed is None and q != 2:
        fixed = order_count(laid.pools, multiplier, q)
    counted, mask, mass = laid.pools.select(multiplier, fixed)
    lower, upper = bounds(counted)

    def out(values: NDArray[Any]) -> Any:
        return figure(laid.source, values, laid.outer)

    return Selection(
        mask_back(laid.source, laid.restore(mask)) if not isinstance(layout, Model) else mask,
        out(counted.n),
        out(counted.n_eff),
        out(counted.k),
        float(multiplier) if share is None else None,
        q,
        out(mass),
        out(lower),
        out(upper),
    )


def _select_traced(
    source: Given, beta: float, order: float, share: Fraction | None, scope: Scope, where: Any
) -> Selection:
    """`select` under ``jax.jit``, where no value can be looked at."""
    import jax.numpy as jnp

    axis = scope.within(source.array.ndim)
    inside = jnp.broadcast_to(jnp.asarray(True if where is None else where), source.array.shape)
    n = inside.sum(axis=axis)
    n_eff = effective_size(source, axis=axis, where=where)
    if share is not None:
        k = traced_remaining(source, share, axis, where)
    elif order == 2:
        k = keep_count(source, beta=beta, axis=axis, where=where)
    else:
        size = hill_number(source, order=order, axis=axis, where=where)
        zero = jnp.max(jnp.where(inside, jnp.abs(source.array), 0), axis=axis) == 0
        k = jnp.where(zero, n, jnp.clip(jnp.floor(beta * size * (1 + 1e-6)).astype(n.dtype), 1, n))
    mask = top_mask(source, k, axis=axis, where=where)
    mass = retained_mass(jnp.where(inside, source.array, 0), mask, axis=axis)
    lower, upper = mass_lower_bound(n_eff, n=n, k=k), mass_upper_bound(n_eff, n=n, k=k)
    return Selection(mask, n, n_eff, k, None if share is not None else beta, order, mass, lower, upper)


def bounds(counted: Counted) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds on the retained mass that hold for the true effective size, not only for the rounded one."""
    if not counted.n.size:
        return np.empty(0), np.empty(0)
    lower = mass_lower_bound(counted.high, n=counted.n, k=counted.k)
    upper = mass_upper_bound(counted.low, n=counted.n, k=counted.k)
    return np.where(lower < 1, lower * (1 - ROUNDING), 1.0), np.minimum(upper * (1 + ROUNDING), 1.0)


def checked_sparsity(sparsity: float | None) -> Fraction | None:
    """The share to prune."""
    if sparsity is None:
        return None
    try:
        value = float(sparsity)
    except (TypeError, ValueError, OverflowError):
        raise ArgumentError(f"sparsity must be in [0, 1), got {sparsity!r}") from None
    if not 0 <= value < 1:
        raise ArgumentError(f"sparsity must be in [0, 1), got {sparsity!r}")
    return Fraction(value)


def checked_threads(threads: int | None) -> None:
    """None, or an integer ≥ 1."""
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, Integral) or threads < 1):
        raise ArgumentError(f"threads must be an integer ≥ 1 or None, got {threads!r}")
