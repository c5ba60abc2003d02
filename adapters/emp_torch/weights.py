"""Which parameters of a model may be pruned, and which axis of each is its output."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from emp_core import ArgumentError

__all__ = ["Found", "Weight", "find_weights", "refuse_sums", "unwrapped"]

TABLES = (nn.Embedding, nn.EmbeddingBag)
LARGEST = math.sqrt(sys.float_info.max)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # others cannot be masked, counted and hashed


@dataclass(frozen=True)
class Weight:
    """A parameter that may be pruned.

    Attributes:
        name: as ``model.named_parameters()`` has it (the first one, where several modules share it), without what
            ``torch.compile`` and ``DataParallel`` put before it.
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
class Computed:
    """What would be a weight, were it not computed from other parameters of its module."""

    name: str
    sources: tuple[str, ...]


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

    Biases, norms and parameters of modules that are not known here are no weights. Those that are computed from other
    parameters (``torch.nn.utils.parametrize``, weight and spectral norm) are left alone, with the reason.

    Args:
        model: any module.
        include, exclude: patterns of names (``*`` and ``?``); each must match something.
        min_size: weights with fewer elements are left alone.
        embeddings: also tables of embeddings, and whatever shares its parameter with one, as heads of language models
            do.

    Raises:
        ArgumentError: a pattern that matches nothing.

    >>> [w.name for w in find_weights(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))).weights]
    ['0.weight', '2.weight']
    """
    if isinstance(min_size, bool) or not isinstance(min_size, int) or min_size < 1:
        raise ArgumentError(f"min_size must be an integer ≥ 1, got {min_size!r}")
    everything, tables = dict[object, Weight | Computed](), set[int]()
    for item in _candidates(model):
        if isinstance(item, Computed):
            everything[item.name] = item
            continue
        everything.setdefault(id(item.parameter), item)
        if isinstance(item.module, TABLES):  # by any of those that share it, whichever comes first
            tables.add(id(item.parameter))
    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(item.name, pattern) for item in everything.values()):
                raise ArgumentError(f"{option} must match names of weights, got {pattern!r}, which matches none")
    weights, refusals = list[Weight](), list[tuple[str, str]]()
    for item in everything.values():
        reason: str | None
        if include and not any(fnmatchcase(item.name, p) for p in include):
            reason = "include leaves it out"
        elif any(fnmatchcase(item.name, p) for p in exclude):
            reason = "exclude leaves it out"
        elif isinstance(item, Computed):
            reason = f"it is computed from {', '.join(item.sources)}, which is not pruned"
        else:
            reason = _refusal(item.parameter, min_size, id(item.parameter) in tables and not embeddings)
        if reason is not None:
            refusals.append((item.name, reason))
        elif isinstance(item, Weight):
            weights.append(item)
    return Found(tuple(weights), tuple(refusals))


def _refusal(parameter: nn.Parameter, min_size: int, table: bool) -> str | None:
    if isinstance(parameter, UninitializedParameter):
        return "it has no shape yet: run the model once"
    if parameter.is_meta:
        return "it has no values (device meta)"
    if parameter.dtype not in DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        return f"it holds {parameter.dtype}, not one of {known}"
    if parameter.numel() < min_size:
        return f"it has {parameter.numel()} elements, fewer than min_size"
    if table:
        return "it is a table of embeddings; ask for those with embeddings"
    return None


def refuse_sums(values: Iterable[tuple[str, Tensor]], what: str = "weights") -> None:
    """Refuse tensors, given by name, whose sums no certificate can hold, before anything is changed.

    Raises:
        ArgumentError: (Σ|w|)² is beyond the numbers; only float64 reaches that.
    """
    for name, value in values:
        if value.dtype != torch.float64 or not value.numel():
            continue
        size = value.detach().abs()
        if bool(size.isfinite().all()) and not float(size.sum()) <= LARGEST:  # NaN and inf are named by the plan
            raise ArgumentError(
                f"{what} must have a sum of magnitudes ≤ {LARGEST:.3g}, got {float(size.sum()):.3g} in {name}"
            )


def _candidates(model: nn.Module) -> Iterator[Weight | Computed]:
    for prefix, module in _named(model):
        for attribute, axis in _axes(module):
            name = f"{prefix}.{attribute}" if prefix else attribute
            masked = f"{attribute}_orig" in module._parameters and f"{attribute}_mask" in module._buffers
            if module._parameters.get(attribute) is not None or masked:
                yield Weight(name, module, attribute, axis, type(module).__name__)
            elif sources := _sources(module, attribute):
                yield Computed(name, sources)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model within ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``."""
    while inner := _wrapped(model):
        model = model._modules[inner] or model
    return model


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, by the name that it has where nothing is wrapped."""
    names = {"": ""}
    owners = dict(model.named_modules())
    for path, module in owners.items():
        if path:
            parent, _, last = path.rpartition(".")
            outer = names[parent]
            names[path] = outer if _wrapped(owners[parent]) == last else f"{outer}.{last}" if outer else last
        yield names[path], module


def _wrapped(module: nn.Module) -> str:
    """The name under which a wrapper holds the module; empty where it is none."""
    if "_orig_mod" in module._modules:  # of torch.compile; its class is not imported, which takes seconds
        return "_orig_mod"
    return "module" if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else ""


def _axes(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Names of what may be pruned in a module of this kind, with the axis of their output."""
    names: Sequence[str]
    if isinstance(module, nn.RNNBase):  # its own list: norms of weights, as of `weight_norm`, begin in the same way
        names = [name for name in module._flat_weights_names if name.startswith("weight")]
    elif isinstance(module, nn.RNNCellBase):
        names = ("weight_ih", "weight_hh")
    elif isinstance(module, nn.MultiheadAttention):
        names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    elif isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, *TABLES)) or _is_conv1d(module):
        names = ("weight",)
    else:
        names = ()
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    axis = 1 if isinstance(module, transposed) or _is_conv1d(module) else 0
    for name in names:
        yield name, axis


def _is_conv1d(module: nn.Module) -> bool:
    """A linear layer with its weight transposed, as GPT-2 has."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _sources(module: nn.Module, attribute: str) -> tuple[str, ...]:
    """The parameters from which a module computes what would be its weight: parametrized, or by weight or spectral
    norm.
    """
    parametrized = getattr(module, "parametrizations", {})
    if attribute in parametrized:
        return tuple(f"parametrizations.{attribute}.{name}" for name, _ in parametrized[attribute].named_parameters())
    return tuple(name for name in module._parameters if name in {f"{attribute}_{end}" for end in ("g", "v", "orig")})
