"""The data sets, as tensors, and what every reproduction does with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Options:
    """Where the data are, whether to hurry, the page that takes tables (and pictures beside it), the folder in which
    networks that several scripts train stay, so that they are trained once, and the device that trains."""

    data: Path
    quick: bool = False
    page: Path | None = None
    kept: Path | None = None
    device: str = "cpu"

    def place(self) -> str:
        """The device in words."""
        return torch.cuda.get_device_name() if self.device == "cuda" else self.device

    def steps(self, count: int) -> int:
        """So many epochs or steps, or few."""
        return max(1, count // 20) if self.quick else count


@dataclass(frozen=True)
class Split:
    """Images in [0, 1] and labels, to train and to test on."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    def part(self, train: int, test: int) -> Split:
        """The first of each."""
        return Split(self.x[:train], self.y[:train], self.x_test[:test], self.y_test[:test])


def mnist(options: Options) -> Split:
    """60 000 + 10 000 digits, flat."""
    held = np.load(options.data / "mnist.npz")
    x, y, xt, yt = (held[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    made = Split(_flat(x), torch.from_numpy(y.astype(np.int64)), _flat(xt), torch.from_numpy(yt.astype(np.int64)))
    return made.part(2000, 500) if options.quick else made


def _flat(x: Any) -> Tensor:
    return torch.from_numpy(x.reshape(len(x), -1).astype(np.float32) / 255)


def batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of an epoch, shuffled."""
    order = torch.randperm(n, generator=generator)
    for start in range(0, n, size):
        yield order[start : start + size]


def once(model: nn.Module, name: str, options: Options, train: Callable[[], object]) -> None:
    """Train a network, or take what an earlier run of the same script left of it."""
    file = options.kept / f"{name}{'-quick' if options.quick else ''}.pt" if options.kept else None
    if file is not None and file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return
    train()
    if file is not None:
        torch.save(model.state_dict(), file)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor, size: int = 1000) -> float:
    """The share of right answers, in percent."""
    model.eval()
    right = sum(int((model(x[i : i + size]).argmax(1) == y[i : i + size]).sum()) for i in range(0, len(x), size))
    return 100 * right / len(x)


def fit(
    model: nn.Module,
    split: Split,
    *,
    epochs: int,
    size: int,
    optimizer: torch.optim.Optimizer,
    seed: int = 0,
    after: Any = None,
) -> nn.Module:
    """Train by cross-entropy; ``after()`` follows each step."""
    generator = torch.Generator().manual_seed(seed)
    loss = nn.CrossEntropyLoss()
    for _ in range(epochs):
        model.train()
        for index in batches(len(split.x), size, generator):
            optimizer.zero_grad()
            loss(model(split.x[index]), split.y[index]).backward()
            optimizer.step()
            if after is not None:
                after()
    return model
