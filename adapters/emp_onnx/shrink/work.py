"""The work of an operation: multiply-adds from its shapes, and what its time goes with."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from emp_onnx.shrink.view import Op

__all__ = ["counts_as_work", "flops", "work"]

WORKERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "com.microsoft.FusedMatMul"}
BLOCK = 16  # channels that onnxruntime's blocked convolutions compute together (AVX-512; 8 elsewhere)
ROWS = 8  # of a small product that take as long as one: its weights are read once for all of them
Shapes = Mapping[str, tuple[int, ...]]


def flops(op: Op, sizes: Shapes) -> float:
    """Multiply-adds of an operation; elements written, where it multiplies nothing."""
    out = prod(sizes.get(op.outputs[0], ())) if op.outputs and op.outputs[0] else 0
    if op.type == "Conv":
        return float(out * prod(sizes[op.inputs[1]][1:]))
    if op.type == "ConvTranspose":
        return float(prod(sizes[op.inputs[0]]) * prod(sizes[op.inputs[1]][1:]))
    if op.type == "Gemm":
        a = sizes[op.inputs[0]]
        return float(out * a[0 if op.attributes.get("transA") else -1])
    if op.type in ("MatMul", "com.microsoft.FusedMatMul"):
        return float(out * sizes[op.inputs[0]][-1])
    if op.type == "Einsum":
        text = op.attributes["equation"].decode().replace(" ", "").split("->")[0].split(",")
        letters = {
            c: d for name, term in zip(op.inputs, text, strict=True) for c, d in zip(term, sizes[name], strict=True)
        }
        return float(prod(letters.values()))
    if op.type in ("LSTM", "GRU", "RNN"):
        steps = prod(sizes[op.inputs[0]][:2])
        return float(steps * (prod(sizes[op.inputs[1]]) + prod(sizes[op.inputs[2]])))
    return float(max(out, prod(sizes.get(op.inputs[0], (1,))) if op.inputs and op.inputs[0] else 1))


def counts_as_work(op: Op) -> bool:
    """Whether an operation multiplies and adds."""
    return op.type in WORKERS


def blocked(op: Op, sizes: Shapes) -> Shapes:
    """Shapes as a convolution is computed: channels in full blocks, where there is more than one."""
    if op.type != "Conv":
        return sizes
    out = dict(sizes)
    for name, axes in ((op.inputs[0], (1,)), (op.inputs[1], (0, 1)), (op.outputs[0], (1,))):
        shape = list(out[name])
        for axis in axes:
            shape[axis] = shape[axis] if shape[axis] < BLOCK else -(-shape[axis] // BLOCK) * BLOCK
        out[name] = tuple(shape)
    return out


def work(op: Op, sizes: Shapes) -> float:
    """What an operation's time goes with: its multiply-adds, of a convolution in full blocks.

    A recurrent operation multiplies all steps by W at once and each by R after the other, so R is read from memory in
    every step, and W once for so many rows as a product takes together.
    """
    if op.type not in ("LSTM", "GRU", "RNN"):
        return flops(op, blocked(op, sizes))
    steps, batch = sizes[op.inputs[0]][:2]
    w, r = prod(sizes[op.inputs[1]]), prod(sizes[op.inputs[2]])
    return float(-(-steps * batch // ROWS) * w + steps * -(-batch // ROWS) * r)
