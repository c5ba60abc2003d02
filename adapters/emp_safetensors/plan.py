"""The verb `plan`: what is kept of every tensor, as data. Two reads of each tensor, a few megabytes of memory."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emp_core import ArgumentError, Cut, PoolError, mass_lower_bound, mass_upper_bound, select_rows, select_stream
from emp_core.certificates import BFLOAT16
from emp_core.plans import Figures, Planned, Rule, framed, misread
from emp_safetensors.checkpoint import Checkpoint, Stored
from emp_safetensors.errors import CheckpointError, quote
from emp_safetensors.kept import Kept
from emp_safetensors.weights import Found, find_weights

__all__ = ["Entry", "Plan", "Pruned", "decide", "plan"]

FORMAT, VERSION = "effective_pruning.checkpoint", 1


@dataclass(frozen=True)
class Entry(Figures):
    """One tensor of the plan: figures as in `emp_core.plans.Entry`, and what decides its mask.

    Attributes:
        name, shape, dtype: as in the file.
        pools: how many pools it was divided into.
        l1: Σ|w| before pruning.
        sha256: of its bytes before pruning; empty where the plan is not meant to be stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    pools: int
    l1: float
    sha256: str


@dataclass(frozen=True)
class Plan(Planned):
    """What is kept of every tensor. Equal inputs give an equal plan, and the same text, byte for byte."""

    rule: Rule
    entries: tuple[Entry, ...]
    kept: Mapping[str, Kept] = field(compare=False, repr=False)
    refusals: tuple[tuple[str, str], ...] = ()
    pool: Figures | None = None

    def to_json(self) -> str:
        """The plan as text; `Plan.from_json` gives back an equal plan."""
        cuts = {
            name: {"length": k.length, "base": k.base, "threshold": k.threshold.tolist(), "last": k.last.tolist()}
            for name, k in self.kept.items()
        }
        body = {**self.frame(FORMAT, VERSION), "kept": cuts}
        return json.dumps(body, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, /) -> Plan:
        """Read a plan.

        Raises:
            ArgumentError: it is not a plan of this adapter, or was damaged.
        """
        try:
            read = framed(text, Entry, FORMAT, VERSION)
            kept = {e.name: _kept(read.rest["kept"][e.name], e) for e in read.entries}
            return cls(read.rule, read.entries, kept, read.refusals, read.pool)
        except misread as error:
            raise ArgumentError(f"plan must be as `Plan.to_json` wrote it, got something else: {error}") from error


@dataclass(frozen=True)
class Pruned:
    """A checkpoint and what is kept of it; numbers change as they are written."""

    checkpoint: Checkpoint = field(repr=False)
    plan: Plan


def plan(
    checkpoint: Checkpoint,
    /,
    *,
    beta: float | None = None,
    order: float = 2.0,
    sparsity: float | None = None,
    scope: str = "tensor",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_size: int = 1,
    embeddings: bool = False,
    threads: int | None = None,
) -> Plan:
    """Decide what is kept of every tensor; nothing is written.

    Args:
        checkpoint: from `load`.
        beta: multiplier of the effective size (default 1).
        order, sparsity, scope: see `emp_core.plans.Rule`. The rows of scope `row` are along the first axis.
        include, exclude, min_size, embeddings: see `find_weights`.
        threads: most threads; the plan does not depend on it.

    Raises:
        ArgumentError: an option out of its range, or a pattern that matches nothing.
        CheckpointError: a tensor holds NaN or infinities, or nothing can be pruned.
    """
    rule = Rule(1.0 if beta is None and sparsity is None else beta, order, sparsity, scope)
    found = find_weights(checkpoint, include=include, exclude=exclude, min_size=min_size, embeddings=embeddings)
    return decided(checkpoint, found, rule, threads, hashed=True)


def decided(checkpoint: Checkpoint, found: Found, rule: Rule, threads: int | None, *, hashed: bool) -> Plan:
    """The plan for what was found; a CheckpointError if that is nothing."""
    made = decide(found.weights, rule, found.refusals, threads, hashed=hashed)
    if not made.entries:
        reasons = "; ".join(f"{quote(name)}: {reason}" for name, reason in made.refusals[:4]) or "it is empty"
        raise CheckpointError(f"nothing in {quote(checkpoint.path)} can be pruned: {reasons}")
    return made


