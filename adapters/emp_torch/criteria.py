"""Statistics of a model over batches, by hooks, and the scores that criteria make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from emp_core import ArgumentError, criteria
from emp_torch.screening import ClassSums
from emp_torch.weights import Weight, find_weights

__all__ = ["CRITERIA", "Statistics", "calibrate", "scores", "unit_f_statistics"]

Sums = TypeVar("Sums")

CRITERIA = ("magnitude", "wanda", "sensitivity", "taylor", "activation", "f_statistic")


@dataclass
class Statistics:
    """Sums over batches, by name of weight, on the weight's device.

    Attributes:
        inputs: Σx² of each input feature of linear and convolutional modules, float64.
        outputs: Σy² of each output unit, float64.
        gradients: Σg over batches, where a loss was given; in the weight's dtype, float32 at least.
        sensitivities: Σ|g| over batches, alike.
        classes: input features by class, where labels were given, float64.
        unit_classes: output units by class, float64.
        batches: number of batches seen.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    sensitivities: dict[str, Tensor] = field(default_factory=dict)
    classes: dict[str, ClassSums] = field(default_factory=dict)
    unit_classes: dict[str, ClassSums] = field(default_factory=dict)
    batches: int = 0


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    /,
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    labels: Callable[[Any], Tensor] | None = None,
) -> Statistics:
    """Run batches through a model and sum what the criteria need. The model's mode, weights and gradients stay.

    Args:
        model: any module; run in evaluation mode.
        batches: whatever ``loss`` or ``forward`` takes.
        loss: ``loss(model, batch)`` gives a number to differentiate; needed for `sensitivity` and `taylor`.
        forward: ``forward(model, batch)`` runs the model where there is no loss; ``model(batch)`` if not given.
        labels: ``labels(batch)`` gives one class per sample, integers; needed for `f_statistic`. Samples lie along the
            first axis of what goes into a module.

    Raises:
        ArgumentError: there is no batch, or not one label per sample.
    """
    found, statistics = find_weights(model, embeddings=True).weights, Statistics()
    modes = {module: module.training for module in model.modules()}
    before = {w.name: w.parameter.grad for w in found}
    now = _Now()
    with ExitStack() as stack:
        for weight, module in _users(model, found):
            hook = _Hook(weight, statistics, now)
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        model.eval()
        try:
            for batch in batches:
                statistics.batches += 1
                now.labels = None if labels is None else torch.as_tensor(labels(batch)).reshape(-1)
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
                        grad = grad.to(_at_least_float32(grad))  # sums of 16 bits soon stand still
                        _add(statistics.gradients, weight.name, grad)
                        _add(statistics.sensitivities, weight.name, grad.abs())
        finally:
            for module, mode in modes.items():
                module.training = mode
            for weight in found:
                weight.parameter.grad = before[weight.name]
    if not statistics.batches:
        raise ArgumentError("batches must hold at least one batch, got none")
    return statistics


