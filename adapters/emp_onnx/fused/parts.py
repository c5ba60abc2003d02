"""Packed weights whose values are in parts, put together again: kernels read the values of a weight in one place."""

from __future__ import annotations

import math
from collections import Counter

import onnx

from emp_onnx.files.functions import cut_in, function_bytes
from emp_onnx.files.reader import DOMAIN
from emp_onnx.fused.graph import STANDARD, shape_of

__all__ = ["rejoin"]


def rejoin(model: onnx.ModelProto) -> None:
    """Change the main graph so; what is in a sidecar, or used by anything else too, stays as it is."""
    graph = model.graph
    nodes = [node for node in graph.node if node.domain == DOMAIN and cut_in(node.op_type)]
    if not nodes:
        return
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(item.name for item in (*graph.input, *graph.output))
    gone: set[str] = set()
    made: set[str] = set()
    for node in nodes:
        parts = cut_in(node.op_type)
        names = list(node.input[: 2 * parts])
        held = [tensors[name] for name in names if name in tensors and uses[name] == 1]
        if len(held) < 2 * parts or not all(tensor.HasField("raw_data") and tensor.dims for tensor in held):
            continue
        _join(held[:parts], 0)
        _join(held[parts:], 1)
        gone.update((*names[1:parts], *names[parts + 1 :]))
        shape = shape_of(node)
        many = 4 if shape[0] % 4 == 0 and math.prod(shape) % 32 == 0 else 1
        after = list(node.input[2 * parts :])[:: parts // many]
        node.op_type = "UnpackMask4" if many == 4 else "UnpackMask"
        del node.input[:]
        node.input.extend([names[0], names[parts], *after])
        made.add(node.op_type)
    for i in reversed([i for i, tensor in enumerate(graph.initializer) if tensor.name in gone]):
        del graph.initializer[i]
    opset = next((item.version for item in model.opset_import if item.domain in STANDARD), 0)
    known = {item.name for item in model.functions if item.domain == DOMAIN}
    model.functions.extend(onnx.FunctionProto.FromString(function_bytes(name, opset)) for name in sorted(made - known))
    used = {node.op_type for node in graph.node if node.domain == DOMAIN}
    kept = [item for item in model.functions if item.domain != DOMAIN or not cut_in(item.name) or item.name in used]
    del model.functions[:]
    model.functions.extend(kept)


def _join(parts: list[onnx.TensorProto], fills: int) -> None:
    """Make the first of these tensors all of them; each begins with so many numbers that are needed only once."""
    first, rest = parts[0], parts[1:]
    skip = len(first.raw_data) // first.dims[0] * fills
    first.raw_data = b"".join([first.raw_data, *(tensor.raw_data[skip:] for tensor in rest)])
    first.dims[0] += sum(tensor.dims[0] - fills for tensor in rest)
