"""Attention blocks: found in a model, with the parameters that their heads divide.

Knows ``nn.MultiheadAttention`` and blocks in the shapes that Hugging Face models have: separate linear layers for
query, key, value and output under any of the usual names (Llama, OPT, BART, T5, ViT), also where the output layer is in
a module beside the others (BERT), or GPT-2's ``c_attn`` and ``c_proj``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from emp_core import ArgumentError
from emp_torch.weights import Weight

__all__ = ["COUNTS", "KV_COUNTS", "Heads", "Part", "find_heads"]

NAMES = (
    ("q_proj", "k_proj", "v_proj", ("o_proj", "out_proj")),
    ("query", "key", "value", ("out", "dense", "o_proj")),
    ("q_lin", "k_lin", "v_lin", ("out_lin",)),
    ("q", "k", "v", ("o",)),
)
COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
KV_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
INNER = ("self", "attention")  # where a block holds query, key and value apart from its output layer
FUSED = ("qkv", "query_key_value", "qkv_proj", "wqkv", "in_proj", "in_proj_qkv", "to_qkv", "c_attn")


@dataclass(frozen=True)
class Part:
    """Where the query, key, value or output weight of a block lies.

    Attributes:
        module, attribute: that hold the parameter.
        rows: whether the units that heads divide are its first axis (else its last).
        third: which third of that axis, where one parameter holds queries, keys and values.
        bias_third: the same of the bias, where only that one is shared.
    """

    module: nn.Module
    attribute: str
    rows: bool
    third: int | None = None
    bias_third: int | None = None

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter, also where ``torch.nn.utils.prune`` put a mask before it."""
        self.refuse_computed()
        return self._weight(self.attribute).parameter

    @property
    def value(self) -> Tensor:
        """What the block computes with: the parameter, times its mask where it has one."""
        self.refuse_computed()
        return self._weight(self.attribute).value

    @property
    def masked(self) -> bool:
        """Whether ``torch.nn.utils.prune`` put a mask before the parameter or before the bias."""
        return any(f"{name}_mask" in self.module._buffers for name in (self.attribute, self._bias_name))

    def refuse_computed(self, *, masked: bool = False) -> None:
        """Refuse what is computed from other parameters, and if asked for, what is masked.

        Raises:
            ArgumentError: the parameter is no plain one.
        """
        where = f"{self.attribute} of {type(self.module).__name__}"
        said = f"heads must be of a block whose weights are parameters, got one in which {where} is"
        if masked and self.masked:
            raise ArgumentError(f"{said} masked; torch.nn.utils.prune.remove makes masks permanent")
        if self.module._parameters.get(self.attribute) is None and f"{self.attribute}_mask" not in self.module._buffers:
            raise ArgumentError(f"{said} computed from others")

    def refresh(self) -> None:
        """After a change of the parameter or the bias: what is masked follows."""
        for name in (self.attribute, self._bias_name):
            if f"{name}_mask" in self.module._buffers:
                self._weight(name).refresh()

    def _weight(self, attribute: str) -> Weight:
        return Weight(attribute, self.module, attribute, 0, type(self.module).__name__)

    def units(self, tensor: Tensor) -> Tensor:
        """A view of the parameter's weight, gradient or bias with the units that heads divide first."""
        view = tensor if self.rows or tensor.dim() == 1 else tensor.T
        third = self.bias_third if tensor.dim() == 1 and self.third is None else self.third
        return view if third is None else view.tensor_split(3)[third]

    @property
    def bias(self) -> Tensor | None:
        """The bias of queries, keys or values."""
        held, name = self.module._parameters, self._bias_name
        found: Tensor | None = held.get(f"{name}_orig" if f"{name}_mask" in self.module._buffers else name)
        return found

    @property
    def _bias_name(self) -> str:
        return "in_proj_bias" if self.attribute.endswith("proj_weight") else "bias"


