"""Packed weights moved into the nodes that use them, so that kernels can compute with them as they are.

`emp pack` puts a node of its own before each use of a packed weight, which unpacks it. Kernels need weight and
activations in one node. So a MatMul, Gemm or Conv with such a weight becomes one node of the same domain, with the bias
and the Relu that follow it, and with a local function of its name that says in standard operations what it computes.
Without kernels onnxruntime inlines that function, and all is as before.

The names are made of what a node does: MatMul, MatMulAdd, Gemm or Conv; then Relu; then the form of the weight.
Inputs: the activations; the bias (not for MatMul); those of the function that unpacks.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper, numpy_helper

from emp_onnx.errors import ModelError, quote
from emp_onnx.files.reader import DOMAIN

__all__ = ["FORMS", "Fused", "fuse", "fused_model"]

FORMS = {f"Unpack{form}": form for form in ("Mask", "Mask4", "Gaps4", "Gaps6", "Gaps8")}
_ATTRIBUTES = {
    "MatMul": (), "Gemm": ("transB",), "Conv": ("strides", "pads", "dilations", "group", "kernel_shape"),
}  # fmt: skip
_NONE = onnx.TensorProto()
# Above these densities dense kernels win, whatever the shape; convolutions also lose onnxruntime's blocked layout.
DENSEST = {"MatMul": 0.7, "Gemm": 0.7, "Conv": 0.5}
LEAST = {"MatMul": 1 << 18, "Gemm": 1 << 18, "Conv": 1 << 13}  # elements: smaller weights stay in cache, and win dense


@dataclass(frozen=True)
class Fused:
    """What became of one use of a packed weight.

    Attributes:
        weight: its name.
        op: the node that it is part of now, or "" where it is unpacked as before.
        reason: why it is unpacked; "" otherwise.
    """

    weight: str
    op: str
    reason: str


def fused_model(path: str | os.PathLike[str], /, *, every: bool = False) -> tuple[onnx.ModelProto, list[Fused]]:
    """The model with packed weights moved into the nodes that use them. Weights in sidecars are not read.

    Args:
        path: a model that `emp pack` wrote; one without packed weights comes back as it is.
        every: also where dense kernels are expected to be faster.

    Raises:
        ModelError: not an ONNX model.

    Example:
        >>> fused_model("missing.onnx")
        Traceback (most recent call last):
            ...
        emp_onnx.errors.ModelError: model must be an ONNX file, got 'missing.onnx', which cannot be read
    """
    try:
        model = onnx.load(os.fspath(path), load_external_data=False)
    except Exception as error:  # protobuf's own errors have no common base
        raise ModelError(f"model must be an ONNX file, got {quote(str(path))}, which cannot be read") from error
    return model, fuse(model, every=every)


def fuse(model: onnx.ModelProto, /, *, every: bool = False) -> list[Fused]:
    """Change `model` so; says what became of each use of a packed weight in its main graph.

    Example:
        >>> fuse(onnx.ModelProto())
        []
    """
    graph = _Graph(model.graph)
    told: list[Fused] = []
    made: dict[str, onnx.FunctionProto] = {}
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    for node in list(model.graph.node):
        if node.domain == DOMAIN and node.op_type.startswith(("MatMul", "Gemm", "Conv")):
            told.append(Fused(node.input[-2], node.op_type, ""))  # fused before
        for name in sorted(set(node.input) & graph.unpacked.keys()) if id(node) not in graph.gone else ():
            unpack = graph.unpacked[name]
            if len(_shape(unpack)) < 2:
                continue  # a bias, which is unpacked wherever it goes
            reason = _against(graph, node, unpack, every)
            told.append(Fused(name, "" if reason else _join(graph, node, unpack, made, opset), reason))
    dead = {id(n) for n in graph.unpacked.values() if not graph.uses[n.output[0]] and n.output[0] not in graph.kept}
    alive = [node for node in model.graph.node if id(node) not in dead | graph.gone]
    del model.graph.node[:]
    model.graph.node.extend(alive)
    model.functions.extend(made[name] for name in sorted(made))
    return told


class _Graph:
    """Who makes and who uses what in the main graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.unpacked = {n.output[0]: n for n in graph.node if n.domain == DOMAIN and n.op_type in FORMS}
        self.uses: Counter[str] = Counter()
        self.next: dict[str, onnx.NodeProto] = {}
        self.kept = {item.name for item in graph.output}
        self.gone: set[int] = set()
        for node in graph.node:
            self.uses.update(node.input)
            self.next.update(dict.fromkeys(node.input, node))
            self.kept.update(_inner_names(node))

    def only_user(self, name: str) -> onnx.NodeProto | None:
        """The node that alone uses a value, if nothing else does."""
        return self.next[name] if self.uses[name] == 1 and name not in self.kept else None

    def vector(self, name: str, size: int) -> bool:
        """Whether `name` is a constant of float32 with one number for each of `size` outputs."""
        if unpack := self.unpacked.get(name):
            stored = _values(self, unpack)
            return _shape(unpack) == [size] and stored is not None and stored.data_type == onnx.TensorProto.FLOAT
        tensor = self.tensors.get(name)
        return (
            tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT
            and list(tensor.dims) in ([size], [1, size])
        )  # fmt: skip


