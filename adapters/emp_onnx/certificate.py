"""The certificate: what was done to every weight, kept in the pruned file itself, so that it can be checked from there.

It is one compact JSON object in the model's `metadata_props`, under [`KEY`][]:

```
{"format": "effective_pruning.certificate", "version": 1, "tool": "0.1.0",
 "rule": {"beta": 1.0, "order": 2.0, "sparsity": null, "scope": "tensor"},
 "pool": null,
 "weights": {"conv1.weight": {"shape": [...], "pools": 1, "n": ..., "n_eff": ..., "k": ..., "zeros": ...,
             "mass_lower": ..., "mass": ..., "mass_upper": ..., "l1": ..., "kept": "sha256 of what is left"}},
 "sha256": "of all this without this entry"}
```

It protects against accidents and careless edits. It is not a signature: whoever sets out to forge one can compute the
hashes anew, and only the original model then tells.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_core import EmpError, __version__, mass_lower_bound, mass_upper_bound
from emp_onnx.errors import UsageError, quote
from emp_onnx.figures import Figures, Rule, typed
from emp_onnx.kept import plain
from emp_onnx.model_io import Model, Values
from emp_onnx.plan import Plan
from emp_onnx.storage import pieces_of
from emp_onnx.weights import Weight

__all__ = ["KEY", "Certificate", "Certified", "certify", "hash_kept", "read_certificate"]

KEY = "effective_pruning.certificate"
FORMAT, VERSION = "effective_pruning.certificate", 1
NEAR = 1e-6  # relative room for sums of float64 taken in another order


@dataclass(frozen=True)
class Certified(Figures):
    """What the certificate says of one weight (see `Entry`); `kept` is the hash of what is left of it."""

    shape: tuple[int, ...]
    pools: int
    zeros: int
    l1: float
    kept: str
    dtype: str


@dataclass(frozen=True)
class Certificate:
    """A certificate as read: the rule, the common pool under scope `model`, and the weights by name."""

    tool: str
    rule: Rule
    pool: Figures | None
    weights: Mapping[str, Certified]


def hash_kept(values: Values, nonzero: NDArray[np.bool_] | None = None, /) -> str:
    """SHA-256 of a pruned weight's bytes, in which whatever is zero counts as bytes of 0."""
    nonzero = values != 0 if nonzero is None else nonzero
    return hashlib.sha256(plain(np.ascontiguousarray(values).reshape(-1), nonzero.reshape(-1))).hexdigest()


def certify(plan: Plan, left: Mapping[str, str], /) -> str:
    """The certificate's text for weights pruned by this plan; `left` has the hash of what is left of each."""
    weights = {}
    for e in plan.entries:
        item = Certified(
            e.n,
            e.n_eff,
            e.k,
            e.mass_lower,
            e.mass,
            e.mass_upper,
            e.shape,
            e.pools,
            e.zeros,
            e.l1,
            left[e.name],
            e.dtype,
        )
        weights[e.name] = asdict(item)
    rule = asdict(plan.rule)
    if math.isinf(plan.rule.order):
        rule["order"] = "inf"
    body = {
        "format": FORMAT, "version": VERSION, "tool": __version__, "rule": rule,
        "pool": asdict(plan.pool) if plan.pool else None, "weights": weights,
    }  # fmt: skip
    return _text({**body, "sha256": hashlib.sha256(_text(body).encode()).hexdigest()})


def is_refitted(model: Model, /) -> bool:
    """Whether the model carries the certificate of a refit, which is another one (see `refit.certificate`)."""
    return '"format":"effective_pruning.refit"' in model.metadata.get(KEY, "")


def read_certificate(model: Model, /) -> Certificate:
    """The certificate of a pruned model.

    Raises:
        UsageError: there is none, or it is damaged or was edited; the message says which.
    """
    text = model.metadata.get(KEY)
    if text is None:
        raise UsageError(f"model must carry a certificate (the metadata entry {KEY}), got {model.origin} without one")
    try:
        body = json.loads(text)
        digest, version = body.pop("sha256"), body["version"]
        whole = hashlib.sha256(_text(body).encode()).hexdigest() == digest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"certificate must be as written by this tool, got something else: {error!r}") from error
    if (body.get("format"), version) != (FORMAT, VERSION):
        raise UsageError(f"certificate must be of version {VERSION}, got {quote(version)}")
    if not whole:
        raise UsageError("certificate must be as it was written, got one that was edited: its own hash does not match")
    try:
        return _certificate(body)
    except (KeyError, TypeError, AttributeError, EmpError) as error:
        raise UsageError(f"certificate must be as written by this tool, got something else: {error}") from error


def _certificate(body: Mapping[str, Any]) -> Certificate:
    rule = dict(body["rule"])
    if rule["order"] == "inf":
        rule["order"] = math.inf
    weights = {name: Certified(**typed(Certified, dict(said))) for name, said in body["weights"].items()}
    pool = Figures(**typed(Figures, dict(body["pool"]))) if body["pool"] else None
    return Certificate(str(body["tool"]), Rule(**typed(Rule, rule)), pool, weights)


@dataclass
class _Seen:
    """What one look at a pruned weight found."""

    zeros: int = 0
    hash: str = ""
    l1: float = 0.0
    squares: float = 0.0
    least: float = math.inf


