"""Attention heads: scored by their own slices of the weights or by Taylor, set to zero, or physically removed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from emp_core import ArgumentError, criteria
from emp_torch.attention import SmallerAttention
from emp_torch.blocks import COUNTS, KV_COUNTS, Heads, Part

__all__ = ["head_scores", "remove_heads", "zero_heads"]

WIDTHS = ("all_head_size", "split_size", "inner_dim")
BIAS_TABLE = "relative_position_bias_table"  # one column per head (Swin, BEiT)


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
        part.refresh()


def remove_heads(model: nn.Module, heads: Heads, keep: Any, /) -> nn.Module:
    """Take the other heads out of a model: same outputs as `zero_heads`, fewer multiplications.

    Linear layers become smaller and the block's counts follow; an ``nn.MultiheadAttention``, which cannot be narrower
    than its model, is replaced by a `SmallerAttention` of the same call.

    Args:
        model: that holds the block; changed in place. Where the block is in an ``nn.TransformerEncoder``, that or what
            holds it: the encoder must not make nested tensors any more, which only ``nn.MultiheadAttention`` takes.
        heads: of the block, from `find_heads`.
        keep: booleans, one per head; where several heads share keys and values, all of such a group or none.

    Returns:
        The block as it is now.

    Raises:
        ArgumentError: keep does not fit, keeps no head, or divides a group; or the block's positions have a bias for
            every head that other blocks share (T5), so that only `zero_heads` can be done; or its weights are masked.
    """
    kept, kv = _kept(heads, keep, shared=True)
    for part in heads.parts.values():  # before any of them is changed
        part.refuse_computed(masked=True)
    if hasattr(heads.module, "has_relative_attention_bias") and not bool(kept.all()):
        raise ArgumentError(
            f"heads must be of a block that can lose them, got {heads.name}, whose bias of positions is by head "
            "and is shared with other blocks; zero_heads leaves the shapes as they are"
        )
    if isinstance(heads.module, nn.MultiheadAttention):
        smaller = SmallerAttention.of(heads.module, kept)
        for outer in model.modules():
            if isinstance(outer, nn.TransformerEncoder) and any(m is heads.module for m in outer.modules()):
                outer.use_nested_tensor = outer.enable_nested_tensor = False
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
        module._parameters["bias"] = nn.Parameter(
            part.bias.index_select(0, index), requires_grad=part.bias.requires_grad
        )
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
