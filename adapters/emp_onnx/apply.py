"""Do what a plan says, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from emp_onnx.certificate import KEY, certify
from emp_onnx.errors import PlanError, quote
from emp_onnx.model_io import Model
from emp_onnx.plan import Entry, Mask, Plan, decide, hash_mask, hash_values
from emp_onnx.weights import Refusal, Weight, find_weights

__all__ = ["apply", "apply_masks", "planned_masks"]


def apply(model: Model, plan: Plan, /, *, threads: int | None = None) -> Model:
    """The model with the weights that the plan removes set to +0.0 or their zero point, and with the certificate in its metadata.

    Kept weights keep their bits. The masks are computed again from weights and rule, and compared with the plan.

    Raises:
        PlanError: the plan was made for another model, or was changed; the message names the weight and what differs.
    """
    return apply_masks(model, plan, planned_masks(model, plan, threads=threads))


def planned_masks(model: Model, plan: Plan, /, *, threads: int | None = None) -> dict[str, Mask]:
    """The masks that a plan describes, computed again from the model's weights, and compared with the plan.

    Raises:
        PlanError: as `apply`.
    """
    found = find_weights(model, embeddings=True)
    weights = {weight.name: weight for weight in found.weights}
    refused = {refusal.name: refusal for refusal in found.refusals}
    chosen = [_same(model, weights.get(e.name), refused.get(e.name), e) for e in plan.entries]
    again, masks = decide(model, chosen, plan.rule, threads=threads)
    for planned, now in zip(plan.entries, again.entries, strict=True):
        if hash_mask(masks[planned.name]) != planned.kept_sha256 or (planned.k, planned.zeros) != (now.k, now.zeros):
            raise PlanError(
                f"plan keeps other elements of weight {quote(planned.name)} than its own rule does: it was changed, or "
                "made by a version that counts differently; make it again with `emp plan`"
            )
    return masks


def apply_masks(model: Model, plan: Plan, masks: Mapping[str, Mask], /) -> Model:
    """`apply` for masks that were just computed with this plan from this model."""
    zeros = {weight.name: weight.zero for weight in find_weights(model, embeddings=True).weights}
    pruned = {e.name: zeros[e.name].filled(model.values(e.name), masks[e.name]) for e in plan.entries}
    nonzero = {name: zeros[name].scores(values) != 0 for name, values in pruned.items()}
    return model.replaced(pruned, {KEY: certify(plan, pruned, nonzero)})


def _same(model: Model, weight: Weight | None, refusal: Refusal | None, entry: Entry) -> Weight:
    """The planned weight as this model has it, or the reason why it is not the same one."""
    name, why = quote(entry.name), ""
    if weight is None:
        why = f"{name} cannot be pruned here: {refusal.reason}" if refusal else f"there is no weight {name}"
    elif weight.dtype != entry.dtype:
        why = f"weight {name} holds {weight.dtype}, the plan says {entry.dtype}"
    elif weight.shape != entry.shape:
        why = f"weight {name} has the shape {weight.shape}, the plan says {entry.shape}"
    elif hash_values(model.values(weight.name)) != entry.sha256:
        why = f"weight {name} has other values than the plan was made from"
    elif weight.zero.words != entry.zero:
        why = f"weight {name} has the zero point {weight.zero.words}, the plan says {entry.zero}"
    if weight is None or why:
        raise PlanError(f"plan must be made for this model, got one made for another: {why}")
    return weight
