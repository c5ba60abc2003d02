"""FC2, FC5 and FC12 on MNIST (arXiv 2509.25606): the paper's widths, Adam 1e-4, 5/5/10 epochs, batch 128."""

from __future__ import annotations

import copy

import torch
from torch import nn

import emp_torch
from tests.benchmarks._report import table

from ._data import Options, Split, accuracy, fit, mnist

WIDTHS = {
    "FC2": ([100, 10], 5),
    "FC5": ([1000, 600, 300, 100, 10], 5),
    "FC12": ([1000, 900, 800, 750, 700, 650, 600, 500, 400, 200, 100, 10], 10),
}
PAPER = {"FC2": (93.80, 93.78, 37.0), "FC5": (97.18, 97.20, 29.6), "FC12": (97.05, 96.94, 28.3)}  # at β = 1
MEAN, SPREAD = 0.1307, 0.3081  # of the training images, as is usual; the paper does not say
BETAS = (0.5, 0.75, 1.0, 1.25)


def network(widths: list[int], inputs: int = 784) -> nn.Sequential:
    """Linear layers with ReLU between."""
    layers: list[nn.Module] = []
    for i, width in enumerate(widths):
        layers += [nn.Linear(inputs, width)] + ([nn.ReLU()] if i < len(widths) - 1 else [])
        inputs = width
    return nn.Sequential(*layers)


def trained(name: str, split: Split, options: Options) -> nn.Module:
    """One of the three, trained."""
    torch.manual_seed(0)
    widths, epochs = WIDTHS[name]
    model = network(widths)
    return fit(
        model, split, epochs=options.steps(epochs), size=128, optimizer=torch.optim.Adam(model.parameters(), 1e-4)
    )


def run(options: Options) -> str:
    """The table."""
    plain, rows = mnist(options), []
    split = Split((plain.x - MEAN) / SPREAD, plain.y, (plain.x_test - MEAN) / SPREAD, plain.y_test)
    for name, (dense, pruned, sparsity) in PAPER.items():
        model = trained(name, split, options)
        whole = accuracy(model, split.x_test, split.y_test)
        for beta in BETAS:
            smaller = copy.deepcopy(model)
            plan = emp_torch.prune(smaller, beta=beta, scope="model")
            found = accuracy(smaller, split.x_test, split.y_test)
            at_one = beta == 1
            rows.append(
                [
                    f"{name}, β = {beta:g}",
                    f"{whole:.2f}",
                    f"{found:.2f}",
                    f"{found - whole:+.2f}",
                    f"{100 * plan.total.sparsity:.1f} %",
                    f"{dense:.2f} → {pruned:.2f}" if at_one else "",
                    f"{pruned - dense:+.2f}" if at_one else "",
                    f"{sparsity:.1f} %" if at_one else "",
                ]
            )
    return table(
        ["", "dense", "pruned", "change", "sparsity", "paper: accuracy", "paper: change", "paper: sparsity"], rows
    )
