"""A small character GPT, or on a GPU one with as many heads as GPT-2, and tinyshakespeare."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ._data import Options, once

CONTEXT = 128


class Size(NamedTuple):
    """Of a network and of its training."""

    width: int
    heads: int
    layers: int
    dropout: float
    batch: int
    steps: int
    rate: float


SMALL = Size(128, 4, 4, 0.0, 16, 1500, 2e-3)  # for a CPU
LARGE = Size(384, 12, 12, 0.2, 128, 1000, 1e-3)  # for a GPU: 12 layers of 12 heads


class Attention(nn.Module):
    """Causal self-attention with a layer for each of query, key, value, output."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) → the same."""
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and an MLP, each after a norm and around it a skip."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) → the same."""
        x = x + self.drop(self.attention(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class Gpt(nn.Module):
    """Embeddings, blocks, a norm, and the table of embeddings again as output."""

    def __init__(self, symbols: int, size: Size = SMALL) -> None:
        super().__init__()
        width, heads, layers, dropout = size[:4]
        self.symbols, self.places = nn.Embedding(symbols, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.05)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time) symbols → logits."""
        h = self.symbols(x) + self.places(torch.arange(x.shape[1], device=x.device))
        return F.linear(self.norm(self.blocks(h)), self.symbols.weight)


@dataclass(frozen=True)
class Text:
    """Symbols of the first 90 % and of the last 10 %."""

    train: Tensor
    test: Tensor
    symbols: int

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """(size, CONTEXT + 1) from the first part."""
        starts = torch.randint(len(self.train) - CONTEXT - 1, (size,), generator=generator)
        return self.train[(starts[:, None] + torch.arange(CONTEXT + 1)).to(self.train.device)]


def text(options: Options) -> Text:
    """tinyshakespeare."""
    raw = (options.data / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    letters = sorted(set(raw))
    number = {c: i for i, c in enumerate(letters)}
    all_of_it = torch.tensor([number[c] for c in raw])
    cut = len(all_of_it) * 9 // 10
    all_of_it = all_of_it.to(options.device)
    test = all_of_it[cut:]
    return Text(all_of_it[:cut], test[:6000] if options.quick else test[:60_000], len(letters))


def loss_of(model: nn.Module, rows: Tensor) -> Tensor:
    """Mean cross-entropy of the next symbol."""
    return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: nn.Module, symbols: Tensor) -> float:
    """Per character, over windows that do not overlap."""
    model.eval()
    rows = symbols[: (len(symbols) - 1) // CONTEXT * CONTEXT]
    windows = torch.stack([symbols[i : i + CONTEXT + 1] for i in range(0, len(rows), CONTEXT)])
    return math.exp(sum(float(loss_of(model, part)) * len(part) for part in windows.split(32)) / len(windows))


def trained(data: Text, options: Options) -> Gpt:
    """AdamW along a cosine; on a GPU with a rise of 100 steps, and products in bfloat16."""
    torch.manual_seed(0)
    on_gpu = options.device != "cpu"
    size = LARGE if on_gpu else SMALL
    model, steps = Gpt(data.symbols, size).to(options.device), options.steps(size.steps)
    optimizer = torch.optim.AdamW(model.parameters(), size.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 1e-4)
    generator = torch.Generator().manual_seed(0)

    def train() -> None:
        model.train()
        for step in range(steps):
            optimizer.zero_grad()
            if on_gpu and step < 100:
                optimizer.param_groups[0]["lr"] = size.rate * (step + 1) / 100
            with torch.autocast(options.device, torch.bfloat16, enabled=on_gpu):
                loss = loss_of(model, data.batch(size.batch, generator))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()

    once(model, f"gpt-{options.device}" if on_gpu else "gpt", options, train)
    return model
