"""A pruned model against its original: the same rule there, kept weights bit-equal, and nothing else changed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from emp_core.certificates import NEAR
from emp_onnx.certificates.rule import KEY, Certificate
from emp_onnx.decide import decide
from emp_onnx.errors import ModelError, quote
from emp_onnx.figures import Figures
from emp_onnx.files.again import same_outside
from emp_onnx.files.model_io import Model
from emp_onnx.verification.outcome import Check, check
from emp_onnx.weights.find import find_weights
from emp_onnx.weights.kept import Kept, Pruned
from emp_onnx.weights.look import Seen, look

__all__ = ["against", "differences", "nothing_else"]

EQUAL = "kept weights are bit-equal, removed ones zero"
SAME_RULE = "the rule gives the same on the original"


def against(pruned: Model, original: Model, certificate: Certificate, threads: int | None, /) -> Iterator[Check]:
    """Everything that can be checked with the original, without running the models."""
    try:
        kept, found = _again(original, certificate, threads)
    except ModelError as error:
        yield Check(SAME_RULE, False, (str(error),))
        return
    yield found
    if kept is not None:
        yield check(EQUAL, _bits(pruned, original, kept))
        yield nothing_else(pruned, original, frozenset(kept))


def _again(original: Model, certificate: Certificate, threads: int | None) -> tuple[dict[str, Kept] | None, Check]:
    """The certificate's rule applied to the original, and whether that gives the certificate's figures."""
    known = {weight.name: weight for weight in find_weights(original, embeddings=True).weights}
    missing = [name for name in certificate.weights if name not in known]
    if missing:
        return None, check(
            SAME_RULE, (f"weight {quote(n)} is certified, but is no weight of the original" for n in missing)
        )
    again = decide(original, [known[name] for name in certificate.weights], certificate.rule, threads=threads)
    plan, kept = again.plan, again.kept
    entries = {entry.name: entry for entry in plan.entries}
    faults = []
    for name, said in certificate.weights.items():
        entry = entries.get(name)
        if entry is None:
            faults.append(f"weight {quote(name)} is certified, but the original's holds only zeros")
        elif entry.shape != said.shape:
            faults.append(f"weight {quote(name)} has the shape {said.shape}, the original's {entry.shape}")
        else:
            faults += [f"weight {quote(name)}: {fault}" for fault in _apart(said, entry)]
            if (entry.zeros, entry.pools) != (said.zeros, said.pools) or not math.isclose(
                entry.l1, said.l1, rel_tol=NEAR
            ):
                faults.append(
                    f"weight {quote(name)}: zeros, pools or Σ|w| are certified otherwise than the original gives"
                )
    if plan.pool and certificate.pool:
        faults += [f"the common pool: {fault}" for fault in _apart(certificate.pool, plan.pool)]
    return (
        kept if not faults else {n: m for n, m in kept.items() if entries[n].shape == certificate.weights[n].shape}
    ), check(SAME_RULE, faults)


def _apart(said: Figures, right: Figures) -> Iterator[str]:
    if (said.n, said.k) != (right.n, right.k):
        yield f"certified to keep {said.k} of {said.n}, the original gives {right.k} of {right.n}"
    for what in ("n_eff", "mass_lower", "mass", "mass_upper"):
        one, other = getattr(said, what), getattr(right, what)
        if not math.isclose(one, other, rel_tol=NEAR, abs_tol=1e-9):
            yield f"certified {what} is {one:.9g}, the original gives {other:.9g}"


def _bits(pruned: Model, original: Model, kept: Mapping[str, Kept]) -> Iterator[str]:
    found = {weight.name: weight for weight in find_weights(original, embeddings=True).weights}
    there = {weight.name: weight for weight in find_weights(pruned, embeddings=True).weights}
    for name, item in kept.items():
        weight = found[name]
        if name not in there or (there[name].shape, there[name].dtype) != (weight.shape, weight.dtype):
            yield f"weight {quote(name)} is missing, or of another type or shape"
            continue
        patch = Pruned(weight, item)
        yield from differences(name, patch, look(pruned, weight, sums=False, original=original, patch=patch))


def differences(name: str, patch: Pruned, seen: Seen) -> Iterator[str]:
    """Where a weight is not the original's, pruned."""
    if seen.removed:
        zero = patch.weight.zero.words or "+0.0"
        yield f"weight {quote(name)} has {seen.removed} removed elements that are not {zero}"
    if seen.changed:
        yield f"weight {quote(name)} has {seen.changed} kept elements whose bits differ from the original's"


def nothing_else(pruned: Model, original: Model, names: frozenset[str], /) -> Check:
    """Whether two models are equal outside these weights and the certificate."""
    return check("nothing else differs", _rest(pruned, original, names))


def _rest(pruned: Model, original: Model, names: frozenset[str]) -> Iterator[str]:
    apart = frozenset(
        key
        for one, other in ((pruned, original), (original, pruned))
        for key, tensor in one.tensors.items()
        if tensor.recipe or (key in other.tensors and bool(tensor.parts) != bool(other.tensors[key].parts))
    )
    if not apart and same_outside(pruned, original, names, KEY):
        return
    after, before = pruned.rest(names, KEY, apart), original.rest(names, KEY, apart)
    for place in sorted(after.keys() | before.keys()):
        if after.get(place) != before.get(place):
            yield f"{place} differs from the original"
