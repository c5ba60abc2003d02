"""Plans for named arrays: what is kept of each, and every figure that says why, as data that a reader can audit.

What adapters to frameworks have in common: a model there is a mapping of names to arrays. `decide` makes a plan from
weights (and scores, where these are not the magnitudes), `kept` brings its masks to other arrays of the same names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._bound import mass_lower_bound, mass_upper_bound
from ._effective import checked_beta, effective_size
from ._errors import ArgumentError, PoolError
from ._hill import checked_order
from ._mask import retained_mass
from ._namespace import given, to_host
from ._scope import Rows
from ._select import Selection, checked_sparsity, select
from .quick import quick

__all__ = ["SCOPES", "Entry", "Figures", "Plan", "Rule", "decide"]

SCOPES = ("tensor", "row", "model")
FORMAT, VERSION = "effective_pruning.arrays", 1
UNPACKED = 1 << 33  # most bytes that masks of a plan read from text may take


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


@dataclass(frozen=True)
class Entry(Figures):
    """One array of the plan.

    Under `row`, `n_eff` and `k` are sums over the rows and the masses are weighted by each row's share of Σ|s|; under
    `model` the figures are of this array taken alone, and `k` is what the common pool left it, possibly 0.

    Attributes:
        name: of the array.
        shape, dtype: as it is.
        pools: how many pools it was divided into.
        worst: the smallest retained mass of any one pool.
        zeros: how many elements are zero after pruning: those removed, and kept ones that were zero before.
        l1: Σ|s| before pruning.
        sha256: of the array's bytes before pruning.
        kept_sha256: of the mask, one bit per element.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    pools: int
    worst: float
    zeros: int
    l1: float
    sha256: str
    kept_sha256: str


@dataclass(frozen=True)
class Plan:
    """What is kept of every array. Equal inputs give an equal plan, and the same text, byte for byte.

    Attributes:
        rule: the rule that made it.
        criterion: name of what the scores were.
        entries: one per array, in the order given.
        masks: by name, booleans of the array's shape, True = kept; in the library of the scores.
        refusals: names of arrays that are not pruned, with the reason.
        pool: under scope `model` the figures of the common pool.
    """

    rule: Rule
    criterion: str
    entries: tuple[Entry, ...]
    masks: Mapping[str, Any] = field(compare=False, repr=False)
    refusals: tuple[tuple[str, str], ...] = ()
    pool: Figures | None = None

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

    def to_json(self) -> str:
        """The plan as text, masks included; `Plan.from_json` gives back an equal plan."""
        packed = {e.name: base64.b64encode(zlib.compress(_bits(self.masks[e.name]), 6)).decode() for e in self.entries}
        body = {
            "format": FORMAT,
            "version": VERSION,
            "rule": self.rule.to_dict(),
            "criterion": self.criterion,
            "entries": [asdict(e) for e in self.entries],
            "masks": packed,
            "refusals": self.refusals,
            "pool": asdict(self.pool) if self.pool else None,
        }
        return json.dumps(body, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, /) -> Plan:
        """Read a plan; its masks are NumPy arrays.

        Raises:
            ArgumentError: it is not a plan, or one of another version, or was changed.
        """
        try:
            body = json.loads(text)
            if (body["format"], body["version"]) != (FORMAT, VERSION):
                raise ArgumentError(f"plan must be of format {FORMAT} {VERSION}, got {body['format']!r}")
            entries = tuple(Entry(**typed(Entry, e)) for e in body["entries"])
            masks = {e.name: _unpacked(body["masks"][e.name], e) for e in entries}
            pool = Figures(**typed(Figures, body["pool"])) if body["pool"] else None
            refusals = tuple((str(name), str(reason)) for name, reason in body["refusals"])
            return cls(Rule.from_dict(body["rule"]), str(body["criterion"]), entries, masks, refusals, pool)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error, OverflowError) as error:
            raise ArgumentError(f"plan must be as `Plan.to_json` wrote it, got something else: {error}") from error


def decide(
    weights: Mapping[str, Any],
    /,
    rule: Rule = Rule(),
    *,
    scores: Mapping[str, Any] | None = None,
    criterion: str = "magnitude",
    axes: Mapping[str, int] | None = None,
    refusals: tuple[tuple[str, str], ...] = (),
    threads: int | None = None,
) -> Plan:
    """Decide what is kept of every array. Nothing is changed.

    Args:
        weights: arrays by name, of any library.
        rule: how many are kept.
        scores: by name, of the shapes of the weights; the weights themselves (hence magnitudes) where absent.
        criterion: what the scores are, for the reader.
        axes: by name, the axis of output units, for scope `row`; 0 where absent.
        refusals: names that were left out, with the reason.
        threads: most threads; the plan does not depend on it.

    Raises:
        PoolError: an array is empty or holds NaN or ±inf; the message names it.
        ArgumentError: scores that do not fit the weights.

    >>> plan = decide({"layer": np.array([[4.0, -3.0], [0.5, 0.5]])})
    >>> plan.total.k, plan.masks["layer"].tolist()
    (2, [[True, True], [False, False]])
    """
    if scores is None:
        scores = weights
    for name, w in weights.items():
        if name not in scores or tuple(scores[name].shape) != tuple(w.shape):
            found = tuple(scores[name].shape) if name in scores else "nothing"
            raise ArgumentError(f"scores of {name} must have the shape of its weight {tuple(w.shape)}, got {found}")
    held = {name: scores[name] for name in weights if math.prod(weights[name].shape)}
    left_out = [*refusals, *((name, "it is empty") for name in weights if name not in held)]
    live = {name: s for name, s in held.items() if _l1(s) != 0}
    only_zeros = "its scores are only zeros: nothing tells one from another"
    left_out += [(name, only_zeros) for name in held if name not in live]
    pool, picked = None, dict[str, Selection | None]()
    if rule.scope == "model" and live:
        chosen = select(live, scope="model", threads=threads, **rule.keeps())
        pool = _figures(chosen)
        masks: dict[str, Any] = dict(chosen.mask)
        picked = dict.fromkeys(live)
    else:
        masks = {}
        for name, s in live.items():
            try:
                row = rule.scope == "row" and len(s.shape) > 0
                scope = Rows((axes or {}).get(name, 0)) if row else "whole"
                one = select(s, scope=scope, threads=threads, **rule.keeps())
            except PoolError as error:
                raise PoolError(f"{name}: {error}") from None
            masks[name], picked[name] = one.mask, one
    entries = tuple(
        _entry(name, weights[name], live[name], masks[name], picked[name], (axes or {}).get(name, 0)) for name in live
    )
    return Plan(rule, criterion, entries, masks, tuple(left_out), pool)


