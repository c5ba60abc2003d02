"""A small vision transformer on MNIST (28 × 28 in patches of 7 × 7): weights by scope, heads by Taylor, attention
edges."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import emp_core
import emp_torch
from emp_core.attention import edges, prune_weights
from tests.benchmarks._report import table

from ._data import Options, Split, accuracy, fit, mnist


class Attention(nn.Module):
    """Self-attention whose weights can be pruned, by the β of edges."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.beta = heads, width // heads, 0.0
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))
        self.kept = [0, 0]

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) → the same."""
        q, k, v = (
            f(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        weights = (q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)).softmax(-1)
        if self.beta:
            self.kept[0] += int(edges(weights, beta=self.beta).k.sum())
            self.kept[1] += weights.numel()
            weights = prune_weights(weights, beta=self.beta)
        return self.o_proj((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) → the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """16 patches, three blocks, mean of the tokens."""

    def __init__(self, width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.patches, self.places = nn.Linear(49, width), nn.Parameter(torch.randn(16, width) * 0.02)
        self.blocks, self.norm, self.head = (
            nn.Sequential(*(Block(width, heads) for _ in range(3))),
            nn.LayerNorm(width),
            nn.Linear(width, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 784) → logits."""
        p = x.reshape(-1, 4, 7, 4, 7).transpose(2, 3).reshape(-1, 16, 49)
        return self.head(self.norm(self.blocks(self.patches(p) + self.places)).mean(1))


def run(options: Options) -> str:
    """The table."""
    plain = mnist(options)
    split = Split((plain.x - 0.1307) / 0.3081, plain.y, (plain.x_test - 0.1307) / 0.3081, plain.y_test)
    torch.manual_seed(0)
    model = Vit()
    fit(model, split, epochs=options.steps(3), size=128, optimizer=torch.optim.Adam(model.parameters(), 1e-3))
    rows = [["dense", f"{accuracy(model, split.x_test, split.y_test):.2f}", ""]]
    for scope in ("tensor", "row", "model"):
        for beta in (0.75, 1.0, 1.25):
            smaller = copy.deepcopy(model)
            plan = emp_torch.prune(smaller, beta=beta, scope=scope)
            rows.append(
                [
                    f"weights, scope {scope}, β = {beta:g}",
                    f"{accuracy(smaller, split.x_test, split.y_test):.2f}",
                    f"{100 * plan.total.sparsity:.1f} % of weights",
                ]
            )
    batches = list(zip(split.x[:2000].split(250), split.y[:2000].split(250), strict=True))
    blocks = emp_torch.find_heads(model)
    scores = emp_torch.head_scores(blocks, batches=batches, loss=lambda b: F.cross_entropy(model(b[0]), b[1]))
    for beta in (0.75, 1.0, 1.25):
        smaller, chosen = copy.deepcopy(model), emp_core.select(scores, beta=beta, scope="model")
        for block in emp_torch.find_heads(smaller):
            emp_torch.zero_heads(block, chosen.mask[block.name])
        rows.append(
            [
                f"heads, Taylor, β = {beta:g}",
                f"{accuracy(smaller, split.x_test, split.y_test):.2f}",
                f"{int(chosen.n)} → {int(chosen.k)} heads",
            ]
        )
    for beta in (0.5, 1.0, 1.5):
        smaller = copy.deepcopy(model)
        for block in smaller.blocks:
            block.attention.beta = beta
        found = accuracy(smaller, split.x_test[:2000], split.y_test[:2000])
        kept, n = (sum(block.attention.kept[i] for block in smaller.blocks) for i in (0, 1))
        rows.append(
            [f"attention edges, β = {beta:g} (2 000 images)", f"{found:.2f}", f"{100 * (1 - kept / n):.1f} % of edges"]
        )
    return table(["", "accuracy", "removed"], rows)
