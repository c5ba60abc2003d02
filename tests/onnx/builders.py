"""Small models of every kind, and an obvious slow oracle for what pruning must do to them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

Array = NDArray[np.float32]
F = TensorProto.FLOAT


@dataclass
class Case:
    """A model with one operation, and for each of its weights the unit that an element belongs to."""

    model: onnx.ModelProto
    weights: dict[str, Array]
    unit: dict[str, Callable[[tuple[int, ...]], Any]] = field(default_factory=dict)


def tensor(name: str, array: Any, storage: str = "raw") -> TensorProto:
    array = np.asarray(array)
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    if storage == "raw":
        return helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)
    return helper.make_tensor(name, kind, array.shape, array.ravel().tolist())


def value(name: str, shape: Iterable[Any] | None, kind: int = F) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, None if shape is None else list(shape))


def model(
    nodes: Iterable[onnx.NodeProto],
    inputs: Iterable[onnx.ValueInfoProto],
    outputs: Iterable[onnx.ValueInfoProto],
    initializers: Iterable[TensorProto] = (),
    *,
    opset: int = 13,
    ir: int = 8,
    functions: Iterable[onnx.FunctionProto] = (),
    **graph: Any,
) -> onnx.ModelProto:
    made = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(initializers), **graph)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=ir, functions=list(functions))


def weight(rng: np.random.Generator, shape: tuple[int, ...], kind: str = "normal") -> Array:
    """Weights of a kind: normal, tied (a few values, many zeros), wide (magnitudes over 60 decades)."""
    if kind == "tied":
        return rng.integers(-3, 4, shape).astype(np.float32)
    if kind == "wide":
        return (rng.standard_normal(shape) * 10.0 ** rng.integers(-30, 30, shape)).astype(np.float32)
    return rng.standard_normal(shape).astype(np.float32)


def conv(rng: np.random.Generator, size: int = 3, kind: str = "normal", groups: int = 1, storage: str = "raw") -> Case:
    w = weight(rng, (2 * groups, size, 3, 2), kind)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", group=groups)
    made = model(
        [node],
        [value("x", ["N", groups * size, 5, 5])],
        [value("y", None)],
        [tensor("w", w, storage), tensor("b", np.ones(2 * groups, np.float32))],
    )
    return Case(made, {"w": w}, {"w": lambda i: i[0]})


def conv_transpose(rng: np.random.Generator, size: int = 3, kind: str = "normal", groups: int = 1) -> Case:
    each = 2
    w = weight(rng, (groups * each, size, 2, 2), kind)
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up", group=groups)
    made = model([node], [value("x", [1, groups * each, 4, 4])], [value("y", None)], [tensor("w", w)])
    return Case(made, {"w": w}, {"w": lambda i: (i[0] // each, i[1])})


def gemm(rng: np.random.Generator, size: int = 3, kind: str = "normal", side: int = 1, flip: bool = False) -> Case:
    w = weight(rng, (size + 2, size), kind)
    # the other operand has the shape that fits
    inner, slot = ((size if flip else size + 2), "B") if side else ((size + 2 if flip else size), "A")
    names = ["x", "w"] if side else ["w", "x"]
    node = helper.make_node("Gemm", names, ["y"], "fc", **{f"trans{slot}": int(flip)})
    shape = [4, inner] if side else [inner, 4]
    made = model([node], [value("x", shape)], [value("y", None)], [tensor("w", w)])
    axis = (0 if flip else 1) if side else (1 if flip else 0)
    return Case(made, {"w": w}, {"w": lambda i: i[axis]})


def matmul(rng: np.random.Generator, size: int = 3, kind: str = "normal", side: int = 1, batch: int = 0) -> Case:
    lead = (batch,) if batch else ()
    w = weight(rng, (*lead, size, size + 1), kind)
    node = helper.make_node("MatMul", ["x", "w"] if side else ["w", "x"], ["y"], "mm")
    shape = (*lead, 4, size) if side else (*lead, size + 1, 4)
    made = model([node], [value("x", shape)], [value("y", None)], [tensor("w", w)])
    return Case(made, {"w": w}, {"w": (lambda i: (*i[:-2], i[-1])) if side else (lambda i: i[:-1])})


def recurrent(
    rng: np.random.Generator, size: int = 3, kind: str = "normal", op: str = "LSTM", two: bool = False
) -> Case:
    gates, dirs = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 1 + two
    w, r = weight(rng, (dirs, gates * size, size + 1), kind), weight(rng, (dirs, gates * size, size), kind)
    bias = tensor("b", np.ones((dirs, 2 * gates * size), np.float32))
    node = helper.make_node(
        op, ["x", "w", "r", "b"], ["y"], "rec", hidden_size=size, direction="bidirectional" if two else "forward"
    )
    inits = [tensor("w", w), tensor("r", r), bias]
    made = model([node], [value("x", ["T", 1, size + 1])], [value("y", None)], inits)
    return Case(made, {"w": w, "r": r}, {"w": lambda i: i[:2], "r": lambda i: i[:2]})


def two_layers(rng: np.random.Generator, size: int = 3, kind: str = "normal") -> Case:
    a, b = weight(rng, (size + 3, 4), kind), weight(rng, (size, size + 3), kind)
    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["h"], "first", transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "b"], ["y"], "second", transB=1),
    ]
    made = model(nodes, [value("x", ["N", 4])], [value("y", ["N", size])], [tensor("a", a), tensor("b", b, "typed")])
    return Case(made, {"a": a, "b": b}, {"a": lambda i: i[0], "b": lambda i: i[0]})


KINDS = ("normal", "tied", "wide")
BUILDERS: list[tuple[str, Callable[..., Case], dict[str, list[Any]]]] = [
    ("Conv", conv, {"groups": [1, 3], "storage": ["raw", "typed"]}),
    ("ConvTranspose", conv_transpose, {"groups": [1, 2]}),
    ("Gemm", gemm, {"side": [0, 1], "flip": [False, True]}),
    ("MatMul", matmul, {"side": [0, 1], "batch": [0, 1, 2]}),
    ("recurrent", recurrent, {"op": ["LSTM", "GRU", "RNN"], "two": [False, True]}),
    ("two layers", two_layers, {}),
]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any of the models above."""
    _, build, options = draw(st.sampled_from(BUILDERS))
    chosen = {name: draw(st.sampled_from(values)) for name, values in options.items()}
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return build(rng, draw(st.integers(1, 4)), draw(st.sampled_from(KINDS)), **chosen)


