"""An attention block that may be narrower than the model it stands in."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from emp_core import ArgumentError

__all__ = ["SmallerAttention"]


class SmallerAttention(nn.Module):
    """What is left of an ``nn.MultiheadAttention`` without some of its heads; called in the same way.

    ``nn.MultiheadAttention`` wants heads times head width to be the model's width, so it cannot lose a head itself.
    """

    # what nn.TransformerEncoderLayer looks at before it takes a short cut that knows nn.MultiheadAttention only
    _qkv_same_embed_dim = False
    in_proj_bias = None
    in_proj_weight = None

    def __init__(self, heads: int, width: int, sizes: tuple[int, int, int, int], *, bias: bool, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.dropout = heads, width, dropout
        self.batch_first, self.embed_dim = False, sizes[0]
        inner = heads * width
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(size, inner, bias=bias) for size in sizes[:3])
        self.out_proj = nn.Linear(inner, sizes[3], bias=bias)

    @classmethod
    @torch.no_grad()
    def of(cls, whole: nn.MultiheadAttention, keep: Tensor) -> SmallerAttention:
        """The block with only these heads."""
        if whole.bias_k is not None or whole.add_zero_attn:
            raise ArgumentError(
                "heads can be removed from blocks without bias_kv and zero attention, got one with them"
            )
        width = whole.head_dim
        index = keep.repeat_interleave(width).nonzero().reshape(-1).to(whole.out_proj.weight.device)
        weights = (
            whole.in_proj_weight.chunk(3)
            if whole._qkv_same_embed_dim
            else (whole.q_proj_weight, whole.k_proj_weight, whole.v_proj_weight)
        )
        trained = (
            (whole.in_proj_weight.requires_grad,) * 3
            if whole._qkv_same_embed_dim
            else tuple(weight.requires_grad for weight in weights)
        )
        biases = whole.in_proj_bias.chunk(3) if whole.in_proj_bias is not None else (None,) * 3
        sizes = (whole.embed_dim, whole.kdim, whole.vdim, whole.embed_dim)
        smaller = cls(int(keep.sum()), width, sizes, bias=whole.in_proj_bias is not None, dropout=whole.dropout)
        smaller.to(whole.out_proj.weight)
        smaller.batch_first, smaller.training = whole.batch_first, whole.training
        layers = (smaller.q_proj, smaller.k_proj, smaller.v_proj)
        for layer, weight, bias, train in zip(layers, weights, biases, trained, strict=True):
            layer.weight.copy_(weight[index]).requires_grad_(train)
            if bias is not None:
                layer.bias.copy_(bias[index]).requires_grad_(whole.in_proj_bias.requires_grad)
        out = whole.out_proj
        smaller.out_proj.weight.copy_(out.weight[:, index]).requires_grad_(out.weight.requires_grad)
        if out.bias is not None:
            smaller.out_proj.bias.copy_(out.bias).requires_grad_(out.bias.requires_grad)
        return smaller

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention.forward``; masks per head (3-D) are not taken, since heads are gone."""
        batched = query.dim() == 3
        if not batched:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        if attn_mask is not None and attn_mask.dim() != 2:
            raise ArgumentError(f"attn_mask must have 2 axes, the same for all heads, got {attn_mask.dim()}")
        q, k, v = (
            layer(t).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for layer, t in zip((self.q_proj, self.k_proj, self.v_proj), (query, key, value), strict=True)
        )
        logits = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        for mask, view in ((attn_mask, (...,)), (key_padding_mask, (slice(None), None, None))):
            if mask is not None:
                added = (
                    torch.zeros_like(mask, dtype=logits.dtype).masked_fill(mask, -math.inf)
                    if mask.dtype == torch.bool
                    else mask
                )
                logits = logits + added[view]
        weights = F.dropout(logits.softmax(-1), self.dropout, self.training)
        out = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        shown = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
        if not batched:
            return out.squeeze(0), None if shown is None else shown.squeeze(0)
        return (out if self.batch_first else out.transpose(0, 1)), shown
