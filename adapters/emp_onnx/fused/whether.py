"""Whether a packed weight becomes part of the node that uses it: what no kernel can take, and where dense ones win."""

from __future__ import annotations

import math

import onnx

from emp_onnx.fused.body import ATTRIBUTES
from emp_onnx.fused.chains import Candidate, worth
from emp_onnx.fused.dynamic import DYNAMIC, chain_of
from emp_onnx.fused.graph import STANDARD, Uses, Weight, shape_of, value_of

__all__ = ["Whether"]

FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
# Above these densities dense kernels win, whatever the shape. Convolutions are decided together (chains.py).
DENSEST = {"MatMul": 0.7, "Gemm": 0.7, "Conv": 0.5, "MatMulInteger": 0.55, "ConvInteger": 1.0}
LARGE, DENSEST_LARGE = 1 << 20, 0.65  # convolutions whose weight does not fit the second-level cache
LEAST_TRANSFORMED = 32  # channels and outputs of a group, from which on Winograd's method wins at any density
# Elements: smaller weights stay in cache, and win dense.
LEAST = {"MatMul": 1 << 18, "Gemm": 1 << 18, "Conv": 1 << 13, "MatMulInteger": 1 << 18, "ConvInteger": 0}


class Whether:
    """Reasons against each use of a packed weight in a graph; `every`: only what is impossible counts."""

    def __init__(self, nodes: list[onnx.NodeProto], graph: Uses, every: bool) -> None:
        self.nodes, self.graph, self.every = nodes, graph, every
        self.convolutions = set() if every else self._convolutions()

    def _convolutions(self) -> set[int]:
        """The ids of the convolutions that are worth a kernel."""
        nodes, weights = self.nodes, self.graph.weights
        shapes: dict[str, list[int]] = {name: list(tensor.dims) for name, tensor in self.graph.tensors.items()}
        shapes.update((name, shape_of(weight.unpack)) for name, weight in weights.items())
        candidates = {}
        for place, node in enumerate(nodes):
            weight = weights.get(node.input[1]) if node.op_type == "Conv" and len(node.input) > 1 else None
            if weight is None or self._impossible(node, node.input[1], weight):
                continue
            density, size = self._density(weight), math.prod(shape_of(weight.unpack))
            large = size >= LARGE
            transformed = self._transformed(node, shape_of(weight.unpack))
            least = 1.0 if transformed else DENSEST_LARGE if large else DENSEST["Conv"]
            candidates[place] = Candidate(density, density <= least and size >= LEAST["Conv"], large, transformed)
        chosen = worth(nodes, shapes, candidates, self.graph.sizes) if candidates else ()
        return {id(nodes[place]) for place in chosen}

    @staticmethod
    def _transformed(node: onnx.NodeProto, shape: list[int]) -> bool:
        """Whether Winograd's method can do a convolution, and fills its blocks of outputs."""
        steps = {*value_of(node, "strides", [1]), *value_of(node, "dilations", [1])}
        least = min(shape[0] // value_of(node, "group", 1), shape[1])
        return shape[2:] == [3, 3] and steps == {1} and least >= LEAST_TRANSFORMED

    def _density(self, weight: Weight) -> float:
        values = self.graph.stored(weight)
        assert values is not None
        return float(math.prod(values.dims) - 1) / max(math.prod(shape_of(weight.unpack)), 1)

    def against(self, node: onnx.NodeProto, name: str, weight: Weight) -> str:
        """Why this use stays as it is; "" if nothing speaks against."""
        if (reason := self._impossible(node, name, weight)) or self.every:
            return reason
        density, size, least = self._density(weight), math.prod(shape_of(weight.unpack)), LEAST[node.op_type]
        if node.op_type == "Conv" and id(node) in self.convolutions:
            return ""
        if density > DENSEST[node.op_type]:
            return f"its density of {density:.0%} is above {DENSEST[node.op_type]:.0%}"
        if size < least:
            return f"it has fewer than {least} elements"
        return "too much around it stays dense, in onnxruntime's own layout" if node.op_type == "Conv" else ""

    def _impossible(self, node: onnx.NodeProto, name: str, weight: Weight) -> str:
        """Why no kernel can take this use; "" if one can."""
        shape, values = shape_of(weight.unpack), self.graph.stored(weight)
        if node.domain not in STANDARD or node.op_type not in ATTRIBUTES:
            return f"used by {node.op_type}, which has no kernel"
        if len(node.input) < 2 or node.input[1] != name or node.input[0] == name:
            return f"not the second input of {node.op_type}"
        if values is None:
            return "its values are no initializer"
        return self._types(node, weight, values.data_type) or self._geometry(node, shape, weight)

    def _types(self, node: onnx.NodeProto, weight: Weight, kind: int) -> str:
        if node.op_type in DYNAMIC:
            return self._dynamic(node, weight)
        if weight.values == "Dequantize":
            return self._dequantized(node, weight)
        if weight.values == "Cast":
            return "" if kind in (FLOAT16, onnx.TensorProto.BFLOAT16) else "its values are not floats of 16 bits"
        return "" if kind in (FLOAT, FLOAT16) else "its values are not float32"

    def _zero(self, name: str, weight: Weight) -> tuple[int, str]:
        """The zero point of a weight, and what is wrong with it."""
        given = self.graph.constant(name) if name else None
        if name and given is None:
            return 0, "its zero point is no initializer in the model's own file"
        zeros = {int(z) for z in given.reshape(-1)} if given is not None else {0}
        if len(zeros) != 1:
            return 0, "its zero points differ"
        (zero,) = zeros
        return zero, "" if self.graph.fill(weight) == zero else "what is most frequent in it is not its zero point"

    def _dequantized(self, node: onnx.NodeProto, weight: Weight) -> str:
        after = weight.after
        assert after is not None
        maker = self.graph.makers.get(node.input[0])
        if not self.every and maker is not None and maker.op_type == "DequantizeLinear":
            return "its activations are quantised too, so onnxruntime's integer kernels run it"
        scale = self.graph.constant(after.input[1])
        if scale is None or scale.dtype.name != "float32" or value_of(after, "block_size", 0):
            return "its scales are not float32 numbers in the model's own file, one for all or one for each output"
        shape = shape_of(weight.unpack)
        axis = value_of(after, "axis", 1) % max(len(shape), 1)
        outputs = 1 if node.op_type == "MatMul" or (node.op_type == "Gemm" and not value_of(node, "transB", 0)) else 0
        if scale.ndim and (axis != outputs or scale.shape != (shape[axis],)):
            return "its scales are not one for all, or one for each output"
        return self._zero(after.input[2] if len(after.input) > 2 else "", weight)[1]

    def _dynamic(self, node: onnx.NodeProto, weight: Weight) -> str:
        if weight.values:
            return f"it is not the weight itself that {node.op_type} takes"
        if chain_of(self.graph, node) is None:
            return "it is not between DynamicQuantizeLinear and a multiplication by both scales"
        zero, wrong = self._zero(node.input[3] if len(node.input) > 3 else "", weight)
        stored = self.graph.stored(weight)
        assert stored is not None
        fits = 0 if stored.data_type == onnx.TensorProto.INT8 else 128
        return wrong or ("" if zero == fits else "its values less their zero point may not fit 8 bits")

    def _geometry(self, node: onnx.NodeProto, shape: list[int], weight: Weight) -> str:
        if node.op_type in ("Conv", "ConvInteger"):
            group = value_of(node, "group", 1)
            if len(shape) not in (3, 4):
                return "it is not a convolution over one or two axes"
            if value_of(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b""):
                return "its pads are not written out"
            if max(value_of(node, "strides", [1])) > 1024 or math.prod(shape[1:]) > 65536:
                return "its strides or kernels are too large"
            if group > 1 and node.op_type == "ConvInteger":
                return "it has groups"
            return "each group has few channels" if group > 1 and shape[1] < 8 else ""
        if len(shape) != 2:
            return "it has not two dimensions"
        if node.op_type == "Gemm":
            if value_of(node, "transA", 0) or value_of(node, "alpha", 1.0) != 1.0 or value_of(node, "beta", 1.0) != 1.0:
                return "transA, alpha or beta of its Gemm is set"
            rows = shape[0] if value_of(node, "transB", 0) else shape[1]
            kind = FLOAT16 if self.half(weight) else FLOAT
            if len(node.input) > 2 and node.input[2] and not self.graph.vector(node.input[2], rows, kind):
                return "the bias of its Gemm is not one number for each output"
        return ""

    def half(self, weight: Weight) -> bool:
        """Whether activations are float16: where the weight is, as its node takes it."""
        stored = self.graph.stored(weight)
        return weight.after is None and stored is not None and stored.data_type == FLOAT16
