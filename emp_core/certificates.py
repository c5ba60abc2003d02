"""Certificates: what was done to every array, as text that travels with the pruned arrays and can be checked there.

One compact JSON object, which adapters keep in the metadata of a file under [`KEY`][]. It protects against accidents
and careless edits. It is not a signature: whoever sets out to forge one can compute the hashes anew, and only the
original then tells.

A certificate by magnitude says figures of the weights themselves, so everything in it can be checked from what is
left. By another criterion, figures are of scores that are gone: shapes, zeros, kept values, bounds and count are
checked.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ._bound import mass_lower_bound, mass_upper_bound
from ._errors import ArgumentError, EmpError
from ._namespace import BFLOAT16
from .checksum import Checksum
from .plans import Figures, Plan, Rule, host_values, typed
from .quick import quick

__all__ = [
    "BFLOAT16", "KEY", "Certificate", "Certified", "Seen", "Summed", "certify", "contradictions", "miscounted", "read",
    "unreachable", "write",
]  # fmt: skip

KEY = "effective_pruning.certificate"
FORMAT, VERSION = "effective_pruning.certificate", 3
NEAR = 1e-6  # relative room for sums of float64 taken in another order
PIECE = 1 << 20


@quick
@dataclass(frozen=True)
class Certified(Figures):
    """What a certificate says of one array (see `plans.Entry`); `kept` is the hash of its values."""

    shape: tuple[int, ...]
    pools: int
    zeros: int
    l1: float
    kept: str
    dtype: str


@dataclass(frozen=True)
class Certificate:
    """A certificate as read: the rule, the common pool under scope `model`, and the arrays by name."""

    tool: str
    rule: Rule
    criterion: str
    pool: Figures | None
    weights: Mapping[str, Certified]


class Summed(Protocol):
    """Sums over what is left of an array."""

    @property
    def zeros(self) -> int:
        """How many elements are zero."""

    @property
    def l1(self) -> float:
        """Σ|w|."""

    @property
    def squares(self) -> float:
        """Σw²."""

    @property
    def least(self) -> float:
        """The least magnitude that is not zero; inf if none is."""


@dataclass
class Seen:
    """What one look at a pruned array found: zeros, the checksum of its values as stored, and sums of magnitudes."""

    zeros: int
    kept: str
    l1: float
    squares: float
    least: float

    @classmethod
    def of(cls, pieces: Iterable[NDArray[Any]], /) -> Seen:
        """Look at an array that comes as flat pieces, in order (bfloat16 as bits under that name)."""
        digest, zeros, least = Checksum(), 0, math.inf
        l1, squares = list[float](), list[float]()
        for piece in pieces:
            bits = piece["bfloat16"] if piece.dtype == BFLOAT16 else piece
            wide = (bits.astype(np.uint32) << 16).view(np.float32) if piece.dtype == BFLOAT16 else piece
            nonzero = wide != 0
            zeros += nonzero.size - int(np.count_nonzero(nonzero))
            digest.update(bits)
            size = np.abs(wide.astype(np.float64))
            l1.append(float(size.sum()))
            squares.append(float(np.dot(size, size)))
            if nonzero.any():
                least = min(least, float(size.min(where=nonzero, initial=math.inf)))
        return cls(zeros, digest.hexdigest(), math.fsum(l1), math.fsum(squares), least)

    @classmethod
    def whole(cls, array: Any, /) -> Seen:
        """Look at an array of any library."""
        flat = np.ascontiguousarray(host_values(array)).reshape(-1)
        return cls.of(flat[i : i + PIECE] for i in range(0, flat.size, PIECE))


def certify(plan: Plan, left: Mapping[str, str], /) -> str:
    """The certificate's text for arrays pruned by this plan; `left` has the hash of what is left of each."""
    weights = {
        e.name: Certified(
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
        for e in plan.entries
    }
    return write(Certificate("", plan.rule, plan.criterion, plan.pool, weights))


def write(certificate: Certificate, /) -> str:
    """A certificate as text, with a hash of itself."""
    from . import __version__

    body: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "tool": __version__,
        "rule": certificate.rule.to_dict(),
        "pool": asdict(certificate.pool) if certificate.pool else None,
        "weights": {name: asdict(said) for name, said in certificate.weights.items()},
    }
    if certificate.criterion != "magnitude":
        body["criterion"] = certificate.criterion
    return _text({**body, "sha256": hashlib.sha256(_text(body).encode()).hexdigest()})


