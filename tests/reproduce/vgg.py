"""VGG16 on CIFAR-10: with a GPU and all of CIFAR-10 the exact settings; here a quarter of the width on 6 000 images.

Exact: batch norm, SGD 0.05 with momentum 0.9, weight decay 5e-4, cosine, batch 128, 100 epochs, crops and flips; then
EMP by magnitude over the whole model without further training (paper, β = 1: 91.12 → 90.98 at 59.5 %).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import emp_torch
from tests.benchmarks._report import table

from ._cnn import cifar
from ._data import Options, batches

PLAN = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
PAPER = "91.12 → 90.98 @ 59.5 %"


def vgg16(part: int = 1) -> nn.Sequential:
    """Sixteen layers; ``part`` divides every width."""
    layers: list[nn.Module] = []
    before = 3
    for width in PLAN:
        if width:
            layers += [
                nn.Conv2d(before, width // part, 3, padding=1, bias=False),
                nn.BatchNorm2d(width // part),
                nn.ReLU(),
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


def moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random crops after 4 pixels of padding, and flips."""
    left, top = (int(torch.randint(9, (), generator=generator)) for _ in range(2))
    x = F.pad(x, (4, 4, 4, 4))[..., top : top + 32, left : left + 32]
    return x.flip(-1) if int(torch.randint(2, (), generator=generator)) else x


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor, device: str) -> float:
    """In percent."""
    model.eval()
    right = sum(
        int((model(x[i : i + 500].to(device)).argmax(1).cpu() == y[i : i + 500]).sum()) for i in range(0, len(x), 500)
    )
    return 100 * right / len(x)


def run(options: Options) -> str:
    """The table."""
    exact = torch.cuda.is_available()
    device, part, epochs = ("cuda", 1, 100) if exact else ("cpu", 4, 8)
    torch.manual_seed(0)
    split, model = cifar(options), vgg16(part).to(device)
    epochs = options.steps(epochs)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    steps = epochs * -(-len(split.x) // 128)
    schedule = (
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
        if not exact
        else (torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps))
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        model.train()
        for index in batches(len(split.x), 128, generator):
            optimizer.zero_grad()
            F.cross_entropy(model(moved(split.x[index], generator).to(device)), split.y[index].to(device)).backward()
            optimizer.step()
            schedule.step()
    dense, rows = accuracy(model, split.x_test, split.y_test, device), []
    for beta in (0.5, 0.75, 1.0, 1.25):
        smaller = copy.deepcopy(model)
        plan = emp_torch.prune(smaller, beta=beta, scope="model")
        rows.append(
            [
                f"β = {beta:g}",
                f"{dense:.2f}",
                f"{accuracy(smaller, split.x_test, split.y_test, device):.2f}",
                f"{100 * plan.total.sparsity:.1f} %",
                PAPER if beta == 1 else "",
            ]
        )
    what = "exact settings" if exact else "a quarter of the width"
    what += f", {len(split.x):,} training images, {epochs} epochs, on {device}"
    return table(["", "dense", "pruned", "sparsity", "paper"], rows) + f"\n\n{what}."
