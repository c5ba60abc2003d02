"""The Gelu behind a product, however an exporter spelled it: x · (1 + erf(x / √2)) / 2."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper

from emp_onnx.fused.graph import STANDARD, Uses, is_standard, value_of

__all__ = ["gelu_behind", "gelu_steps"]


def gelu_behind(graph: Uses, name: str) -> list[onnx.NodeProto]:
    """The nodes that make Gelu of a value, the one with the result last, if they alone use it; otherwise none."""
    single = graph.only_user(name)
    if single is not None:
        plain = single.op_type == "Gelu" and single.domain in (*STANDARD, "com.microsoft")
        return [single] if plain and value_of(single, "approximate", b"none") == b"none" else []
    users = [node for node in graph.users.get(name, []) if id(node) not in graph.gone]
    if name in graph.kept or graph.uses[name] != 2 or len(users) != 2:
        return []
    for scaled in users:
        chain = _gate(graph, scaled, name)
        if chain and (rest := _product(graph, chain[-1], name)):
            return [*chain, *rest]
    return []


def _gate(graph: Uses, scaled: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
    """What makes 1 + erf(x / √2), if `scaled` begins it."""
    divided = is_standard(scaled, "Div") and scaled.input[0] == name and _is(graph, scaled.input[1], math.sqrt(2))
    if not divided and not _with(graph, scaled, "Mul", name, math.sqrt(0.5)):
        return []
    error = graph.only_user(scaled.output[0])
    if error is None or not is_standard(error, "Erf"):
        return []
    gate = graph.only_user(error.output[0])
    return [scaled, error, gate] if gate is not None and _with(graph, gate, "Add", error.output[0], 1.0) else []


def _product(graph: Uses, gate: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
    """What multiplies that with x and with a half, in any order."""
    first = graph.only_user(gate.output[0])
    if first is None or not is_standard(first, "Mul"):
        return []
    other = next((item for item in first.input if item != gate.output[0]), "")
    maker = graph.makers.get(other)
    if maker is not None and _with(graph, maker, "Mul", name, 0.5) and graph.only_user(other) is first:
        return [maker, first]
    second = graph.only_user(first.output[0])
    if second is None:
        return []
    halved = other == name and _with(graph, second, "Mul", first.output[0], 0.5)
    times = (
        _is(graph, other, 0.5)
        and is_standard(second, "Mul")
        and sorted(second.input) == sorted([first.output[0], name])
    )
    return [first, second] if halved or times else []


def _with(graph: Uses, node: onnx.NodeProto, op: str, name: str, number: float) -> bool:
    """Whether a node is this operation of a value and a number, in either order."""
    others = [item for item in node.input if item != name]
    return is_standard(node, op) and len(node.input) == 2 and len(others) == 1 and _is(graph, others[0], number)


def _is(graph: Uses, name: str, number: float) -> bool:
    maker = graph.makers.get(name)
    found = graph.constant(name)
    if maker is not None and is_standard(maker, "Constant"):
        given = value_of(maker, "value", None)
        found = np.float32(value_of(maker, "value_float", math.nan)) if given is None else numpy_helper.to_array(given)
    # float32 alone, of few enough axes that nothing is spread over it
    if found is None or found.size != 1 or found.dtype != np.float32 or found.ndim > 1:
        return False
    return abs(float(found.reshape(-1)[0]) - number) <= 1e-6 * number


def gelu_steps(x: str) -> list[onnx.NodeProto]:
    """The same of a value in a local function, from standard operations."""

    def number(name: str, value: float) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value, np.float32)))

    return [
        number("root", math.sqrt(2)), number("one", 1.0), number("half", 0.5),
        helper.make_node("Div", [x, "root"], ["scaled"]), helper.make_node("Erf", ["scaled"], ["error"]),
        helper.make_node("Add", ["error", "one"], ["gate"]), helper.make_node("Mul", [x, "gate"], ["doubled"]),
        helper.make_node("Mul", ["doubled", "half"], ["active"]),
    ]  # fmt: skip
