"""Effective Model Pruning of Keras 3 models, on whatever backend Keras runs."""

from emp_core import MissingExtraError

try:
    import keras as _keras  # noqa: F401
except ImportError as error:
    raise MissingExtraError("keras", "keras") from error

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
