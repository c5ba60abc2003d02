"""Attention heads: scored by their own slices of the weights or by Taylor, set to zero, or physically removed.

Knows ``nn.MultiheadAttention`` and blocks in the shapes that Hugging Face models have: separate linear layers for
query, key, value and output under any of the usual names (Llama, OPT, BART, T5, ViT), also where the output layer is in
a module beside the others (BERT), or GPT-2's ``c_attn`` and ``c_proj``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from emp_core import ArgumentError, criteria
from emp_torch.attention import SmallerAttention

__all__ = ["Heads", "Part", "find_heads", "head_scores", "remove_heads", "zero_heads"]

NAMES = (
    ("q_proj", "k_proj", "v_proj", ("o_proj", "out_proj")),
    ("query", "key", "value", ("out", "dense", "o_proj")),
    ("q_lin", "k_lin", "v_lin", ("out_lin",)),
    ("q", "k", "v", ("o",)),
)
COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
KV_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
WIDTHS = ("all_head_size", "split_size", "inner_dim")
INNER = ("self", "attention")  # where a block holds query, key and value apart from its output layer
FUSED = ("qkv", "query_key_value", "qkv_proj", "wqkv", "in_proj", "in_proj_qkv", "to_qkv", "c_attn")
BIAS_TABLE = "relative_position_bias_table"  # one column per head (Swin, BEiT)


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
        """The parameter."""
        found = self.module._parameters[self.attribute]
        assert found is not None
        return found

    def units(self, tensor: Tensor) -> Tensor:
        """A view of the parameter's weight, gradient or bias with the units that heads divide first."""
        view = tensor if self.rows or tensor.dim() == 1 else tensor.T
        third = self.bias_third if tensor.dim() == 1 and self.third is None else self.third
        return view if third is None else view.tensor_split(3)[third]

    @property
    def bias(self) -> Tensor | None:
        """The bias of queries, keys or values."""
        name = "in_proj_bias" if self.attribute.endswith("proj_weight") else "bias"
        found: Tensor | None = self.module._parameters.get(name)
        return found


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
        units = held.units(held.parameter.detach() if tensor is None else tensor)
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


def head_scores(
    heads: Iterable[Heads],
    /,
    *,
    batches: Iterable[Any] | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    norm: float = 2,
) -> dict[str, Tensor]:
    """One score per head, by block.

    Without a loss: the Ln norm of all that a head owns of query, key, value and output weights (shared keys and
    values count for each head that reads them). With one, Taylor: the mean over batches of ``|∂L/∂ξ|``, where ξ is a
    gate on the head's output; that is ``|Σ w·g|`` over its slice of the output weights (Michel et al., arXiv
    1905.10650).

    Args:
        heads: from `find_heads`.
        batches, loss: ``loss(batch)`` gives a number that depends on the blocks.
        norm: n ≥ 1 of the norm.

    Raises:
        ArgumentError: one of batches and loss without the other, no batch, or a block the loss does not depend on.
    """
    blocks = tuple(heads)
    if (batches is None) != (loss is None):
        raise ArgumentError("batches and loss must come together, got one of them")
    if batches is None or loss is None:
        return {h.name: criteria.heads(*(h.slices(p).double() for p in "qkvo"), norm=norm) for h in blocks}
    sums, count = dict[str, Tensor](), 0
    for batch in batches:
        grads = torch.autograd.grad(loss(batch), [h.parts["o"].parameter for h in blocks], allow_unused=True)
        for h, grad in zip(blocks, grads, strict=True):
            if grad is None:
                raise ArgumentError(f"loss must depend on every block, got one that does not on {h.name}")
            score = criteria.taylor(h.slices("o").double(), h.slices("o", grad).double(), axis=1)
            sums[h.name] = sums[h.name] + score if h.name in sums else score
        count += 1
    if not count:
        raise ArgumentError("batches must hold at least one batch, got none")
    return {name: total / count for name, total in sums.items()}


