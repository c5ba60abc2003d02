"""The local function of a node with a packed weight: standard operations, and the function that unpacks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

from emp_onnx.files.reader import DOMAIN
from emp_onnx.fused.endings import ENDINGS, ending_steps
from emp_onnx.fused.gelu import gelu_steps
from emp_onnx.fused.graph import OWN

__all__ = ["ATTRIBUTES", "POOL", "Shape", "function_of", "node_of"]

_CONV = ("strides", "pads", "dilations", "group", "kernel_shape")
ATTRIBUTES = {
    "MatMul": (), "Gemm": ("transB",), "Conv": _CONV, "MatMulInteger": (), "ConvInteger": _CONV,
    "ConvMaxPool": (*_CONV, "pool_kernel", "pool_strides", "pool_pads"),
}  # fmt: skip
POOL = {"pool_kernel": "kernel_shape", "pool_strides": "strides", "pool_pads": "pads"}  # as a MaxPool itself has them
_TYPES = {
    "shape": onnx.AttributeProto.TENSOR, "count": onnx.AttributeProto.TENSOR, "transB": onnx.AttributeProto.INT,
    "perm": onnx.AttributeProto.INTS, "heads": onnx.AttributeProto.INTS,
    "group": onnx.AttributeProto.INT, "axis": onnx.AttributeProto.INT, "direction": onnx.AttributeProto.STRING,
    "hidden_size": onnx.AttributeProto.INT, "linear_before_reset": onnx.AttributeProto.INT,
    "low": onnx.AttributeProto.TENSOR, "high": onnx.AttributeProto.TENSOR, "alpha": onnx.AttributeProto.FLOAT,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What a node is made of; its name says all of it.

    Attributes:
        op: MatMul, Gemm, Conv, ConvMaxPool (a Conv with the pool that follows), or MatMulInteger or ConvInteger,
            whose activations are quantised first.
        add: whether a MatMul or ConvInteger has a bias; whether something is added to what a Conv makes.
        activation: Relu if one follows, Gelu or GeluTanh, or one of ENDINGS of a Conv; "" otherwise.
        values: what is done to the stored values first: nothing, Cast (to float32) or Dequantize.
        form: of the weight: Mask, Mask4, Early, Gaps4, Gaps6, Gaps8.
        residual: whether something that is not a bias is added to what a MatMul or Gemm makes.
        heads: whether what a MatMul makes is sorted by heads, as attention has them: reshaped to four axes of which
            the second goes behind the third, or to the end.
    """

    op: str
    add: bool
    activation: str
    values: str
    form: str
    residual: bool = False
    heads: bool = False

    @property
    def kind(self) -> str:
        """MatMul, MatMulAdd or Gemm, each with Residual, Heads or neither; Conv, ConvAdd, ConvMaxPool; DynamicMatMul or
        DynamicConv, either with Add."""
        name = f"Dynamic{self.op.removesuffix('Integer')}" if self.dynamic else self.op
        return (
            name + ("Add" if self.add else "") + ("Residual" if self.residual else "") + ("Heads" if self.heads else "")
        )

    @property
    def dynamic(self) -> bool:
        """Whether activations are quantised first."""
        return self.op.endswith("Integer")

    @property
    def name(self) -> str:
        """That of the function.

        >>> Shape("MatMul", True, "Relu", "Cast", "Mask").name
        'MatMulAddReluCastMask'
        """
        return f"{self.kind}{self.activation}{self.values}{self.form}"

    @property
    def biased(self) -> bool:
        """Whether the second input is a bias."""
        return self.add or self.op in ("Gemm", "Conv", "ConvMaxPool")

    @property
    def scaled(self) -> bool:
        """Whether scale and zero point are inputs."""
        return self.values == "Dequantize" or self.dynamic

    @property
    def attributes(self) -> list[str]:
        """Those that the function takes."""
        own = ["shape", *(["count"] if self.form.startswith("Gaps") else ["ends"] if self.form == "Early" else [])]
        own += ["axis"] if self.values == "Dequantize" else []
        return [
            *own, *ATTRIBUTES[self.op], *ENDINGS.get(self.activation, ()), *(["heads", "perm"] if self.heads else []),
        ]  # fmt: skip


