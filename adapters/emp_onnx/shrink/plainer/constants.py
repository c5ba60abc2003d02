"""Channels that say the same whatever the input is, and what they say: followed forward from zero weights.

A row of zeros in a weight makes its output the bias, everywhere; what comes after it element by element keeps it
constant. `told` holds for (tensor, axis) the value at each coordinate, NaN where it varies or nothing is known.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emp_onnx.shrink.axes.links import Axis
from emp_onnx.shrink.axes.rules.elementwise import UNARY
from emp_onnx.shrink.axes.trace import Runner, Trace
from emp_onnx.shrink.view import Op, View

__all__ = ["constant_channels"]

Wide = NDArray[np.float64]
BINARY = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Max": np.fmax, "Min": np.fmin}
SAME = ("GlobalAveragePool", "GlobalMaxPool", "MaxPool", "AveragePool")
OUT = ("Conv", "Gemm", "MatMul")


def constant_channels(view: View, traced: Trace) -> dict[Axis, Wide]:
    """The constant values of every tensor that has any."""
    told: dict[Axis, Wide] = {}
    for op in view.ops:
        if not op.outputs or not op.outputs[0] or op.outputs[0] not in traced.shapes:
            continue
        for axis, values in _follow(op, view, traced, told):
            if np.isfinite(values).any():
                told[op.outputs[0], axis] = values
    return told


def _follow(op: Op, view: View, traced: Trace, told: dict[Axis, Wide]) -> list[tuple[int, Wide]]:
    x = op.inputs[0] if op.inputs else ""
    rank = len(traced.shapes.get(x) or ())
    if op.type in OUT:
        return _linear(op, view, rank, told)
    if op.type == "BatchNormalization":
        if any(name not in view.constants for name in op.inputs[1:5]) or rank < 2:
            return []
        scale, shift, mean, var = (view.constants[n].astype(np.float64) for n in op.inputs[1:5])
        root = np.sqrt(var + op.attributes.get("epsilon", 1e-5))
        values = scale * (told.get((x, 1), np.full(len(scale), np.nan)) - mean) / root + shift
        return [(1, np.where(scale == 0, shift, values))]
    if op.type in (*UNARY, "Clip", "Dropout") and all(name in view.constants for name in op.inputs[1:] if name):
        return [(axis, _evaluate(op, view, told[x, axis])) for axis in range(rank) if (x, axis) in told]
    if op.type in BINARY and len(op.inputs) == 2:
        return _binary(op, view, traced, told)
    if op.type in SAME and (x, 1) in told:
        padded = any(op.attributes.get("pads", ())) or op.attributes.get("auto_pad", b"NOTSET") not in (
            b"NOTSET",
            b"VALID",
        )
        counted = op.type == "AveragePool" and padded and op.attributes.get("count_include_pad", 0)
        return [] if counted else [(1, told[x, 1])]
    if op.type == "Concat":
        return _concat(op, traced, told)
    if op.type == "Transpose":
        perm = list(op.attributes.get("perm", range(rank)[::-1]))
        return [(perm.index(axis), told[x, axis]) for axis in range(rank) if (x, axis) in told]
    if op.type in ("Flatten", "Reshape"):
        return _flatten(op, traced, told)
    return []


def _linear(op: Op, view: View, rank: int, told: dict[Axis, Wide]) -> list[tuple[int, Wide]]:
    w = view.constants.get(op.inputs[1])
    if w is None or w.dtype.kind != "f":
        return []
    bias_name = op.input(2)
    if op.type == "MatMul":
        return [(rank - 1, np.where((w == 0).all(0), 0.0, np.nan))] if w.ndim == 2 and rank > 1 else []
    if op.type == "Gemm":
        axis = 0 if op.attributes.get("transB") else 1
        zero = (w == 0).all(1 - axis)
        bias = np.zeros(len(zero))
        if bias_name:
            b = view.constants.get(bias_name)
            if b is None or b.size not in (1, len(zero)) or (b.ndim and b.shape[-1] != b.size):
                return []
            bias = np.broadcast_to(b.astype(np.float64).reshape(-1) * op.attributes.get("beta", 1.0), len(zero))
        return [(1, np.where(zero, bias, np.nan))]
    if bias_name and bias_name not in view.constants:
        return []
    bias = view.constants[bias_name].astype(np.float64) if bias_name else np.zeros(len(w))
    flat = w.reshape(len(w), -1).astype(np.float64)
    values = np.where((flat == 0).all(1), bias, np.nan)
    before = told.get((op.inputs[0], 1))
    if (
        int(op.attributes.get("group", 1)) == len(w)
        and w.shape[1] == 1
        and before is not None
        and len(before) == len(w)
    ):
        # one channel each: a constant stays one where no border mixes in
        inner = np.where((before == 0) | (not _padded(op)), before * flat.sum(1) + bias, np.nan)
        values = np.where(np.isfinite(values), values, inner)
    return [(1, values)]


def _padded(op: Op) -> bool:
    return any(op.attributes.get("pads", ())) or op.attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")


def _evaluate(op: Op, view: View, values: Wide) -> Wide:
    """The operation itself, run by onnxruntime on these numbers."""
    import onnx

    name = op.inputs[0]
    kind = np.float32
    node = onnx.NodeProto()
    node.CopyFrom(op.node)
    del node.output[1:]
    info = onnx.helper.make_tensor_value_info
    given = [onnx.numpy_helper.from_array(view.constants[n].astype(kind), n) for n in dict.fromkeys(op.inputs[1:]) if n]
    if any(view.constants[n].dtype.kind != "f" for n in op.inputs[1:] if n):
        return np.full_like(values, np.nan)
    graph = onnx.helper.make_graph(
        [node], "one", [info(name, 1, [len(values)])], [onnx.ValueInfoProto(name=op.outputs[0])], given
    )
    model = onnx.helper.make_model(graph, opset_imports=view.model.opset_import, ir_version=view.model.ir_version)
    if view.model.ir_version < 4:
        graph.input.extend(info(t.name, 1, list(t.dims)) for t in given)
    try:
        out = Runner(model)({name: np.nan_to_num(values).astype(kind)})[op.outputs[0]]
    except Exception:  # what does not run alone is not followed
        return np.full_like(values, np.nan)
    if out.shape != values.shape or out.dtype != kind:
        return np.full_like(values, np.nan)
    return np.where(np.isfinite(values), out.astype(np.float64), np.nan)


def _binary(op: Op, view: View, traced: Trace, told: dict[Axis, Wide]) -> list[tuple[int, Wide]]:
    y = op.outputs[0]
    rank = len(traced.shapes[y])
    out = []
    for axis in range(rank):
        size = traced.shapes[y][axis]
        sides: list[Wide | None] = []
        for name in op.inputs:
            have = traced.shapes.get(name)
            inner = axis - (rank - len(have)) if have is not None else -1
            values = view.constants.get(name)
            if values is not None and values.dtype.kind == "f":
                along = values.shape[inner] if inner >= 0 else 1
                if values.size != along or size is None:
                    sides.append(None)
                else:
                    sides.append(np.broadcast_to(values.astype(np.float64).reshape(-1), size))
            else:
                sides.append(told.get((name, inner)) if inner >= 0 else None)
        if size is None or any(s is not None and len(s) != size for s in sides):
            continue
        a, b = sides
        if a is not None and b is not None:
            with np.errstate(all="ignore"):
                value = BINARY[op.type](a, b)
            known = np.isfinite(a) & np.isfinite(b) & np.isfinite(value)
            out.append((axis, np.where(known, value, np.nan)))
        elif op.type == "Mul" and (a is not None or b is not None):
            side = a if a is not None else b
            assert side is not None
            out.append((axis, np.where(side == 0, 0.0, np.nan)))
    return out


def _concat(op: Op, traced: Trace, told: dict[Axis, Wide]) -> list[tuple[int, Wide]]:
    shapes = [traced.shapes.get(name) for name in op.inputs]
    rank = len(traced.shapes[op.outputs[0]])
    axis = int(op.attributes.get("axis", 0)) % rank
    if any(s is None or s[axis] is None for s in shapes):
        return []
    parts = [
        told.get((name, axis), np.full(s[axis], np.nan))  # type: ignore[arg-type, index]
        for name, s in zip(op.inputs, shapes, strict=True)
    ]
    return [(axis, np.concatenate(parts))]


def _flatten(op: Op, traced: Trace, told: dict[Axis, Wide]) -> list[tuple[int, Wide]]:
    """(N, C, …) → (N, C·…): each channel is repeated."""
    x, y = op.inputs[0], op.outputs[0]
    old, new = traced.shapes.get(x), traced.shapes[y]
    values = told.get((x, 1))
    if values is None or old is None or len(new) != 2 or new[1] is None or any(d is None for d in old[1:]):
        return []
    if any(run[x][0] != run[y][0] for run in traced.runs):
        return []
    return [(1, np.repeat(values, new[1] // len(values)))]
