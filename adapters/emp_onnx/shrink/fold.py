"""What removed channels still say, said by their consumers' biases instead.

A unit is *silent* when each operation that sums over it can do without: its weights there are zero, or the channel is
constant and the sum has a bias that can take weight × constant. A padded convolution cannot take a constant that is
not zero, for at the border it would count too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.shrink.axes.links import Axis
from emp_onnx.shrink.axes.regions import Group
from emp_onnx.shrink.axes.rules.elementwise import BROADCAST, UNARY
from emp_onnx.shrink.axes.trace import Trace
from emp_onnx.shrink.cut import Masks
from emp_onnx.shrink.fitting.readers import Reader
from emp_onnx.shrink.plainer.constants import _padded
from emp_onnx.shrink.view import View

__all__ = ["fold", "muted", "silent"]

Told = dict[Axis, NDArray[np.float64]]
BESIDE = {
    *UNARY, *BROADCAST,
    "Clip", "Dropout", "BatchNormalization", "InstanceNormalization", "GlobalAveragePool", "GlobalMaxPool",
    "MaxPool",
    "AveragePool", "Concat", "Split", "Slice", "Gather", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze",
    "Pad", "Resize",
    "Upsample", "Expand", "DepthToSpace", "SpaceToDepth", "ReduceMean", "ReduceMax", "ReduceMin", "Shape", "Size",
    "Tile",
}  # fmt: skip


def silent(view: View, traced: Trace, group: Group, readers: Sequence[Reader], told: Told) -> NDArray[np.bool_]:
    """For each unit of a group whether nothing is lost with it."""
    out = np.ones(group.units, bool)
    own = {(r.op.index, r.source, r.axis): r for r in readers if r.kind != "state"}
    for op in view.ops:
        # a hidden unit speaks to the other ones of its layer, inside the operation
        if op.type in ("LSTM", "GRU", "RNN") and (op.inputs[2], 2) in group.axes:
            labels = group.axes[op.inputs[2], 2]
            heard = (
                view.constants[op.inputs[2]].any((0, 1))
                if op.inputs[2] in view.constants
                else np.ones(len(labels), bool)
            )
            out[labels[heard & (labels >= 0)]] = False
    for (name, axis), labels in group.axes.items():
        if name.startswith("#") or name in view.constants:
            continue
        for op, _ in view.readers.get(name, []):
            reader = own.get((op.index, name, axis))
            known = told.get((name, axis), np.full(len(labels), np.nan))
            if reader is not None:
                matrix = reader.matrix(view.constants[reader.weight])
                unread = (matrix == 0).all((0, 2))
                takes = (known == 0) | (
                    np.isfinite(known) & bool(reader.bias) & (reader.kind != "conv" or not _padded(op))
                )
                fine = unread | takes
            elif (
                op.type in BESIDE
                or (op.type == "Conv" and _one_each(op, view))
                or ((op.type in ("Conv", "MatMul", "Gemm", "ConvTranspose")) and not _sums(op, name, axis, traced))
            ):
                continue
            else:
                fine = known == 0
            bad = labels[~fine & (labels >= 0)]
            out[bad] = False
    return out


def _one_each(op: Any, view: View) -> bool:
    w = view.constants.get(op.inputs[1])
    return w is not None and w.shape[1] == 1 and int(op.attributes.get("group", 1)) == w.shape[0]


def _sums(op: Any, name: str, axis: int, traced: Trace) -> bool:
    """Whether the operation sums over this axis; where that is not plain, it is taken to."""
    if op.type == "MatMul":
        rank = len(traced.shapes.get(name) or ())
        return axis == rank - 1 if name == op.inputs[0] and name != op.inputs[1] else axis >= rank - 2
    return True


def fold(view: View, readers: Sequence[Reader], masks: Masks, told: Told) -> None:
    """Move, in place, what the masked channels say into the biases of their readers, and set the weights there to
    zero."""
    import onnx

    tensors = {t.name: t for t in view.model.graph.initializer}
    for reader in readers:
        mask = masks.get((reader.source, reader.axis))
        if mask is None or reader.kind == "state":
            continue
        weight = view.constants[reader.weight]
        matrix = reader.matrix(weight)
        known = np.nan_to_num(told.get((reader.source, reader.axis), np.zeros(len(mask))))
        if reader.bias and known[mask].any():
            shift = matrix[:, mask].sum(2) @ known[mask]
            bias = reader.add_bias(view.constants[reader.bias], shift)
            view.constants[reader.bias] = bias
            tensors[reader.bias].CopyFrom(onnx.numpy_helper.from_array(bias, reader.bias))
        matrix[:, mask] = 0.0
        new = reader.put(matrix, weight)
        view.constants[reader.weight] = new
        tensors[reader.weight].CopyFrom(onnx.numpy_helper.from_array(new, reader.weight))


def muted(view: View, masks: Masks, readers: Sequence[Reader], *, whole: bool) -> Any:
    """A copy of the model in which the units that go are zero: in the weights that make them, or (`whole`) in every
    constant.

    The weights that make a unit are those of Conv, Gemm, MatMul and recurrent operations; its biases and shifts stay,
    and go on speaking.
    """
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(view.model)
    makers = {(r.weight, r.out) for r in readers}
    for op in view.ops:
        if op.type in ("Conv", "Gemm", "MatMul") and op.inputs[1] in view.constants:
            right = op.type == "MatMul" or (op.type == "Gemm" and not op.attributes.get("transB"))
            makers.add((op.inputs[1], view.constants[op.inputs[1]].ndim - 1 if right else 0))
    for tensor in model.graph.initializer:
        values = view.constants[tensor.name].copy()
        changed = False
        for axis in range(values.ndim):
            mask = masks.get((tensor.name, axis))
            if mask is not None and (whole or (tensor.name, axis) in makers):
                np.moveaxis(values, axis, 0)[mask] = 0
                changed = True
        if changed:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    return model
