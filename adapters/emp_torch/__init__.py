"""Effective Model Pruning of PyTorch models.

One line for users of ``torch.nn.utils.prune`` (`effective_unstructured`, `effective_structured`, `effective_global`);
the verbs of every adapter (`find_weights`, `plan`, `apply`, `verify`, `save`, `load`, and `prune` for all of it);
pruning during training (`GradualPruner`); attention heads; and `export` to ONNX with the certificate carried along.
"""

from emp_core import MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise MissingExtraError("torch", "torch") from error

from emp_torch.apply import apply, certificate_of, prune, recertify, verify
from emp_torch.blocks import Heads, find_heads
from emp_torch.callback import GradualPruning
from emp_torch.criteria import Statistics, calibrate, scores, unit_f_statistics
from emp_torch.files import load, save
from emp_torch.gradual import GradualPruner
from emp_torch.heads import head_scores, remove_heads, zero_heads
from emp_torch.methods import (
    EffectiveMask,
    EffectiveStructured,
    EffectiveUnstructured,
    effective_global,
    effective_structured,
    effective_unstructured,
)
from emp_torch.onnx import export
from emp_torch.plan import plan
from emp_torch.weights import Found, Weight, find_weights

__all__ = [
    "EffectiveMask",
    "EffectiveStructured",
    "EffectiveUnstructured",
    "Found",
    "GradualPruner",
    "GradualPruning",
    "Heads",
    "Statistics",
    "Weight",
    "apply",
    "calibrate",
    "certificate_of",
    "effective_global",
    "effective_structured",
    "effective_unstructured",
    "export",
    "find_heads",
    "find_weights",
    "head_scores",
    "load",
    "plan",
    "prune",
    "recertify",
    "remove_heads",
    "save",
    "scores",
    "unit_f_statistics",
    "verify",
    "zero_heads",
]
