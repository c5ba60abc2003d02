"""Do what a plan says, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from emp_onnx.certificate import KEY, certify
from emp_onnx.errors import PlanError, quote
from emp_onnx.model_io import Model
from emp_onnx.plan import Mask, Plan, decide, hash_mask, hash_values
from emp_onnx.weights import Refusal, Weight, find_weights

__all__ = ["apply", "apply_masks", "planned_masks"]


def apply(model: Model, plan: Plan, /, *, threads: int | None = None) -> Model:
    """The model with the weights that the plan removes set to +0.0, and with the certificate in its metadata.

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
    found = find_weights(model)
    weights = {weight.name: weight for weight in found.weights}
    refused = {refusal.name: refusal for refusal in found.refusals}
    chosen = [_same(model, weights.get(e.name), refused.get(e.name), e.name, e.shape, e.sha256) for e in plan.entries]
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
    pruned = {}
    for entry in plan.entries:
        values = model.values(entry.name).copy()
        values[~masks[entry.name]] = np.float32(0.0)
        pruned[entry.name] = values
    return model.replaced(pruned, {KEY: certify(plan, pruned)})


def _same(
    model: Model, weight: Weight | None, refusal: Refusal | None, name: str, shape: tuple[int, ...], sha256: str
) -> Weight:
    """The planned weight as this model has it, or the reason why it is not the same one."""
    why = ""
    if weight is None:
        why = (
            f"{quote(name)} cannot be pruned here: {refusal.reason}" if refusal else f"there is no weight {quote(name)}"
        )
    elif weight.shape != shape:
        why = f"weight {quote(name)} has the shape {weight.shape}, the plan says {shape}"
    elif hash_values(model.values(name)) != sha256:
        why = f"weight {quote(name)} has other values than the plan was made from"
    if weight is None or why:
        raise PlanError(f"plan must be made for this model, got one made for another: {why}")
    return weight
