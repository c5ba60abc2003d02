"""Statistics of a model over batches, by hooks, and the scores that criteria make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from emp_core import ArgumentError, criteria
from emp_torch.weights import Weight, find_weights

__all__ = ["CRITERIA", "Statistics", "calibrate", "scores"]

CRITERIA = ("magnitude", "wanda", "saliency", "taylor", "activation")


@dataclass
class Statistics:
    """Sums over batches, by name of weight; float64 on the weight's device.

    Attributes:
        inputs: Σx² of each input feature of linear, convolutional and attention modules.
        outputs: Σy² of each output unit.
        gradients: Σ|g| over batches, in the weight's dtype.
        taylor: Σ|w·g| over batches.
        samples: number of batches seen.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    taylor: dict[str, Tensor] = field(default_factory=dict)
    samples: int = 0


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    /,
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> Statistics:
    """Run batches through a model and sum what the criteria need. The model's mode, weights and gradients stay.

    Args:
        model: any module; run in evaluation mode.
        batches: whatever ``loss`` or ``forward`` takes.
        loss: ``loss(model, batch)`` gives a number to differentiate; needed for `saliency` and `taylor`.
        forward: ``forward(model, batch)`` runs the model where there is no loss; ``model(batch)`` if not given.

    Raises:
        ArgumentError: there is no batch.
    """
    found, statistics = find_weights(model, embeddings=True).weights, Statistics()
    modes = {module: module.training for module in model.modules()}
    before = {w.name: w.parameter.grad for w in found}
    with ExitStack() as stack:
        for weight in found:
            if isinstance(weight.module, (nn.Linear, nn.modules.conv._ConvNd)) or _is_conv1d(weight.module):
                hook = _Hook(weight, statistics)
                stack.callback(weight.module.register_forward_hook(hook).remove)
        model.eval()
        try:
            for batch in batches:
                statistics.samples += 1
                if loss is None:
                    with torch.no_grad():
                        forward(model, batch) if forward is not None else model(batch)
                    continue
                with torch.enable_grad():
                    value = loss(model, batch)
                    held = [w for w in found if w.parameter.requires_grad]
                    grads = torch.autograd.grad(value, [w.parameter for w in held], allow_unused=True)
                for weight, grad in zip(held, grads, strict=True):
                    if grad is not None:
                        _add(statistics.gradients, weight.name, grad.abs())
                        _add(statistics.taylor, weight.name, (grad * weight.parameter.detach()).abs())
        finally:
            for module, mode in modes.items():
                module.training = mode
            for weight in found:
                weight.parameter.grad = before[weight.name]
    if not statistics.samples:
        raise ArgumentError("batches must hold at least one batch, got none")
    return statistics


def scores(
    weights: Iterable[Weight], criterion: str = "magnitude", /, *, statistics: Statistics | None = None
) -> dict[str, Tensor]:
    """Scores of each weight, of its shape, by name.

    Args:
        weights: from `find_weights`.
        criterion: `magnitude` |w|; `wanda` |w|·‖x‖; `saliency` Σ|g|; `taylor` Σ|w·g|; `activation` the norm of the
            output that the weight contributes to, times |w|.
        statistics: from `calibrate`, for all but `magnitude`.

    Raises:
        ArgumentError: the criterion is not known, or the statistics lack a weight.
    """
    if criterion not in CRITERIA:
        raise ArgumentError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
    out = {}
    for weight in weights:
        value = weight.value.detach()
        if criterion == "magnitude":
            out[weight.name] = value
            continue
        if statistics is None:
            raise ArgumentError(f"criterion {criterion} needs statistics from calibrate, got none")
        if criterion in ("saliency", "taylor"):
            out[weight.name] = _of(statistics.gradients if criterion == "saliency" else statistics.taylor, weight)
        elif criterion == "wanda":
            norms = _of(statistics.inputs, weight).sqrt()
            out[weight.name] = _wanda(weight, value, norms)
        else:
            norms = _of(statistics.outputs, weight).sqrt().to(value.dtype)
            out[weight.name] = criteria.wanda(value, norms, axis=weight.axis)
    return out


def _wanda(weight: Weight, value: Tensor, norms: Tensor) -> Tensor:
    groups = getattr(weight.module, "groups", 1)
    if groups == 1:
        scored: Tensor = criteria.wanda(value, norms.to(value.dtype), axis=1 - weight.axis)
        return scored
    if weight.axis == 1:  # transposed convolution: its first axis is the input, group by group
        return criteria.wanda(value, norms.to(value.dtype), axis=0)
    per_row = norms.to(value.dtype).reshape(groups, -1).repeat_interleave(value.shape[0] // groups, 0)
    return value.abs() * per_row.reshape(*per_row.shape, *[1] * (value.dim() - 2))


class _Hook:
    """Adds squares of what goes in and out of one module."""

    def __init__(self, weight: Weight, statistics: Statistics) -> None:
        self.weight, self.statistics = weight, statistics
        self.channel = 1 if isinstance(weight.module, nn.modules.conv._ConvNd) else -1

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        _add(self.statistics.inputs, self.weight.name, self._squares(inputs[0]))
        _add(self.statistics.outputs, self.weight.name, self._squares(output))

    def _squares(self, value: Tensor) -> Tensor:
        axis = self.channel
        if axis == 1 and value.dim() == self.weight.parameter.dim() - 1:  # convolution without a batch
            axis = 0
        others = [d for d in range(value.dim()) if d != axis % value.dim()]
        return value.detach().double().square().sum(others) if others else value.detach().double().square()


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value.detach().clone()


def _of(sums: Mapping[str, Tensor], weight: Weight) -> Tensor:
    if weight.name not in sums:
        raise ArgumentError(
            f"statistics must hold weight {weight.name}, got none: its module ({weight.op}) was not run, or has no hook"
        )
    return sums[weight.name]
