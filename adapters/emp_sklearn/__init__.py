"""Effective Model Pruning for scikit-learn: features by any score, and the coefficients of multi-layer perceptrons."""

from emp_core import MissingExtraError

try:
    import sklearn as _sklearn  # noqa: F401
except ImportError as error:
    raise MissingExtraError("scikit-learn", "sklearn") from error

from emp_sklearn.perceptron import apply, find_weights, plan, prune, verify
from emp_sklearn.selector import EffectiveSelector

__all__ = ["EffectiveSelector", "apply", "find_weights", "plan", "prune", "verify"]
