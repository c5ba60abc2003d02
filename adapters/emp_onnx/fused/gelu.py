"""The Gelu behind a product, however an exporter spelled it: x · (1 + erf(x / √2)) / 2, or the same by tanh,
x · (1 + tanh(√(2 / π) · (x + 0.044715 · x³))) / 2, which Gelu(approximate="tanh") and many older models mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from emp_onnx.fused.endings import Ending
from emp_onnx.fused.graph import STANDARD, Uses, is_standard, value_of

__all__ = ["gelu_behind", "gelu_steps"]

ROOT, CUBE = math.sqrt(2 / math.pi), 0.044715


def gelu_behind(graph: Uses, name: str) -> Ending | None:
    """The Gelu, or GeluTanh, of a value, if nothing else uses that; otherwise None."""
    single = graph.only_user(name)
    if single is not None:
        return _whole(single)
    if name in graph.kept:
        return None
    users = [node for node in graph.users.get(name, []) if id(node) not in graph.gone]
    for kind, gates in (("Gelu", _gate), ("GeluTanh", _tanh_gate)):
        for first in users:
            chain = gates(graph, first, name)
            steps = [*chain, *_product(graph, chain[-1], name)] if chain else []
            # the nodes found must be all that use the value
            if len(steps) > len(chain) and graph.uses[name] == sum(list(step.input).count(name) for step in steps):
                return Ending(kind, steps)
    return None


def _whole(node: onnx.NodeProto) -> Ending | None:
    """A node that is all of it."""
    if node.op_type == "FastGelu" and node.domain == "com.microsoft":
        return Ending("GeluTanh", [node]) if len([name for name in node.input if name]) == 1 else None
    if node.op_type != "Gelu" or node.domain not in (*STANDARD, "com.microsoft"):
        return None
    kind = {b"none": "Gelu", b"tanh": "GeluTanh"}.get(value_of(node, "approximate", b"none"))
    return Ending(kind, [node]) if kind else None


def _tanh_gate(graph: Uses, summed: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
    """What makes 1 + tanh(√(2 / π) · (x + 0.044715 · x³)), if `summed` makes the sum in the inner brackets."""
    others = [item for item in summed.input if item != name]
    scaled = graph.makers.get(others[0]) if is_standard(summed, "Add") and len(others) == 1 else None
    if scaled is None or graph.only_user(others[0]) is not summed:
        return []
    for cubed in scaled.input:
        cube = _cube(graph, cubed, name) if graph.only_user(cubed) is scaled else []
        if not cube or not _with(graph, scaled, "Mul", cubed, CUBE):
            continue
        inner = graph.only_user(summed.output[0])
        if inner is None or not _with(graph, inner, "Mul", summed.output[0], ROOT):
            return []
        tanh = graph.only_user(inner.output[0])
        gate = graph.only_user(tanh.output[0]) if tanh is not None and is_standard(tanh, "Tanh") else None
        if tanh is not None and gate is not None and _with(graph, gate, "Add", tanh.output[0], 1.0):
            return [*cube, scaled, summed, inner, tanh, gate]
    return []


def _cube(graph: Uses, cubed: str, name: str) -> list[onnx.NodeProto]:
    """The nodes that make x³ of x, if these do."""
    maker = graph.makers.get(cubed)
    if maker is not None and is_standard(maker, "Pow") and maker.input[0] == name and _is(graph, maker.input[1], 3.0):
        return [maker]
    if maker is None or not is_standard(maker, "Mul") or list(maker.input).count(name) != 1:
        return []
    squared = next(item for item in maker.input if item != name)
    square = graph.makers.get(squared)
    plain = square is not None and is_standard(square, "Mul") and list(square.input) == [name, name]
    return [square, maker] if square is not None and plain and graph.only_user(squared) is maker else []


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
    found = graph.number(name)
    return found is not None and abs(found - number) <= 1e-6 * number


def gelu_steps(x: str, kind: str) -> list[onnx.NodeProto]:
    """Gelu or GeluTanh of a value in a local function, from standard operations."""

    def number(name: str, value: float) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value, np.float32)))

    def gate() -> Iterator[onnx.NodeProto]:
        if kind == "Gelu":
            yield number("root", math.sqrt(2))
            yield helper.make_node("Div", [x, "root"], ["scaled"])
            yield helper.make_node("Erf", ["scaled"], ["error"])
        else:
            yield from (number("three", 3.0), number("cubic", CUBE), number("root", ROOT))
            yield helper.make_node("Pow", [x, "three"], ["cube"])
            yield helper.make_node("Mul", ["cube", "cubic"], ["bent"])
            yield helper.make_node("Add", [x, "bent"], ["inner"])
            yield helper.make_node("Mul", ["inner", "root"], ["scaled"])
            yield helper.make_node("Tanh", ["scaled"], ["error"])

    return [
        *gate(), number("one", 1.0), number("half", 0.5), helper.make_node("Add", ["error", "one"], ["gate"]),
        helper.make_node("Mul", [x, "gate"], ["doubled"]), helper.make_node("Mul", ["doubled", "half"], ["active"]),
    ]  # fmt: skip
