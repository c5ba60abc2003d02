"""A pruned model by itself: its weights against its certificate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from emp_core.certificates import NEAR
from emp_onnx.certificates.rule import (
    Certificate,
    bounded,
    contradictions,
    miscounted,
    read_certificate,
    wrong_bounds,
    wrong_bounds_each,
)
from emp_onnx.errors import ModelError, UsageError, quote
from emp_onnx.files.model_io import Model
from emp_onnx.verification.outcome import Check, check
from emp_onnx.weights.find import Weight, find_weights
from emp_onnx.weights.look import Seen, look

__all__ = ["AS_CERTIFIED", "POOL", "WHOLE", "alone", "examined", "pool_faults"]

WHOLE = "the certificate is whole"
AS_CERTIFIED = "weights and figures are as certified"
POOL = "the common pool's figures are as certified"


def alone(model: Model, /) -> tuple[tuple[Check, ...], Certificate | None]:
    """What can be checked of a pruned model by itself, and its certificate if that is whole."""
    try:
        certificate = read_certificate(model)
    except UsageError as error:
        return (Check(WHOLE, False, (str(error),)),), None
    known = {weight.name: weight for weight in find_weights(model, embeddings=True).weights}
    faults = examined(certificate, known, lambda weight: look(model, weight, digest=True))
    checks = [Check(WHOLE, True), check(AS_CERTIFIED, faults)]
    if certificate.rule.scope == "model":
        checks.append(check(POOL, pool_faults(certificate)))
    return tuple(checks), certificate


def examined(certificate: Certificate, known: Mapping[str, Weight], see: Callable[[Weight], Seen], /) -> Iterator[str]:
    """What is wrong with the certified weights, after a look at each."""
    figures = [(name, said) for name, said in certificate.weights.items() if bounded(certificate, said)]
    for (name, _), faults in zip(figures, wrong_bounds_each([said for _, said in figures]), strict=True):
        yield from (f"weight {quote(name)} {fault}" for fault in faults)
    for name in certificate.weights:
        weight = known.get(name)
        if weight is None:
            yield f"weight {quote(name)} is certified, but not among the model's weights"
            continue
        try:
            with np.errstate(all="ignore"):  # whatever someone wrote there, infinities and NaN too
                found = list(contradictions(certificate, weight, see(weight)))
            yield from (f"weight {quote(name)} {fault}" for fault in found)
        except (ModelError, ValueError, ArithmeticError) as error:
            yield f"weight {quote(name)} cannot be checked: {error}"


def pool_faults(certificate: Certificate, /) -> Iterator[str]:
    """What is wrong with the certified figures of the common pool."""
    pool, weights = certificate.pool, certificate.weights.values()
    if pool is None:
        if certificate.weights:
            yield "the certificate must hold the figures of the common pool, and does not"
        return
    if (pool.n, pool.k) != (sum(w.n for w in weights), sum(w.k for w in weights)):
        yield f"the common pool keeps {pool.k} of {pool.n}, its weights together something else"
    l1 = math.fsum(w.l1 for w in weights)
    squares = math.fsum(w.l1**2 / w.n_eff for w in weights)
    rule_order_2 = certificate.rule.order == 2 or certificate.rule.sparsity is not None
    if rule_order_2 and not math.isclose(pool.n_eff, l1**2 / squares, rel_tol=NEAR):
        yield f"the common pool has an effective size of {pool.n_eff:.9g}, its weights give {l1**2 / squares:.9g}"
    if not math.isclose(pool.mass, math.fsum(w.mass * w.l1 for w in weights) / l1, rel_tol=NEAR):
        yield f"the common pool has a retained mass of {pool.mass:.9g}, its weights give another"
    if rule_order_2:
        yield from (f"the common pool {fault}" for fault in wrong_bounds(pool))
    yield from (f"the common pool {fault}" for fault in miscounted(certificate.rule, pool))