def scores(
    weights: Iterable[Weight], criterion: str = "magnitude", /, *, statistics: Statistics | None = None
) -> dict[str, Tensor]:
    """Scores of each weight, of its shape, by name; but for `magnitude` float32 at least.

    Args:
        weights: from `find_weights`.
        criterion: `magnitude` |w|; `wanda` |w|·‖x‖; `sensitivity` Σ|g| over batches; `taylor` ``|w·Σg|``, the
            first-order change of the loss of all batches together when the weight is removed (see
            `emp_core.criteria.taylor`);
            `activation` the norm of the output that the weight contributes to, times |w|; `f_statistic` |w| and the
            F-statistic over classes of the feature that it reads, in equal shares (see `emp_core.criteria.combined`:
            all weights of one feature have one F, so only with their magnitudes do they differ).
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
        dtype = _at_least_float32(value)
        if criterion == "sensitivity":
            out[weight.name] = _of(statistics.sensitivities, weight)
        elif criterion == "taylor":
            out[weight.name] = criteria.taylor(value, _of(statistics.gradients, weight))
        elif criterion == "f_statistic":
            f = _of(statistics.classes, weight).f_statistic()
            out[weight.name] = criteria.combined(value.double(), _by_input(weight, value, f)).to(dtype)
        elif criterion == "wanda":
            norms = _of(statistics.inputs, weight).sqrt()
            out[weight.name] = _wanda(weight, value, norms)
        else:
            norms = _of(statistics.outputs, weight).sqrt().to(dtype)
            out[weight.name] = _activation(weight, value, norms)
    return out


def unit_f_statistics(weights: Iterable[Weight], statistics: Statistics, /) -> dict[str, Tensor]:
    """The F-statistic over classes of every output unit (neuron or channel), by name of weight.

    Args:
        weights: from `find_weights`.
        statistics: from `calibrate` with ``labels``.

    Raises:
        ArgumentError: the statistics lack a weight, or have fewer than two classes.
    """
    return {weight.name: _of(statistics.unit_classes, weight).f_statistic() for weight in weights}


def _wanda(weight: Weight, value: Tensor, norms: Tensor) -> Tensor:
    return value.abs() * _by_input(weight, value, norms).to(_at_least_float32(value))


def _activation(weight: Weight, value: Tensor, norms: Tensor) -> Tensor:
    groups = _groups(weight.module)
    if groups == 1 or weight.axis == 0:
        return criteria.wanda(value, norms, axis=weight.axis)
    # grouped and transposed: the first axis has the inputs of each group in turn, the second the outputs of one group
    per_input = norms.reshape(groups, -1).repeat_interleave(value.shape[0] // groups, 0)
    return value.abs() * per_input.reshape(*per_input.shape, *[1] * (value.dim() - 2))


def _by_input(weight: Weight, value: Tensor, inputs: Tensor) -> Tensor:
    """One number per input feature, in a form that broadcasts to the weight."""
    groups, axis = getattr(weight.module, "groups", 1), 1 - weight.axis
    if groups == 1 or weight.axis == 1:  # a transposed convolution's first axis is its input, group by group
        return inputs.reshape([-1 if d == axis else 1 for d in range(value.dim())])
    per_row = inputs.reshape(groups, -1).repeat_interleave(value.shape[0] // groups, 0)
    return per_row.reshape(*per_row.shape, *[1] * (value.dim() - 2))


@dataclass
class _Now:
    """What hooks know of the batch that runs."""

    labels: Tensor | None = None


class _Hook:
    """Adds up what goes in and out of one module: squares, and sums by class."""

    def __init__(self, weight: Weight, statistics: Statistics, now: _Now) -> None:
        self.weight, self.statistics, self.now = weight, statistics, now
        self.channel = 1 if isinstance(weight.module, nn.modules.conv._ConvNd) else -1

    def __call__(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        inputs = args or tuple(named.values())
        _add(self.statistics.inputs, self.weight.name, self._squares(inputs[0]))
        _add(self.statistics.outputs, self.weight.name, self._squares(output))
        if self.now.labels is not None:
            self._classes(self.statistics.classes, inputs[0], self.now.labels)
            self._classes(self.statistics.unit_classes, output, self.now.labels)

    def _classes(self, sums: dict[str, ClassSums], value: Tensor, labels: Tensor) -> None:
        units = value.detach().double().movedim(self.channel, -1)
        units = units.reshape(len(units), -1, units.shape[-1]).mean(1)
        if len(units) != len(labels):
            raise ArgumentError(
                f"labels must give one class for each of the {len(units)} samples that {self.weight.name} sees, "
                f"got {len(labels)}"
            )
        if self.weight.name not in sums:
            sums[self.weight.name] = ClassSums.of(units)
        sums[self.weight.name].add(units, labels.to(units.device))

    def _squares(self, value: Tensor) -> Tensor:
        axis = self.channel
        if axis == 1 and value.dim() == self.weight.parameter.dim() - 1:  # convolution without a batch
            axis = 0
        others = [d for d in range(value.dim()) if d != axis % value.dim()]
        return value.detach().double().square().sum(others) if others else value.detach().double().square()


def _users(model: nn.Module, found: Iterable[Weight]) -> Iterator[tuple[Weight, nn.Module]]:
    """Every weight with each module that can be watched using it: more than one where it is shared."""
    held = {id(weight.parameter): weight for weight in found}
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) or _is_conv1d(module):
            name = "weight_orig" if "weight_mask" in module._buffers else "weight"
            weight = held.get(id(module._parameters.get(name)))
            axis = 1 if _is_conv1d(module) or getattr(module, "transposed", False) else 0
            # one that uses it the other way round has other inputs than those counted
            if weight is not None and axis == weight.axis and _groups(module) == _groups(weight.module):
                yield weight, module


def _groups(module: nn.Module) -> int:
    return int(getattr(module, "groups", 1))


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _at_least_float32(value: Tensor) -> torch.dtype:
    """The dtype of a tensor, or float32 where that is wider."""
    return torch.promote_types(value.dtype, torch.float32)


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value.detach().clone()


def _of(sums: Mapping[str, Sums], weight: Weight) -> Sums:
    if weight.name not in sums:
        raise ArgumentError(
            f"statistics must hold weight {weight.name}, got none: its module ({weight.op}) was not run, has no hook, "
            "or there were no labels"
        )
    return sums[weight.name]
