"""Decide what is kept of every weight: the rule applied to each, to each of its rows, or to all as one pool."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from emp_core import Cut, PoolError, mass_lower_bound, mass_upper_bound, select_each, select_stream
from emp_onnx.errors import ModelError, quote
from emp_onnx.figures import Figures, Rule
from emp_onnx.files.graph import Tensor
from emp_onnx.files.model_io import Model
from emp_onnx.files.storage import pieces_of
from emp_onnx.plan import Entry, Plan
from emp_onnx.progress import Watch
from emp_onnx.weights.find import Refusal, Weight, find_weights
from emp_onnx.weights.kept import Kept, Scores, Whole
from emp_onnx.weights.rows import by_row

__all__ = ["Decision", "decide", "hashed", "plan", "refuse_unless_finite", "watched"]

SHORT = 1 << 14  # elements of a weight that is counted with others
TOGETHER = 1 << 22  # elements counted together, at most


def plan(
    model: Model,
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
    watch: Watch | None = None,
) -> Plan:
    """Decide what is kept of every weight; the model is not changed.

    Args:
        model: from `load`.
        beta: multiplier of the effective size (default 1); order, sparsity, scope: see `Rule`.
        include, exclude, min_size, embeddings: see `find_weights`.
        threads: how many to use; the plan is the same for any number.
        watch: told how far the work is, in bytes.

    Returns:
        The plan; without entries if there is nothing to prune, and then the refusals say why.

    Raises:
        UsageError: an option out of its range, or a pattern that matches nothing.
        ModelError: a weight that holds NaN or infinities, or whose bytes do not fit its shape.
    """
    found = find_weights(model, include=include, exclude=exclude, min_size=min_size, embeddings=embeddings)
    rule = Rule(1.0 if beta is None and sparsity is None else beta, order, sparsity, scope)
    watched(model, watch, "counting", 2, found.weights)
    return hashed(model, decide(model, found.weights, rule, refusals=found.refusals, threads=threads)).plan


def watched(model: Model, watch: Watch | None, phase: str, times: int, weights: Sequence[Weight | Tensor]) -> int:
    """Let `watch` see what is read of a model, about `times` each of these weights; returns their bytes."""
    if watch is None:
        return 0
    model.watch = watch.add
    total = sum(model.stored(weight.key).dtype.itemsize * math.prod(weight.shape) for weight in weights)
    watch.phase(phase, times * total)
    return total


def decide(
    model: Model,
    weights: Sequence[Weight],
    rule: Rule,
    /,
    *,
    refusals: Sequence[Refusal] = (),
    threads: int | None = None,
) -> Decision:
    """The plan for these weights under this rule, and what it keeps of each.

    Raises:
        ModelError: a weight that holds NaN or infinities, or whose bytes do not fit its shape.
    """
    refused, chosen = list(refusals), []
    for weight in weights:
        if rule.scope == "row" and weight.layout is None:
            disagree = "its uses disagree about which axis is its output, so it has no rows"
            reason = ("units", disagree if len(weight.uses) > 1 else "which axis is its output is not known here")
        elif rule.scope == "model" and weight.zero.quantised and weight.zero.scale is None:
            reason = ("scale", "its scale is not known here, so it cannot be compared with other weights")
        else:
            chosen.append(weight)
            continue
        refuse_unless_finite(model, weight)
        refused.append(_refusal(weight, *reason))
    made = _Made()
    try:
        pool = _decide_model(model, chosen, rule, made, threads) if rule.scope == "model" else None
        if rule.scope == "tensor":
            _decide_each(model, chosen, rule, made, threads)
        if rule.scope == "row":
            for weight in chosen:
                _decide_rows(model, weight, rule, made, threads)
    except PoolError:
        for weight in chosen:
            refuse_unless_finite(model, weight)
        raise
    entries = [made.entries[weight.name] for weight in chosen if weight.name in made.entries]
    refused += [
        _refusal(w, "zeros", "it holds only zeros: nothing tells one from another")
        for w in chosen
        if w.name not in made.entries
    ]
    weights_ = {weight.name: weight for weight in chosen}
    return Decision(Plan(rule, tuple(entries), tuple(refused), pool), made.kept, weights_)


@dataclass(frozen=True)
class Decision:
    """A plan, what it keeps of each weight, and the weights."""

    plan: Plan
    kept: dict[str, Kept]
    weights: dict[str, Weight]


def hashed(model: Model, decision: Decision) -> Decision:
    """The same with hashes of the weights and masks, by which another model, or a changed plan, is known."""
    entries = []
    for entry in decision.plan.entries:
        weight, kept = decision.weights[entry.name], decision.kept[entry.name]
        values, bits = hashlib.sha256(), hashlib.sha256()
        for start, stop in pieces_of(entry.n):
            old = model.piece(weight.name, start, stop)
            values.update(old.view(np.uint8).data)
            bits.update(np.packbits(kept.mask(weight.zero.scores(old, start), start)).data)
        entries.append(replace(entry, sha256=values.hexdigest(), kept_sha256=bits.hexdigest()))
    return replace(decision, plan=replace(decision.plan, entries=tuple(entries)))


@dataclass
class _Made:
    entries: dict[str, Entry] = field(default_factory=dict)
    kept: dict[str, Kept] = field(default_factory=dict)


def _decide_model(
    model: Model, chosen: Sequence[Weight], rule: Rule, made: _Made, threads: int | None
) -> Figures | None:
    """One pool over all weights but those of zeros."""
    live = list(chosen)
    while live:
        cut = _cut([Scores(model, weight) for weight in live], rule, live, threads)
        if all(cut.part_l1):
            break
        live = [weight for weight, l1 in zip(live, cut.part_l1, strict=True) if l1]
    else:
        return None
    n = np.array([math.prod(weight.shape) for weight in live])
    n_eff, k = np.array(cut.part_n_eff), np.array(cut.part_k)
    some = np.maximum(k, 1)
    bounds = [np.where(k > 0, bound(n_eff, n=n, k=some), 0.0) for bound in (mass_lower_bound, mass_upper_bound)]
    base = 0
    for i, (weight, lower, upper) in enumerate(zip(live, *(b.tolist() for b in bounds), strict=True)):
        mass, size = cut.part_mass[i], int(n[i])
        figures = Figures(size, cut.part_n_eff[i], cut.part_k[i], lower, mass, upper)
        _note(made, weight, Whole(cut, base), figures, cut.part_nonzero[i], 1, mass, cut.part_l1[i])
        base += size
    return Figures(cut.n, cut.n_eff, cut.k, cut.mass_lower, cut.mass, cut.mass_upper)


def _decide_each(model: Model, chosen: Sequence[Weight], rule: Rule, made: _Made, threads: int | None) -> None:
    """Every weight by itself; short ones many at a time."""
    waiting: list[Weight] = []
    held = 0
    for i, weight in enumerate(chosen):
        size = math.prod(weight.shape)
        if size <= SHORT:
            waiting.append(weight)
            held += size
        else:
            _note_cut(made, weight, _cut([Scores(model, weight)], rule, [weight], threads))
        if i + 1 == len(chosen) or held > TOGETHER:
            values = model.wholes([short.name for short in waiting])
            pools = [short.zero.scores(some) for short, some in zip(waiting, values, strict=True)]
            cuts = select_each(pools, names=[f"weight {quote(w.name)}" for w in waiting], **rule.keeps())
            for short, cut in zip(waiting, cuts, strict=True):
                _note_cut(made, short, cut)
            waiting, held = [], 0


def _note_cut(made: _Made, weight: Weight, cut: Cut) -> None:
    if cut.l1:
        figures = Figures(cut.n, cut.n_eff, cut.k, cut.mass_lower, cut.mass, cut.mass_upper)
        _note(made, weight, Whole(cut), figures, cut.nonzero, 1, cut.mass, cut.l1)


def _decide_rows(model: Model, weight: Weight, rule: Rule, made: _Made, threads: int | None) -> None:
    """One weight, row by row."""
    assert weight.layout is not None
    kept, found = by_row(Scores(model, weight), weight.layout, rule, threads)
    l1 = math.fsum(found.l1)
    if l1:
        n, n_eff = math.prod(weight.shape), math.fsum(found.n_eff)
        masses = found.weighted(found.lower), found.weighted(found.mass), found.weighted(found.upper)
        figures = Figures(n, n_eff, found.k, *masses)
        _note(made, weight, kept, figures, found.nonzero, len(found.n_eff), min(found.mass), l1)


def _note(
    made: _Made, weight: Weight, kept: Kept, f: Figures, nonzero: int, pools: int, worst: float, l1: float
) -> None:
    made.kept[weight.name] = kept
    made.entries[weight.name] = Entry(
        f.n, f.n_eff, f.k, f.mass_lower, f.mass, f.mass_upper, weight.name, weight.op, weight.uses, weight.shape, pools,
        worst, f.n - nonzero, l1, "", "", weight.dtype, weight.path, weight.zero.words,
    )  # fmt: skip


def _cut(scores: Sequence[Scores], rule: Rule, weights: Sequence[Weight], threads: int | None) -> Cut:
    names = [f"weight {quote(weight.name)}" for weight in weights]
    return select_stream(scores, names=names, threads=threads, **rule.keeps())


def _refusal(weight: Weight, code: str, reason: str) -> Refusal:
    return Refusal(weight.name, weight.op, weight.shape, code, reason, weight.uses, weight.nodes, weight.tensor)


def refuse_unless_finite(model: Model, weight: Weight) -> None:
    """Raise a ModelError, with its name, for a weight that holds NaN or infinities."""
    scores = Scores(model, weight)
    bad = sum(int(np.count_nonzero(~np.isfinite(scores[i:j]))) for i, j in pieces_of(scores.size))
    if bad:
        raise ModelError(
            f"weight {quote(weight.name)} must hold finite numbers, got {bad} that are NaN or infinite; "
            "leave it out with exclude to prune the others"
        )