@torch.no_grad()
def zero_heads(heads: Heads, keep: Any, /) -> None:
    """Set all that the other heads own to zero, biases of query, key and value included: shapes stay."""
    kept, kv = _kept(heads, keep, shared=False)
    for name, part in heads.parts.items():
        mask = kept if name in "qo" else kv
        units = part.units(part.parameter.data)
        each = mask.repeat_interleave(units.shape[0] // mask.numel()).to(units.device)
        units[~each] = 0
        if name != "o" and part.bias is not None:
            part.units(part.bias.data)[~each] = 0


def remove_heads(model: nn.Module, heads: Heads, keep: Any, /) -> nn.Module:
    """Take the other heads out of a model: same outputs as `zero_heads`, fewer multiplications.

    Linear layers become smaller and the block's counts follow; an ``nn.MultiheadAttention``, which cannot be narrower
    than its model, is replaced by a `SmallerAttention` of the same call.

    Args:
        model: that holds the block; changed in place.
        heads: of the block, from `find_heads`.
        keep: booleans, one per head; where several heads share keys and values, all of such a group or none.

    Returns:
        The block as it is now.

    Raises:
        ArgumentError: keep does not fit, keeps no head, or divides a group; or the block's positions have a bias for
            every head that other blocks share (T5), so that only `zero_heads` can be done.
    """
    kept, kv = _kept(heads, keep, shared=True)
    if hasattr(heads.module, "has_relative_attention_bias") and not bool(kept.all()):
        raise ArgumentError(
            f"heads must be of a block that can lose them, got {heads.name}, whose bias of positions is by head "
            "and is shared with other blocks; zero_heads leaves the shapes as they are"
        )
    if isinstance(heads.module, nn.MultiheadAttention):
        smaller = SmallerAttention.of(heads.module, kept)
        if heads.name:
            parent, _, last = heads.name.rpartition(".")
            setattr(model.get_submodule(parent), last, smaller)
        return smaller
    for name, part in heads.parts.items():
        mask = kept if name in "qo" else kv
        size = part.units(part.parameter).shape[0] // mask.numel()
        _shrink(part, mask.repeat_interleave(size), with_bias=name != "o")
    fused = heads.parts["q"].module is heads.parts["k"].module
    if fused:
        _shrink_fused(heads, kept)
    _shrink_tables(model, heads, kept)
    _recount(heads, kept, kv)
    return heads.module


def _kept(heads: Heads, keep: Any, *, shared: bool) -> tuple[Tensor, Tensor]:
    """Masks of query heads and of key heads, on the host."""
    kept = torch.as_tensor(keep).cpu()
    if kept.dtype != torch.bool or tuple(kept.shape) != (heads.count,):
        raise ArgumentError(f"keep must be {heads.count} booleans, got {kept.dtype} of shape {tuple(kept.shape)}")
    groups = kept.reshape(heads.kv_count, -1)
    if shared and not bool(kept.any()):
        raise ArgumentError(f"keep must keep at least one head of {heads.name}, got none")
    if shared and not bool((groups.all(1) == groups.any(1)).all()):
        raise ArgumentError(
            f"keep must keep all or none of the {groups.shape[1]} heads of {heads.name} that share a key"
        )
    return kept, groups.any(1)


@torch.no_grad()
def _shrink(part: Part, each: Tensor, *, with_bias: bool) -> None:
    """Make a linear layer narrower."""
    if part.third is not None:  # all three at once, later
        return
    module, index = part.module, each.nonzero().reshape(-1).to(part.parameter.device)
    axis = 0 if part.rows else part.parameter.dim() - 1
    module._parameters[part.attribute] = nn.Parameter(
        part.parameter.index_select(axis, index), requires_grad=part.parameter.requires_grad
    )
    if with_bias and part.bias is not None:
        module._parameters["bias"] = nn.Parameter(part.bias.index_select(0, index))
    size = int(index.numel())
    for name in ("out_features", "nf") if with_bias else ("in_features", "nx"):
        if hasattr(module, name):
            setattr(module, name, size)


@torch.no_grad()
def _shrink_fused(heads: Heads, kept: Tensor) -> None:
    """Make one layer that holds queries, keys and values narrower."""
    part = heads.parts["q"]
    width = part.units(part.parameter).shape[0]
    each = kept.repeat_interleave(width // kept.numel()).repeat(3)
    _shrink(Part(part.module, part.attribute, part.rows), each, with_bias=True)


@torch.no_grad()
def _shrink_tables(model: nn.Module, heads: Heads, kept: Tensor) -> None:
    """Take columns out of the tables, in the block or beside it, that bias positions head by head."""
    beside = model.get_submodule(heads.name.rpartition(".")[0]).children() if heads.name else ()
    for owner in {id(m): m for m in (*heads.module.modules(), *beside)}.values():
        table = owner._parameters.get(BIAS_TABLE)
        if table is not None and table.shape[-1] == heads.count:
            index = kept.nonzero().reshape(-1).to(table.device)
            owner._parameters[BIAS_TABLE] = nn.Parameter(
                table.index_select(-1, index), requires_grad=table.requires_grad
            )


def _recount(heads: Heads, kept: Tensor, kv: Tensor) -> None:
    """The block's own figures of heads and width."""
    module, left = heads.module, int(kept.sum())
    for name in COUNTS:
        if isinstance(getattr(module, name, None), int):
            setattr(module, name, left)
    for name in KV_COUNTS:
        if isinstance(getattr(module, name, None), int):
            setattr(module, name, int(kv.sum()))
    for name in WIDTHS:
        if isinstance(getattr(module, name, None), int):
            setattr(module, name, getattr(module, name) // heads.count * left)


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
