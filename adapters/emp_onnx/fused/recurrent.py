"""Recurrent cells with packed weights: each LSTM, GRU and RNN becomes one node with both its weights.

Inputs of such a node: the activations; bias, lengths of the sequences, the state and, of an LSTM, the cell at the
begin, each of which may be left out; those of the function that unpacks the input's weight; those of the one that
unpacks the weight of the state.
"""

from __future__ import annotations

import math

import onnx
from onnx import helper

from emp_onnx.files.reader import DOMAIN
from emp_onnx.fused.body import node_of
from emp_onnx.fused.graph import FORMS, OWN, STANDARD, Uses, Weight, shape_of, value_of

__all__ = [
    "CELLS", "against_cell", "cell_attributes", "cell_function", "cell_inputs", "cell_name", "is_cell",
]  # fmt: skip

FLOAT = onnx.TensorProto.FLOAT
# The default activations of one direction, which are the ones that kernels compute, and the attributes that they take.
CELLS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
_ATTRIBUTES = {
    "LSTM": ("direction", "hidden_size"),
    "GRU": ("direction", "hidden_size", "linear_before_reset"),
    "RNN": ("direction", "hidden_size"),
}  # fmt: skip
# From so many elements of both weights on, kernels win up to this density: docs/kernels.md. Fewer stay in cache from
# step to step.
_DENSEST = ((1 << 21, 0.45), (1 << 18, 0.12))


def is_cell(node: onnx.NodeProto) -> bool:
    """Whether a node is a recurrent cell."""
    return node.op_type in CELLS and node.domain in STANDARD


def against_cell(graph: Uses, node: onnx.NodeProto, every: bool) -> str:
    """Why its weights stay as they are; "" if nothing speaks against."""
    found = [graph.weights.get(name) for name in node.input[1:3]]
    if len(found) < 2 or any(weight is None for weight in found) or node.input[0] in node.input[1:3]:
        return f"not both weights of its {node.op_type} are packed"
    weights = [weight for weight in found if weight is not None]
    for weight in weights:
        stored = graph.stored(weight)
        if stored is None:
            return "its values are no initializer"
        kinds = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16) if weight.values == "Cast" else (FLOAT,)
        if weight.values == "Dequantize" or stored.data_type not in kinds:
            return "its values are not float32, or floats of 16 bits cast to it"
    if len({weight.values for weight in weights}) > 1:
        return f"one weight of its {node.op_type} is cast, the other is not"
    if reason := _attributes(node):
        return reason
    if every:
        return ""
    sizes = [math.prod(shape_of(weight.unpack)) for weight in weights]
    kept = [math.prod(t.dims) - 1 for weight in weights if (t := graph.stored(weight)) is not None]
    density, size = sum(kept) / max(sum(sizes), 1), sum(sizes)
    most = next((most for least, most in _DENSEST if size >= least), 0.0)
    if not most:
        return f"both weights of its {node.op_type} have fewer than {_DENSEST[-1][0]} elements"
    if density > most:
        return f"the density of both weights of its {node.op_type}, {density:.0%}, is above {most:.0%} at their size"
    return ""


def _attributes(node: onnx.NodeProto) -> str:
    directions = 2 if value_of(node, "direction", b"forward") == b"bidirectional" else 1
    default = CELLS[node.op_type] * directions
    if [name.decode() for name in value_of(node, "activations", [n.encode() for n in default])] != default:
        return f"the activations of its {node.op_type} are not the default ones"
    for name, plain in (("clip", None), ("layout", 0), ("input_forget", 0), ("activation_alpha", None),
                        ("activation_beta", None), ("output_sequence", None)):  # fmt: skip
        if value_of(node, name, plain) != plain:
            return f"{name} of its {node.op_type} is set"
    return f"its {node.op_type} has peepholes" if len(node.input) > 7 and node.input[7] else ""


def cell_name(node: onnx.NodeProto, weights: tuple[Weight, Weight]) -> str:
    """That of the function.

    The cell, Cast where the values are cast to float32, and the forms of both weights.
    """
    return f"{node.op_type}{weights[0].values}{''.join(FORMS[weight.unpack.op_type] for weight in weights)}"


def cell_inputs(node: onnx.NodeProto, weights: tuple[Weight, Weight]) -> list[str]:
    """Those of the new node."""
    given = [*node.input, *[""] * 8]
    own = [given[0], *given[3 : 7 if node.op_type == "LSTM" else 6]]
    return [*own, *weights[0].unpack.input, *weights[1].unpack.input]


def cell_attributes(node: onnx.NodeProto, weights: tuple[Weight, Weight]) -> list[onnx.AttributeProto]:
    """Those of the new node: shape and count of the second weight have names of their own."""
    out = [attribute for attribute in node.attribute if attribute.name in _ATTRIBUTES[node.op_type]]
    for weight, prefix in zip(weights, ("", "state_"), strict=True):
        for attribute in weight.unpack.attribute:
            if attribute.name in OWN:
                copy = onnx.AttributeProto()
                copy.CopyFrom(attribute)
                copy.name = prefix + attribute.name
                out.append(copy)
    return out


def cell_function(node: onnx.NodeProto, weights: tuple[Weight, Weight], opset: int) -> onnx.FunctionProto:
    """The local function of such a node: both weights unpacked, and the standard cell."""
    lstm = node.op_type == "LSTM"
    inputs, attributes = ["x", "bias", "lengths", "state", *(["cell"] if lstm else [])], []
    steps, made = [], []
    for weight, prefix in zip(weights, ("", "state_"), strict=True):
        packed = [f"{prefix}packed_{i}" for i in range(len(weight.unpack.input))]
        own = [a.name for a in weight.unpack.attribute if a.name in OWN]
        dense, stored = f"{prefix}weight", f"{prefix}stored"
        unpack = helper.make_node(weight.unpack.op_type, packed, [stored if weight.values else dense], domain=DOMAIN)
        for name in own:
            attribute = unpack.attribute.add()
            attribute.name, attribute.ref_attr_name = name, prefix + name
            attribute.type = onnx.AttributeProto.TENSOR
        steps.append(unpack)
        if weight.values:
            steps.append(helper.make_node("Cast", [stored], [dense], to=FLOAT))
        inputs += packed
        attributes += [prefix + name for name in own]
        made.append(dense)
    outputs = ["y", "last", *(["last_cell"] if lstm else [])]
    given = ["x", *made, "bias", "lengths", "state", *(["cell"] if lstm else [])]
    steps.append(node_of(node.op_type, given, outputs, _ATTRIBUTES[node.op_type]))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    attributes += _ATTRIBUTES[node.op_type]
    return helper.make_function(DOMAIN, cell_name(node, weights), inputs, outputs, steps, imports, attributes)
