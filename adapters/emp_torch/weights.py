"""Which parameters of a model may be pruned, and which axis of each is its output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from emp_core import ArgumentError

__all__ = ["Found", "Weight", "find_weights"]


@dataclass(frozen=True)
class Weight:
    """A parameter that may be pruned.

    Attributes:
        name: as ``model.named_parameters()`` has it (the first one, where several modules share it).
        module: that holds it.
        attribute: its name there.
        axis: of its output units.
        op: the module's class, in words.
    """

    name: str
    module: nn.Module = field(repr=False)
    attribute: str
    axis: int
    op: str

    @property
    def value(self) -> Tensor:
        """The tensor that the module computes with.

        Where ``torch.nn.utils.prune`` put a mask before it, the product of both: the module's attribute is that only
        until an optimizer steps or a state dict is loaded, and again after the next forward pass.
        """
        mask = self._mask
        return self.parameter if mask is None else self.parameter * mask

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter behind it, also where ``torch.nn.utils.prune`` put a mask before it."""
        found = self.module._parameters.get(self.attribute)
        if found is None:
            found = self.module._parameters[f"{self.attribute}_orig"]
        assert found is not None
        return found

    @property
    def _mask(self) -> Tensor | None:
        return None if self.attribute in self.module._parameters else self.module._buffers[f"{self.attribute}_mask"]

    def refresh(self) -> None:
        """After a change of the parameter: the attribute of a masked module follows, without a forward pass."""
        if self._mask is not None:
            with torch.enable_grad():  # as the forward pass makes it
                setattr(self.module, self.attribute, self.value)


@dataclass(frozen=True)
class Found:
    """The weights of a model, and the names of those left alone, with the reason."""

    weights: tuple[Weight, ...]
    refusals: tuple[tuple[str, str], ...]


def find_weights(
    model: nn.Module,
    /,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_size: int = 1,
    embeddings: bool = False,
) -> Found:
    """The weights of linear, convolutional, bilinear, recurrent and attention modules, in the model's order.

    Biases, norms and parameters of modules that are not known here are no weights.

    Args:
        model: any module.
        include, exclude: patterns of names (``*`` and ``?``); each must match something.
        min_size: weights with fewer elements are left alone.
        embeddings: also tables of embeddings.

    Raises:
        ArgumentError: a pattern that matches nothing.

    >>> [w.name for w in find_weights(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))).weights]
    ['0.weight', '2.weight']
    """
    if isinstance(min_size, bool) or not isinstance(min_size, int) or min_size < 1:
        raise ArgumentError(f"min_size must be an integer ≥ 1, got {min_size!r}")
    seen, everything = dict[int, str](), list[Weight]()
    refusals = list[tuple[str, str]]()
    for weight in _candidates(model):
        parameter = weight.parameter
        if id(parameter) not in seen:
            seen[id(parameter)] = weight.name
            everything.append(weight)
    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(w.name, pattern) for w in everything):
                raise ArgumentError(f"{option} must match names of weights, got {pattern!r}, which matches none")
    weights = []
    for weight in everything:
        reason = _refusal(weight, include, exclude, min_size, embeddings)
        if reason is None:
            weights.append(weight)
        else:
            refusals.append((weight.name, reason))
    return Found(tuple(weights), tuple(refusals))


def _refusal(
    weight: Weight, include: Sequence[str], exclude: Sequence[str], min_size: int, embeddings: bool
) -> str | None:
    parameter = weight.parameter
    if include and not any(fnmatchcase(weight.name, p) for p in include):
        return "include leaves it out"
    if any(fnmatchcase(weight.name, p) for p in exclude):
        return "exclude leaves it out"
    if isinstance(parameter, UninitializedParameter):
        return "it has no shape yet: run the model once"
    if parameter.is_meta:
        return "it has no values (device meta)"
    if not parameter.is_floating_point():
        return f"it holds {parameter.dtype}, not floating-point numbers"
    if parameter.numel() < min_size:
        return f"it has {parameter.numel()} elements, fewer than min_size"
    if "Embedding" in weight.op and not embeddings:
        return "it is a table of embeddings; ask for those with embeddings"
    return None


def _candidates(model: nn.Module) -> Iterator[Weight]:
    for prefix, module in model.named_modules():
        for attribute in _held(module):
            axis = _axis(module, attribute)
            if axis is not None:
                name = f"{prefix}.{attribute}" if prefix else attribute
                yield Weight(name, module, attribute, axis, type(module).__name__)


def _held(module: nn.Module) -> list[str]:
    """Names of the module's own parameters; of those pruned with torch.nn.utils.prune the name before."""
    masked = {name[: -len("_mask")] for name in module._buffers if name.endswith("_mask")}
    names = []
    for name, parameter in module._parameters.items():
        if parameter is not None:
            base = name[: -len("_orig")] if name.endswith("_orig") and name[: -len("_orig")] in masked else name
            names.append(base)
    return names


def _axis(module: nn.Module, attribute: str) -> int | None:
    """The output axis of a parameter that may be pruned; None for all others."""
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    if isinstance(module, transposed):
        return 1 if attribute == "weight" else None
    if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag)):
        return 0 if attribute == "weight" else None
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return 0 if attribute.startswith("weight") else None
    if isinstance(module, nn.MultiheadAttention):
        return 0 if attribute.endswith("proj_weight") else None
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # a linear layer with its weight transposed
        return 1 if attribute == "weight" else None
    return None
