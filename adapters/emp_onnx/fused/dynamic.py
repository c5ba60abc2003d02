"""What stands around a product of activations that are quantised as they come."""

from __future__ import annotations

import onnx

from emp_onnx.fused.graph import Uses, is_standard, shape_of, value_of

__all__ = ["DYNAMIC", "Chain", "chain_of"]

DYNAMIC = ("MatMulInteger", "ConvInteger")  # whose activations are quantised as they come
FLOAT = onnx.TensorProto.FLOAT
Chain = tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto, onnx.NodeProto, str]


def chain_of(graph: Uses, node: onnx.NodeProto) -> Chain | None:
    """What stands around a MatMulInteger of dynamically quantised activations: the node that quantises them, the Cast
    of its sums, the product of both scales, the multiplication by it, and the name of the weight's scale."""
    quantise = graph.makers.get(node.input[0])
    if quantise is None or not is_standard(quantise, "DynamicQuantizeLinear"):
        return None
    if node.input[0] != quantise.output[0] or len(node.input) < 3 or node.input[2] != quantise.output[2]:
        return None
    cast = graph.only_user(node.output[0])
    if cast is None or not is_standard(cast, "Cast") or value_of(cast, "to", 0) != FLOAT:
        return None
    mul = graph.only_user(cast.output[0])
    if mul is None or not is_standard(mul, "Mul"):
        return None
    others = [name for name in mul.input if name != cast.output[0]]
    scales = graph.makers.get(others[0]) if len(others) == 1 else None
    if scales is None or not is_standard(scales, "Mul") or quantise.output[1] not in scales.input:
        return None
    scale = [name for name in scales.input if name != quantise.output[1]]
    found = graph.constant(scale[0]) if len(scale) == 1 else None
    if found is None or found.dtype.name != "float32" or found.ndim > 1:
        return None
    if node.op_type == "ConvInteger":
        return (quantise, cast, scales, mul, scale[0]) if found.size == 1 else None
    columns = shape_of(graph.unpacked[node.input[1]])[-1] if node.input[1] in graph.unpacked else -1
    return (quantise, cast, scales, mul, scale[0]) if found.size in (1, columns) else None
