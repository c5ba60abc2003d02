"""A small Kolmogorov–Arnold network: base part SiLU, cubic B-splines on a uniform grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class KanLayer(nn.Module):
    """Each edge is ``base·silu(x) + scale·Σ_c spline_c·B_c(x)``; base and scale (out, in), spline (out, in,
    coefficients). The scale is a parameter of its own, as in the implementation that the paper adapts."""

    def __init__(self, inputs: int, outputs: int, *, grid: int = 5, degree: int = 3) -> None:
        super().__init__()
        self.degree = degree
        step = 2 / grid
        self.register_buffer("knots", torch.arange(-degree, grid + degree + 1) * step - 1)
        self.base, self.scale = (nn.Parameter(torch.empty(outputs, inputs)) for _ in range(2))
        self.spline = nn.Parameter(torch.empty(outputs, inputs, grid + degree))
        for matrix in (self.base, self.scale):
            nn.init.kaiming_uniform_(matrix, a=5**0.5)
        with torch.no_grad():  # splines through a little noise at the knots within the range
            knots = self.knots[degree:-degree]
            noise = (torch.rand(grid + 1, outputs * inputs) - 0.5) * 0.1 / grid
            found = torch.linalg.lstsq(self.bases(knots), noise, driver="gelsd").solution
            self.spline.copy_(found.T.reshape(self.spline.shape))

    @property
    def scaled(self) -> Tensor:
        """The coefficients that count."""
        return self.spline * self.scale.unsqueeze(-1)

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
        return F.linear(F.silu(x), self.base) + F.linear(self.bases(x).flatten(1), self.scaled.flatten(1))
