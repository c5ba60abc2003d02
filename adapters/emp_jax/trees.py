"""Trees of parameters: which leaves are weights, plans for them, masks as trees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from emp_core import ArgumentError, VerifyError
from emp_core.certificates import Certificate, Seen, certify, contradictions
from emp_core.certificates import read as read_certificate
from emp_core.plans import Plan, Rule, decide, dtype_name, hash_values, host_values

__all__ = ["Pruned", "apply", "find_weights", "keep_masks", "masks", "name_of", "plan", "prune", "verify"]

Tree = Any
Choice = Callable[[str, Any], bool]


class Pruned(NamedTuple):
    """What `prune` gives: new parameters, the plan that made them, and their certificate as text, for `save` and
    `verify`."""

    params: Tree
    plan: Plan
    certificate: str


def name_of(path: Any) -> str:
    """The path of a leaf, in words: ``params.dense.kernel``."""
    return ".".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)


def is_array(leaf: Any) -> bool:
    """Arrays of JAX and of NumPy; no plain numbers, functions, texts."""
    return isinstance(leaf, (np.ndarray, np.generic)) or all(hasattr(leaf, a) for a in ("dtype", "shape", "ndim"))


def is_weight(name: str, leaf: Any) -> bool:
    """Floating-point leaves of two axes or more, but for tables of embeddings by their name."""
    return leaf.ndim >= 2 and jnp.issubdtype(leaf.dtype, jnp.floating) and "embed" not in name.lower()


def find_weights(params: Tree, /, choose: Choice = is_weight) -> dict[str, Any]:
    """The leaves that may be pruned, by name, in the tree's order.

    Args:
        params: a tree of arrays, of Flax, Equinox, Haiku, or plain dictionaries.
        choose: function of name and leaf; by default floating-point leaves of two axes or more.

    Raises:
        ArgumentError: one of them has the name of another leaf.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    named = [(name_of(path), leaf) for path, leaf in leaves]
    times = Counter(name for name, _ in named)
    found = {name: leaf for name, leaf in named if is_array(leaf) and choose(name, leaf)}
    for name in found:
        if times[name] > 1:  # masks are laid on by name
            raise ArgumentError(f"params must have weights of names of their own, got {times[name]} leaves {name}")
    return found


def plan(
    params: Tree,
    /,
    *,
    beta: float | None = None,
    order: float = 2.0,
    sparsity: float | None = None,
    scope: str = "tensor",
    scores: Tree | None = None,
    choose: Choice = is_weight,
    axis: int = -1,
) -> Plan:
    """Decide what is kept of every weight.

    Args:
        params: a tree of arrays.
        beta, order, sparsity, scope: see `emp_core.plans.Rule`.
        scores: a tree like ``params``; magnitudes if None.
        choose: see `find_weights`.
        axis: of output units, for scope `row`; the last one, as in Flax and Haiku.

    Raises:
        ArgumentError: an option out of range, or no weight.
    """
    weights = find_weights(params, choose)
    if not weights:
        raise ArgumentError("params must hold something to prune, got no floating-point leaf of two axes or more")
    rule = Rule(1.0 if beta is None and sparsity is None else beta, order, sparsity, scope)
    named = None if scores is None else find_weights(scores, lambda name, _: name in weights)
    return decide(
        weights,
        rule,
        scores=named,
        criterion="magnitude" if scores is None else "given",
        axes=dict.fromkeys(weights, axis),
    )


def masks(params: Tree, plan: Plan, /) -> Tree:
    """The plan's masks as a tree like ``params``, all True where there is no weight.

    Raises:
        ArgumentError: a weight has the name of another leaf.
    """
    find_weights(params, lambda name, _: name in plan.masks)

    def mask(path: Any, leaf: Any) -> Any:
        found = plan.masks.get(name_of(path))
        return jnp.ones(getattr(leaf, "shape", ()), bool) if found is None else jnp.asarray(found)

    return jax.tree_util.tree_map_with_path(mask, params)


