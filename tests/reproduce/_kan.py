"""A small Kolmogorov–Arnold network: base part SiLU, cubic B-splines on a uniform grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class KanLayer(nn.Module):
    """Each edge is ``base·silu(x) + Σ_c spline_c·B_c(x)``; base (out, in), spline (out, in, coefficients)."""

    def __init__(self, inputs: int, outputs: int, *, grid: int = 5, degree: int = 3) -> None:
        super().__init__()
        self.degree = degree
        step = 2 / grid
        self.register_buffer("knots", torch.arange(-degree, grid + degree + 1) * step - 1)
        self.base = nn.Parameter(torch.empty(outputs, inputs))
        self.spline = nn.Parameter(torch.randn(outputs, inputs, grid + degree) * 0.1 / grid / inputs**0.5)
        nn.init.kaiming_uniform_(self.base, a=5**0.5)

    def bases(self, x: Tensor) -> Tensor:
        """(batch, in, coefficients): Cox–de Boor on equal knots."""
        x, t = x.unsqueeze(-1), self.knots
        b = ((x >= t[:-1]) & (x < t[1:])).to(x.dtype)
        for p in range(1, self.degree + 1):
            width = t[p] - t[0]
            b = (x - t[: -p - 1]) / width * b[..., :-1] + (t[p + 1 :] - x) / width * b[..., 1:]
        return b

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in) → (batch, out)."""
        return F.linear(F.silu(x), self.base) + F.linear(self.bases(x).flatten(1), self.spline.flatten(1))
