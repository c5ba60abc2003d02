"""VGG16 on CIFAR-10: on a GPU full width, the schedule of a hundred epochs; on a CPU a quarter of the width.

Batch norm, SGD with momentum 0.9 and weight decay 5e-4, rate 0.05 to 0 along a cosine, batches of 128, every image
cropped and flipped by itself; then EMP by magnitude without further training (paper, β = 1, over the whole model:
91.12 → 90.98 at 59.5 %).

``--data`` is any folder with a ``cifar10.npz`` (x_train, y_train, x_test, y_test; images uint8, n × 32 × 32 × 3). The
paper's dense figure needs all 50 000 training images; with fewer, as many steps are made over those there are.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import emp_torch
from tests.benchmarks._report import table

from ._cnn import cifar
from ._data import Options, Split

PLAN = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
PAPER = "91.12 → 90.98 @ 59.5 %"
SIZE, PAD = 128, 4
STEPS = 100 * -(-50_000 // SIZE)  # a hundred epochs over all of CIFAR-10


def vgg16(part: int = 1) -> nn.Sequential:
    """Sixteen layers; ``part`` divides every width."""
    layers: list[nn.Module] = []
    before = 3
    for width in PLAN:
        if width:
            layers += [
                nn.Conv2d(before, width // part, 3, padding=1, bias=False),
                nn.BatchNorm2d(width // part),
                nn.ReLU(inplace=True),
            ]
            before = width // part
        else:
            layers.append(nn.MaxPool2d(2))
    hidden = 512 // part
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(before, hidden),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(hidden, 10),
    )


def moved(padded: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
    """These images, each cropped from its padded self at a place of its own, and flipped or not.

    Args:
        padded: all images, (n, 3, 32 + 2·PAD, 32 + 2·PAD), on any device.
        index: those of the batch.
        generator: on the same device.
    """
    count, device, side = len(index), padded.device, padded.shape[-1] - 2 * PAD
    top, left = (torch.randint(2 * PAD + 1, (count, 1), generator=generator, device=device) for _ in range(2))
    flip = torch.randint(2, (count, 1), generator=generator, device=device)
    line = torch.arange(side, device=device)
    rows, columns = top + line, left + torch.where(flip == 1, side - 1 - line, line)
    channels = torch.arange(padded.shape[1], device=device)
    return padded[index[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None]]


def faster(device: str) -> AbstractContextManager[object]:
    """On a GPU convolutions run in bfloat16; weights, their norms and their updates stay float32."""
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """In percent, in float32."""
    model.eval()
    right = sum(int((model(x[i : i + 500]).argmax(1) == y[i : i + 500]).sum()) for i in range(0, len(x), 500))
    return 100 * right / len(x)


def train(model: nn.Module, split: Split, epochs: int, device: str) -> None:
    """All of it on the device: images, order, crops."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    steps = epochs * -(-len(split.x) // SIZE)
    schedule: torch.optim.lr_scheduler.LRScheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    if device == "cpu":  # few steps: the rate has to rise slowly
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
    generator = torch.Generator(device).manual_seed(0)
    padded = F.pad(split.x, (PAD,) * 4)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(padded), generator=generator, device=device).split(SIZE):
            optimizer.zero_grad()
            x = moved(padded, index, generator).contiguous(memory_format=torch.channels_last)
            with faster(device):
                loss = F.cross_entropy(model(x), split.y[index])
            loss.backward()
            optimizer.step()
            schedule.step()


def run(options: Options) -> str:
    """The table."""
    device = options.device
    on_gpu = device != "cpu"
    torch.manual_seed(0)
    held = cifar(options)
    split = Split(*(t.to(device) for t in (held.x, held.y, held.x_test, held.y_test)))
    model = vgg16(1 if on_gpu else 4).to(device, memory_format=torch.channels_last)
    per_epoch = -(-len(split.x) // SIZE)
    epochs = options.steps(-(-STEPS // per_epoch)) if on_gpu else options.steps(8)
    if options.quick:
        epochs = min(epochs, 2)
    train(model, split, epochs, device)
    dense, rows = accuracy(model, split.x_test, split.y_test), []
    for scope in ("model", "tensor"):
        for beta in (0.5, 0.75, 1.0, 1.25):
            smaller = copy.deepcopy(model)
            plan = emp_torch.prune(smaller, beta=beta, scope=scope)
            pruned = accuracy(smaller, split.x_test, split.y_test)
            sparsity = f"{100 * plan.total.sparsity:.1f} %"
            said = PAPER if scope == "model" and beta == 1 else ""
            rows.append([f"{scope}, β = {beta:g}", f"{dense:.2f}", f"{pruned:.2f}", sparsity, said])
    what = "full width, bfloat16 convolutions while training" if on_gpu else "a quarter of the width"
    what += f", {len(split.x):,} training images, {epochs:,} epochs ({epochs * per_epoch:,} steps)"
    return table(["scope", "dense", "pruned", "sparsity", "paper"], rows) + f"\n\n{what}."