def apply(params: Tree, plan: Plan, /) -> tuple[Tree, str]:
    """New parameters without what the plan removes, and their certificate as text.

    Leaves that the plan does not name stay the very objects they are. A weight that is an array of NumPy stays one,
    of its type.

    Raises:
        ArgumentError: the plan was made for other parameters.
    """
    weights = find_weights(params, lambda name, _: name in plan.masks)
    for e in plan.entries:
        if e.name not in weights or hash_values(host_values(weights[e.name])) != e.sha256:
            raise ArgumentError(f"plan must be made for these parameters, got one made from other values of {e.name}")

    def without(path: Any, leaf: Any) -> Any:
        mask = plan.masks.get(name_of(path))
        if mask is None:
            return leaf
        if not isinstance(leaf, (np.ndarray, np.generic)):
            return jnp.where(jnp.asarray(mask), leaf, jnp.zeros_like(leaf))
        return np.where(np.asarray(mask), leaf, np.zeros((), leaf.dtype))  # JAX would make float64 float32

    pruned = jax.tree_util.tree_map_with_path(without, params)
    left = find_weights(pruned, lambda name, _: name in plan.masks)
    return pruned, certify(plan, {e.name: Seen.whole(left[e.name]).kept for e in plan.entries})


def verify(params: Tree, certificate: str | Certificate, /) -> tuple[str, ...]:
    """Check parameters against a certificate; returns what is wrong."""
    said = read_certificate(certificate) if isinstance(certificate, str) else certificate
    held = find_weights(params, lambda name, _: name in said.weights)
    faults = []
    for name in said.weights:
        if name not in held:
            faults.append(f"{name} is certified, but the tree does not have it")
            continue
        host = host_values(held[name])
        shape = tuple(int(d) for d in host.shape)
        faults += [
            f"{name} {f}" for f in contradictions(said, name, shape, dtype_name(host), Seen.whole(np.asarray(host)))
        ]
    return tuple(faults)


def prune(params: Tree, /, **options: Any) -> Pruned:
    """All of it: plan (with its options), apply, verify.

    Raises:
        ArgumentError: an option out of range, or no weight.
        emp_core.VerifyError: the result is not as its certificate says.

    >>> import jax.numpy as jnp
    >>> params, plan, certificate = prune({"w": jnp.array([[4.0, -3.0], [0.5, 0.5]])})
    >>> plan.total.k, verify(params, certificate)
    (2, ())
    """
    made = plan(params, **options)
    pruned, certificate = apply(params, made)
    faults = verify(pruned, certificate)
    if faults:
        raise VerifyError(f"params must be as their certificate says, got some in which {'; '.join(faults[:3])}")
    return Pruned(pruned, made, certificate)


def keep_masks(inner: optax.GradientTransformation, kept: Tree, /) -> optax.GradientTransformation:
    """An optimiser under which masked weights stay as they are, and so does their state.

    Args:
        inner: any optax optimiser.
        kept: a tree of booleans like the parameters (from `masks`).

    Gradients of masked weights reach ``inner`` as 0, its updates of them are dropped, and state of a weight's shape
    stays 0 there.
    """

    def init(params: Tree) -> Any:
        return inner.init(params)

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
        updates, state = inner.update(only(updates, kept), state, params)
        return only(updates, kept), held(state, kept)

    return optax.GradientTransformation(init, update)


def only(tree: Tree, kept: Tree) -> Tree:
    """A tree with 0 where its mask is False."""
    return jax.tree.map(lambda u, m: jnp.where(m, u, jnp.zeros_like(u)), tree, kept)


def held(state: Any, kept: Tree) -> Any:
    """An optimiser's state with 0 for masked weights: every part of it that is a tree like the masks."""
    structure = jax.tree.structure(kept)

    def like(part: Any) -> bool:
        return bool(jax.tree.structure(part) == structure) and structure.num_leaves > 0

    def mask(part: Any) -> Any:
        if not like(part):
            return part
        return jax.tree.map(
            lambda u, m: jnp.where(m, u, jnp.zeros_like(u)) if jnp.shape(u) == m.shape else u, part, kept
        )

    return jax.tree.map(mask, state, is_leaf=like)
