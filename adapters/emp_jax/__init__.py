"""Effective Model Pruning for JAX: masks of parameter trees, and optax transformations that keep them or make them
step by step."""

from emp_core import MissingExtraError

try:
    import jax as _jax  # noqa: F401
    import optax as _optax  # noqa: F401
except ImportError as error:
    raise MissingExtraError("jax with optax", "jax") from error

from emp_jax.files import load, save
from emp_jax.gradual import GradualState, gradual, sparsity_of
from emp_jax.trees import Pruned, apply, find_weights, keep_masks, masks, plan, prune, verify

__all__ = [
    "GradualState",
    "Pruned",
    "apply",
    "find_weights",
    "gradual",
    "keep_masks",
    "load",
    "masks",
    "plan",
    "prune",
    "save",
    "sparsity_of",
    "verify",
]
