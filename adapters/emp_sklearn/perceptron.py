"""Multi-layer perceptrons: MLPClassifier and MLPRegressor, whose weights are ``coefs_``, (inputs, outputs) each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_core import ArgumentError, VerifyError
from emp_core.certificates import Certificate, Seen, certify, contradictions, read
from emp_core.plans import Plan, Rule, decide, hash_values

__all__ = ["apply", "find_weights", "plan", "prune", "verify"]

ATTRIBUTE = "effective_pruning_certificate_"


def find_weights(model: Any, /) -> dict[str, NDArray[Any]]:
    """The coefficients of a fitted perceptron, by name (``coefs_.0``, …).

    Raises:
        ArgumentError: it is not fitted, or has no such coefficients.
    """
    coefficients = getattr(model, "coefs_", None)
    if not isinstance(coefficients, list) or not all(isinstance(c, np.ndarray) for c in coefficients):
        raise ArgumentError(f"model must be a fitted perceptron with coefs_, got {type(model).__name__} without")
    return {f"coefs_.{i}": c for i, c in enumerate(coefficients)}


def plan(
    model: Any,
    /,
    *,
    beta: float | None = None,
    order: float = 2.0,
    sparsity: float | None = None,
    scope: str = "tensor",
) -> Plan:
    """Decide what is kept; see `emp_core.plans.Rule`. The rows of scope `row` are output units."""
    weights = find_weights(model)
    rule = Rule(1.0 if beta is None and sparsity is None else beta, order, sparsity, scope)
    return decide(weights, rule, axes=dict.fromkeys(weights, 1))


def apply(model: Any, plan: Plan, /) -> Any:
    """Set what the plan removes to zero, and leave the certificate with the model.

    The model gets new arrays in ``coefs_``: those it had stay as they were, and may be read-only, as ``joblib.load``
    maps them from a file.

    Training further (``partial_fit``, ``warm_start``) fills zeros again.

    Raises:
        ArgumentError: the plan was made for other weights; nothing was changed then.
    """
    weights = find_weights(model)
    for e in plan.entries:
        if e.name not in weights or hash_values(weights[e.name]) != e.sha256:
            raise ArgumentError(f"plan must be made for this model, got one made from other values of {e.name}")
    pruned = {name: np.array(c) for name, c in weights.items()}
    for e in plan.entries:
        pruned[e.name][~np.asarray(plan.masks[e.name])] = 0
    certificate = certify(plan, {e.name: Seen.whole(pruned[e.name]).kept for e in plan.entries})
    model.coefs_ = list(pruned.values())  # only now, when nothing can fail any more
    setattr(model, ATTRIBUTE, certificate)
    return model


def verify(model: Any, certificate: Certificate | None = None, /) -> tuple[str, ...]:
    """Check a model against its certificate; returns what is wrong.

    Raises:
        ArgumentError: there is none.
    """
    if certificate is None:
        text = getattr(model, ATTRIBUTE, None)
        if text is None:
            raise ArgumentError("model must carry a certificate, as `apply` leaves it, got one without")
        certificate = read(text)
    weights = find_weights(model)
    return tuple(
        f"{name} {fault}"
        for name in certificate.weights
        for fault in (
            contradictions(certificate, name, weights[name].shape, weights[name].dtype.name, Seen.whole(weights[name]))
            if name in weights
            else ["is certified, but the model does not have it"]
        )
    )


def prune(model: Any, /, **options: Any) -> Plan:
    """All of it, on the model itself: plan, apply, verify; returns the plan.

    Raises:
        ArgumentError: an option out of range, or nothing to prune.
        emp_core.VerifyError: the result is not as its certificate says.
    """
    made = plan(model, **options)
    apply(model, made)
    faults = verify(model)
    if faults:
        raise VerifyError(f"model must be as its certificate says, got one in which {'; '.join(faults[:3])}")
    return made
