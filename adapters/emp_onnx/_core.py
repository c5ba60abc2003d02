"""A naive stand-in for the core's functions, used until the core is merged; then this file goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

__version__ = "0.1.0"


class EmpError(Exception):
    """Any error of the project."""


class ScoreError(EmpError, ValueError):
    """Scores that cannot be ranked."""


@dataclass(frozen=True)
class Rows:
    """One pool per index along `axis`."""

    axis: int | tuple[int, ...] = 0


@dataclass(frozen=True)
class Selection:
    """What is kept, with every figure."""

    mask: Any
    n: Any
    n_eff: Any
    k: Any
    beta: float
    order: float
    mass: Any
    mass_lower: Any
    mass_upper: Any


def effective_size(s: Any, /) -> float:
    """Naive."""
    a = np.abs(np.asarray(s, np.float64)).ravel()
    m = a.max()
    if m == 0:
        return float(a.size)
    a = a / m
    return float(a.sum() ** 2 / (a * a).sum())


def _hill(a: np.ndarray, order: float) -> float:
    a = np.abs(a.astype(np.float64)).ravel()
    if not a.any():
        return float(a.size)
    if order == 2:
        return effective_size(a)
    p = a / a.sum()
    p = p[p > 0]
    if order == 1:
        return float(np.exp(-(p * np.log(p)).sum()))
    if math.isinf(order):
        return float(1 / p.max())
    return float((p**order).sum() ** (1 / (1 - order)))


def mass_lower_bound(nu: float, /, *, n: int, k: int) -> float:
    """Naive."""
    if k >= n:
        return 1.0

    def g(i: int, j: int) -> float:
        if i == j:
            return min(1.0, k / j)
        t = math.sqrt(max(0.0, (1 / nu - 1 / j) / (1 / i - 1 / j)))
        return (1 - t) * min(1, k / j) + t * min(1, k / i)

    f, c = max(1, math.floor(nu)), min(n, math.ceil(nu))
    out = [g(1, n), g(1, max(c, k))]
    if k <= f:
        out.append(g(f, c))
    return min(out)


def mass_upper_bound(nu: float, /, *, n: int, k: int) -> float:
    """Naive."""
    return min(1.0, k / n + math.sqrt(max(0.0, k * (n - k) / n * (1 / nu - 1 / n))))


def _one(a: np.ndarray, beta: float, order: float, sparsity: float | None) -> Selection:
    flat = np.abs(a.ravel())
    if not np.isfinite(flat).all():
        raise ScoreError("scores must be finite")
    n, size = flat.size, _hill(flat, order)
    nu = effective_size(flat)
    if sparsity is not None:
        k = max(1, n - round(sparsity * n))
    elif order == 2 and flat.any():
        ints = [Fraction(float(x)) for x in flat] if n < 300 else None
        exact = Fraction(beta) * (sum(ints) ** 2 / sum(x * x for x in ints) if ints else Fraction(size * (1 + 1e-13)))
        k = min(n, max(1, math.floor(exact)))
    else:
        k = min(n, max(1, math.floor(beta * size * (1 + 1e-13))))
    if not flat.any() and sparsity is None:
        k = n
    mask = np.zeros(n, bool)
    mask[np.argsort(-flat, kind="stable")[:k]] = True
    total = flat.sum(dtype=np.float64)
    mass = 1.0 if k == n or not total else float(flat[mask].sum(dtype=np.float64) / total)
    return Selection(
        mask.reshape(a.shape),
        n,
        nu if order == 2 else size,
        k,
        beta,
        order,
        mass,
        mass_lower_bound(nu, n=n, k=k),
        mass_upper_bound(nu, n=n, k=k),
    )


def select(
    scores: Any,
    /,
    *,
    beta: float = 1.0,
    order: float = 2,
    sparsity: float | None = None,
    scope: Any = "whole",
    where: Any = None,
    threads: int | None = None,
) -> Selection:
    """Naive."""
    if isinstance(scores, Mapping):
        flat = np.concatenate([np.asarray(v).ravel() for v in scores.values()])
        s = _one(flat, beta, order, sparsity)
        mask, at = {}, 0
        for name, v in scores.items():
            mask[name] = s.mask[at : at + v.size].reshape(v.shape)
            at += v.size
        return Selection(mask, s.n, s.n_eff, s.k, beta, order, s.mass, s.mass_lower, s.mass_upper)
    if scope == "whole":
        return _one(scores, beta, order, sparsity)
    axes = (scope.axis,) if isinstance(scope.axis, int) else scope.axis
    lead = np.moveaxis(scores, axes, range(len(axes)))
    shape = lead.shape[: len(axes)]
    parts = [_one(lead[i], beta, order, sparsity) for i in np.ndindex(*shape)]
    mask = np.stack([p.mask for p in parts]).reshape(lead.shape)
    mask = np.moveaxis(mask, range(len(axes)), axes)

    def gather(name: str) -> np.ndarray:
        return np.array([getattr(p, name) for p in parts]).reshape(shape)

    return Selection(
        mask,
        gather("n"),
        gather("n_eff"),
        gather("k"),
        beta,
        order,
        gather("mass"),
        gather("mass_lower"),
        gather("mass_upper"),
    )
