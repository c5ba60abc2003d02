"""The certificate: what was done to every weight, kept in the pruned file itself, so that it can be checked from there.

It is one compact JSON object in the model's `metadata_props`, under [`KEY`][]:

```
{"format": "effective_pruning.certificate", "version": 3, "tool": "0.1.0",
 "rule": {"beta": 1.0, "order": 2.0, "sparsity": null, "scope": "tensor"},
 "pool": null,
 "weights": {"conv1.weight": {"shape": [...], "pools": 1, "n": ..., "n_eff": ..., "k": ..., "zeros": ...,
             "mass_lower": ..., "mass": ..., "mass_upper": ..., "l1": ..., "kept": "checksum of the values left"}},
 "sha256": "of all this without this entry"}
```

The checksum is SHA-256 over the CRC-32 (four bytes, little-endian) of each 256 KiB of the numbers as they are stored:
little-endian, in order; those of fewer than 8 bits, one to a byte.

It protects against accidents and careless edits. It is not a signature: whoever sets out to forge one can compute the
checksums anew, and only the original model then tells.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from emp_core import EmpError, __version__, mass_lower_bound, mass_upper_bound
from emp_core.certificates import FORMAT, KEY, NEAR, VERSION, Certified, miscounted, unreachable
from emp_onnx.errors import UsageError, quote
from emp_onnx.figures import Figures, Rule, typed
from emp_onnx.files.model_io import Model
from emp_onnx.plan import Plan
from emp_onnx.weights.find import Weight
from emp_onnx.weights.look import Seen

__all__ = [
    "KEY",
    "Certificate",
    "Certified",
    "bounded",
    "certify",
    "contradictions",
    "miscounted",
    "read_certificate",
    "wrong_bounds",
    "wrong_bounds_each",
]


@dataclass(frozen=True)
class Certificate:
    """A certificate as read: the rule, the common pool under scope `model`, and the weights by name."""

    tool: str
    rule: Rule
    pool: Figures | None
    weights: Mapping[str, Certified]


def certify(plan: Plan, left: Mapping[str, str], /) -> str:
    """The certificate's text for weights pruned by this plan; `left` has the checksum of what is left of each."""
    weights = {
        e.name: {
            "n": e.n, "n_eff": e.n_eff, "k": e.k, "mass_lower": e.mass_lower, "mass": e.mass,
            "mass_upper": e.mass_upper, "shape": e.shape, "pools": e.pools, "zeros": e.zeros, "l1": e.l1,
            "kept": left[e.name], "dtype": e.dtype,
        }
        for e in plan.entries
    }  # fmt: skip
    rule = asdict(plan.rule)
    if math.isinf(plan.rule.order):
        rule["order"] = "inf"
    body = {
        "format": FORMAT, "version": VERSION, "tool": __version__, "rule": rule,
        "pool": asdict(plan.pool) if plan.pool else None, "weights": weights,
    }  # fmt: skip
    text = _text(body)
    return text[:-1] + _seal(_hash(text))


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
        seal = _seal(digest)
        whole = text.endswith(seal) and _hash(text[: -len(seal)] + "}") == digest
        # another tool may have spaced it otherwise: then as it would be, were it written anew
        whole = whole or _hash(_text(body)) == digest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"certificate must be as written by this tool, got something else: {error!r}") from error
    if (body.get("format"), version) != (FORMAT, VERSION):
        raise UsageError(
            f"certificate must be of version {VERSION}, got {quote(version)}: check it with the version of this tool "
            "that made it, or prune the original again"
        )
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


def contradictions(certificate: Certificate, weight: Weight, seen: Seen, /) -> Iterator[str]:
    """Everything in which a pruned weight is not what its certificate says, as sentences without a subject."""
    said, n = certificate.weights[weight.name], math.prod(weight.shape)
    if weight.dtype != said.dtype:
        yield f"holds {weight.dtype}, certified {said.dtype}"
    if weight.shape != said.shape:
        yield f"has the shape {weight.shape}, certified {said.shape}"
        return
    if seen.zeros != said.zeros:
        yield f"has {seen.zeros} zeros, certified {said.zeros}"
    if seen.hash is not None and seen.hash != said.kept:
        yield "has other kept values or positions than certified"
    if said.n != n or not 0 <= said.k <= said.n or said.n - said.k > said.zeros:
        yield f"cannot keep {said.k} of {said.n} and have {said.zeros} zeros"
    yield from _impossible(said)
    if seen.summed and not math.isclose(seen.l1, said.mass * said.l1, rel_tol=NEAR):
        yield f"holds a mass of {seen.l1:.9g}, certified {said.mass * said.l1:.9g}"
    if seen.summed and bounded(certificate, said):
        yield from unreachable(said, seen)
    if certificate.rule.scope == "tensor":
        yield from miscounted(certificate.rule, said)


def bounded(certificate: Certificate, said: Certified, /) -> bool:
    """Whether the bounds of a weight follow from its own figures."""
    return said.pools == 1 and certificate.rule.scope != "row" and said.k > 0


def _impossible(said: Figures) -> Iterator[str]:
    """What no scores at all could have: the bounds are out of order, or not those of n, N_eff and k."""
    if not said.mass_lower * (1 - NEAR) <= said.mass <= said.mass_upper * (1 + NEAR):
        yield f"retains a mass of {said.mass:.6g}, outside its bounds {said.mass_lower:.6g} and {said.mass_upper:.6g}"
    if not 1 - NEAR <= said.n_eff <= said.n * (1 + NEAR):
        yield f"has an effective size of {said.n_eff:.6g}, possible are 1 to {said.n}"


def wrong_bounds(said: Figures) -> Iterator[str]:
    """Bounds that are not those of n, N_eff and k."""
    for faults in wrong_bounds_each([said]):
        yield from faults


def wrong_bounds_each(said: Sequence[Figures]) -> Iterator[list[str]]:
    """`wrong_bounds` of many at once: NumPy takes as long for one as for a thousand."""
    n, k, size = (np.array([getattr(f, name) for f in said], np.float64) for name in ("n", "k", "n_eff"))
    n = np.maximum(n, 1)
    k, size = np.clip(k, 1, n), np.clip(np.where(np.isnan(size), 1, size), 1, n)
    right = [bound(size, n=n, k=k).tolist() for bound in (mass_lower_bound, mass_upper_bound)]
    for f, lower, upper in zip(said, *right, strict=True):
        yield [
            f"has a certified {what} bound of {given:.9g}, but its figures give {bound:.9g}"
            for what, bound, given in (("lower", lower, f.mass_lower), ("upper", upper, f.mass_upper))
            if not math.isclose(bound, given, rel_tol=NEAR, abs_tol=1e-9)
        ]


def _seal(digest: object) -> str:
    """The end of a certificate: the hash of all before it."""
    return f',"sha256":"{digest}"}}'


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _text(body: Mapping[str, Any]) -> str:
    return json.dumps(body, separators=(",", ":"), allow_nan=False)