@dataclass(frozen=True)
class Heads:
    """The heads of one attention block.

    Attributes:
        name: of the block in the model.
        module: the block.
        count: number of query heads.
        kv_count: number of key and value heads; fewer than `count` where several queries share one.
        parts: `q`, `k`, `v`, `o`.
    """

    name: str
    module: nn.Module = field(repr=False)
    count: int
    kv_count: int
    parts: Mapping[str, Part] = field(repr=False)

    def slices(self, part: str, tensor: Tensor | None = None) -> Tensor:
        """What each head owns of a weight (or of ``tensor``, of the weight's shape): (heads, numbers)."""
        held = self.parts[part]
        units = held.units(held.value.detach() if tensor is None else tensor)
        return units.reshape(self.count if part in "qo" else self.kv_count, -1)


def find_heads(model: nn.Module, /) -> tuple[Heads, ...]:
    """Every attention block of a model that is known here, in the model's order.

    Blocks that look like attention and are not listed are named in a `UserWarning`, each with the reason.
    """
    modules = dict(model.named_modules())
    found = tuple(heads for name, module in modules.items() if (heads := _recognised(name, module)) is not None)
    known = [f"{heads.name}." for heads in found]
    missing = {
        name: reason
        for name, module in modules.items()
        if (reason := _reason(module)) and not any(f"{name}.".startswith(prefix) for prefix in known)
    }
    if missing:
        said = "; ".join(f"{name or 'the model itself'} {reason}" for name, reason in missing.items())
        warnings.warn(f"attention blocks that are not known, and not listed: {said}", UserWarning, stacklevel=2)
    return found


def _reason(module: nn.Module) -> str:
    """Why a block that looks like attention is none that is known; empty where it does not look like it."""
    layers = {name: layer for name, layer in module.named_children() if getattr(layer, "weight", None) is not None}
    fused = next((name for name in layers if name.lower().strip("_") in FUSED), "")
    named = "attention" in type(module).__name__.lower()
    if fused and (named or _count(module, COUNTS) is not None):
        return f"keeps queries, keys and values in one layer, '{fused}'"
    if not named or sum(isinstance(m, nn.Linear) for m in layers.values()) < 3:
        return ""
    if _count(module, COUNTS) is None:
        return "does not say how many heads it has"
    return f"has layers of names that are not known: {', '.join(layers)}"


def _recognised(name: str, module: nn.Module) -> Heads | None:
    if isinstance(module, nn.MultiheadAttention):
        output = Part(module.out_proj, "weight", False)
        if module._qkv_same_embed_dim:
            parts = {p: Part(module, "in_proj_weight", True, i) for i, p in enumerate("qkv")}
        else:
            parts = {p: Part(module, f"{p}_proj_weight", True, bias_third=i) for i, p in enumerate("qkv")}
        return Heads(name, module, module.num_heads, module.num_heads, {**parts, "o": output})
    found = _separate(name, module, module)
    if found is not None:
        return found
    for part in INNER:  # the output layer is not within the block, but beside it
        inner, beside = getattr(module, part, None), getattr(module, "output", None)
        last = getattr(beside, "dense", None)
        if isinstance(inner, nn.Module) and isinstance(last, nn.Linear) and _separate(name, inner, inner) is None:
            return _separate(name, inner, beside)
    return None


def _separate(name: str, module: nn.Module, outer: Any) -> Heads | None:
    """A block with layers of its own; ``outer`` holds the output layer."""
    count = _count(module, COUNTS)
    if count is None:
        return None
    fused, last = getattr(module, "c_attn", None), getattr(module, "c_proj", None)
    if fused is not None and last is not None:
        first = isinstance(fused, nn.Linear)
        parts = {p: Part(fused, "weight", first, i) for i, p in enumerate("qkv")}
        return Heads(name, module, count, count, {**parts, "o": Part(last, "weight", not isinstance(last, nn.Linear))})
    for q, k, v, outputs in NAMES:
        layers = [layer for part in (q, k, v) if isinstance(layer := getattr(module, part, None), nn.Linear)]
        last = next((found for o in outputs if (found := getattr(outer, o, None)) is not None), None)
        if len(layers) < 3 or not isinstance(last, nn.Linear) or last.in_features != layers[0].out_features:
            continue
        parts = {p: Part(layer, "weight", True) for p, layer in zip("qkv", layers, strict=True)}
        kv = _count(module, KV_COUNTS) or count
        return Heads(name, module, count, kv, {**parts, "o": Part(last, "weight", False)})
    return None


def _count(module: nn.Module, names: Iterable[str]) -> int | None:
    """A number of heads: the block's own, or its configuration's."""
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return None
