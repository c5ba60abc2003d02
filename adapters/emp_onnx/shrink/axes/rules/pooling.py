"""Windows and reductions over space: channels go side by side, and the axes that are reduced stay."""

from __future__ import annotations

import numpy as np

from emp_onnx.shrink.axes.links import Relation, Unfit, rule
from emp_onnx.shrink.zeros import reaches

__all__ = ["pad", "pool", "reduce", "resize"]

ZERO = {"ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2"}  # a zero more or less does not change them


@rule("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def pool(relation: Relation) -> None:
    """y[n, c, …] = reduce of x[n, c, window]."""
    op = relation.op
    if len([o for o in op.outputs if o]) > 1:
        raise Unfit("it returns indices, which count through the channels")
    for axis in (0, 1):
        relation.tie((op.inputs[0], axis, None), (op.outputs[0], axis, None))
    _spatial(relation)


def _spatial(relation: Relation) -> None:
    """Places in space stay."""
    for name in (relation.op.inputs[0], relation.op.outputs[0]):
        for axis in range(2, relation.rank(name)):
            relation.wall(name, axis, f"{relation.op.label} works in space")


@rule(*ZERO, "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp")
def reduce(relation: Relation) -> None:
    """y[kept axes] = reduction of x over the other axes. A sum may lose what is zero; a mean may not, since it
    counts."""
    op = relation.op
    x, y = op.inputs[0], op.outputs[0]
    rank = relation.rank(x)
    given = op.attributes.get("axes")
    if given is None and op.input(1):
        given = relation.value(1)
        if given is None:
            raise Unfit("its axes are computed")
    axes = {int(a) % rank for a in np.asarray(given).reshape(-1)} if given is not None and np.size(given) else None
    if axes is None:
        axes = set() if int(relation.attribute("noop_with_empty_axes", 0)) else set(range(rank))
    keep = bool(int(relation.attribute("keepdims", 1)))
    at = 0
    for axis in range(rank):
        if axis in axes:
            if op.type in ZERO and reaches(relation.view, x):
                relation.free(x, axis)
            at += keep
            continue
        relation.tie((x, axis, None), (y, at, None))
        at += 1
    if keep:
        relation.free(y, *axes) if axes else None
    relation.free(op.input(1))


@rule("Resize", "Upsample")
def resize(relation: Relation) -> None:
    """Axes that keep their size go side by side (the sizes are set anew); axes that change it stay."""
    op = relation.op
    x, y = op.inputs[0], op.outputs[0]
    if (
        op.attributes.get("axes") is not None
        or op.attributes.get("coordinate_transformation_mode") == b"tf_crop_and_resize"
    ):
        raise Unfit("it resizes named axes, or crops")
    for axis in range(relation.rank(x)):
        if axis < 2 and relation.size(x, axis) == relation.size(y, axis):
            relation.tie((x, axis, None), (y, axis, None))
        else:
            for name in (x, y):
                relation.wall(name, axis, f"{op.label} works in space")
    for name in op.inputs[1:]:
        relation.free(name)


@rule("Pad")
def pad(relation: Relation) -> None:
    """y = x with a border: coordinate c of x is c + before of y; what the border adds stays, as do axes padded by x's
    own values."""
    op = relation.op
    x, y = op.inputs[0], op.outputs[0]
    pads = op.attributes.get("pads", relation.value(1))
    rank = relation.rank(x)
    if op.input(3):
        raise Unfit("it pads named axes")
    if pads is None or len(np.asarray(pads)) != 2 * rank:
        raise Unfit("its border is computed")
    mode = op.attributes.get("mode", b"constant")
    for axis in range(rank):
        before, after = int(pads[axis]), int(pads[axis + rank])
        if not before and not after:
            relation.tie((x, axis, None), (y, axis, None))
            continue
        size, new = relation.size(x, axis), relation.size(y, axis)
        if mode != b"constant" or before < 0 or after < 0 or size is None or new is None or axis > 1:
            continue
        relation.tie((x, axis, None), (y, axis, np.arange(before, before + size)))
        border = np.setdiff1d(np.arange(new), np.arange(before, before + size))
        relation.wall(y, axis, f"{op.label} adds it", border)
    for name in op.inputs[1:]:
        relation.free(name)
