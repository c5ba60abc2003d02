"""CIFAR-10 as far as it is there (6 000 + 5 000 images), and a small convolutional network of any width."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ._data import Options, Split


def cifar(options: Options) -> Split:
    """Images (3, 32, 32), normalised."""
    held = np.load(options.data / "cifar10.npz")

    def images(x: np.ndarray) -> Tensor:  # type: ignore[type-arg]
        mean, spread = np.array([0.4914, 0.4822, 0.4465]), np.array([0.247, 0.2435, 0.2616])
        return torch.from_numpy(((x / 255 - mean) / spread).astype(np.float32).transpose(0, 3, 1, 2).copy())

    labels = (torch.from_numpy(held[n].astype(np.int64)) for n in ("y_train", "y_test"))
    y, y_test = labels
    made = Split(images(held["x_train"]), y, images(held["x_test"]), y_test)
    return made.part(600, 300) if options.quick else made


def cnn(width: int = 24) -> nn.Sequential:
    """Four convolutions, two of them with stride 2, and a linear layer."""
    sizes = [3, width, 2 * width, 2 * width, 4 * width]
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [
            nn.Conv2d(sizes[i], sizes[i + 1], 3, stride=2 if i else 1, padding=1, bias=False),
            nn.BatchNorm2d(sizes[i + 1]),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16 * width, 10))
