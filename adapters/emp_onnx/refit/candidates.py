"""Which weights of a model can be refitted, and why the others cannot."""

from __future__ import annotations

from typing import Any

from emp_onnx.calibration.finding import able
from emp_onnx.errors import ModelError
from emp_onnx.files.model_io import Model
from emp_onnx.weights.find import NOTHING, Refusal, Weight, find_weights

__all__ = ["candidates"]


def candidates(model: Model, /, **chosen: Any) -> tuple[tuple[Weight, ...], tuple[Refusal, ...]]:
    """The weights that can be refitted, and refusals of all others.

    Args:
        model: the model.
        chosen: see `find_weights`.

    Raises:
        ModelError: there is none.
    """
    found = find_weights(model, **chosen)
    weights, refused = [], list(found.refusals)
    for weight in found.weights:
        if not able(weight):
            reason = _why_not(weight)
        elif model.tensors[weight.name].storage == "sparse":
            reason = "stored sparse: not refitted"
        else:
            weights.append(weight)
            continue
        refused.append(
            Refusal(weight.name, weight.op, weight.shape, "refit", reason, weight.uses, weight.nodes, weight.tensor)
        )
    if not weights:
        reasons = "; ".join(sorted({r.reason for r in refused})[:4])
        raise ModelError(f"nothing in {model.origin} can be pruned: {reasons or NOTHING}")
    return tuple(weights), tuple(refused)


def _why_not(weight: Weight) -> str:
    if weight.zero.quantised and weight.zero.scale is None:
        return (
            f"{weight.dtype} weights without a scale of their own, which {weight.op} reads, are not refitted: refit "
            f"the model of floats, and quantise that (or prune this one without a refit)"
        )
    return f"{weight.dtype} weights are not refitted"
