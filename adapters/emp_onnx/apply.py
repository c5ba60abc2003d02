"""Do what a plan says, and nothing else."""

from __future__ import annotations

from functools import partial

from emp_onnx.certificates.rule import KEY, certify
from emp_onnx.decide import Decision, decide, hashed
from emp_onnx.errors import PlanError, quote
from emp_onnx.files.model_io import Model
from emp_onnx.files.patch import Patch
from emp_onnx.plan import Entry, Plan
from emp_onnx.weights.find import Refusal, Weight, find_weights
from emp_onnx.weights.kept import Pruned

__all__ = ["applied", "apply", "decided"]


def apply(model: Model, plan: Plan, /, *, threads: int | None = None) -> Model:
    """The model with what the plan removes set to +0.0, or to the zero point, and the certificate in its metadata.

    Kept weights keep their bits. The masks are computed again from weights and rule, and compared with the plan.

    Raises:
        PlanError: the plan was made for another model, or was changed; the message names the weight and what differs.
    """
    return applied(model, plan, decided(model, plan, threads=threads))


def decided(model: Model, plan: Plan, /, *, threads: int | None = None) -> Decision:
    """What a plan keeps, computed again from the model's weights, and compared with the plan.

    Raises:
        PlanError: as `apply`.
    """
    found = find_weights(model, embeddings=True)
    weights = {weight.name: weight for weight in found.weights}
    refused = {refusal.name: refusal for refusal in found.refusals}
    chosen = [_same(weights.get(e.name), refused.get(e.name), e) for e in plan.entries]
    again = hashed(model, decide(model, chosen, plan.rule, threads=threads))
    entries = {entry.name: entry for entry in again.plan.entries}
    for planned in plan.entries:
        now = entries.get(planned.name)
        if now is None or now.sha256 != planned.sha256:
            raise PlanError(
                "plan must be made for this model, got one made for another: "
                f"weight {quote(planned.name)} has other values than the plan was made from"
            )
    for planned in plan.entries:
        now = entries[planned.name]
        if (now.kept_sha256, now.k, now.zeros) != (planned.kept_sha256, planned.k, planned.zeros):
            raise PlanError(
                f"plan keeps other elements of weight {quote(planned.name)} than its own rule does: it was changed, or "
                "made by a version that counts differently; make it again with `emp plan`"
            )
    return again


def applied(model: Model, plan: Plan, decision: Decision, /) -> Model:
    """`apply` for what was just decided with this plan from this model; values are changed as they are written."""
    patches: dict[str, Patch] = {e.name: Pruned(decision.weights[e.name], decision.kept[e.name]) for e in plan.entries}
    return model.replaced(patches, {KEY: partial(certify, plan)})


def _same(weight: Weight | None, refusal: Refusal | None, entry: Entry) -> Weight:
    """The planned weight as this model has it, or the reason why it is not the same one."""
    name, why = quote(entry.name), ""
    if weight is None:
        why = f"{name} cannot be pruned here: {refusal.reason}" if refusal else f"there is no weight {name}"
    elif weight.dtype != entry.dtype:
        why = f"weight {name} holds {weight.dtype}, the plan says {entry.dtype}"
    elif weight.shape != entry.shape:
        why = f"weight {name} has the shape {weight.shape}, the plan says {entry.shape}"
    elif weight.zero.words != entry.zero:
        why = f"weight {name} has the zero point {weight.zero.words}, the plan says {entry.zero}"
    if weight is None or why:
        raise PlanError(f"plan must be made for this model, got one made for another: {why}")
    return weight