def read(text: str, /) -> Certificate:
    """The certificate that this text is.

    Raises:
        ArgumentError: it is damaged or was edited; the message says which.
    """
    try:
        body = json.loads(text)
        digest = body.pop("sha256")
        if (body["format"], body["version"]) != (FORMAT, VERSION):
            raise ArgumentError(f"certificate must be of version {VERSION}, got {body['version']!r}")
        if hashlib.sha256(_text(body).encode()).hexdigest() != digest:
            raise ArgumentError(
                "certificate must be as it was written, got one that was edited: its own hash does not match"
            )
        weights = {name: Certified(**typed(Certified, said)) for name, said in body["weights"].items()}
        pool = Figures(**typed(Figures, body["pool"])) if body["pool"] else None
        criterion = str(body.get("criterion", "magnitude"))
        return Certificate(str(body["tool"]), Rule.from_dict(body["rule"]), criterion, pool, weights)
    except ArgumentError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, EmpError) as error:
        raise ArgumentError(f"certificate must be as written by this tool, got something else: {error!r}") from error


def contradictions(
    certificate: Certificate, name: str, shape: tuple[int, ...], dtype: str, seen: Seen, /
) -> Iterator[str]:
    """Everything in which a pruned array is not what its certificate says, as sentences without a subject."""
    said = certificate.weights[name]
    if dtype != said.dtype:
        yield f"holds {dtype}, certified {said.dtype}"
    if shape != said.shape:
        yield f"has the shape {shape}, certified {said.shape}"
        return
    if seen.zeros != said.zeros:
        yield f"has {seen.zeros} zeros, certified {said.zeros}"
    if seen.kept != said.kept:
        yield "has other kept values or positions than certified"
    n = math.prod(shape)
    if said.n != n or not 0 <= said.k <= said.n or said.n - said.k > said.zeros:
        yield f"cannot keep {said.k} of {said.n} and have {said.zeros} zeros"
        return
    if not said.mass_lower * (1 - NEAR) <= said.mass <= said.mass_upper * (1 + NEAR):
        yield f"retains a mass of {said.mass:.6g}, outside its bounds {said.mass_lower:.6g} and {said.mass_upper:.6g}"
    if not 1 - NEAR <= said.n_eff <= said.n * (1 + NEAR):
        yield f"has an effective size of {said.n_eff:.6g}, possible are 1 to {said.n}"
    single = said.pools == 1 and certificate.rule.scope != "row" and said.k > 0
    if single:
        yield from _wrong_bounds(said)
    if certificate.criterion == "magnitude":
        if not math.isclose(seen.l1, said.mass * said.l1, rel_tol=NEAR):
            yield f"holds a mass of {seen.l1:.9g}, certified {said.mass * said.l1:.9g}"
        if single:
            yield from unreachable(said, seen)
    if certificate.rule.scope == "tensor" and said.l1:  # of nothing but zeros, everything stays
        yield from miscounted(certificate.rule, said)


def unreachable(said: Certified, seen: Summed, /) -> Iterator[str]:
    """Removed weights that could not have been below the kept ones."""
    gone, count, nonzero = said.l1 - seen.l1, said.n - said.k, said.n - seen.zeros
    least = 0.0 if said.k > nonzero or not nonzero else seen.least
    if gone > count * least + NEAR * said.l1:
        yield f"lost a mass of {gone:.6g} in {count} weights that are each at most {least:.6g}"
    squares, room = said.l1**2 / said.n_eff - seen.squares, NEAR * said.l1**2
    if squares > max(gone, 0.0) * least + room or (count and squares < max(gone, 0.0) ** 2 / count - room):
        yield f"has an effective size of {said.n_eff:.6g}, which its kept weights rule out"


def _wrong_bounds(said: Figures) -> Iterator[str]:
    nu = min(max(said.n_eff, 1.0), float(said.n))
    for what, bound, certified in (
        ("lower", mass_lower_bound, said.mass_lower),
        ("upper", mass_upper_bound, said.mass_upper),
    ):
        right = float(bound(nu, n=said.n, k=said.k))
        if not math.isclose(right, certified, rel_tol=NEAR, abs_tol=1e-9):
            yield f"has a certified {what} bound of {certified:.9g}, but its figures give {right:.9g}"


def miscounted(rule: Rule, said: Figures, /) -> Iterator[str]:
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
