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
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._bound import mass_lower_bound, mass_upper_bound
from ._effective import effective_size
from ._errors import ArgumentError, PoolError
from ._mask import retained_mass
from ._namespace import given, to_host
from ._scope import Rows
from ._select import Selection, select
from .figures import SCOPES, Figures, Framed, Planned, Rule, framed, misread, typed

__all__ = ["SCOPES", "Entry", "Figures", "Framed", "Plan", "Planned", "Rule", "decide", "framed", "misread", "typed"]

FORMAT, VERSION = "effective_pruning.arrays", 1
PLAIN = Rule()
UNPACKED = 1 << 33  # most bytes that masks of a plan read from text may take


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
class Plan(Planned):
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

    def to_json(self) -> str:
        """The plan as text, masks included; `Plan.from_json` gives back an equal plan."""
        packed = {e.name: base64.b64encode(zlib.compress(_bits(self.masks[e.name]), 6)).decode() for e in self.entries}
        body = {**self.frame(FORMAT, VERSION), "criterion": self.criterion, "masks": packed}
        return json.dumps(body, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, /) -> Plan:
        """Read a plan; its masks are NumPy arrays.

        Raises:
            ArgumentError: it is not a plan, or one of another version, or was changed.
        """
        try:
            read = framed(text, Entry, FORMAT, VERSION)
            masks = {e.name: _unpacked(read.rest["masks"][e.name], e) for e in read.entries}
            return cls(read.rule, str(read.rest["criterion"]), read.entries, masks, read.refusals, read.pool)
        except (*misread, zlib.error) as error:
            raise ArgumentError(f"plan must be as `Plan.to_json` wrote it, got something else: {error}") from error


def decide(
    weights: Mapping[str, Any],
    /,
    rule: Rule = PLAIN,
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