def function_of(shape: Shape, unpack: onnx.NodeProto, opset: int) -> onnx.FunctionProto:
    """The local function of that name."""
    packed = [f"packed_{i}" for i in range(len(unpack.input))]
    own = [name for name in shape.attributes if name in OWN]
    stored = "weight" if not shape.values else "stored"
    steps = [node_of(unpack.op_type, packed, [stored], own, DOMAIN)]
    if shape.values == "Cast":
        steps.append(helper.make_node("Cast", ["stored"], ["weight"], to=onnx.TensorProto.FLOAT))
    elif shape.values == "Dequantize":
        axis = ["axis"] if opset >= 13 else []  # before, there was one scale for all
        steps.append(node_of("DequantizeLinear", ["stored", "scale", "zero"], ["weight"], axis))
    steps += _dynamic(shape, opset) if shape.dynamic else _plain(shape, opset)
    added = ["added"] if shape.residual or (shape.add and shape.op == "Conv") else []
    added += ["slope"] if shape.activation == "PRelu" else []
    inputs = ["x", *(["bias"] if shape.biased else []), *added, *(["scale", "zero"] if shape.scaled else []), *packed]
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_function(DOMAIN, shape.name, inputs, ["y"], steps, imports, shape.attributes)


def _plain(shape: Shape, opset: int) -> list[onnx.NodeProto]:
    operands = ["x", "weight", *(["bias"] if shape.op in ("Gemm", "Conv", "ConvMaxPool") else [])]
    first = shape.op.removesuffix("MaxPool")
    steps = [node_of(first, operands, ["product"], ATTRIBUTES[first])]
    followed = _followed(steps, "product", shape, opset)
    return _pooled(followed) if first != shape.op else followed


def _pooled(steps: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    steps[-1].output[0] = "image"
    pool = helper.make_node("MaxPool", ["image"], ["y"])
    for given, own in POOL.items():
        attribute = pool.attribute.add()
        attribute.name, attribute.ref_attr_name, attribute.type = own, given, onnx.AttributeProto.INTS
    return [*steps, pool]


def _dynamic(shape: Shape, opset: int) -> list[onnx.NodeProto]:
    """As onnxruntime's quantize_dynamic writes it."""
    steps = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["quantised", "x_scale", "x_zero"]),
        node_of(shape.op, ["quantised", "weight", "x_zero", "zero"], ["sums"], ATTRIBUTES[shape.op]),
        helper.make_node("Cast", ["sums"], ["floats"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["x_scale", "scale"], ["scales"]),
        helper.make_node("Mul", ["floats", "scales"], ["product"]),
    ]
    return _followed(steps, "product", shape, opset)


def _followed(steps: list[onnx.NodeProto], made: str, shape: Shape, opset: int) -> list[onnx.NodeProto]:
    if shape.add:
        steps.append(helper.make_node("Add", [made, "added" if shape.op == "Conv" else "bias"], ["sum"]))
        made = "sum"
    if shape.residual:
        steps.append(helper.make_node("Add", [made, "added"], ["total"]))
        made = "total"
    if shape.activation.startswith("Gelu"):
        steps += gelu_steps(made, shape.activation)
    elif shape.activation in ENDINGS:
        steps += ending_steps(made, shape.activation, opset)
    elif shape.activation:
        steps.append(helper.make_node("Relu", [made], ["active"]))
    elif shape.heads:
        dims = helper.make_node("Constant", [], ["dims"])
        attribute = dims.attribute.add()
        attribute.name, attribute.ref_attr_name, attribute.type = "value_ints", "heads", onnx.AttributeProto.INTS
        steps += [dims, helper.make_node("Reshape", [made, "dims"], ["apart"])]
        steps.append(node_of("Transpose", ["apart"], ["sorted"], ["perm"]))
    steps[-1].output[0] = "y"
    return steps


def node_of(
    op: str, inputs: Iterable[str], outputs: Iterable[str], borrowed: Sequence[str], domain: str = ""
) -> onnx.NodeProto:
    """A node in a function; `borrowed` are the attributes that whoever calls the function gives."""
    node = helper.make_node(op, list(inputs), list(outputs), domain=domain)
    for name in borrowed:
        attribute = node.attribute.add()
        attribute.name = attribute.ref_attr_name = name
        attribute.type = _TYPES.get(name, onnx.AttributeProto.INTS)
    return node
