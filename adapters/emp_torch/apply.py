"""The verbs `apply`, `verify` and `prune`: do what a plan says, and nothing else; prove it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from emp_core import ArgumentError, VerifyError
from emp_core.certificates import Certificate, Seen, certify, contradictions, read
from emp_core.plans import Plan, Rule, decide, dtype_name, hash_values, host_values
from emp_torch.plan import plan as make_plan
from emp_torch.weights import find_weights, refuse_sums, unwrapped

__all__ = ["apply", "certificate_of", "prune", "recertify", "verify"]

ATTRIBUTE = "_effective_pruning_certificate"  # of the module; a plain string, so copies and pickles carry it


def apply(model: nn.Module, plan: Plan, /) -> nn.Module:
    """Set what the plan removes to zero, in place, and leave the certificate with the model. Kept weights keep their
    bits.

    Parameters stay the same objects, so an optimizer that holds them goes on. Where a plan is meant to last through
    training, use `GradualPruner`, or a mask of ``torch.nn.utils.prune``.

    Returns:
        The same model.

    Raises:
        ArgumentError: the plan was made for other weights, or cannot be certified; nothing was changed then.
    """
    held = {w.name: w for w in find_weights(model, embeddings=True).weights}
    for entry in plan.entries:
        weight = held.get(entry.name)
        if weight is None:
            raise ArgumentError(f"plan must be made for this model, got one with {entry.name}, which it does not have")
        if hash_values(host_values(weight.value)) != entry.sha256 or tuple(weight.value.shape) != entry.shape:
            raise ArgumentError(f"plan must be made for this model, got one made from other values of {entry.name}")
    refuse_sums((entry.name, held[entry.name].value) for entry in plan.entries)
    try:
        certify(plan, {entry.name: "" for entry in plan.entries})
    except ValueError as error:  # text has no infinities
        raise ArgumentError(f"plan must hold finite figures to be certified, got others: {error}") from error
    left = {}
    with torch.no_grad():
        for entry in plan.entries:
            weight = held[entry.name]
            mask = torch.as_tensor(plan.masks[entry.name], device=weight.parameter.device)
            weight.parameter.masked_fill_(~mask, 0)
            weight.refresh()
            left[entry.name] = Seen.whole(weight.value).kept
    setattr(unwrapped(model), ATTRIBUTE, certify(plan, left))
    return model


def certificate_of(model: nn.Module, /) -> Certificate:
    """The certificate that `apply` or `load` left with a model.

    Raises:
        ArgumentError: there is none, or it was edited.
    """
    text = getattr(unwrapped(model), ATTRIBUTE, None)
    if text is None:
        raise ArgumentError("model must carry a certificate, as `apply` leaves it, got one without")
    return read(text)


def verify(model: nn.Module, certificate: Certificate | None = None, /) -> tuple[str, ...]:
    """Check a model against its certificate (or the one given); returns what is wrong, nothing if all is well.

    Raises:
        ArgumentError: there is no certificate.
    """
    certificate = certificate if certificate is not None else certificate_of(model)
    held = {w.name: w for w in find_weights(model, embeddings=True).weights}
    faults = []
    for name in certificate.weights:
        if name not in held:
            faults.append(f"{name} is certified, but the model does not have it")
            continue
        value = held[name].value
        shape, dtype = tuple(int(d) for d in value.shape), dtype_name(host_values(value))
        faults += [f"{name} {fault}" for fault in contradictions(certificate, name, shape, dtype, Seen.whole(value))]
    return tuple(faults)


def prune(model: nn.Module, /, *, plan: Plan | None = None, **options: Any) -> Plan:
    """All of it, in place: plan (with the options of `plan`, unless one is given), apply, verify.

    Returns:
        The plan.

    Raises:
        ArgumentError: an option out of range, nothing to prune, or a plan for other weights.
        emp_core.VerifyError: the result is not as its certificate says.

    >>> print(prune(nn.Linear(20, 10), sparsity=0.5).total.k)
    100
    """
    if plan is not None and options:
        raise ArgumentError(f"plan must come alone, got other options with it: {', '.join(options)}")
    made = make_plan(model, **options) if plan is None else plan
    apply(model, made)
    faults = verify(model)
    if faults:
        raise VerifyError(f"model must be as its certificate says, got one in which {'; '.join(faults[:3])}")
    return made


def recertify(model: nn.Module, /) -> Certificate:
    """Certify the zeros that a model has now: for weights that were trained on after they were pruned.

    The certificate says that of all weights together the largest are kept, as many as are not zero; every figure in it
    is of the weights as they are. A weight of nothing but zeros is left out: nothing tells one of them from another.

    Returns:
        The certificate, which is left with the model as well.
    """
    found = find_weights(model, embeddings=True).weights
    values = {w.name: w.value.detach() for w in found}
    refuse_sums(values.items())
    # `decide` drops what holds only zeros (as it drops what is empty), so their zeros must not be counted either
    values = {name: value for name, value in values.items() if bool((value != 0).any())}
    zeros = {name: int((value == 0).sum()) for name, value in values.items()}
    certified = {name: value for name, value in values.items() if zeros[name]} or values
    n = sum(value.numel() for value in certified.values())
    made = decide(certified, Rule(sparsity=sum(zeros[name] for name in certified) / n if n else 0.0, scope="model"))
    left = {name: Seen.whole(value).kept for name, value in certified.items()}
    setattr(unwrapped(model), ATTRIBUTE, certify(made, left))
    return certificate_of(model)
