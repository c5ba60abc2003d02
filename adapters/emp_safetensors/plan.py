"""The verb `plan`: what is kept of every tensor, as data. Two reads of each tensor, a few megabytes of memory."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from emp_core import ArgumentError, PoolError, mass_lower_bound, mass_upper_bound, select, select_stream
from emp_core.plans import Figures, Rule, typed
from emp_safetensors.checkpoint import Checkpoint, Stored
from emp_safetensors.errors import CheckpointError, quote
from emp_safetensors.kept import Kept
from emp_safetensors.weights import find_weights

__all__ = ["Entry", "Plan", "decide", "plan"]

BLOCK = 1 << 16  # scores of short rows taken together: what fits a cache
LONG = 1 << 23  # scores of a row that are not taken at once
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
class Plan:
    """What is kept of every tensor. Equal inputs give an equal plan, and the same text, byte for byte."""

    rule: Rule
    entries: tuple[Entry, ...]
    kept: Mapping[str, Kept] = field(compare=False, repr=False)
    refusals: tuple[tuple[str, str], ...] = ()
    pool: Figures | None = None

    @property
    def total(self) -> Figures:
        """The figures of all tensors together: of the common pool, or sums, and masses weighted by shares of Σ|w|."""
        if self.pool is not None:
            return self.pool
        l1 = math.fsum(e.l1 for e in self.entries)
        masses = (
            math.fsum(getattr(e, which) * e.l1 for e in self.entries) / l1 if l1 else 1.0
            for which in ("mass_lower", "mass", "mass_upper")
        )
        sizes = sum(e.n for e in self.entries), math.fsum(e.n_eff for e in self.entries), sum(e.k for e in self.entries)
        return Figures(*sizes, *masses)

    def __str__(self) -> str:
        lines = [f"{'kept':>9}  {'of':>14}  {'mass':>6}  tensor"]
        lines += [f"{e.density:9.1%}  {e.n:14,}  {e.mass:6.1%}  {e.name}" for e in self.entries]
        if self.entries:
            lines.append(f"{self.total.density:9.1%}  {self.total.n:14,}  {self.total.mass:6.1%}  all")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The plan as text; `Plan.from_json` gives back an equal plan."""
        cuts = {
            name: {"length": k.length, "base": k.base, "threshold": k.threshold.tolist(), "last": k.last.tolist()}
            for name, k in self.kept.items()
        }
        body = {
            "format": FORMAT,
            "version": VERSION,
            "rule": self.rule.to_dict(),
            "entries": [asdict(e) for e in self.entries],
            "kept": cuts,
            "refusals": self.refusals,
            "pool": asdict(self.pool) if self.pool else None,
        }
        return json.dumps(body, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, /) -> Plan:
        """Read a plan.

        Raises:
            ArgumentError: it is not a plan of this adapter, or was damaged.
        """
        try:
            body = json.loads(text)
            if (body["format"], body["version"]) != (FORMAT, VERSION):
                raise ValueError(f"the format is {body['format']!r}")
            entries = tuple(Entry(**typed(Entry, e)) for e in body["entries"])
            kept = {e.name: _kept(body["kept"][e.name], e) for e in entries}
            pool = Figures(**typed(Figures, body["pool"])) if body["pool"] else None
            refusals = tuple((str(name), str(reason)) for name, reason in body["refusals"])
            return cls(Rule.from_dict(body["rule"]), entries, kept, refusals, pool)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise ArgumentError(f"plan must be as `Plan.to_json` wrote it, got something else: {error}") from error


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
    found = find_weights(checkpoint, include=include, exclude=exclude, min_size=min_size, embeddings=embeddings)
    rule = Rule(1.0 if beta is None and sparsity is None else beta, order, sparsity, scope)
    if not found.weights:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.refusals[:4]) or "it is empty"
        raise CheckpointError(f"nothing in {quote(checkpoint.path)} can be pruned: {reasons}")
    return decide(found.weights, rule, found.refusals, threads, hashed=True)


def decide(
    weights: Sequence[Stored], rule: Rule, refusals: tuple[tuple[str, str], ...], threads: int | None, *, hashed: bool
) -> Plan:
    """The plan for these tensors; with hashes only where it is meant to be stored, since each is a read more."""
    # glibc gives back each block above a threshold that grows with the largest one freed: without this, pages of
    # working arrays are given back and faulted in again at every piece, which takes longer than the work
    freed = np.empty(31 << 20, np.uint8)
    del freed
    kept, entries, pool = dict[str, Kept](), list[Entry](), None
    names = [f"tensor {quote(w.name)}" for w in weights]
    digests = {w.name: sha256_of(w) if hashed else "" for w in weights}
    try:
        if rule.scope == "model":
            cut = select_stream(weights, names=names, threads=threads, **rule.keeps())
            pool, base = Figures(cut.n, cut.n_eff, cut.k, cut.mass_lower, cut.mass, cut.mass_upper), 0
            for w, n_eff, l1 in zip(weights, cut.part_n_eff, cut.part_l1, strict=True):
                kept[w.name] = Kept.of(cut, base)
                base += w.size
                entries.append(_alone(w, kept[w.name], n_eff, l1, digests[w.name]))
        else:
            for w, name in zip(weights, names, strict=True):
                figures, l1, kept[w.name], pools = (
                    _rows(w, rule, threads, name) if rule.scope == "row" else _whole(w, rule, threads, name)
                )
                shape = w.shape
                entries.append(
                    Entry(
                        **asdict(figures),
                        name=w.name,
                        shape=shape,
                        dtype=dtype_of(w),
                        pools=pools,
                        l1=l1,
                        sha256=digests[w.name],
                    )
                )
    except PoolError as error:
        raise CheckpointError(f"{error}; leave it out with exclude to prune the others") from error
    return Plan(rule, tuple(entries), kept, refusals, pool)


