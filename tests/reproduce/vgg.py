"""VGG16 on CIFAR-10: on a GPU as the paper's code has it; on a CPU a quarter of the width, with batch norm.

The paper's code: 3 × 3 convolutions with biases and no norms, one linear layer of 512 → 10; SGD with momentum 0.9 and
weight decay 5e-4, 200 epochs, batches of 128; rate 0.01, which rises over 5 epochs and falls along a cosine; every
image cropped and flipped by itself. Then EMP by magnitude without further training (β = 1, over the whole model: 91.12
→ 90.98 at 59.5 %). The paper keeps the epoch that is best on the test images; here it is the last one.

``--data`` is any folder with a ``cifar10.npz`` (x_train, y_train, x_test, y_test; images uint8, n × 32 × 32 × 3). The
paper's dense figure needs all 50 000 training images; with fewer, as many steps are made over those there are.
"""

from __future__ import annotations

import copy
import math
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
WHOLE = -(-50_000 // SIZE)  # steps of an epoch over all of CIFAR-10
EPOCHS, WARM, RATE = 200, 5, 0.01


def vgg16(part: int = 1, *, norm: bool = False) -> nn.Sequential:
    """Thirteen convolutions and a linear layer; ``part`` divides every width; with ``norm``, batch norm after each."""
    layers: list[nn.Module] = []
    before = 3
    for width in PLAN:
        if not width:
            layers.append(nn.MaxPool2d(2))
            continue
        convolution = nn.Conv2d(before, width // part, 3, padding=1)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(convolution.bias)
        layers += [convolution, *([nn.BatchNorm2d(width // part)] if norm else []), nn.ReLU(inplace=True)]
        before = width // part
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before, 10))


def rate(step: int) -> float:
    """What the paper's schedule has after so many steps over all of CIFAR-10: changed at the end of an epoch only."""
    epoch = step // WHOLE
    if epoch < WARM:
        return RATE * (1e-8 + (1 - 1e-8) * epoch / WARM)
    return RATE * (1 + math.cos(math.pi * (epoch - WARM) / (EPOCHS - WARM))) / 2


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
    """On a GPU convolutions run in bfloat16; weights, their norms and their updates stay float32. (Nothing is kept
    between casts: what is recorded must cast the weights of its own time.)"""
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda", cache_enabled=False)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """In percent, in float32."""
    model.eval()
    right = sum(int((model(x[i : i + 500]).argmax(1) == y[i : i + 500]).sum()) for i in range(0, len(x), 500))
    return 100 * right / len(x)


class Step:
    """Gradients of one batch. On a GPU a whole batch is recorded once and then replayed: launching its hundred small
    kernels one by one takes several times as long as computing them.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, device: str) -> None:
        self.model, self.device, self.x, self.y = model, device, x.clone(), y.clone()
        self.graph: torch.cuda.CUDAGraph | None = None
        if device == "cuda":
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # what is set up at first use must not be recorded
                for _ in range(3):
                    self._compute(self.x, self.y)
            torch.cuda.current_stream().wait_stream(side)
            model.zero_grad(set_to_none=True)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._compute(self.x, self.y)

    def _compute(self, x: Tensor, y: Tensor) -> None:
        with faster(self.device):
            loss = F.cross_entropy(self.model(x), y)
        loss.backward()

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """The gradients of this batch, and of nothing before it."""
        if self.graph is None or x.shape != self.x.shape:
            self.model.zero_grad(set_to_none=self.graph is None)
            self._compute(x, y)
        else:
            self.x.copy_(x)
            self.y.copy_(y)
            self.graph.replay()  # writes the gradients, and does not add to them


def train(model: nn.Module, split: Split, epochs: int, device: str) -> None:
    """All of it on the device: images, order, crops."""
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=5e-4)
    few: torch.optim.lr_scheduler.LRScheduler | None = None
    if device == "cpu":  # few steps: another schedule
        steps = epochs * -(-len(split.x) // SIZE)
        few = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
    generator = torch.Generator(device).manual_seed(0)
    padded = F.pad(split.x, (PAD,) * 4)
    model.train()
    step, gradients = 0, None
    for _ in range(epochs):
        order = torch.randperm(len(padded), generator=generator, device=device)
        images = moved(padded, order, generator).contiguous(memory_format=torch.channels_last)
        for x, y in zip(images.split(SIZE), split.y[order].split(SIZE), strict=True):
            if few is None:
                optimizer.param_groups[0]["lr"] = rate(step)
            gradients = gradients or Step(model, x, y, device)
            gradients(x, y)
            optimizer.step()
            step += 1
            if few is not None:
                few.step()


def run(options: Options) -> str:
    """The table."""
    device = options.device
    on_gpu = device != "cpu"
    torch.manual_seed(0)
    held = cifar(options)
    split = Split(*(t.to(device) for t in (held.x, held.y, held.x_test, held.y_test)))
    model = (vgg16() if on_gpu else vgg16(4, norm=True)).to(device, memory_format=torch.channels_last)
    per_epoch = -(-len(split.x) // SIZE)
    epochs = options.steps(-(-EPOCHS * WHOLE // per_epoch)) if on_gpu else options.steps(8)
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
    what = "full width, bfloat16 convolutions while training" if on_gpu else "a quarter of the width, batch norm"
    what += f", {len(split.x):,} training images, {epochs:,} epochs ({epochs * per_epoch:,} steps)"
    return table(["scope", "dense", "pruned", "sparsity", "paper"], rows) + f"\n\n{what}."
