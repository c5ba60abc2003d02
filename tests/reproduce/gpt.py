"""A character GPT on tinyshakespeare: EMP by magnitude and by Wanda per output row on the MLP layers, against
magnitude and Wanda at the same sparsity; heads by Taylor score over β. With ``--device cuda`` a larger one, with the
144 heads that GPT-2 has."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

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


def summed(model: Gpt, batches: list[torch.Tensor], *, after: bool) -> dict[str, torch.Tensor]:
    """Σ|h·∂L/∂h| with magnitudes within the sum: over all that a head puts out, or, as the paper's code has it, over
    as many features ``after`` the output layer, which has mixed the heads."""
    blocks, seen, scores = emp_torch.find_heads(model), dict[str, torch.Tensor](), dict[str, torch.Tensor]()

    def keep(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        return lambda _, inputs, output: seen.update({name: output if after else inputs[0]})

    hooks = [h.parts["o"].module.register_forward_hook(keep(h.name)) for h in blocks]
    for rows in batches:
        loss = loss_of(model, rows)
        for h, grad in zip(blocks, torch.autograd.grad(loss, [seen[h.name] for h in blocks]), strict=True):
            each = (seen[h.name].detach() * grad).abs().double().sum((0, 1)).reshape(h.count, -1).sum(1)
            scores[h.name] = scores[h.name] + each if h.name in scores else each
    for hook in hooks:
        hook.remove()
    return scores


def heads_table(model: Gpt, data: Text, batches: list[torch.Tensor]) -> str:
    """Heads by Taylor, all blocks competing, physically removed."""
    blocks = emp_torch.find_heads(model)
    ways = {
        "abs(Σ)": emp_torch.head_scores(blocks, batches=batches, loss=lambda rows: loss_of(model, rows)),
        "Σ abs": summed(model, batches, after=False),
        "Σ abs, mixed": summed(model, batches, after=True),
    }
    dense, rows = perplexity(model, data.test), []
    for way, scores in ways.items():
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
                    f"{way}, β = {beta:g}",
                    f"{int(chosen.n)} → {int(chosen.k)}",
                    f"{dense:.3f} → {perplexity(smaller, data.test):.3f}",
                    "144 → 141, 34.86 → 35.20 (GPT-2)" if beta == 1 and way == "Σ abs, mixed" else "",
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
