"""Effective Model Pruning of Keras 3 models, on whatever backend Keras runs."""

from emp_core import MissingExtraError

try:
    import keras as _keras  # noqa: F401
except ImportError as error:
    if error.name == "keras":
        raise MissingExtraError("keras", "keras") from error
    raise ImportError(
        f"Keras must have a backend that can be imported, got none ({error}); install jax, torch or tensorflow beside "
        "it and name it in KERAS_BACKEND"
    ) from error

from emp_keras.gradual import GradualPruning
from emp_keras.model import apply, certificate_of, find_weights, load, plan, prune, save, verify

__all__ = [
    "GradualPruning",
    "apply",
    "certificate_of",
    "find_weights",
    "load",
    "plan",
    "prune",
    "save",
    "verify",
]