def _look(model: Model, weight: Weight) -> _Seen:
    seen, digest, l1, squares = _Seen(), hashlib.sha256(), list[float](), list[float]()
    for start, stop in pieces_of(math.prod(weight.shape)):
        stored = model.piece(weight.name, start, stop)
        scores = weight.zero.scores(stored, start)
        nonzero = scores != 0
        digest.update(plain(stored, nonzero))
        count = int(np.count_nonzero(nonzero))
        seen.zeros += scores.size - count
        if count:
            size = np.abs(scores)
            if size.dtype not in (np.float32, np.float64):
                size = size.astype(np.float32)
            wide = size.astype(np.float64)
            l1.append(float(np.einsum("i->", wide)))
            squares.append(float(np.einsum("i,i->", wide, wide)))
            bits = size.view(f"u{size.itemsize}")  # magnitudes order as their bits do; 0 less 1 is the largest
            least = (bits - bits.dtype.type(1)).min() + bits.dtype.type(1)
            seen.least = min(seen.least, float(least.view(size.dtype)))
    seen.hash, seen.l1, seen.squares = digest.hexdigest(), math.fsum(l1), math.fsum(squares)
    return seen


def contradictions(certificate: Certificate, weight: Weight, model: Model, /) -> Iterator[str]:
    """Everything in which a pruned weight is not what its certificate says, as sentences without a subject."""
    said, n = certificate.weights[weight.name], math.prod(weight.shape)
    if weight.dtype != said.dtype:
        yield f"holds {weight.dtype}, certified {said.dtype}"
    if weight.shape != said.shape:
        yield f"has the shape {weight.shape}, certified {said.shape}"
        return
    seen = _look(model, weight)
    if seen.zeros != said.zeros:
        yield f"has {seen.zeros} zeros, certified {said.zeros}"
    if seen.hash != said.kept:
        yield "has other kept values or positions than certified"
    if said.n != n or not 0 <= said.k <= said.n or said.n - said.k > said.zeros:
        yield f"cannot keep {said.k} of {said.n} and have {said.zeros} zeros"
    yield from _impossible(said)
    kept = seen.l1
    if not math.isclose(kept, said.mass * said.l1, rel_tol=NEAR):
        yield f"holds a mass of {kept:.9g}, certified {said.mass * said.l1:.9g}"
    if said.pools == 1 and certificate.rule.scope != "row" and said.k:
        yield from _unreachable(said, seen)
    if certificate.rule.scope == "tensor":
        yield from miscounted(certificate.rule, said)


def _impossible(said: Figures) -> Iterator[str]:
    """What no scores at all could have: the bounds are out of order, or not those of n, N_eff and k."""
    if not said.mass_lower * (1 - NEAR) <= said.mass <= said.mass_upper * (1 + NEAR):
        yield f"retains a mass of {said.mass:.6g}, outside its bounds {said.mass_lower:.6g} and {said.mass_upper:.6g}"
    if not 1 - NEAR <= said.n_eff <= said.n * (1 + NEAR):
        yield f"has an effective size of {said.n_eff:.6g}, possible are 1 to {said.n}"


def _unreachable(said: Certified, seen: _Seen) -> Iterator[str]:
    """Bounds recomputed from n, N_eff and k; and removed weights that could not have been below the kept ones."""
    yield from wrong_bounds(said)
    gone, count, nonzero = said.l1 - seen.l1, said.n - said.k, said.n - seen.zeros
    least = 0.0 if said.k > nonzero or not nonzero else seen.least
    slack = NEAR * said.l1
    if gone > count * least + slack:
        yield f"lost a mass of {gone:.6g} in {count} weights that are each at most {least:.6g}"
    squares = said.l1**2 / said.n_eff - seen.squares
    room = NEAR * said.l1**2
    if squares > max(gone, 0.0) * least + room or (count and squares < max(gone, 0.0) ** 2 / count - room):
        yield f"has an effective size of {said.n_eff:.6g}, which its kept weights rule out"


def wrong_bounds(said: Figures) -> Iterator[str]:
    """Bounds that are not those of n, N_eff and k."""
    nu = min(max(said.n_eff, 1.0), float(said.n))
    for what, bound, given in (
        ("lower", mass_lower_bound, said.mass_lower),
        ("upper", mass_upper_bound, said.mass_upper),
    ):
        right = float(bound(nu, n=said.n, k=said.k))
        if not math.isclose(right, given, rel_tol=NEAR, abs_tol=1e-9):
            yield f"has a certified {what} bound of {given:.9g}, but its figures give {right:.9g}"


def miscounted(rule: Rule, said: Figures) -> Iterator[str]:
    """A count that is not the rule's."""
    if rule.sparsity is not None:
        right = max(1, said.n - round(Fraction(rule.sparsity) * said.n))
        if said.k != right:
            yield f"keeps {said.k} of {said.n}, but a sparsity of {rule.sparsity:g} keeps {right}"
    elif rule.order == 2 and rule.beta is not None:
        size = rule.beta * said.n_eff
        low, high = (min(said.n, max(1, math.floor(size * x))) for x in (1 - 1e-9, 1 + 1e-9))
        if not low <= said.k <= high:
            yield f"keeps {said.k}, but β·N_eff is {size:.9g}"


def _text(body: Mapping[str, Any]) -> str:
    return json.dumps(body, separators=(",", ":"), allow_nan=False)