def decide(
    weights: Sequence[Stored], rule: Rule, refusals: tuple[tuple[str, str], ...], threads: int | None, *, hashed: bool
) -> Plan:
    """The plan for these tensors; with hashes only where it is meant to be stored, since each is a read more."""
    # glibc gives back each block above a threshold that grows with the largest one freed: without this, pages of
    # working arrays are given back and faulted in again at every piece, which takes longer than the work
    freed = np.empty(31 << 20, np.uint8)
    del freed
    digests = {w.name: sha256_of(w) if hashed else "" for w in weights}
    try:
        if rule.scope == "model":
            entries, kept, pool = _together(weights, rule, threads, digests)
        else:
            each = [(_rows if rule.scope == "row" else _whole)(w, rule, threads, digests[w.name]) for w in weights]
            entries, kept, pool = [e for e, _ in each if e.l1], {e.name: k for e, k in each if e.l1}, None
    except PoolError as error:
        raise CheckpointError(f"{error}; leave it out with exclude to prune the others") from error
    zeros = [(w.name, "it holds only zeros: nothing tells one from another") for w in weights if w.name not in kept]
    return Plan(rule, tuple(entries), kept, (*refusals, *zeros), pool)


def _together(
    weights: Sequence[Stored], rule: Rule, threads: int | None, digests: Mapping[str, str]
) -> tuple[list[Entry], dict[str, Kept], Figures | None]:
    """One pool over all tensors but those of zeros."""
    live = list(weights)
    while live:
        cut = select_stream(live, names=[_called(w) for w in live], threads=threads, **rule.keeps())
        if all(cut.part_l1):
            break
        live = [w for w, l1 in zip(live, cut.part_l1, strict=True) if l1]
    else:
        return [], {}, None
    kept, base = dict[str, Kept](), 0
    for w in live:
        kept[w.name] = Kept.of(cut, base)
        base += w.size
    entries = [_alone(w, cut, i, digests[w.name]) for i, w in enumerate(live)]
    return entries, kept, Figures(cut.n, cut.n_eff, cut.k, cut.mass_lower, cut.mass, cut.mass_upper)


def _whole(w: Stored, rule: Rule, threads: int | None, digest: str) -> tuple[Entry, Kept]:
    """One pool."""
    cut = select_stream([w], names=[_called(w)], threads=threads, **rule.keeps())
    figures = cut.n, cut.n_eff, cut.k, cut.mass_lower, cut.mass, cut.mass_upper
    return Entry(*figures, w.name, w.shape, dtype_of(w), 1, cut.l1, digest), Kept.of(cut)


def _rows(w: Stored, rule: Rule, threads: int | None, digest: str) -> tuple[Entry, Kept]:
    """One pool per index of the first axis."""
    rows, length = w.shape[0], w.size // w.shape[0]
    cuts = select_rows(w, length, name=_called(w), threads=threads, **rule.keeps())
    l1 = math.fsum(cuts.l1.tolist())
    lower, mass, upper = (
        min(1.0, math.fsum((m * cuts.l1).tolist()) / l1) if l1 else 1.0
        for m in (cuts.mass_lower, cuts.mass, cuts.mass_upper)
    )
    figures = w.size, math.fsum(cuts.n_eff.tolist()), int(cuts.k.sum()), lower, mass, upper
    return Entry(*figures, w.name, w.shape, dtype_of(w), rows, l1, digest), Kept(length, 0, cuts.threshold, cuts.last)


def _called(w: Stored) -> str:
    return f"tensor {quote(w.name)}"


def _alone(w: Stored, cut: Cut, i: int, digest: str) -> Entry:
    """Figures of one tensor of a common pool: its own effective size, and what the pool left it."""
    n_eff, k = cut.part_n_eff[i], cut.part_k[i]
    bounds = [float(bound(n_eff, n=w.size, k=k)) if k else 0.0 for bound in (mass_lower_bound, mass_upper_bound)]
    figures = w.size, n_eff, k, bounds[0], cut.part_mass[i] if k else 0.0, bounds[1]
    return Entry(*figures, w.name, w.shape, dtype_of(w), 1, cut.part_l1[i], digest)


def dtype_of(w: Stored) -> str:
    """The type in the words of certificates."""
    return "bfloat16" if w.dtype == BFLOAT16 else w.dtype.name


def sha256_of(w: Stored) -> str:
    """SHA-256 of a tensor's bytes."""
    digest = hashlib.sha256()
    for _, stored in w.pieces():
        digest.update(stored.view(np.uint8).data)
    return digest.hexdigest()


def _kept(said: Any, entry: Entry) -> Kept:
    threshold, last = np.array(said["threshold"], np.float64), np.array(said["last"], np.int64)
    length, base = int(said["length"]), int(said["base"])
    if threshold.shape != last.shape or threshold.ndim != 1 or threshold.size not in (1, entry.pools) or base < 0:
        raise ValueError(f"{entry.name} must have one threshold and one place per pool")
    if threshold.size > 1 and length * threshold.size != entry.n:
        raise ValueError(f"{entry.name} must have pools of equal length")
    return Kept(length, base, threshold, last)
