"""What is added behind a layer: its errors are the layer's to make good, as far as bounds on the way leave room."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from emp_onnx import Fitting, find_weights
from emp_onnx.calibration.maps import Past
from emp_onnx.calibration.moments import Moments
from emp_onnx.calibration.network import Network
from emp_onnx.files.model_io import Model

WIDTH, ROWS = 6, 40
rng = np.random.default_rng(8)
FIRST, SECOND = (rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) for _ in range(2))
BIAS = rng.normal(size=WIDTH).astype(np.float32)
FEEDS = [{"x": rng.normal(size=(ROWS, WIDTH)).astype(np.float32)} for _ in range(4)]
Step = tuple[str, dict[str, Any], tuple[Any, ...]]


def model(way: list[Step], *, op: str = "Gemm", opset: int = 18, graph_end: str = "Add") -> onnx.ModelProto:
    """h = x·A; y = h + way(h·B + b), with b given to the product or added behind it."""
    tensors = {"A": FIRST, "B": SECOND, "b": BIAS}
    nodes = [helper.make_node("MatMul", ["x", "A"], ["h"])]
    if op == "Gemm":
        nodes.append(helper.make_node("Gemm", ["h", "B", "b"], ["z"]))
    else:
        nodes += [helper.make_node("MatMul", ["h", "B"], ["z0"]), helper.make_node("Add", ["b", "z0"], ["z"])]
    name = "z"
    for i, (kind, attributes, others) in enumerate(way):
        more = [other if isinstance(other, str) else f"t{i}{j}" for j, other in enumerate(others)]
        tensors |= {key: np.asarray(v) for key, v in zip(more, others, strict=True) if not isinstance(v, str)}
        nodes.append(helper.make_node(kind, [name, *more], [f"v{i}"], **attributes))
        name = f"v{i}"
    nodes.append(helper.make_node(graph_end, ["h", name], ["y"]))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, WIDTH])],
        [numpy_helper.from_array(value, key) for key, value in tensors.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def clip(low: float, high: float) -> Step:
    return "Clip", {}, (np.float32(low), np.float32(high))


def network(way: list[Step], **more: Any) -> Network:
    made = Model(model(way, **more))
    return Network(made, find_weights(made).weights, FEEDS, 1)


def past(way: list[Step], **more: Any) -> Past | None:
    return next(site.past for site in network(way, **more).sites if site.keys == ("B",))


@st.composite
def ways(draw: st.DrawFn) -> tuple[list[Step], float, float]:
    """Steps between a product and the sum, and the bounds that they come to."""
    low, high, steps = -math.inf, math.inf, list[Step]()
    for kind in draw(st.lists(st.sampled_from(["Clip", "Relu", "Max", "Min", "Identity"]), max_size=3)):
        one, other = sorted(draw(st.tuples(*[st.floats(-2, 2, width=32)] * 2)))
        if kind == "Clip":
            steps.append(clip(one, other))
        elif kind in ("Max", "Min"):
            steps.append((kind, {}, (np.float32(one if kind == "Max" else other),)))
        else:
            steps.append((kind, {}, ()))
        low = max(low, {"Clip": one, "Max": one, "Relu": 0.0}.get(kind, -math.inf))
        high = min(high, {"Clip": other, "Min": other}.get(kind, math.inf))
    return steps, low, high


@settings(max_examples=40)
@given(ways(), st.sampled_from(["Gemm", "MatMul"]), st.integers(0, 2**32 - 1))
def test_what_should_come_out_is_moved_where_that_shows(
    way: tuple[list[Step], float, float], op: str, seed: int
) -> None:
    steps, low, high = way
    net = network(steps, op=op)
    (site,) = net.at(2)
    assert site.past == Past("h", low, high)
    changed = {"A": FIRST + np.random.default_rng(seed).normal(size=FIRST.shape).astype(np.float32) / 4}
    runs = net.runner(), net.runner(changed)
    for level in range(2):
        for run in runs:
            run.level(level, net.wanted(level))
    ((found,),) = net.moments(site, *runs, changed)
    dense = np.concatenate([feed["x"] @ FIRST for feed in FEEDS]).astype(np.float64)
    thin = np.concatenate([feed["x"] @ changed["A"] for feed in FEEDS]).astype(np.float64)
    out = dense @ SECOND
    moved = np.where((out + BIAS > low) & (out + BIAS < high), dense - thin, 0)
    edge = np.minimum(abs(out + BIAS - low), abs(out + BIAS - high)).min() < 1e-4
    if not edge:  # so near a bound rounding decides
        np.testing.assert_allclose(found.y[0], (out + moved).sum(0), rtol=1e-4, atol=1e-3)
        assert isinstance(found, Moments)
        np.testing.assert_allclose(found.raw()[1][0] * found.count, (out + moved).T @ thin, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_bounds_that_nothing_reaches_change_nothing(op: str) -> None:
    plain, bounded = (
        Fitting(Model(model(way, op=op)), FEEDS, threads=1).thin(2 * WIDTH * WIDTH // 2)
        for way in ([], [clip(-1e3, 1e3), ("Identity", {}, ())])
    )
    for key in ("A", "B"):
        np.testing.assert_array_equal(plain.masks[key], bounded.masks[key])
        np.testing.assert_allclose(plain.changed[key], bounded.changed[key], rtol=1e-5, atol=1e-6)


def test_bounds_as_attributes() -> None:
    assert past([("Clip", {"min": -1.0, "max": 2.0}, ())], opset=7) == Past("h", -1, 2)
    assert past([("Clip", {"max": 2.0}, ())], opset=7) == Past("h", -math.inf, 2)
    assert past([("Clip", {}, ("", np.float32(2)))]) == Past("h", -math.inf, 2)


@pytest.mark.parametrize(
    "way",
    [
        [("Sigmoid", {}, ())],
        [("Min", {}, (np.arange(WIDTH, dtype=np.float32),))],  # a bound for each channel
        [("Min", {}, ("x",))],  # one that depends on the input
        [("Relu", {}, ()), ("Add", {}, (np.ones(WIDTH, np.float32),))],  # bounds move with the constant
        [("Add", {}, (np.ones(WIDTH, np.float32),)), ("Relu", {}, ())],  # is no bias that is solved for
        [("Mul", {}, (np.float32(2),))],
    ],
)
def test_where_nothing_is_made_good(way: list[Step]) -> None:
    assert past(way) is None


def test_nothing_is_made_good_behind_other_sums() -> None:
    assert past([], graph_end="Mul") is None
    assert past([("Add", {}, (np.ones(WIDTH, np.float32),))]) == Past("h")
