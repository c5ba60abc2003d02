"""How many units of a group its effective size keeps, by the signal chosen.

- `norm`: each unit's weights, the root of the sum of squares of its slices; needs no feeds.
- `activation`: what each unit adds to its readers, ‖M_u‖ · rms(x_u).
- `spectrum`: the eigenvalues of the covariance of the units' activations: N_eff is then the effective dimension of
what they say.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import emp_core
from emp_onnx.shrink.axes.regions import Group
from emp_onnx.shrink.problem import Problem

__all__ = ["SIGNALS", "keep", "signal_of", "step"]

SIGNALS = ("norm", "activation", "spectrum")
Wide = NDArray[np.float64]


def signal_of(problem: Problem, group: Group, signal: str) -> Wide:
    """The scores whose effective size counts: by unit, or, of the spectrum, by eigenvalue."""
    if signal == "norm":
        return problem.norms(group)
    best: Wide | None = None
    for i in problem.of_group(group):
        reader, moment = problem.readers[i], problem.moments[i]
        labels = group.axes[reader.source, reader.axis]
        matrix = reader.matrix(problem.view.constants[reader.weight])
        places = matrix.shape[2]
        features = np.repeat(labels, places)
        h = moment[:-1, :-1]
        if signal == "activation":
            said = np.square(matrix.reshape(len(matrix), -1)).sum(0) * np.diag(h)
            kept = features >= 0
            scores = np.sqrt(np.maximum(np.bincount(features[kept], said[kept], group.units), 0.0))
            best = scores if best is None else best + scores / max(float(scores.sum()), 1e-300)
            continue
        mean = moment[:-1, -1]
        cov = h - np.outer(mean, mean)
        channels = len(labels)
        folded = np.einsum("apbp->ab", cov.reshape(channels, places, channels, places))
        picked = np.flatnonzero(labels >= 0)
        unit = np.zeros((group.units, group.units))
        np.add.at(unit, (labels[picked][:, None], labels[picked][None, :]), folded[np.ix_(picked, picked)])
        values = np.sort(np.maximum(np.linalg.eigvalsh(unit), 0.0))[::-1]
        if best is None or emp_core.effective_size(values) > emp_core.effective_size(best):
            best = values
    return problem.norms(group) if best is None else best


def step(units: int, round_to: int) -> int:
    """What a count of units left is a multiple of: `round_to`, halved for groups of less than four times that."""
    while round_to > 1 and units < 4 * round_to:
        round_to //= 2
    return round_to


def keep(
    scores: Wide, units: int, *, beta: float = 1.0, order: float = 2.0, round_to: int = 1, least: int = 1
) -> tuple[float, int]:
    """The effective number, and how many units that keeps: ⌊β·N⌋, then up to a multiple of `round_to`, within [least,
    units]."""
    if not np.any(scores):
        return float(units), units
    number = float(emp_core.hill_number(scores, order=order))
    count = int(emp_core.keep_count(scores, beta=beta)) if order == 2 else int(beta * number)
    count = -(-max(count, least, 1) // round_to) * round_to
    return number, min(count, units)
