"""Networks of the kinds that people export, small, with random weights: plain torch modules."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


def cbr(i: int, o: int, k: int = 3, s: int = 1, g: int = 1, act: type[nn.Module] | None = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([act()] if act else []))


class Basic(nn.Module):
    def __init__(self, i: int, o: int, s: int) -> None:
        super().__init__()
        self.a, self.b = cbr(i, o, 3, s), cbr(o, o, act=None)
        self.skip = nn.Identity() if i == o and s == 1 else cbr(i, o, 1, s, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(self.a(x)) + self.skip(x))


class ResNet18(nn.Module):
    """The depth of ResNet-18, an eighth of its width."""

    def __init__(self) -> None:
        super().__init__()
        widths, blocks, i = [8, 16, 32, 64], [], 8
        for n, w in enumerate(widths):
            blocks += [Basic(i, w, 1 if n == 0 else 2), Basic(w, w, 1)]
            i = w
        self.stem, self.blocks, self.head = cbr(3, 8, 7, 2), nn.Sequential(*blocks), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.blocks(x), 1), 1))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 4 * i), nn.ReLU(), nn.Conv2d(8 + 4 * i, 4, 3, padding=1)) for i in range(3)
        )
        self.down = nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1), nn.AvgPool2d(2))
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(self.down(torch.cat(features, 1)).mean((2, 3)))


class Mbconv(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.up, self.deep = cbr(c, 4 * c, 1, act=nn.SiLU), cbr(4 * c, 4 * c, 3, g=4 * c, act=nn.SiLU)
        self.squeeze, self.excite = nn.Conv2d(4 * c, 4, 1), nn.Conv2d(4, 4 * c, 1)
        self.down = cbr(4 * c, c, 1, act=None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.deep(self.up(x))
        s = F.adaptive_avg_pool2d(y, 1)
        return x + self.down(y * torch.sigmoid(self.excite(F.silu(self.squeeze(s)))))


class EfficientNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(cbr(3, 8, 3, 2, act=nn.SiLU), Mbconv(8), Mbconv(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Shuffle(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        h = c // 2
        self.branch = nn.Sequential(cbr(h, h, 1), cbr(h, h, 3, g=h, act=None), cbr(h, h, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        y = torch.cat([a, self.branch(b)], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(cbr(3, 16, 3, 2), Shuffle(16), Shuffle(16), cbr(16, 24, 1))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(3, 8), cbr(8, 16)
        self.up, self.c = nn.ConvTranspose2d(16, 8, 2, 2), cbr(16, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        return self.out(self.c(torch.cat([a, self.up(b)], 1)))


class C2f(nn.Module):
    """The block of recent YOLOs: split in two, a chain on one half, all of it concatenated."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.one, self.two = cbr(c, c, 1, act=nn.SiLU), cbr(2 * c, c, 1, act=nn.SiLU)
        self.chain = nn.ModuleList(
            nn.Sequential(cbr(c // 2, c // 2, act=nn.SiLU), cbr(c // 2, c // 2, act=nn.SiLU)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.one(x).split(x.shape[1] // 2, 1))
        for m in self.chain:
            parts.append(parts[-1] + m(parts[-1]))
        return self.two(torch.cat(parts, 1))


class Yolo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.down, self.b = (
            cbr(3, 8, 3, 2, act=nn.SiLU),
            C2f(8),
            cbr(8, 16, 3, 2, act=nn.SiLU),
            C2f(16),
        )
        self.up = nn.Upsample(scale_factor=2)
        self.c, self.out = cbr(24, 8, 1, act=nn.SiLU), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(self.stem(x))
        b = self.b(self.down(a))
        y = self.out(self.c(torch.cat([a, self.up(b)], 1)))
        return y.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, c: int, heads: int, causal: bool, packed: bool) -> None:
        super().__init__()
        self.heads, self.causal, self.packed = heads, causal, packed
        self.qkv = nn.Linear(c, 3 * c) if packed else nn.ModuleList(nn.Linear(c, c) for _ in range(3))
        self.out = nn.Linear(c, c)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        if self.packed:
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (p(x).view(b, n, self.heads, c // self.heads).transpose(1, 2) for p in self.qkv)
        s = q @ k.transpose(-1, -2) / (c // self.heads) ** 0.5
        if self.causal:
            s = s.masked_fill(torch.triu(torch.ones(n, n, dtype=torch.bool), 1), -1e9)
        return self.out((s.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


class Layer(nn.Module):
    def __init__(self, c: int, heads: int, causal: bool, packed: bool, first: bool) -> None:
        super().__init__()
        self.attention, self.first = Attention(c, heads, causal, packed), first
        self.up, self.down = nn.Linear(c, 2 * c), nn.Linear(2 * c, c)
        self.n1, self.n2 = nn.LayerNorm(c), nn.LayerNorm(c)

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            x = x + self.attention(self.n1(x))
            return x + self.down(F.gelu(self.up(self.n2(x))))
        x = self.n1(x + self.attention(x))
        return self.n2(x + self.down(F.gelu(self.up(x))))


class Text(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 16), nn.Embedding(12, 16)
        self.layers = nn.Sequential(*(Layer(16, 4, causal, causal, causal) for _ in range(2)))
        self.causal, self.pool, self.head = causal, nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(self.words(x) + self.places.weight[: x.shape[1]])
        return y @ self.words.weight.T if self.causal else self.head(torch.tanh(self.pool(y[:, 0])))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.randn(1, 1, 16))
        self.places = nn.Parameter(torch.randn(1, 17, 16))
        self.layers, self.norm = nn.Sequential(*(Layer(16, 4, False, True, True) for _ in range(2))), nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patch(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), y], 1) + self.places
        return self.head(self.norm(self.layers(y))[:, 0])


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(50, 12), nn.LSTM(12, 10, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(self.words(x))
        return self.head(y[:, -1])


IMAGE = (2, 3, 32, 32)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...] | None]] = {
    "ResNet-18": (ResNet18, IMAGE), "DenseNet": (DenseNet, IMAGE), "EfficientNet": (EfficientNet, IMAGE),
    "ShuffleNet": (ShuffleNet, IMAGE), "U-Net": (UNet, IMAGE), "YOLO": (Yolo, IMAGE),
    "BERT": (lambda: Text(False), None),
    "GPT": (lambda: Text(True), None), "ViT": (ViT, IMAGE), "LSTM": (Lstm, None),
}  # fmt: skip