def _entry(name: str, weight: Any, scores: Any, mask: Any, chosen: Selection | None, axis: int) -> Entry:
    host, bits = host_values(weight), to_host(mask)
    nonzero = int(
        np.count_nonzero((host != 0) & bits if host.dtype.names is None else (host["bfloat16"] << 1 != 0) & bits)
    )
    n, k = bits.size, int(np.count_nonzero(bits))
    l1 = _l1(scores)
    if chosen is None:  # the common pool decided: figures of this array alone
        n_eff = float(to_host(effective_size(scores)))
        mass = float(to_host(retained_mass(scores, mask)))
        lower, upper = (float(bound(n_eff, n=n, k=k)) if k else 0.0 for bound in (mass_lower_bound, mass_upper_bound))
        figures, pools, worst = Figures(n, n_eff, k, lower, mass if k else 0.0, upper), 1, mass
    elif np.ndim(to_host(chosen.k)) == 0:
        figures = _figures(chosen)
        pools, worst = 1, figures.mass
    else:
        masses = np.asarray(to_host(chosen.mass), np.float64)
        whole = _row_l1(scores, axis)
        share = whole / whole.sum() if whole.sum() > 0 else np.full(whole.shape, 1 / whole.size)

        def mean(values: Any) -> float:
            return min(1.0, math.fsum((np.asarray(to_host(values), np.float64) * share).tolist()))

        figures = Figures(
            n,
            math.fsum(np.asarray(to_host(chosen.n_eff), np.float64).tolist()),
            k,
            mean(chosen.mass_lower),
            mean(chosen.mass),
            mean(chosen.mass_upper),
        )
        pools, worst = masses.size, float(masses.min())
    return Entry(
        **asdict(figures),
        name=name,
        shape=tuple(int(d) for d in weight.shape),
        dtype=dtype_name(host),
        pools=pools,
        worst=worst,
        zeros=n - nonzero,
        l1=l1,
        sha256=hash_values(host),
        kept_sha256=hashlib.sha256(_bits(bits)).hexdigest(),
    )


def host_values(array: Any) -> NDArray[Any]:
    """An array as NumPy sees it; bfloat16 as bits under a name."""
    seen = given(array, "weight")
    return seen.host if seen.host is not None else to_host(seen.array)


def dtype_name(host: NDArray[Any]) -> str:
    """`float32`, `bfloat16`, …"""
    return "bfloat16" if host.dtype.names == ("bfloat16",) else host.dtype.name


def hash_values(host: NDArray[Any]) -> str:
    """SHA-256 of an array's bytes, in order."""
    return hashlib.sha256(np.ascontiguousarray(host).reshape(-1).view(np.uint8).data).hexdigest()


def _figures(chosen: Selection) -> Figures:
    def whole(value: Any) -> int:
        return int(to_host(value))

    def real(value: Any) -> float:
        return float(to_host(value))

    return Figures(
        whole(chosen.n),
        real(chosen.n_eff),
        whole(chosen.k),
        real(chosen.mass_lower),
        real(chosen.mass),
        real(chosen.mass_upper),
    )


def _wide(scores: Any) -> NDArray[Any]:
    host = host_values(scores)
    if host.dtype.names is not None:
        return (host["bfloat16"].astype(np.uint32) << 16).view(np.float32)
    return host


def _l1(scores: Any) -> float:
    flat = _wide(scores).reshape(-1)
    step = 1 << 20
    sums = (float(np.abs(flat[i : i + step]).sum(dtype=np.float64)) for i in range(0, flat.size, step))
    return math.fsum(sums)


def _row_l1(scores: Any, axis: int) -> NDArray[np.float64]:
    rows = np.moveaxis(_wide(scores), axis, 0)
    return np.array([_l1(row) for row in rows], np.float64)


def _bits(mask: Any) -> bytes:
    return np.packbits(np.asarray(to_host(mask)).reshape(-1)).tobytes()


def _unpacked(text: str, entry: Entry) -> NDArray[np.bool_]:
    n = math.prod(entry.shape)
    if not 0 <= n <= UNPACKED or entry.n != n:
        raise ValueError(f"{entry.name} of shape {entry.shape} cannot hold {entry.n} elements")
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(base64.b64decode(text, validate=True), -(-n // 8) + 1)
    if len(data) != -(-n // 8) or hashlib.sha256(data).hexdigest() != entry.kept_sha256:
        raise ValueError(f"the mask of {entry.name} was changed")
    mask = np.unpackbits(np.frombuffer(data, np.uint8), count=n).astype(bool)
    return mask.reshape(entry.shape)


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
