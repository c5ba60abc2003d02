"""Rules side by side, at one sparsity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_core import hill_number
from emp_onnx.budget.point import Point, measure
from emp_onnx.refit.allocate import spread
from emp_onnx.refit.fitting import Fitting, Thin
from emp_onnx.refit.solve import largest

__all__ = ["RULES", "compare_rules"]

# name -> allocation, criterion, whether kept weights are solved again
RULES = {
    "magnitude, uniform": ("uniform", "magnitude", False),
    "magnitude, ERK": ("erk", "magnitude", False),
    "magnitude, LAMP": ("lamp", "magnitude", False),
    "magnitude, EMP (N_eff)": ("emp", "magnitude", False),
    "Wanda, uniform": ("uniform", "wanda", False),
    "SparseGPT masks, solved": ("uniform", "sparsegpt", True),
    "OBS steps, uniform": ("uniform", "obs", True),
    "OBS steps, EMP (N_eff)": ("emp", "obs", True),
    "OBS steps, measured error": ("error", "obs", True),
}


def compare_rules(
    fitting: Fitting, keep: int, *, score: Callable[[Path], float] | None = None
) -> Iterator[tuple[str, Point]]:
    """Every rule with `keep` weights left."""
    for name, masks in _plain(fitting, keep):
        changed = {key: fitting.network.filled(key, fitting.model.values(key), mask) for key, mask in masks.items()}
        yield name, measure(fitting, Thin(changed, masks), score=score)
    for name, (how, criterion, update) in RULES.items():
        yield name, measure(fitting, fitting.thin(keep, how=how, criterion=criterion, update=update), score=score)


def _plain(fitting: Fitting, keep: int) -> Iterator[tuple[str, dict[str, NDArray[np.bool_]]]]:
    """Rules that look at magnitudes alone, and so need no statistics."""
    size = {weight.name: fitting.magnitudes(weight) for weight in fitting.weights}
    together = largest(np.concatenate([s.reshape(-1) for s in size.values()]), keep)
    masks, start = {}, 0
    for name, s in size.items():
        masks[name] = together[start : start + s.size].reshape(s.shape)
        start += s.size
    yield "magnitude, whole model", masks
    sizes = [s.size for s in size.values()]
    shares = {
        "magnitude, Hill order 1": [float(hill_number(s, order=1)) for s in size.values()],
        "magnitude, PQ index (SAP)": [_pq(s) for s in size.values()],
    }
    for name, share in shares.items():
        counts = spread(share, sizes, keep)
        yield name, {key: largest(s, k) for (key, s), k in zip(size.items(), counts, strict=True)}


def _pq(size: NDArray[Any]) -> float:
    """What the PQ index (p = 1/2, q = 1; Diao et al., arXiv 2302.05601) says must stay: n·(1 − I)^(q/(q−p))."""
    n = size.size
    l1, half = float(size.sum()), float(np.sqrt(size).sum()) ** 2
    index = 1 - n ** (1 - 2) * half / l1 if l1 else 0.0
    return max(1.0, n * (1 - index))
