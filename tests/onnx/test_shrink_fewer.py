"""Rewrites that say a graph with fewer operations: each computes what was computed, whatever the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from emp_onnx.shrink.axes.sizes import quotient
from emp_onnx.shrink.axes.trace import trace
from emp_onnx.shrink.plainer.attention_masks import attention_masks
from emp_onnx.shrink.plainer.early import early, unasked
from emp_onnx.shrink.plainer.linear import linear
from emp_onnx.shrink.plainer.plain import plain
from emp_onnx.shrink.plainer.rearranged import rearranged
from emp_onnx.shrink.plainer.rows import rows
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.proof import prove
from emp_onnx.shrink.view import View, prepared

Nodes = list[onnx.NodeProto]
node = helper.make_node


def model(
    nodes: Nodes, inputs: dict[str, Any], outputs: list[str], constants: dict[str, Any] | None = None, opset: int = 17
) -> onnx.ModelProto:
    kinds = {"f": 1, "i": 7, "b": 9}
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(k, kinds[v[0]], list(v[1:])) for k, v in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def said(made: onnx.ModelProto, rewrite: Callable[..., Any], feeds: list[dict[str, Any]]) -> Any:
    """The rewritten model, which computes the same; None if nothing was rewritten."""
    view = View.of(prepared(made))
    new = rewrite(view, trace(view, feeds))
    if new is not None:
        proof = prove(made, new, feeds)
        assert proof.holds, proof.problem
    return new


def kinds(made: Any) -> list[str]:
    return [n.op_type for n in made.graph.node]


def wave(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


STEPS = ("reshape", "squeeze", "unsqueeze", "transpose", "one", "relu")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=7), st.integers(0, 2**16))
def test_chains_of_rearrangements_say_what_they_said(steps: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape: list[Any] = ["t", 1, 6, 1]
    nodes: Nodes = []
    constants: dict[str, Any] = {}
    name = "x"
    for i, step in enumerate(steps):
        ones = [a for a, d in enumerate(shape) if d == 1]
        out, c = f"v{i}", f"c{i}"
        if step == "relu":
            nodes.append(node("Relu", [name], [out]))
        elif step == "transpose":
            perm = [int(p) for p in rng.permutation(len(shape))]
            nodes.append(node("Transpose", [name], [out], perm=perm))
            shape = [shape[p] for p in perm]
        elif step == "unsqueeze" and len(shape) < 5:
            at = int(rng.integers(0, len(shape) + 1))
            constants[c] = ints(at)
            nodes.append(node("Unsqueeze", [name, c], [out]))
            shape = [*shape[:at], 1, *shape[at:]]
        elif step == "squeeze" and ones:
            at = int(rng.choice(ones))
            constants[c] = ints(at)
            nodes.append(node("Squeeze", [name, c], [out]))
            shape = [d for a, d in enumerate(shape) if a != at]
        elif step == "one" and ones:
            at = int(rng.choice(ones))
            constants[c] = np.array(-1, np.int64)
            nodes.append(node("Gather", [name, c], [out], axis=at))
            shape = [d for a, d in enumerate(shape) if a != at]
        else:
            shape = [-1, 6] if rng.integers(2) else [-1, 2, 1, 3]
            constants[c] = ints(*shape)
            nodes.append(node("Reshape", [name, c], [out]))
            shape = ["?", *shape[1:]]
        name = out
    made = model(nodes, {"x": ("f", "t", 1, 6, 1)}, [name], constants)
    feeds = [{"x": wave(n, 1, 6, 1)} for n in (3, 4)]
    new = said(made, rearranged, feeds)
    if new is not None:
        assert len(new.graph.node) <= len(nodes)


def test_a_transpose_that_moves_numbers_stays() -> None:
    made = model([node("Transpose", ["x"], ["y"], perm=[1, 0])], {"x": ("f", "t", 6)}, ["y"])
    assert said(made, rearranged, [{"x": wave(3, 6)}]) is None


def test_the_largest_is_found_without_a_softmax_along_the_same_axis_only() -> None:
    for axis, expected in ((-1, ["ArgMax"]), (1, ["Softmax", "ArgMax"])):
        nodes = [node("Softmax", ["x"], ["s"], axis=axis), node("ArgMax", ["s"], ["y"], axis=-1)]
        new = said(model(nodes, {"x": ("f", "n", 4, 5)}, ["y"]), rearranged, [{"x": wave(2, 4, 5)}])
        assert (expected if new is None else kinds(new)) == expected


CHAIN = ("relu", "add", "matmul", "transpose", "fold")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(CHAIN), max_size=6), st.integers(0, 2**16), st.sampled_from(["first", "last", "given"]))
def test_one_coordinate_is_chosen_first(steps: list[str], seed: int, which: str) -> None:
    rng = np.random.default_rng(seed)
    shape: list[Any] = ["t", 2, 4]
    nodes: Nodes = []
    constants: dict[str, Any] = {"at": {"first": np.array(0, np.int64), "last": ints(-1)}.get(which, ints(0))}
    name = "x"
    for i, step in enumerate(steps):
        out, c = f"v{i}", f"c{i}"
        if step == "relu":
            nodes.append(node("Relu", [name], [out]))
        elif step == "add":
            last = shape[-1]
            constants[c] = wave(last if isinstance(last, int) else 1, seed=i)
            nodes.append(node("Add", [name, c], [out]))
        elif step == "matmul" and isinstance(shape[-1], int):
            constants[c] = wave(shape[-1], 4, seed=i)
            nodes.append(node("MatMul", [name, c], [out]))
            shape = [*shape[:-1], 4]
        elif step == "transpose":
            perm = [int(p) for p in rng.permutation(len(shape))]
            nodes.append(node("Transpose", [name], [out], perm=perm))
            shape = [shape[p] for p in perm]
        else:
            at = shape.index("t")
            after = int(np.prod(shape[at + 1 :]))
            before = int(np.prod(shape[:at]))
            constants[c] = ints(before, -1, after)
            nodes.append(node("Reshape", [name, c], [out]))
            shape = [before, "t", after]
        name = out
    index = "i" if which == "given" else "at"
    nodes.append(node("Gather", [name, index], ["y"], axis=shape.index("t")))
    inputs: dict[str, Any] = {"x": ("f", "t", 2, 4)}
    if which == "given":
        inputs["i"] = ("i", 1)
    made = model(nodes, inputs, ["y"], constants)
    feeds = [{"x": wave(n, 2, 4), **({"i": ints(1)} if which == "given" else {})} for n in (3, 5)]
    new = said(made, early, feeds)
    if any(step in ("relu", "add", "matmul") for step in steps):
        assert new is not None
        first = kinds(new).index("Gather")
        assert first <= min(kinds(new).index(k) for k in ("Relu", "Add", "MatMul") if k in kinds(new))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(
    ("way", "at", "found"),
    [("forward", -1, True), ("forward", 0, False), ("reverse", 0, True), ("reverse", -1, False),
     ("bidirectional", -1, False)],
)  # fmt: skip
def test_the_last_state_is_an_output_of_its_own(kind: str, way: str, at: int, found: bool) -> None:
    gates, ways = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 1 + (way == "bidirectional")
    constants = {
        "w": wave(ways, gates * 5, 4), "r": wave(ways, gates * 5, 5), "b": wave(ways, gates * 10),
        "at": np.array(at, np.int64),
    }  # fmt: skip
    nodes = [
        node(kind, ["x", "w", "r", "b"], ["s"], hidden_size=5, direction=way),
        node("Relu", ["s"], ["u"]),
        node("Gather", ["u", "at"], ["y"], axis=0),
    ]
    made = model(nodes, {"x": ("f", "t", "n", 4)}, ["y"], constants)
    new = said(made, early, [{"x": wave(n, 2, 4)} for n in (3, 6)])
    assert new is not None
    assert ("Gather" not in kinds(new)) == found
    less = unasked(new)
    assert bool(less.graph.node[0].output[0]) != found
    assert prove(made, less, [{"x": wave(7, 1, 4)}]).holds


def test_what_something_else_reads_is_not_moved() -> None:
    nodes = [node("Relu", ["x"], ["u"]), node("Gather", ["u", "at"], ["y"], axis=0)]
    made = model(nodes, {"x": ("f", "t", 4)}, ["y", "u"], {"at": ints(0)})
    assert said(made, early, [{"x": wave(3, 4)}]) is None
    nodes = [node("CumSum", ["x", "at"], ["u"]), node("Gather", ["u", "one"], ["y"], axis=0)]
    made = model(nodes, {"x": ("f", "t", 4)}, ["y"], {"at": np.array(0, np.int64), "one": ints(1)})
    assert said(made, early, [{"x": wave(3, 4)}]) is None


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.booleans(), st.booleans())
def test_products_of_products_are_one_where_that_is_no_more_work(
    k: int, m: int, n: int, gemm: bool, joined: bool
) -> None:
    constants = {"a": wave(k, m), "p": wave(m, seed=1), "b": wave(2 * m if joined else m, n), "q": wave(n, seed=2)}
    nodes = [node("MatMul", ["x", "a"], ["u"]), node("Add", ["u", "p"], ["v"])]
    source = "v"
    if joined:
        nodes += [node("Concat", ["v", "z"], ["w"], axis=-1)]
        source = "w"
    if gemm:
        nodes.append(node("Gemm", [source, "b", "q"], ["y"]))
    else:
        nodes += [node("MatMul", [source, "b"], ["t"]), node("Add", ["q", "t"], ["y"])]
    inputs: dict[str, Any] = {"x": ("f", "n", k), **({"z": ("f", "n", m)} if joined else {})}
    made = model(nodes, inputs, ["y"], constants)
    feeds = [{"x": wave(3, k), **({"z": wave(3, m)} if joined else {})}]
    new = said(made, linear, feeds)
    rows_of_b = 2 * m if joined else m
    after = (k + m) * n if joined else k * n
    assert (new is not None) == (after <= k * m + rows_of_b * n)
    if new is not None:
        assert sum(kind in ("MatMul", "Gemm") for kind in kinds(new)) == 1


def test_products_with_something_between_stay() -> None:
    nodes = [node("MatMul", ["x", "a"], ["u"]), node("Relu", ["u"], ["v"]), node("MatMul", ["v", "b"], ["y"])]
    made = model(nodes, {"x": ("f", "n", 4)}, ["y"], {"a": wave(4, 4), "b": wave(4, 4)})
    assert said(made, linear, [{"x": wave(3, 4)}]) is None


def test_rows_are_made_before_products_of_them() -> None:
    nodes = [
        node("Reshape", ["x", "to"], ["p"]),
        node("Reshape", ["z", "to"], ["q"]),
        node("Concat", ["p", "q"], ["c"], axis=3),
        node("MatMul", ["c", "a"], ["u"]),
        node("Add", ["u", "b"], ["v"]),
        node("Tanh", ["v"], ["w"]),
        node("Reshape", ["w", "flat"], ["y"]),
    ]
    constants = {"to": ints(0, 1, 1, 4), "a": wave(8, 3), "b": wave(3), "flat": ints(-1, 3)}
    made = model(nodes, {"x": ("f", "n", 4), "z": ("f", "n", 4)}, ["y"], constants)
    feeds = [{"x": wave(2, 4), "z": wave(2, 4, seed=1)}]
    new = said(made, rows, feeds)
    assert new is not None
    assert kinds(new)[-1] == "Tanh"
    problem = Problem.of(made, feeds)
    assert kinds(problem.view.model) == ["Concat", "MatMul", "Add", "Tanh"]


def attention(value: float, factor: float = 0.5) -> onnx.ModelProto:
    """Two layers of scores that share a bias of positions and a mask."""
    nodes: Nodes = []
    for i in "01":
        nodes += [
            node("MatMul", ["x", f"k{i}"], [f"a{i}"]),
            node("Transpose", ["x"], [f"t{i}"], perm=[0, 2, 1]),
            node("MatMul", [f"a{i}", f"t{i}"], [f"s{i}"]),
            node("Mul", [f"s{i}", "factor"], [f"m{i}"]),
            node("Add", [f"m{i}", "bias"], [f"b{i}"]),
            node("Where", ["hide", "large", f"b{i}"], [f"w{i}"]),
            node("Softmax", [f"w{i}"], [f"y{i}"], axis=-1),
        ]
    constants = {
        "k0": wave(4, 4), "k1": wave(4, 4, seed=1), "large": np.float32(value), "factor": np.float32(factor),
        "bias": wave(5, 5),
    }  # fmt: skip
    return model(nodes, {"x": ("f", "n", 5, 4), "hide": ("b", 1, 1, 5)}, ["y0", "y1"], constants)


HIDDEN = {"x": wave(2, 5, 4), "hide": np.arange(5).reshape(1, 1, 5) > 2}


@pytest.mark.parametrize(("value", "shared"), [(np.finfo(np.float32).min, True), (-np.inf, True), (-1e9, False)])
def test_masks_hide_the_bias_that_layers_share(value: float, shared: bool) -> None:
    feeds = [HIDDEN, {**HIDDEN, "hide": np.ones((1, 1, 5), bool)}]
    new = said(attention(value), attention_masks, feeds)
    assert new is not None
    assert "Mul" not in kinds(new)
    once = said(new, plain, feeds)
    assert (once is not None and kinds(once).count("Where") == 1) == shared


def test_what_is_random_is_never_worked_out_once() -> None:
    nodes = [node("RandomNormalLike", ["x"], [f"r{i}"]) for i in "ab"] + [node("Sub", ["ra", "rb"], ["y"])]
    view = View.of(prepared(model(nodes, {"x": ("f", 3)}, ["y"])))
    assert plain(view, trace(view, [{"x": wave(3)}])) is None


def test_a_quotient_of_sizes_is_one_size_or_none() -> None:
    t, n = ("x", 0), ("y", 1)
    assert quotient((t, 2, 3), (6,)) == t
    assert quotient((t, 2, 3), (t, 3)) == 2
    assert quotient((t, 2), (4,)) is None
    assert quotient((t, n), (3,)) is None
    assert quotient((t, 2), (n,)) is None


def test_a_trace_that_is_brought_up_to_date_is_the_trace() -> None:
    made = attention(-1e9)
    feeds = [HIDDEN]
    view = View.of(prepared(made))
    before = trace(view, feeds)
    new = View.of(attention_masks(view, before))
    one, other = trace(new, feeds, known=before), trace(new, feeds)
    assert one.shapes == other.shapes
    assert one.runs == other.runs
    assert one.free == other.free
    assert one.dtypes == other.dtypes
    assert one.values.keys() == other.values.keys()
