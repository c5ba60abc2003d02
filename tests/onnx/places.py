"""Models that keep one weight anywhere: every operation, behind any chain, in any home, of any dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.onnx.builders import Case, model, value

MS = "com.microsoft"
Unit = Callable[[tuple[int, ...]], Any]
Array = NDArray[Any]


@dataclass
class Op:
    """One operation with a weight at one input; the others are `x` and what `more` makes."""

    op: str
    inputs: list[str]
    shape: tuple[int, ...]  # of the weight
    x: tuple[int, ...]
    unit: Unit
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ""
    more: dict[str, Array] = field(default_factory=dict)  # further constants, 1-D or scalars
    feeds: dict[str, tuple[int, ...]] = field(default_factory=dict)  # further inputs
    lay: str = ""  # of a quantised weight: where scales and zero points may vary
    x_type: int = TensorProto.FLOAT
    y_type: int = TensorProto.FLOAT
    scaled: bool = True


def one(i: tuple[int, ...]) -> Any:
    return i[0]


def last(i: tuple[int, ...]) -> Any:
    return i[-1]


FLOAT_OPS = [
    Op("MatMul", ["x", "w"], (3, 4), (2, 3), last),
    Op("MatMul", ["w", "x"], (4, 3), (3, 2), one),
    Op("MatMul", ["x", "w"], (2, 3, 4), (2, 2, 3), lambda i: (i[0], i[2])),
    Op("Gemm", ["x", "w"], (4, 3), (2, 3), one, {"transB": 1}),
    Op("Gemm", ["w", "x"], (3, 4), (3, 2), last, {"transA": 1}),
    Op("Conv", ["x", "w"], (4, 2, 3, 2), (1, 2, 5, 5), one),
    Op("ConvTranspose", ["x", "w"], (4, 3, 2, 2), (1, 4, 3, 3), lambda i: (i[0] // 2, i[1]), {"group": 2}),
    Op("Einsum", ["x", "w"], (3, 4), (2, 3), last, {"equation": "bi,io->bo"}),
    Op("Einsum", ["w", "x"], (4, 3), (2, 3), one, {"equation": "oi, bi"}),
    Op("Einsum", ["x", "w"], (2, 3, 4), (5, 2, 3), lambda i: (i[0], i[2]), {"equation": "b...i,...io->b...o"}),
    Op("LSTM", ["x", "w", "r"], (1, 8, 3), (2, 1, 3), lambda i: i[:2], {"hidden_size": 2}, feeds={"r": (1, 8, 2)}),
    Op("GRU", ["x", "r", "w"], (1, 6, 2), (2, 1, 3), lambda i: i[:2], {"hidden_size": 2}, feeds={"r": (1, 6, 3)}),
    Op("FusedMatMul", ["x", "w"], (4, 3), (2, 3), one, {"transB": 1}, MS),
    Op("FusedMatMul", ["w", "x"], (3, 4), (3, 2), last, {"transA": 1}, MS),
    Op("FusedGemm", ["x", "w", "c"], (3, 4), (2, 3), last, {"activation": "Relu"}, MS, {"c": np.ones(4, np.float32)}),
    Op("FusedConv", ["x", "w"], (4, 2, 3, 2), (1, 2, 5, 5), one, {"activation": "Relu"}, MS),
    Op("Attention", ["x", "w", "c"], (3, 12), (1, 2, 3), last, {"num_heads": 2}, MS, {"c": np.ones(12, np.float32)}),
]
S, Z = np.array(0.5, np.float32), np.array(3, np.uint8)
U8, I32, F = TensorProto.UINT8, TensorProto.INT32, TensorProto.FLOAT
QX = {"xs": S, "xz": Z}
QUANTISED_OPS = [
    Op("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "xs", "xz"], (4, 2, 3, 2), (1, 2, 5, 5), one,
       more=QX, lay="first", x_type=U8, y_type=U8),
    Op("QLinearMatMul", ["x", "xs", "xz", "w", "ws", "wz", "xs", "xz"], (3, 4), (2, 3), last,
       more=QX, lay="last", x_type=U8, y_type=U8),
    Op("QLinearMatMul", ["w", "ws", "wz", "x", "xs", "xz", "xs", "xz"], (4, 3), (3, 2), one,
       more=QX, lay="", x_type=U8, y_type=U8),
    Op("ConvInteger", ["x", "w", "xz", "wz"], (4, 2, 3, 2), (1, 2, 5, 5), one, more={"xz": Z}, lay="",
       x_type=U8, y_type=I32, scaled=False),
    Op("MatMulInteger", ["x", "w", "xz", "wz"], (3, 4), (2, 3), last, more={"xz": Z}, lay="last",
       x_type=U8, y_type=I32, scaled=False),
    Op("DynamicQuantizeMatMul", ["x", "w", "ws", "wz"], (3, 4), (2, 3), last, {}, MS, lay="last"),
    Op("MatMulIntegerToFloat", ["x", "w", "xs", "ws", "xz", "wz"], (3, 4), (2, 3), last, {}, MS, QX, lay="last",
       x_type=U8),
    Op("QGemm", ["x", "xs", "xz", "w", "ws", "wz"], (4, 3), (2, 3), one, {"transB": 1}, MS, QX, lay="", x_type=U8),
    Op("QAttention", ["x", "w", "c", "xs", "ws", "", "xz", "wz"], (3, 12), (1, 2, 3), last, {"num_heads": 2}, MS,
       {**QX, "c": np.ones(12, np.float32)}, lay="last", x_type=U8),
    Op("DynamicQuantizeLSTM", ["x", "w", "r", "", "", "", "", "", "ws", "wz", "rs", "rz"], (1, 3, 8), (2, 1, 3),
       lambda i: (i[0], i[2]), {"hidden_size": 2}, MS,
       {"r": np.full((1, 2, 8), 7, np.uint8), "rs": np.ones(1, np.float32), "rz": np.full(1, 7, np.uint8)},
       lay="directions"),
]  # fmt: skip
HOMES = [
    "initializer", "typed", "input", "constant", "then initializer", "then constant", "outer", "argument", "function",
    "loop",
]  # fmt: skip
FLOATS = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
INTEGERS = [np.int8, np.uint8, ml_dtypes.int4, ml_dtypes.uint4]


@dataclass
class Place:
    """A model, its weight's key and stored values, and a `Case` for the oracle, made of scores."""

    model: onnx.ModelProto
    key: str
    stored: Array
    zero: Array  # what a pruned element becomes, elementwise
    case: Case
    feed: dict[str, Array]
    quantised: bool
    scaled: bool = True


