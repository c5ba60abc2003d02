"""What follows a convolution alone and is more than a Relu: Clip, LeakyRelu, PRelu, Swish (x · sigmoid(x), in PyTorch
SiLU) and HardSwish (x · min(max(x / 6 + 1 / 2, 0), 1)), however an exporter spelled the last two. Gelu is in gelu.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from emp_onnx.fused.graph import Uses, is_standard, value_of

__all__ = ["ENDINGS", "Ending", "ending_behind", "ending_steps"]

# and their attributes
ENDINGS = {"Clip": ("low", "high"), "LeakyRelu": ("alpha",), "PRelu": (), "Swish": (), "HardSwish": ()}
_SIXTH = 1 / 6


@dataclass(frozen=True)
class Ending:
    """An activation that was found behind a product or a convolution.

    Attributes:
        name: one of ENDINGS, or Gelu or GeluTanh.
        steps: the nodes that make it, the one with the result last.
        attributes: of the node that does it too.
        slopes: of a PRelu, by name, as an input of that node; none otherwise.
    """

    name: str
    steps: list[onnx.NodeProto]
    attributes: list[onnx.AttributeProto] = field(default_factory=list)
    slopes: list[str] = field(default_factory=list)


def ending_behind(graph: Uses, name: str, shape: Sequence[int], opset: int = 11) -> Ending | None:
    """The activation of what a convolution with a weight of this shape makes, if nothing else uses it; None otherwise.

    Example:
        >>> steps = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Sigmoid", ["a"], ["b"]),
        ...          helper.make_node("Mul", ["a", "b"], ["y"])]
        >>> found = ending_behind(Uses(helper.make_graph(steps, "g", [], []), None), "a", [8, 3, 1, 1])
        >>> found.name, [step.op_type for step in found.steps]
        ('Swish', ['Sigmoid', 'Mul'])
    """
    single = graph.only_user(name)
    if single is None:
        return _gated(graph, name)
    if is_standard(single, "Clip"):
        if opset < 8:
            return None  # Min and Max, which say it in a function, spread nothing yet
        bounds: list[float | None] = [_bound(graph, single, 1, -math.inf), _bound(graph, single, 2, math.inf)]
        if opset < 11:
            bounds = [value_of(single, "min", -math.inf), value_of(single, "max", math.inf)]
        known = [numpy_helper.from_array(np.array(bound, np.float32)) for bound in bounds if bound is not None]
        given = [helper.make_attribute(key, bound) for key, bound in zip(ENDINGS["Clip"], known, strict=False)]
        return Ending("Clip", [single], given) if len(given) == 2 else None
    if is_standard(single, "LeakyRelu"):
        slope = float(value_of(single, "alpha", 0.01))
        return Ending("LeakyRelu", [single], [helper.make_attribute("alpha", slope)])
    swish = is_standard(single, "Swish") or (single.op_type == "QuickGelu" and single.domain == "com.microsoft")
    if swish and value_of(single, "alpha", 1.702 if single.op_type == "QuickGelu" else 1.0) == 1.0:
        return Ending("Swish", [single])
    if is_standard(single, "PRelu") and graph.vector(single.input[1], shape[0], channels_of=len(shape) - 2):
        return Ending("PRelu", [single], slopes=[single.input[1]])
    return Ending("HardSwish", [single]) if is_standard(single, "HardSwish") else None


def _bound(graph: Uses, clip: onnx.NodeProto, place: int, without: float) -> float | None:
    """One bound of a Clip; None where it is not known."""
    return graph.number(clip.input[place]) if len(clip.input) > place and clip.input[place] else without


def _gated(graph: Uses, name: str) -> Ending | None:
    """A value times the gate that is made of it."""
    users = [node for node in graph.users.get(name, []) if id(node) not in graph.gone]
    if name in graph.kept or len(users) != 2 or graph.uses[name] != 2:
        return None
    for gate, product in (users, users[::-1]):
        if is_standard(product, "Mul") and sorted(product.input) == sorted([name, gate.output[0]]):
            alone = graph.only_user(gate.output[0]) is product
            if alone and is_standard(gate, "Sigmoid"):
                return Ending("Swish", [gate, product])
            if alone and is_standard(gate, "HardSigmoid") and _is_sixth(gate):
                return Ending("HardSwish", [gate, product])
    return None


def _is_sixth(gate: onnx.NodeProto) -> bool:
    return math.isclose(value_of(gate, "alpha", 0.2), _SIXTH, rel_tol=1e-6) and value_of(gate, "beta", 0.5) == 0.5


def ending_steps(x: str, kind: str, opset: int = 11) -> list[onnx.NodeProto]:
    """One of ENDINGS of a value in a local function, from standard operations."""

    made = ["active"]
    if kind == "PRelu":
        return [helper.make_node("PRelu", [x, "slope"], made)]
    if kind == "LeakyRelu":
        leaky = helper.make_node("LeakyRelu", [x], made)
        leaky.attribute.add(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
        return [leaky]
    if kind == "Clip":
        bounds = [helper.make_node("Constant", [], [name]) for name in ENDINGS["Clip"]]
        for bound in bounds:
            bound.attribute.add(name="value", ref_attr_name=bound.output[0], type=onnx.AttributeProto.TENSOR)
        low, high = ENDINGS["Clip"]
        if opset < 11:  # a Clip's bounds are its attributes, which a function cannot hand on from tensors
            return [
                *bounds, helper.make_node("Max", [x, low], ["above"]), helper.make_node("Min", ["above", high], made),
            ]  # fmt: skip
        return [*bounds, helper.make_node("Clip", [x, low, high], made)]
    gate = helper.make_node("Sigmoid", [x], ["gate"])
    if kind == "HardSwish":
        gate = helper.make_node("HardSigmoid", [x], ["gate"], alpha=_SIXTH, beta=0.5)
    return [gate, helper.make_node("Mul", [x, "gate"], made)]