def hash_mask(mask: NDArray[np.bool_]) -> str:
    """SHA-256 of a mask packed to one bit per element."""
    return hashlib.sha256(np.packbits(mask).data).hexdigest()


def expected_masks(
    case: Case, *, scope: str, beta: float = 1.0, sparsity: float | None = None
) -> dict[str, NDArray[np.bool_]]:
    """Which elements must be kept, computed in rationals, one element at a time."""
    pools: dict[Any, list[tuple[str, tuple[int, ...]]]] = {}
    live = {name: w for name, w in case.weights.items() if w.any()}
    for name, w in live.items():
        for i in np.ndindex(*w.shape):
            key = {"tensor": name, "model": "", "row": (name, case.unit[name](i))}[scope]
            pools.setdefault(key, []).append((name, i))
    masks = {name: np.zeros(w.shape, bool) for name, w in live.items()}
    for members in pools.values():
        scores = [abs(Fraction(float(live[name][i]))) for name, i in members]
        for j in sorted(range(len(scores)), key=lambda j: (-scores[j], j))[: expected_count(scores, beta, sparsity)]:
            name, i = members[j]
            masks[name][i] = True
    return masks


def expected_count(scores: list[Fraction], beta: float, sparsity: float | None) -> int:
    n = len(scores)
    if sparsity is not None:
        return max(1, n - round(Fraction(sparsity) * n))
    squares = sum(s * s for s in scores)
    if not squares:
        return n
    return min(n, max(1, math.floor(Fraction(beta) * sum(scores) ** 2 / squares)))


def write(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def write_external(proto: onnx.ModelProto, path: Path, *, one_file: bool = True) -> Path:
    """The model with every tensor in a sidecar file."""
    for item in proto.graph.initializer:
        item.CopyFrom(tensor(item.name, onnx.numpy_helper.to_array(item)))
    onnx.save_model(
        proto, path, save_as_external_data=True, all_tensors_to_one_file=one_file, size_threshold=0,
        location=f"{path.name}.weights" if one_file else None,
    )  # fmt: skip
    return path


def read_weight(path: Path, name: str) -> Array:
    """The values as onnx itself reads them."""
    loaded = onnx.load(path)
    return next(onnx.numpy_helper.to_array(t) for t in loaded.graph.initializer if t.name == name)
