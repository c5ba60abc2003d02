"""More samples for a layer behind a mean: the positions that the mean was taken over.

Behind a global pool a feed gives a layer one sample, where it gave the pool's own input one for each position. A linear
layer does not care on which side of a mean it stands: mean(X)·Wᵀ = mean(X·Wᵀ). So where samples are few, the
positions take their place: an error that is small on all of them is small on their means, and weights cannot fit the
feeds by heart.

The graph only says where to look. That the layer's input is that mean, whatever lies between (shapes that are
changed, values that are clipped), is measured on the feeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.program import Program
from emp_onnx.calibration.unroll import positions

__all__ = ["before_mean", "pick", "unpool"]

Array = NDArray[Any]
MEANS = frozenset({"GlobalAveragePool", "AveragePool", "ReduceMean"})
PASSES = frozenset({
    "Identity", "Dropout", "Cast", "Clip", "Relu", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose",
})  # fmt: skip
NEAR = 1e-3  # relative distance at which a layer's input is the mean
WAY = 16  # steps that are looked at between the mean and the layer


def before_mean(program: Program, name: str, /) -> str:
    """The value whose mean over positions `name` may be, going by the graph; empty if there is none."""
    found = ""
    for _ in range(WAY):
        makers = program.makers.get(name, [])
        if len(makers) != 1 or makers[0].node.domain or not makers[0].inputs:
            break
        step, above = makers[0], makers[0].inputs[0]
        if above in program.fixed or step.node.op not in MEANS | PASSES:
            break
        if step.node.op in MEANS:
            found = above
        elif found:
            break
        name = above
    return found


def unpool(x: Array, rows: Array, /) -> Array | None:
    """The positions behind a layer's rows.

    Args:
        x: (batch, …), one of its other axes the layer's inputs.
        rows: (1, batch, d), what the layer is given.

    Returns:
        (batch, positions, d), of which `rows` is the mean over positions; None where it is not.
    """
    groups, batch, d = rows.shape
    if groups != 1 or x.ndim < 3 or x.shape[0] != batch or not rows.size:
        return None
    for axis in range(1, x.ndim):
        if x.shape[axis] == d:
            flat = np.moveaxis(x, axis, -1).reshape(batch, -1, d)
            gap = np.linalg.norm(flat.mean(1, dtype=np.float64) - rows[0])
            if gap <= NEAR * np.linalg.norm(rows.astype(np.float64)):
                return flat
    return None


def pick(values: Array, feed: int, limit: int, /) -> Array:
    """At most `limit` of the samples (batch, positions, ·), as (1, samples, ·); the same ones for the same feed."""
    flat = values.reshape(-1, values.shape[-1])
    some = positions(len(flat), limit, feed)
    return (flat if some is None else flat[some])[None]
