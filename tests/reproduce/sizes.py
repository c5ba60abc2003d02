"""Large-sparse against small-dense at equal nonzeros (arXiv 1710.01878): four widths of one network on MNIST."""

from __future__ import annotations

import torch

import emp_torch
from tests.benchmarks._report import table

from ._data import Options, accuracy, fit, mnist
from .fc import network

LARGE = 512
SMALL = (16, 32, 64, 128)  # hidden widths of the small dense networks


def count(width: int) -> int:
    """Weights of a network with two hidden layers of this width."""
    return 784 * width + width * width + 10 * width


def run(options: Options) -> str:
    """The table."""
    split, rows, epochs, size = mnist(options), [], options.steps(6), 128
    for width in SMALL:
        torch.manual_seed(0)
        dense = network([width, width, 10])
        fit(dense, split, epochs=epochs, size=size, optimizer=torch.optim.Adam(dense.parameters(), 1e-3))
        torch.manual_seed(0)
        large = network([LARGE, LARGE, 10])
        optimizer = torch.optim.Adam(large.parameters(), 1e-3)
        total = epochs * -(-len(split.x) // size)
        pruner = emp_torch.GradualPruner(
            large,
            optimizer,
            sparsity=1 - count(width) / count(LARGE),
            scope="model",
            begin=total // 6,
            steps=20,
            every=max(1, total // 40),
        )
        fit(large, split, epochs=epochs, size=size, optimizer=optimizer, after=pruner.step)
        pruner.finish()
        left = sum(int(mask.sum()) for mask in pruner.masks.values())
        rows.append(
            [
                f"{count(width):,}",
                f"{accuracy(dense, split.x_test, split.y_test):.2f} (width {width})",
                f"{accuracy(large, split.x_test, split.y_test):.2f} ({left:,} of {count(LARGE):,})",
            ]
        )
    return table(["nonzero weights", "small-dense", f"large-sparse (width {LARGE})"], rows)
