"""Effective Model Pruning of safetensors checkpoints: single files, and folders of shards with an index.

The verbs: `load`, `find_weights`, `plan`, `apply`, `verify`, `save`; and `prune`, which does all of it. Tensors are
read a piece at a time, so a checkpoint of any size takes a few megabytes. Nothing but NumPy is needed: the format is a
length, a header in JSON, and bytes. From a shell: ``python -m emp_safetensors prune IN OUT``.
"""

from emp_safetensors.checkpoint import Checkpoint, Stored, load
from emp_safetensors.errors import CheckpointError, VerifyError
from emp_safetensors.plan import Entry, Plan, Pruned, plan
from emp_safetensors.prune import Report, apply, prune
from emp_safetensors.verify import verify
from emp_safetensors.weights import Found, find_weights
from emp_safetensors.write import save

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Entry",
    "Found",
    "Plan",
    "Pruned",
    "Report",
    "Stored",
    "VerifyError",
    "apply",
    "find_weights",
    "load",
    "plan",
    "prune",
    "save",
    "verify",
]
