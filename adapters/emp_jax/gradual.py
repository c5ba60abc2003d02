"""Pruning during training as an optax transformation (Zhu and Gupta, arXiv 1710.01878). Everything runs under
``jax.jit``."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emp_core import keep_count, top_mask
from emp_core.ramp import refuse_wrong_ramp
from emp_jax.trees import Choice, Tree, held, is_array, is_weight, name_of, only

__all__ = ["GradualState", "gradual", "sparsity_of"]


class GradualState(NamedTuple):
    """State of `gradual`: steps done, masks, values kept aside while masked, state of the inner optimiser."""

    count: Any
    masks: Tree
    aside: Tree
    inner: Any


def gradual(
    inner: optax.GradientTransformation,
    /,
    *,
    sparsity: float | None = None,
    beta: float = 1.0,
    begin: int = 0,
    steps: int = 10,
    every: int = 100,
    initial: float = 0.0,
    choose: Choice = is_weight,
) -> optax.GradientTransformation:
    """An optimiser that also prunes, each weight by its own magnitudes.

    At step ``begin`` and every ``every`` steps, ``steps`` times, masks are decided anew along the cubic ramp from
    `initial` to `sparsity`, or to EMP's own 1 − ⌊β·N_eff⌋/n of the weights as they are. Masked weights are zero; their
    gradient and their state are zero. What they were is kept aside until masks are final, and competes at each refresh.
    With ``begin=0`` `init` decides the first masks, and the first update makes the weights zero.

    Args:
        inner: any optax optimiser.
        sparsity: to reach, in [0, 1); None: EMP's own.
        beta: multiplier of the effective size, where no sparsity is given.
        begin, steps, every, initial: the ramp, as in `emp_core.cubic_schedule`.
        choose: see `find_weights`.

    Raises:
        ArgumentError: an option out of range.
    """
    refuse_wrong_ramp(sparsity=sparsity, beta=beta, initial=initial, begin=begin, steps=steps, every=every)
    last = begin + steps * every

    def chosen(params: Tree) -> Tree:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: bool(is_array(leaf) and choose(name_of(path), leaf)), params
        )

    def init(params: Tree) -> GradualState:
        ones = jax.tree.map(lambda p: jnp.ones(jnp.shape(p), bool), params)
        count, aside = jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params)
        state = GradualState(count, ones, aside, inner.init(params))
        if begin or not initial:
            return state
        new, aside = _refreshed(params, state, count, chosen(params))
        return GradualState(count, new, aside, state.inner)

    def update(updates: Tree, state: GradualState, params: Tree | None = None) -> tuple[Tree, GradualState]:
        if params is None:
            raise ValueError("gradual needs the parameters: call update(gradients, state, params)")
        updates, after = inner.update(only(updates, state.masks), state.inner, params)
        moved = only(optax.apply_updates(params, only(updates, state.masks)), state.masks)
        count = state.count + 1
        due = (count >= begin) & (count <= last) & ((count - begin) % every == 0)
        new, aside = jax.lax.cond(
            due, lambda: _refreshed(moved, state, count, chosen(params)), lambda: (state.masks, state.aside)
        )
        back = jax.tree.map(lambda m, old, a, p: jnp.where(m & ~old, a, jnp.where(m, p, 0)).astype(p.dtype),
                            new, state.masks, state.aside, moved)  # fmt: skip
        out = jax.tree.map(lambda b, p: (b - p).astype(p.dtype), back, params)
        return out, GradualState(count, new, aside, held(after, new))

    def _refreshed(moved: Tree, state: GradualState, count: Any, which: Tree) -> tuple[Tree, Tree]:
        dense = jax.tree.map(jnp.where, state.masks, moved, state.aside)
        done = jnp.clip((count - begin) // every, 0, steps) / steps
        share = 1 - (1 - done) ** 3

        def mask(value: Any, old: Any, is_chosen: bool) -> Any:
            if not is_chosen or not value.size:
                return old
            n = value.size
            if sparsity is None:
                own = keep_count(value, beta=beta)
                wanted = (initial + (1 - own / n - initial) * share) * n
                k = jnp.where(done >= 1, own, jnp.maximum(n - jnp.round(wanted).astype(jnp.int32), 1))
            else:
                k = jnp.maximum(n - jnp.round((initial + (sparsity - initial) * share) * n).astype(jnp.int32), 1)
            return top_mask(value, k)

        new = jax.tree.map(mask, dense, state.masks, which)
        return new, jax.tree.map(lambda m, d: jnp.where(m, jnp.zeros_like(d), d), new, dense)

    return optax.GradientTransformation(init, update)


def sparsity_of(state: GradualState, /) -> float:
    """The share of all parameters that is masked now."""
    leaves = jax.tree.leaves(state.masks)
    n = sum(m.size for m in leaves)
    return 1 - sum(int(m.sum()) for m in leaves) / n if n else 0.0
