"""Gradual against one-shot pruning (arXiv 1710.01878) at 50, 80, 90 and 95 %, and at EMP's own sparsity: an MLP on
MNIST, a CNN on CIFAR-10. Both get the same number of training steps after the dense network is there."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

import emp_torch
from tests.benchmarks._report import table

from ._cnn import cifar, cnn
from ._data import Options, Split, accuracy, fit, mnist
from .fc import network


def once(model: nn.Module, split: Split, sparsity: float | None, epochs: int, size: int, rate: float) -> float:
    """Prune at once, then train with the mask fixed; the sparsity reached."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    pruner = emp_torch.GradualPruner(model, optimizer, **_target(sparsity), begin=0, steps=1, every=1)
    fit(model, split, epochs=epochs, size=size, optimizer=optimizer, after=pruner.step)
    pruner.finish()
    return pruner.sparsity


def slowly(model: nn.Module, split: Split, sparsity: float | None, epochs: int, size: int, rate: float) -> float:
    """Prune along the ramp over the first three quarters, then train with the mask fixed; the sparsity reached."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    total = epochs * -(-len(split.x) // size)
    every = max(1, total // 40)
    pruner = emp_torch.GradualPruner(
        model, optimizer, **_target(sparsity), begin=0, steps=max(1, total * 3 // 4 // every), every=every
    )
    fit(model, split, epochs=epochs, size=size, optimizer=optimizer, after=pruner.step)
    pruner.finish()
    return pruner.sparsity


def _target(sparsity: float | None) -> dict[str, float]:
    return {"beta": 1.0} if sparsity is None else {"sparsity": sparsity}


def compare(
    name: str, make: Callable[[], nn.Module], split: Split, options: Options, epochs: tuple[int, int]
) -> list[list[str]]:
    """The rows of one network."""
    torch.manual_seed(0)
    size, rate = 128, 1e-3
    model = make()
    fit(model, split, epochs=options.steps(epochs[0]), size=size, optimizer=torch.optim.Adam(model.parameters(), rate))
    dense, rows = accuracy(model, split.x_test, split.y_test), []
    for sparsity in (0.5, 0.8, 0.9, 0.95, None):
        reached, found = [], []
        bare = copy.deepcopy(model)
        emp_torch.prune(bare, **_target(sparsity))
        found.append(accuracy(bare, split.x_test, split.y_test))
        for way in (once, slowly):
            trained = copy.deepcopy(model)
            reached.append(way(trained, split, sparsity, options.steps(epochs[1]), size, rate))
            found.append(accuracy(trained, split.x_test, split.y_test))
        label = "EMP, β = 1" if sparsity is None else f"{100 * sparsity:g} %"
        rows.append(
            [
                f"{name}, {label}",
                f"{dense:.2f}",
                f"{found[0]:.2f}",
                f"{found[1]:.2f}",
                f"{found[2]:.2f}",
                f"{100 * reached[0]:.1f} % / {100 * reached[1]:.1f} %",
            ]
        )
    return rows


def run(options: Options) -> str:
    """The table."""
    rows = compare("MNIST", lambda: network([300, 100, 10]), mnist(options), options, (3, 3))
    rows += compare("CIFAR-10", cnn, cifar(options), options, (8, 4))
    header = [
        "",
        "dense",
        "one-shot, no training",
        "one-shot, then training",
        "gradual",
        "sparsity, one-shot / gradual",
    ]
    return table(header, rows)
