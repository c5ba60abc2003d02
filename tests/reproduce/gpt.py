"""A character GPT on tinyshakespeare: EMP by magnitude and by Wanda per output row on the MLP layers, against
magnitude and Wanda at the same sparsity; heads by Taylor score over β. With ``--device cuda`` a larger one, with the
144 heads that GPT-2 has."""

from __future__ import annotations

import copy

import torch

import emp_core
import emp_torch
from tests.benchmarks._report import table

from ._data import Options
from ._gpt import Gpt, Text, loss_of, perplexity, text, trained

MLP = "blocks.*.mlp.*.weight"


def weights_table(model: Gpt, data: Text, batches: list[torch.Tensor]) -> str:
    """MLP layers, per output row."""
    statistics = emp_torch.calibrate(model, batches, forward=lambda m, x: m(x[:, :-1]))
    dense, rows = perplexity(model, data.test), []
    for beta in (1.0, 0.75, 0.5):
        found, sparsities = [], []
        for criterion in ("magnitude", "wanda"):
            for ours in (True, False):
                smaller = copy.deepcopy(model)
                amount = {"beta": beta} if ours else {"sparsity": sparsities[-1]}
                options = {"criterion": criterion, "statistics": statistics, "scope": "row", "include": [MLP], **amount}
                plan = emp_torch.prune(smaller, **options)
                sparsities.append(plan.total.sparsity)
                found.append(f"{perplexity(smaller, data.test):.3f} @ {100 * plan.total.sparsity:.1f} %")
        rows.append([f"β = {beta:g}", f"{dense:.3f}", *found])
    ways = ["EMP, magnitude", "magnitude, same share", "EMP, Wanda", "Wanda, same share"]
    return table(["MLP layers, by row", "dense", *ways], rows)


def heads_table(model: Gpt, data: Text, batches: list[torch.Tensor]) -> str:
    """Heads by Taylor, all blocks competing, physically removed."""
    blocks = emp_torch.find_heads(model)
    scores = emp_torch.head_scores(blocks, batches=batches, loss=lambda rows: loss_of(model, rows))
    dense, rows = perplexity(model, data.test), []
    for beta in (1.25, 1.0, 0.75, 0.5):
        smaller = copy.deepcopy(model)
        chosen = emp_core.select(scores, beta=beta, scope="model")
        for block in emp_torch.find_heads(smaller):
            keep = chosen.mask[block.name]
            if bool(keep.any()):
                emp_torch.remove_heads(smaller, block, keep)
            else:
                emp_torch.zero_heads(block, keep)
        rows.append(
            [
                f"β = {beta:g}",
                f"{int(chosen.n)} → {int(chosen.k)}",
                f"{dense:.3f} → {perplexity(smaller, data.test):.3f}",
                "144 → 141, 34.86 → 35.20 (GPT-2)" if beta == 1 else "",
            ]
        )
    return table(["heads, Taylor", "heads", "perplexity", "paper"], rows)


def run(options: Options) -> str:
    """Both tables."""
    data = text(options)
    model = trained(data, options)
    generator = torch.Generator().manual_seed(1)
    batches = [data.batch(8, generator) for _ in range(options.steps(40))]
    return weights_table(model, data, batches) + "\n\n" + heads_table(model, data, batches)
