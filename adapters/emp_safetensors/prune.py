"""The verbs `apply` and `prune`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emp_core import ArgumentError
from emp_core.plans import Rule
from emp_safetensors.checkpoint import Checkpoint, load
from emp_safetensors.errors import quote
from emp_safetensors.plan import Plan, Pruned, decided, dtype_of, sha256_of
from emp_safetensors.weights import find_weights
from emp_safetensors.write import save

__all__ = ["Report", "apply", "prune"]


@dataclass(frozen=True)
class Report:
    """What `prune` did: the files written, the plan, and how many bytes they take (as many as before: zeros are stored
    like any number)."""

    files: tuple[Path, ...]
    plan: Plan
    bytes: int


def apply(checkpoint: Checkpoint, plan: Plan, /) -> Pruned:
    """The checkpoint with what the plan removes set to zero. Nothing is read but to compare hashes.

    Raises:
        ArgumentError: the plan was made for another checkpoint.
    """
    for entry in plan.entries:
        tensor = checkpoint.tensors.get(entry.name)
        if tensor is None or (tensor.shape, dtype_of(tensor)) != (entry.shape, entry.dtype):
            raise ArgumentError(f"plan must be made for this checkpoint, got one with another {quote(entry.name)}")
        if sha256_of(tensor) != entry.sha256:
            raise ArgumentError(
                f"plan must be made for this checkpoint, got one from other values of {quote(entry.name)}"
            )
    return Pruned(checkpoint, plan)


def prune(
    source: Checkpoint | str | os.PathLike[str],
    out: str | os.PathLike[str],
    /,
    *,
    plan: Plan | None = None,
    beta: float | None = None,
    order: float = 2.0,
    sparsity: float | None = None,
    scope: str = "tensor",
    threads: int | None = None,
    **options: Any,
) -> Report:
    """All of it: load, find weights, plan, apply, save; what was written is read back and checked before it takes its
    place.

    Args:
        source: a file, a folder of shards, or what `load` gave.
        out: a file, or a new folder.
        plan: made before; then no option may be given.
        beta, order, sparsity, scope, threads: see `plan`.
        options: of `find_weights`.

    Raises:
        ArgumentError, CheckpointError, emp_core.VerifyError: as the tree in `errors` says; nothing is left behind.
    """
    checkpoint = source if isinstance(source, Checkpoint) else load(source)
    if plan is None:
        rule = Rule(1.0 if beta is None and sparsity is None else beta, order, sparsity, scope)
        found = find_weights(checkpoint, **options)
        pruned = Pruned(checkpoint, decided(checkpoint, found, rule, threads, hashed=False))
    else:
        if (beta, order, sparsity, scope) != (None, 2.0, None, "tensor") or options:
            raise ArgumentError("plan must come alone, got other options with it")
        pruned = apply(checkpoint, plan)

    files = save(pruned, out)
    return Report(files, pruned.plan, sum(file.stat().st_size for file in files))