def _whole(w: Stored, rule: Rule, threads: int | None, name: str) -> tuple[Figures, float, Kept, int]:
    cut = select_stream([w], names=[name], threads=threads, **rule.keeps())
    return Figures(cut.n, cut.n_eff, cut.k, cut.mass_lower, cut.mass, cut.mass_upper), cut.l1, Kept.of(cut), 1


def _rows(w: Stored, rule: Rule, threads: int | None, name: str) -> tuple[Figures, float, Kept, int]:
    """One pool per index of the first axis, a block of rows at a time."""
    rows, length = w.shape[0], w.size // w.shape[0]
    threshold, last, n_eff, k = np.zeros(rows), np.full(rows, length - 1), list[float](), 0
    masses, l1 = list[tuple[float, float, float]](), list[float]()
    for first, count in _blocks(rows, length):
        if length > LONG:  # a row too long for memory
            cut = select_stream(
                [_Row(w, first, length)], names=[f"row {first} of {name}"], threads=threads, **rule.keeps()
            )
            threshold[first], last[first] = cut.threshold, min(cut.last, length - 1)
            n_eff.append(cut.n_eff)
            masses.append((cut.mass_lower, cut.mass, cut.mass_upper))
            l1.append(cut.l1)
            k += cut.k
            continue
        block = w[first * length : (first + count) * length].reshape(count, length)
        try:
            chosen = select(block, scope="rows", threads=threads, **rule.keeps())
        except PoolError as error:
            raise PoolError(f"{name} must hold finite numbers: rows {first} to {first + count}: {error}") from error
        size = np.abs(block if block.dtype != np.float16 else block.astype(np.float32))
        least = np.min(size, axis=1, where=chosen.mask, initial=np.inf)
        place = np.where(chosen.mask & (size == least[:, None]), np.arange(length), -1).max(axis=1)
        cut_ties = ((size == least[:, None]) & ~chosen.mask).any(axis=1)
        here = slice(first, first + count)
        threshold[here], last[here] = least, np.where(cut_ties, place, length - 1)
        n_eff += np.asarray(chosen.n_eff, np.float64).tolist()
        masses += list(zip(chosen.mass_lower.tolist(), chosen.mass.tolist(), chosen.mass_upper.tolist(), strict=True))
        l1 += size.sum(axis=1, dtype=np.float64).tolist()
        k += int(chosen.k.sum())
    total = math.fsum(l1)
    lower, mass, upper = (
        min(1.0, math.fsum(m[i] * s for m, s in zip(masses, l1, strict=True)) / total) if total else 1.0
        for i in range(3)
    )
    return Figures(w.size, math.fsum(n_eff), k, lower, mass, upper), total, Kept(length, 0, threshold, last), rows


def _blocks(rows: int, length: int) -> Iterator[tuple[int, int]]:
    step = 1 if length > LONG else max(1, BLOCK // length)
    for first in range(0, rows, step):
        yield first, min(step, rows - first)


class _Row:
    """One row as flat scores."""

    def __init__(self, w: Stored, row: int, length: int) -> None:
        self.w, self.start, self.size, self.dtype = w, row * length, length, w.dtype

    def __getitem__(self, stretch: slice, /) -> Any:
        start, stop, _ = stretch.indices(self.size)
        return self.w[self.start + start : self.start + stop]


def _alone(w: Stored, kept: Kept, n_eff: float, l1: float, digest: str) -> Entry:
    """Figures of one tensor of a common pool: its own effective size, and what the pool left it."""
    k, sums = 0, list[float]()
    for start, raw in w.pieces():
        scores = w.scores(raw)
        mask = kept.mask(scores, start)
        k += int(np.count_nonzero(mask))
        sums.append(float(np.einsum("i->", np.abs(np.multiply(scores, mask, dtype=np.float64)))))
    mass = min(1.0, math.fsum(sums) / l1) if l1 else float(k > 0)
    bounds = [float(bound(n_eff, n=w.size, k=k)) if k else 0.0 for bound in (mass_lower_bound, mass_upper_bound)]
    return Entry(w.size, n_eff, k, bounds[0], mass, bounds[1], w.name, w.shape, dtype_of(w), 1, l1, digest)


def dtype_of(w: Stored) -> str:
    """The type in the words of certificates."""
    return "bfloat16" if w.place.dtype == "BF16" else w.dtype.name


def sha256_of(w: Stored) -> str:
    """SHA-256 of a tensor's bytes."""
    digest = hashlib.sha256()
    for _, raw in w.pieces():
        digest.update(raw.data)
    return digest.hexdigest()


def _kept(said: Any, entry: Entry) -> Kept:
    threshold, last = np.array(said["threshold"], np.float64), np.array(said["last"], np.int64)
    length, base = int(said["length"]), int(said["base"])
    if threshold.shape != last.shape or threshold.ndim != 1 or threshold.size not in (1, entry.pools) or base < 0:
        raise ValueError(f"{entry.name} must have one threshold and one place per pool")
    if threshold.size > 1 and length * threshold.size != entry.n:
        raise ValueError(f"{entry.name} must have pools of equal length")
    return Kept(length, base, threshold, last)