def _inner_names(node: onnx.NodeProto) -> Iterator[str]:
    """Names that subgraphs of a node may take from outside."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
            yield from (item.name for item in graph.output)
            for inner in graph.node:
                yield from inner.input
                yield from _inner_names(inner)


def _value(node: onnx.NodeProto, name: str, otherwise: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return otherwise


def _shape(unpack: onnx.NodeProto) -> list[int]:
    return [int(size) for size in numpy_helper.to_array(_value(unpack, "shape", None)).reshape(-1)]


def _values(graph: _Graph, unpack: onnx.NodeProto) -> onnx.TensorProto | None:
    after = 4 if unpack.op_type.endswith("Mask4") else 1
    return graph.tensors.get(unpack.input[len(unpack.input) - after - 1])


def _against(graph: _Graph, node: onnx.NodeProto, unpack: onnx.NodeProto, every: bool) -> str:
    """Why this use stays as it is; "" if nothing speaks against."""
    shape, values = _shape(unpack), _values(graph, unpack)
    if node.domain not in ("", "ai.onnx") or node.op_type not in _ATTRIBUTES:
        return f"used by {node.op_type}, which has no kernel"
    if len(node.input) < 2 or node.input[1] != unpack.output[0] or node.input[0] == unpack.output[0]:
        return f"not the second input of {node.op_type}"
    if values is None or values.data_type != onnx.TensorProto.FLOAT:
        return "its values are not float32"
    if reason := _geometry(graph, node, shape):
        return reason
    size = math.prod(shape)
    density = (math.prod(values.dims) - 1) / max(size, 1)
    if every:
        return ""
    if density > DENSEST[node.op_type]:
        return f"its density of {density:.0%} is above {DENSEST[node.op_type]:.0%}"
    least = LEAST[node.op_type]
    return f"it has fewer than {least} elements" if size < least else ""


def _geometry(graph: _Graph, node: onnx.NodeProto, shape: list[int]) -> str:
    if node.op_type == "Conv":
        group = _value(node, "group", 1)
        if len(shape) != 4:
            return "it is not a convolution over two axes"
        if _value(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b""):
            return "its pads are not written out"
        if max(_value(node, "strides", [1])) > 1024 or math.prod(shape[1:]) > 65536:
            return "its strides or kernels are too large"
        return "each group has few channels" if group > 1 and shape[1] < 8 else ""
    if len(shape) != 2:
        return "it has not two dimensions"
    if node.op_type == "Gemm":
        if _value(node, "transA", 0) or _value(node, "alpha", 1.0) != 1.0 or _value(node, "beta", 1.0) != 1.0:
            return "transA, alpha or beta of its Gemm is set"
        rows = shape[0] if _value(node, "transB", 0) else shape[1]
        if len(node.input) > 2 and node.input[2] and not graph.vector(node.input[2], rows):
            return "the bias of its Gemm is not one number for each output"
    return ""


def _join(
    graph: _Graph, node: onnx.NodeProto, unpack: onnx.NodeProto, made: dict[str, onnx.FunctionProto], opset: int
) -> str:
    """Turn `node` into one with its weight, and with what follows it; the name of what it is now."""
    kind, form = node.op_type, FORMS[unpack.op_type]
    bias = [node.input[2] if len(node.input) > 2 else ""] if kind != "MatMul" else []
    after = graph.only_user(node.output[0])
    if kind == "MatMul" and after is not None and after.op_type == "Add" and after.domain in ("", "ai.onnx"):
        other = [name for name in after.input if name != node.output[0]]
        # a bias of [1, outputs] would add an axis to activations of one axis, so only a plain vector will do
        plain = len(other) == 1 and (other[0] in graph.unpacked or len(graph.tensors.get(other[0], _NONE).dims) == 1)
        if plain and graph.vector(other[0], _shape(unpack)[1]):
            kind, bias = "MatMulAdd", other
            after = _take(graph, node, after)
    relu = after is not None and after.op_type == "Relu" and after.domain in ("", "ai.onnx")
    if relu:
        assert after is not None
        _take(graph, node, after)
    name = f"{kind}{'Relu' if relu else ''}{form}"
    if name not in made:
        made[name] = _function(name, node.op_type, kind, relu, unpack, opset)
    own = [a for a in node.attribute if a.name in _ATTRIBUTES[node.op_type]]
    attributes = [*(a for a in unpack.attribute if a.name in ("shape", "count")), *own]
    inputs = [node.input[0], *bias, *unpack.input]
    graph.uses[unpack.output[0]] -= 1
    node.op_type, node.domain = name, DOMAIN
    del node.input[:], node.attribute[:]
    node.input.extend(inputs)
    node.attribute.extend(attributes)
    return name


def _take(graph: _Graph, node: onnx.NodeProto, after: onnx.NodeProto) -> onnx.NodeProto | None:
    """Let `node` make what `after` makes, and drop `after`; who alone uses that, if one does."""
    graph.gone.add(id(after))
    node.output[0] = after.output[0]
    return graph.only_user(node.output[0])


def _function(name: str, op: str, kind: str, relu: bool, unpack: onnx.NodeProto, opset: int) -> onnx.FunctionProto:
    """What the node computes, in standard operations and the function that unpacks."""
    packed = [f"packed_{i}" for i in range(len(unpack.input))]
    inputs = ["x", *(["bias"] if kind != "MatMul" else []), *packed]
    attributes = ["shape", *(["count"] if "Gaps" in name else []), *_ATTRIBUTES[op]]
    steps = [_node(unpack.op_type, packed, ["weight"], attributes[: 2 if "Gaps" in name else 1], DOMAIN)]
    operands = ["x", "weight", *(["bias"] if kind in ("Gemm", "Conv") else [])]
    chain = [
        (op, operands),
        *([("Add", ["", "bias"])] if kind == "MatMulAdd" else []),
        *([("Relu", [""])] if relu else []),
    ]
    for i, (step, taken) in enumerate(chain):
        made = "y" if i == len(chain) - 1 else f"step_{i}"
        taken = [f"step_{i - 1}" if name == "" else name for name in taken] if i else taken
        steps.append(_node(step, taken, [made], _ATTRIBUTES[op] if i == 0 else ()))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_function(DOMAIN, name, inputs, ["y"], steps, imports, attributes)


_TYPES = {
    "shape": onnx.AttributeProto.TENSOR, "count": onnx.AttributeProto.TENSOR, "transB": onnx.AttributeProto.INT,
    "group": onnx.AttributeProto.INT,
}  # fmt: skip


def _node(
    op: str, inputs: Iterable[str], outputs: Iterable[str], borrowed: Iterable[str], domain: str = ""
) -> onnx.NodeProto:
    node = helper.make_node(op, list(inputs), list(outputs), domain=domain)
    for name in borrowed:
        attribute = node.attribute.add()
        attribute.name = attribute.ref_attr_name = name
        attribute.type = _TYPES.get(name, onnx.AttributeProto.INTS)
    return node
