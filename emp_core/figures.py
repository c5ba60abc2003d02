"""What the plans of all adapters have in common: the rule, the figures, their total, their table, their text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any, NamedTuple

from ._effective import checked_beta
from ._errors import ArgumentError
from ._hill import checked_order
from ._select import checked_sparsity
from .quick import quick

__all__ = ["SCOPES", "Figures", "Framed", "Planned", "Rule", "framed", "misread", "typed"]

SCOPES = ("tensor", "row", "model")


@dataclass(frozen=True)
class Rule:
    """How many are kept, and which weights compete.

    Attributes:
        beta: multiplier of the effective size, > 0; None when `sparsity` is given.
        order: order of the Hill number that counts (2: the effective size), ≥ 0, or inf.
        sparsity: if given, exactly this share of every pool is removed instead, 0 ≤ sparsity < 1.
        scope: what competes: the weights of one `tensor`, one `row` (output unit), or the whole `model`.
    """

    beta: float | None = 1.0
    order: float = 2.0
    sparsity: float | None = None
    scope: str = "tensor"

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ArgumentError(f"scope must be one of {', '.join(SCOPES)}, got {self.scope!r}")
        if self.sparsity is None:
            object.__setattr__(self, "beta", float(checked_beta(1.0 if self.beta is None else self.beta)))
        else:
            checked_sparsity(self.sparsity)
            if self.beta not in (None, 1.0) or self.order != 2:
                raise ArgumentError(
                    f"sparsity fixes the count, so beta and order must be left alone, got beta={self.beta}, "
                    f"order={self.order}"
                )
            object.__setattr__(self, "beta", None)
            object.__setattr__(self, "sparsity", float(self.sparsity))
        object.__setattr__(self, "order", float(checked_order(self.order)))

    def keeps(self) -> dict[str, Any]:
        """The options of `select` that this rule stands for."""
        if self.sparsity is not None:
            return {"sparsity": self.sparsity}
        return {"order": self.order, "beta": self.beta}

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "order": "inf" if math.isinf(self.order) else self.order}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], /) -> Rule:
        """From plain data."""
        order = data["order"]
        return cls(data["beta"], math.inf if order == "inf" else order, data["sparsity"], data["scope"])


@quick
@dataclass(frozen=True)
class Figures:
    """How many scores, their effective size, how many are kept, and the mass kept with its bounds."""

    n: int
    n_eff: float
    k: int
    mass_lower: float
    mass: float
    mass_upper: float

    @property
    def density(self) -> float:
        """k / n."""
        return self.k / self.n

    @property
    def sparsity(self) -> float:
        """1 − k / n."""
        return 1 - self.density


class Planned:
    """A plan of arrays by name. Whoever inherits says what an entry is, and what decides the masks.

    Attributes:
        rule: the rule that made it.
        entries: figures with a `name`, a `shape` and `l1`, the Σ|s| before pruning.
        refusals: names that are not pruned, with the reason.
        pool: under scope `model` the figures of the common pool.
    """

    rule: Rule
    entries: tuple[Any, ...]
    refusals: tuple[tuple[str, str], ...]
    pool: Figures | None

    @property
    def total(self) -> Figures:
        """The figures of all arrays together: of the common pool, or sums, and masses weighted by shares of Σ|s|."""
        if self.pool is not None:
            return self.pool
        l1 = math.fsum(e.l1 for e in self.entries)

        def share(which: str) -> float:
            return math.fsum(getattr(e, which) * e.l1 for e in self.entries) / l1 if l1 else 1.0

        sizes = sum(e.n for e in self.entries), math.fsum(e.n_eff for e in self.entries), sum(e.k for e in self.entries)
        return Figures(*sizes, share("mass_lower"), share("mass"), share("mass_upper"))

    def __str__(self) -> str:
        rows = [("array", "shape", "n", "N_eff", "kept", "density", "lower", "mass", "upper")]
        named: list[tuple[str, str, Figures]] = [(e.name, "×".join(map(str, e.shape)), e) for e in self.entries]
        if self.entries:
            named.append(("all", "", self.total))
        for name, shape, f in named:
            rows.append(
                (
                    name,
                    shape,
                    f"{f.n:,}",
                    f"{f.n_eff:,.1f}",
                    f"{f.k:,}",
                    f"{f.density:.1%}",
                    f"{f.mass_lower:.1%}",
                    f"{f.mass:.1%}",
                    f"{f.mass_upper:.1%}",
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join(lines + [f"{name} is left alone: {reason}" for name, reason in self.refusals])

    def frame(self, name: str, version: int) -> dict[str, Any]:
        """What the text of every plan says, as plain data; `framed` reads it."""
        return {
            "format": name,
            "version": version,
            "rule": self.rule.to_dict(),
            "entries": [asdict(e) for e in self.entries],
            "refusals": self.refusals,
            "pool": asdict(self.pool) if self.pool else None,
        }


class Framed(NamedTuple):
    """The text of a plan, read as far as all plans are alike, and the rest of it."""

    rule: Rule
    entries: tuple[Any, ...]
    refusals: tuple[tuple[str, str], ...]
    pool: Figures | None
    rest: Mapping[str, Any]


def framed(text: str | bytes, kind: type, name: str, version: int) -> Framed:
    """Read the text of a plan whose entries are of this kind.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: it is none, or was damaged (`misread` are all of them).
    """
    body = json.loads(text)
    if (body["format"], body["version"]) != (name, version):
        raise ValueError(f"the format is {body['format']!r}, version {body['version']!r}, not {name!r}, {version}")
    entries = tuple(kind(**typed(kind, e)) for e in body["entries"])
    pool = Figures(**typed(Figures, body["pool"])) if body["pool"] else None
    refusals = tuple((str(one), str(reason)) for one, reason in body["refusals"])
    return Framed(Rule.from_dict(body["rule"]), entries, refusals, pool, body)


misread = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)


ALLOWED: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (float, int), "str": (str,), "float | None": (float, int, type(None)),
}  # fmt: skip


@cache
def _declared(kind: type) -> tuple[tuple[str, ...], tuple[str, ...], set[tuple[type, ...]]]:
    """Names and declared types of a dataclass's fields, and the types of values that were found right."""
    found = fields(kind)
    return tuple(item.name for item in found), tuple(str(item.type) for item in found), set()


def typed(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with lists as tuples, each value of the type that the field declares.

    Raises:
        TypeError: a value is of another type, or there is no such field; KeyError: a field is missing.
    """
    names, declared, right = _declared(kind)
    if missing := [name for name in names if name not in data]:
        raise KeyError(f"{missing[0]} is missing")
    if len(data) != len(names):
        raise TypeError(f"there is no field {min(map(str, set(data) - set(names)))!r}")
    values = [data[name] for name in names]
    types = tuple(map(type, values))
    if types not in right:  # almost always as in the one before
        for name, want, value in zip(names, declared, values, strict=True):
            if type(value) not in ((list,) if want.startswith("tuple[") else ALLOWED[want]):
                raise TypeError(f"{name} must be {'a list' if want.startswith('tuple[') else want}, got {value!r}")
        right.add(types)
    for i, (want, value) in enumerate(zip(declared, values, strict=True)):
        if want.startswith("tuple["):
            inner, words = (int, "whole numbers") if "int" in want else (str, "texts")
            if any(type(v) is not inner for v in value) or (inner is int and any(v < 0 for v in value)):
                raise TypeError(f"{names[i]} must be a list of {words}, got {value!r}")
            values[i] = tuple(value)
    return dict(zip(names, values, strict=True))
