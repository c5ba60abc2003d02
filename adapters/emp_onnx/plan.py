"""The plan: what is kept of every weight, where, and why, as data that a reader can audit."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_core import Rows, effective_size, mass_lower_bound, mass_upper_bound, select
from emp_onnx.errors import ModelError, PlanError, UsageError, quote
from emp_onnx.figures import Figures, Rule, typed
from emp_onnx.model_io import Model, Values
from emp_onnx.weights import Refusal, Weight, find_weights

__all__ = ["Entry", "Plan", "absolute_sum", "decide", "hash_mask", "hash_values", "plan"]

Mask = NDArray[np.bool_]
FORMAT, VERSION = "effective_pruning.plan", 1


@dataclass(frozen=True)
class Entry(Figures):
    """One weight of the plan.

    Scope `tensor` and `model`: each figure is of this weight taken alone (under `model` the count `k` is what the
    common pool left it, possibly 0). Scope `row`: `n_eff` and `k` are sums over the rows; the three masses are
    the rows' own, weighted by their share of Σ|w|, so the bounds hold for the weight as a whole.

    Attributes:
        name: of the initializer.
        op: operation that uses it.
        uses: every use, in words.
        shape: of the weight.
        pools: how many pools it was divided into (rows), else 1.
        worst: the smallest retained mass of any one pool.
        zeros: how many elements of the pruned weight are zero: n − k and those kept that were zero before.
        l1: Σ|w| before pruning.
        sha256: of the weight's bytes before pruning.
        kept_sha256: of the mask, one bit per element.
        dtype: of its elements.
        path: the operations that it passes through on the way to its use.
        zero: the zero point of a quantised weight, in words; empty for floats.
    """

    name: str
    op: str
    uses: tuple[str, ...]
    shape: tuple[int, ...]
    pools: int
    worst: float
    zeros: int
    l1: float
    sha256: str
    kept_sha256: str
    dtype: str
    path: tuple[str, ...]
    zero: str


@dataclass(frozen=True)
class Plan:
    """What is kept of every weight. Equal inputs give an equal plan, byte for byte.

    Attributes:
        rule: the rule that made it.
        entries: one per weight, in the order in which the network uses them.
        refusals: what is not pruned, and why.
        pool: under scope `model`, the figures of the common pool.
    """

    rule: Rule
    entries: tuple[Entry, ...]
    refusals: tuple[Refusal, ...] = ()
    pool: Figures | None = None

    @property
    def total(self) -> Figures:
        """The figures of all weights together.

        Under scope `model` those of the common pool; otherwise sums, and masses weighted by shares of Σ|w|.
        """
        if self.pool:
            return self.pool
        entries, l1 = self.entries, math.fsum(e.l1 for e in self.entries)

        def weighted(masses: list[float]) -> float:
            return math.fsum(m * e.l1 for m, e in zip(masses, entries, strict=True)) / l1 if l1 else 1.0

        return Figures(
            sum(e.n for e in entries),
            math.fsum(e.n_eff for e in entries),
            sum(e.k for e in entries),
            weighted([e.mass_lower for e in entries]),
            weighted([e.mass for e in entries]),
            weighted([e.mass_upper for e in entries]),
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        body = asdict(self)
        if math.isinf(self.rule.order):
            body["rule"]["order"] = "inf"
        return {"format": FORMAT, "version": VERSION, **body}

    def to_json(self) -> str:
        """The plan as text; `Plan.from_json` gives back an equal plan, and that one the same text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, /) -> Plan:
        """Read a plan.

        Raises:
            PlanError: it is not a plan, or one of another version, or a value in it is impossible.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"plan must be JSON as written by `emp plan`, got something else: {error}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PlanError(f"plan must be JSON of the format {FORMAT!r}, got something else")
        if data.get("version") != VERSION:
            raise PlanError(f"plan must be of version {VERSION}, got {data.get('version')!r}")
        rule = _mapping(data.get("rule"), "rule")
        if rule.get("order") == "inf":
            rule = {**rule, "order": math.inf}
        try:
            return cls(
                Rule(**typed(Rule, rule)),
                tuple(Entry(**typed(Entry, _mapping(e, "an entry"))) for e in data.get("entries", ())),
                tuple(Refusal(**typed(Refusal, _mapping(r, "a refusal"))) for r in data.get("refusals", ())),
                Figures(**typed(Figures, _mapping(data["pool"], "pool"))) if data.get("pool") else None,
            )
        except (TypeError, KeyError, UsageError) as error:
            raise PlanError(f"plan must be as written by `emp plan`, got one that is damaged: {error}") from error


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
) -> Plan:
    """Decide what is kept of every weight; the model is not changed.

    Args:
        model: from `load`.
        beta: multiplier of the effective size (default 1); order, sparsity, scope: see `Rule`.
        include, exclude, min_size, embeddings: see `find_weights`.
        threads: how many to use; the plan is the same for any number.

    Returns:
        The plan; without entries if there is nothing to prune, and then the refusals say why.

    Raises:
        UsageError: an option out of its range, or a pattern that matches nothing.
        ModelError: a weight that holds NaN or infinities, or whose bytes do not fit its shape.
    """
    found = find_weights(model, include=include, exclude=exclude, min_size=min_size, embeddings=embeddings)
    rule = Rule(1.0 if beta is None and sparsity is None else beta, order, sparsity, scope)
    return decide(model, found.weights, rule, refusals=found.refusals, threads=threads)[0]


def decide(
    model: Model,
    weights: Sequence[Weight],
    rule: Rule,
    /,
    *,
    refusals: Sequence[Refusal] = (),
    threads: int | None = None,
) -> tuple[Plan, dict[str, Mask]]:
    """The plan for these weights under this rule, and the masks (True = kept) that it describes.

    Raises:
        ModelError: a weight that holds NaN or infinities, or whose bytes do not fit its shape.
    """
    refused, chosen = list(refusals), []
    for weight in weights:
        scores = weight.zero.scores(model.values(weight.name))
        _refuse_unless_finite(weight, scores)
        if not scores.any():
            reason = ("zeros", "it holds only zeros: nothing tells one from another")
        elif rule.scope == "row" and weight.layout is None:
            disagree = "its uses disagree about which axis is its output, so it has no rows"
            reason = ("units", disagree if len(weight.uses) > 1 else "which axis is its output is not known here")
        elif rule.scope == "model" and weight.zero.quantised and weight.zero.scale is None:
            reason = ("scale", "its scale is not known here, so it cannot be compared with other weights")
        else:
            chosen.append(weight)
            continue
        refused.append(Refusal(weight.name, weight.op, weight.shape, *reason, weight.uses, weight.nodes, weight.tensor))
    masks: dict[str, Mask] = {}
    entries, pool = [], None
    if rule.scope == "model" and chosen:
        arrays = {weight.name: weight.zero.scores(model.values(weight.name)) for weight in chosen}
        picked = _select(arrays, rule, "model", threads)
        masks = {name: np.asarray(mask) for name, mask in picked.mask.items()}
        pool = Figures(int(picked.n), float(picked.n_eff), int(picked.k), *_masses(picked))
    for weight in chosen:
        values = model.values(weight.name)
        entries.append(_entry(weight, values, rule, masks, threads))
    return Plan(rule, tuple(entries), tuple(refused), pool), masks


def _entry(weight: Weight, values: Values, rule: Rule, masks: dict[str, Mask], threads: int | None) -> Entry:
    """The figures of one weight; its mask goes to `masks` unless it is there already."""
    stored, values = values, weight.zero.scores(values)
    pools, l1 = 1, absolute_sum(values)
    if rule.scope == "row" and weight.layout is not None:
        view, axes = values.reshape(weight.layout.view), weight.layout.axes
        picked = _select(view, rule, Rows(axis=axes), threads)
        masks[weight.name] = np.asarray(picked.mask).reshape(weight.shape)
        share = _row_l1(view, axes) / l1
        n_eff = np.asarray(picked.n_eff, np.float64)
        pools, worst = int(n_eff.size), float(np.min(picked.mass))
        masses = (picked.mass_lower, picked.mass, picked.mass_upper)
        lower, mass, upper = (min(1.0, float(np.sum(share * np.asarray(m)))) for m in masses)
        effective, k = math.fsum(n_eff.ravel().tolist()), int(np.sum(picked.k))
    elif rule.scope == "tensor":
        picked = _select(values, rule, "whole", threads)
        masks[weight.name] = np.asarray(picked.mask)
        k, effective, (lower, mass, upper) = int(picked.k), float(picked.n_eff), _masses(picked)
        worst = mass
    else:
        kept = values[masks[weight.name]]
        k, effective = int(kept.size), float(effective_size(values))
        mass = 1.0 if k == values.size else min(1.0, absolute_sum(kept) / l1)
        lower, upper = (
            float(bound(effective, n=values.size, k=k)) if k else 0.0 for bound in (mass_lower_bound, mass_upper_bound)
        )
        worst = mass
    mask = masks[weight.name]
    zeros = int(values.size - np.count_nonzero(values[mask]))
    return Entry(
        int(values.size), effective, k, lower, mass, upper, weight.name, weight.op, weight.uses, weight.shape,
        pools, worst, zeros,
        l1, hash_values(stored), hash_mask(mask), weight.dtype, weight.path, weight.zero.words,
    )  # fmt: skip


def _select(scores: Any, rule: Rule, scope: Any, threads: int | None) -> Any:
    return select(scores, scope=scope, threads=threads, **rule.keeps())


def _refuse_unless_finite(weight: Weight, values: Values) -> None:
    flat = values.reshape(-1)
    bad = sum(int(np.count_nonzero(~np.isfinite(flat[i : i + 65536]))) for i in range(0, flat.size, 65536))
    if bad:
        raise ModelError(
            f"weight {quote(weight.name)} must hold finite numbers, got {bad} that are NaN or infinite; "
            "leave it out with exclude to prune the others"
        )


def hash_values(values: Values) -> str:
    """SHA-256 of a weight's bytes, little-endian, in order."""
    return hashlib.sha256(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data).hexdigest()


def hash_mask(mask: Mask) -> str:
    """SHA-256 of a mask packed to one bit per element."""
    return hashlib.sha256(np.packbits(mask).data).hexdigest()


def _masses(picked: Any) -> tuple[float, float, float]:
    return float(picked.mass_lower), float(picked.mass), float(picked.mass_upper)


def absolute_sum(values: Values) -> float:
    """Σ|w| in float64, a block at a time."""
    flat = values.reshape(-1)
    return math.fsum(float(np.abs(flat[i : i + 65536]).sum(dtype=np.float64)) for i in range(0, flat.size, 65536))


def _row_l1(view: Values, axes: tuple[int, ...]) -> NDArray[np.float64]:
    others = tuple(axis for axis in range(view.ndim) if axis not in axes)
    return np.asarray(np.abs(view).sum(axis=others, dtype=np.float64))


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PlanError(f"plan must hold {what} as an object, got {type(value).__name__}")
    return value