def proto(name: str, array: Array, typed: bool = False) -> TensorProto:
    """A tensor of any dtype, as raw bytes or in its field of numbers."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    made = onnx.numpy_helper.from_array(array, name)
    if typed:
        numbers = array.astype(np.float64).ravel().tolist()
        made = helper.make_tensor(name, kind, array.shape, numbers)
    return made


def constant(name: str, array: Array) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], f"make {name}", value=proto("", array))


class Chain:
    """Nodes from a stored weight to the shape that an operation takes, built backwards, with what NumPy would do."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.steps: list[tuple[str, Any]] = []

    def before(self, kind: str, choice: int) -> None:
        """Put a step before all others."""
        shape = self.shape
        if kind == "Transpose":
            perm = list(np.random.default_rng(choice).permutation(len(shape)))
            self.shape = tuple(shape[perm.index(i)] for i in range(len(shape)))
            self.steps.insert(0, ("Transpose", [int(i) for i in perm]))
        elif kind == "Reshape":
            size = int(np.prod(shape))
            first = [d for d in range(1, size + 1) if size % d == 0][choice % 3]
            self.shape = (first, size // first)
            self.steps.insert(0, ("Reshape", list(shape)))
        elif kind == "Unsqueeze" and 1 in shape:
            axis = shape.index(1)
            self.shape = shape[:axis] + shape[axis + 1 :]
            self.steps.insert(0, ("Unsqueeze", [axis]))
        elif kind == "Squeeze":
            axis = choice % (len(shape) + 1)
            self.shape = (*shape[:axis], 1, *shape[axis:])
            self.steps.insert(0, ("Squeeze", [axis]))
        else:
            self.steps.insert(0, ("Identity", None))

    def nodes(self, name: str, tail: list[tuple[str, dict[str, Any], list[str]]]) -> tuple[list[onnx.NodeProto], str]:
        out = []
        for i, (op, arg) in enumerate(self.steps):
            after, inputs, attributes = f"s{i}", [name], {}
            if op == "Transpose":
                attributes["perm"] = arg
            elif arg is not None:
                out.append(constant(f"a{i}", np.array(arg, np.int64)))
                inputs.append(f"a{i}")
            out.append(helper.make_node(op, inputs, [after], **attributes))
            name = after
        for i, (op, attributes, more) in enumerate(tail):
            out.append(helper.make_node(op, [name, *more], [f"t{i}"], **attributes))
            name = f"t{i}"
        return out, name

    def run(self, array: Array) -> Array:
        for op, arg in self.steps:
            if op == "Transpose":
                array = array.transpose(arg)
            elif op in ("Reshape", "Squeeze", "Unsqueeze"):
                array = array.reshape(arg) if op == "Reshape" else (
                    array.squeeze(arg[0]) if op == "Squeeze" else np.expand_dims(array, arg[0])
                )  # fmt: skip
        return array


def stored_values(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    kind = np.dtype(dtype)
    if "int" in kind.name:
        low, high = (0, 16 if "4" in kind.name else 256) if "uint" in kind.name else (-8, 8)
        return rng.integers(low, high, shape).astype(dtype)
    return (rng.integers(-40, 41, shape) / 8 if rng.random() < 0.5 else rng.standard_normal(shape)).astype(dtype)


def build(op: Op, home: str, dtype: Any, steps: list[tuple[str, int]], rng: np.random.Generator, spread: str) -> Place:
    """One model. `spread`: how scale and zero point of a quantised weight vary: one, per axis."""
    chain = Chain(op.shape)
    for kind, choice in steps:
        chain.before(kind, choice)
    stored = stored_values(rng, chain.shape, dtype)
    integer = "int" in np.dtype(dtype).name
    tail: list[tuple[str, dict[str, Any], list[str]]] = []
    extra: dict[str, Array] = dict(op.more)
    # the order in which elements arrive, and every element's zero and scale there
    arrive = chain.run(np.arange(stored.size).reshape(chain.shape))
    zeros, scales = np.zeros(op.shape, np.int64), np.ones(op.shape)
    if integer:
        lay = op.lay if op.lay or op in QUANTISED_OPS else ["first", "last"][int(rng.integers(2))]
        axis = {"first": 0, "last": len(op.shape) - 1, "directions": 0, "": 0}[lay]
        count = op.shape[axis] if lay and spread == "axis" else 1
        points = rng.integers(*((0, 15) if "uint" in np.dtype(dtype).name else (-4, 4)), count).astype(dtype)
        if op.op == "QLinearConv" and dtype == np.int8:
            points[:] = 0  # all that onnxruntime takes
        sizes = (rng.integers(1, 200, count) / 64).astype(np.float32)
        along = [-1 if i == axis else 1 for i in range(len(op.shape))]
        zeros = zeros + points.astype(np.int64).reshape(along)
        if op.scaled:
            scales = scales * sizes.astype(np.float64).reshape(along)
        plain = count == 1 and lay != "directions"
        extra["wz"], extra["ws"] = (points[0] if plain else points), (sizes[0] if plain else sizes)
        extra = {name: np.asarray(array) for name, array in extra.items()}
        if op not in QUANTISED_OPS:
            tail.append(("DequantizeLinear", {} if plain else {"axis": axis}, ["ws", "wz"]))
        elif not op.scaled:
            del extra["ws"]
    elif np.dtype(dtype) != np.float32:
        tail.append(("Cast", {"to": F}, []))
    nodes, name = chain.nodes("w", tail)
    helpers = [constant(key, array) for key, array in extra.items()]
    node = helper.make_node(
        op.op, [name if i == "w" else i for i in op.inputs], ["y"], "the op", domain=op.domain, **op.attributes
    )
    body = [*helpers, *nodes, node]
    made, key = _home(home, op, body, stored)
    position = np.empty(stored.size, np.int64)
    position[arrive.ravel()] = np.arange(stored.size)
    place = position.reshape(chain.shape)

    def unit(index: tuple[int, ...]) -> Any:
        return op.unit(tuple(int(i) for i in np.unravel_index(place[index], op.shape)))

    zero, scale = zeros.ravel()[position].reshape(chain.shape), scales.ravel()[position].reshape(chain.shape)
    scores = (stored.astype(np.float64) - zero) * scale
    feed = {"x": rng.integers(0, 9, op.x).astype(np.uint8 if op.x_type == U8 else np.float32)}
    feed |= {key_: rng.standard_normal(shape).astype(np.float32) for key_, shape in op.feeds.items()}
    if home.startswith("then") or home == "outer":
        feed["c"] = np.array(True)
    return Place(made, key, stored, zero, Case(made, {key: scores}, {key: unit}), feed, integer, op.scaled)


def _home(home: str, op: Op, body: list[onnx.NodeProto], stored: Array) -> tuple[onnx.ModelProto, str]:
    """The model that keeps `w` there, and its key."""
    opset = 21 if stored.dtype.name in ("int4", "uint4") else 19 if "float8" in stored.dtype.name else 13
    ir = {13: 8, 19: 9, 21: 10}[opset]
    w = proto("w", stored, home == "typed")
    inputs = [value("x", op.x, op.x_type), *(value(n, s) for n, s in op.feeds.items())]
    outputs = [value("y", None, op.y_type)]
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MS, 1)]
    if home in ("initializer", "typed", "input"):
        listed = [value("w", stored.shape, w.data_type)] if home == "input" else []
        return model(body, [*inputs, *listed], outputs, [w], opset=opset, ir=ir), "w"
    if home == "constant":
        return model([constant("w", stored), *body], inputs, outputs, opset=opset, ir=ir), "w"
    if home in ("then initializer", "then constant", "outer"):
        inits, first = ([w], []) if home == "then initializer" else ([], [constant("w", stored)])
        if home == "outer":
            inits = first = []
        then = helper.make_graph([*first, *body], "then", [], [value("y", None, op.y_type)], inits)
        nothing = np.zeros(1, helper.tensor_dtype_to_np_dtype(op.y_type))
        other = helper.make_graph([constant("n", nothing)], "else", [], [value("n", None, op.y_type)])
        node = helper.make_node("If", ["c"], ["out"], "choice", then_branch=then, else_branch=other)
        made = model(
            [node], [*inputs, value("c", [], TensorProto.BOOL)], [value("out", None, op.y_type)],
            [w] if home == "outer" else [], opset=opset, ir=ir,
        )  # fmt: skip
        return made, "w" if home == "outer" else "then_branch of If 'choice'/w"
    if home == "loop":
        body = [*body, helper.make_node("Identity", ["go"], ["on"])]
        ins = [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL)]
        outs = [value("on", [], TensorProto.BOOL), value("y", None, op.y_type)]
        graph = helper.make_graph(body, "body", ins, outs, [w])
        nodes = [
            constant("times", np.array(1, np.int64)), constant("yes", np.array(True)),
            helper.make_node("Loop", ["times", "yes"], ["out"], "again", body=graph),
        ]  # fmt: skip
        return model(nodes, inputs, [value("out", None, op.y_type)], opset=opset, ir=ir), "body of Loop 'again'/w"
    names = [item.name for item in inputs]
    inside = [constant("w", stored), *body] if home == "function" else body
    function = helper.make_function("local", "F", names + (["w"] if home == "argument" else []), ["y"], inside, imports)
    given = names + (["w"] if home == "argument" else [])
    calls = [helper.make_node("F", given, [f"y{i}"], f"call {i}", domain="local") for i in range(2)]
    outputs = [value(f"y{i}", None, op.y_type) for i in range(2)]
    inits = [w] if home == "argument" else []
    made = model(calls, inputs, outputs, inits, opset=opset, ir=ir, functions=[function])
    return made, "w" if home == "argument" else "function 'local.F'/w"


@st.composite
def places(draw: st.DrawFn) -> Place:
    """A weight of any of these operations and dtypes, in any home, behind any chain."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    home = draw(st.sampled_from(HOMES))
    if draw(st.booleans()):
        op, dtype = draw(st.sampled_from(FLOAT_OPS)), draw(st.sampled_from([*FLOATS, *INTEGERS]))
    else:
        op, dtype = draw(st.sampled_from(QUANTISED_OPS)), np.uint8 if draw(st.booleans()) else np.int8
        if op.op == "DynamicQuantizeLSTM":
            dtype = np.uint8
    kinds = ["Identity", "Transpose", "Reshape", "Unsqueeze", "Squeeze"]
    steps = draw(st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 99)), max_size=4))
    return build(op, home, dtype, steps, rng, draw(st.sampled_from(["one", "axis"])))
