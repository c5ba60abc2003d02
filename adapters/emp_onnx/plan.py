"""The plan: what is kept of every weight, and why, as data that a reader can audit."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from emp_core.quick import quick
from emp_onnx.errors import PlanError, UsageError
from emp_onnx.figures import Figures, Rule, typed
from emp_onnx.weights.find import Refusal

__all__ = ["Entry", "Plan"]

FORMAT, VERSION = "effective_pruning.plan", 1


@quick
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
        sha256: of the weight's bytes before pruning; empty in the plan of a report, which is not applied again.
        kept_sha256: of the mask, one bit per element; empty likewise.
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
        for entry in body["entries"]:
            if not entry["sha256"]:
                del entry["sha256"], entry["kept_sha256"]
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


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PlanError(f"plan must hold {what} as an object, got {type(value).__name__}")
    return value
