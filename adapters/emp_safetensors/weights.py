"""Which tensors of a checkpoint may be pruned. There is no graph here: what a tensor is follows from type, shape,
name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from emp_core import ArgumentError
from emp_safetensors.checkpoint import Checkpoint, Stored

__all__ = ["Found", "find_weights"]

FLOATS = ("F64", "F32", "F16", "BF16")
TABLE = re.compile(r"(^|[._])(\w*embed\w*|wte|wpe|\w*position\w*|\w*relative\w*bias\w*)([._]|$)", re.I)


@dataclass(frozen=True)
class Found:
    """The weights, and the names of those left alone, with the reason."""

    weights: tuple[Stored, ...]
    refusals: tuple[tuple[str, str], ...]


def find_weights(
    checkpoint: Checkpoint,
    /,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_size: int = 1,
    embeddings: bool = False,
) -> Found:
    """Floating-point tensors of two axes or more; those whose names speak of embeddings or positions only when asked
    for.

    Args:
        checkpoint: from `load`.
        include, exclude: patterns of names (``*`` and ``?``); each must match something.
        min_size: tensors with fewer elements are left alone.
        embeddings: also tables of embeddings, known by their names.

    Raises:
        ArgumentError: a pattern that matches nothing.
    """
    if isinstance(min_size, bool) or not isinstance(min_size, int) or min_size < 1:
        raise ArgumentError(f"min_size must be an integer ≥ 1, got {min_size!r}")
    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in checkpoint.tensors):
                raise ArgumentError(f"{option} must match names of tensors, got {pattern!r}, which matches none")
    weights, refusals = [], []
    for name, tensor in checkpoint.tensors.items():
        reason = _reason(tensor, include, exclude, min_size, embeddings)
        if reason is None:
            weights.append(tensor)
        else:
            refusals.append((name, reason))
    return Found(tuple(weights), tuple(refusals))


def cannot_be_pruned(tensor: Stored) -> str | None:
    """Why a tensor can be pruned under no options, as a sentence without a subject."""
    if tensor.place.dtype not in FLOATS:
        return f"holds {tensor.place.dtype}, which is not pruned here"
    if len(tensor.shape) < 2:
        return "has fewer than two axes"
    return None if tensor.size else "is empty"


def _reason(
    tensor: Stored, include: Sequence[str], exclude: Sequence[str], min_size: int, embeddings: bool
) -> str | None:
    name, size = tensor.name, tensor.size
    if include and not any(fnmatchcase(name, pattern) for pattern in include):
        return "include leaves it out"
    if any(fnmatchcase(name, pattern) for pattern in exclude):
        return "exclude leaves it out"
    if reason := cannot_be_pruned(tensor):
        return f"it {reason}"
    if size < min_size:
        return f"it has {size} elements, fewer than min_size"
    if not embeddings and TABLE.search(name):
        return "it is a table of embeddings by its name; ask for those with embeddings"
    return None
