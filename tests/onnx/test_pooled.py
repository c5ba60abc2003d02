"""Positions before a mean as samples: the same to a linear layer, and taken only where they are what is behind it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from emp_onnx import Fitting, calibrate, find_weights
from emp_onnx.calibration.network import Network
from emp_onnx.calibration.pooled import pick, unpool
from emp_onnx.files.model_io import Model

CHANNELS, SIDE, CLASSES = 24, 5, 10
rng = np.random.default_rng(5)
KERNEL = rng.normal(size=(CHANNELS, 3, 1, 1)).astype(np.float32)
MATRIX = rng.normal(size=(CHANNELS, CLASSES)).astype(np.float32)
BIAS = rng.normal(size=CLASSES).astype(np.float32)
Step = tuple[str, dict[str, Any], tuple[Any, ...]]
POOL: Step = ("GlobalAveragePool", {}, ())
FLAT: Step = ("Flatten", {}, ())


def clip(low: float, high: float) -> Step:
    return "Clip", {}, (np.float32(low), np.float32(high))


WAYS: dict[str, list[Step]] = {
    "global": [POOL, FLAT],
    "clipped, and nothing is": [POOL, clip(-1e3, 1e3), FLAT],
    "reshaped": [POOL, ("Reshape", {}, (np.array([-1, CHANNELS]),))],
    "window": [("AveragePool", {"kernel_shape": [SIDE, SIDE]}, ()), FLAT],
    "mean": [("ReduceMean", {"keepdims": 0}, (np.array([2, 3]),))],
}
OTHERS: dict[str, list[Step]] = {
    "clipped, and much is": [POOL, clip(0, 0.1), FLAT],
    "the largest": [("GlobalMaxPool", {}, ()), FLAT],
    "a nonlinear step between": [POOL, ("Relu", {}, ()), FLAT],
    "part of the positions": [("AveragePool", {"kernel_shape": [3, 3], "strides": [5, 5]}, ()), FLAT],
}


def model(way: list[Step]) -> onnx.ModelProto:
    """Convolution, a way from its output to a vector, a matrix."""
    tensors = {"k": KERNEL, "m": MATRIX, "b": BIAS}
    nodes, name = [helper.make_node("Conv", ["x", "k"], ["c"])], "c"
    for i, (op, attributes, given_) in enumerate(way):
        more = [f"t{i}{j}" for j in range(len(given_))]
        tensors |= dict(zip(more, map(np.asarray, given_), strict=True))
        nodes.append(helper.make_node(op, [name, *more], [f"v{i}"], **attributes))
        name = f"v{i}"
    nodes += [helper.make_node("MatMul", [name, "m"], ["y0"]), helper.make_node("Add", ["y0", "b"], ["y"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(value, key) for key, value in tensors.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def feeds(count: int = 12) -> list[dict[str, Any]]:
    draw = np.random.default_rng(6)
    return [{"x": draw.normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)} for _ in range(count)]


def moments(way: list[Step], count: int = 12, positions: bool = True) -> Any:
    made = Model(model(way))
    network = Network(made, find_weights(made).weights, feeds(count), 1)
    dense = network.runner()
    for level in range(network.levels):
        dense.level(level, network.wanted(level))
    (site,) = network.at(network.levels)
    return network.moments(site, dense, positions=positions)[0][0]


@pytest.mark.parametrize("way", WAYS)
def test_positions_are_taken(way: str) -> None:
    found, plain = moments(WAYS[way]), moments(WAYS[way], positions=False)
    assert (found.count, plain.count) == (12 * SIDE * SIDE, 12)
    np.testing.assert_allclose(found.x / found.count, plain.x / plain.count, rtol=1e-5, atol=1e-6)  # means are the same
    np.testing.assert_allclose(found.y / found.count, plain.y / plain.count, rtol=1e-5, atol=1e-6)
    x = np.einsum("nchw,oc->nhwo", np.concatenate([f["x"] for f in feeds()]), KERNEL[:, :, 0, 0]).reshape(-1, CHANNELS)
    np.testing.assert_allclose(found.xx[0], x.T.astype(np.float64) @ x, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found.yx[0], (x @ MATRIX).T.astype(np.float64) @ x, rtol=1e-4, atol=2e-2)


@pytest.mark.parametrize("way", OTHERS)
def test_other_ways_are_left_alone(way: str) -> None:
    found, plain = moments(OTHERS[way]), moments(OTHERS[way], positions=False)
    assert found.count == plain.count
    np.testing.assert_array_equal(found.xx, plain.xx)


def test_where_feeds_are_many_they_are_enough() -> None:
    assert moments(WAYS["global"], 12 * CHANNELS).count == 12 * CHANNELS


def test_statistics_are_of_what_the_layer_is_given() -> None:
    last = calibrate(Model(model(WAYS["global"])), feeds()).inputs[-1]
    assert last.count == 12


def test_weights_do_not_fit_few_feeds_by_heart() -> None:
    """Half of the last layer's weights, from 12 feeds for 24 inputs: better on new feeds than from the means alone."""
    made = Model(model(WAYS["global"]))
    fresh = [{"x": np.random.default_rng(i).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)} for i in range(50)]
    errors = []
    for way in ("global", "none"):
        fitting = Fitting(made, feeds(), include=["m"], threads=1)
        if way == "none":
            for site in fitting.network.sites:
                site.pooled = ""
        fitting.kept_back = fresh
        errors.append(fitting.moved(fitting.thin(fitting.total // 2)))
    assert errors[0] < errors[1]


def beside() -> onnx.ModelProto:
    """Two ways to the answer, added: a convolution, pooled, a kernel of one; and the pooled input times a matrix."""
    tensors = {"k": KERNEL, "m": MATRIX.T[:, :, None, None].copy(), "n": MATRIX[:3].T[:, :, None, None].copy()}
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Conv", ["p", "n"], ["past"]),
        helper.make_node("Conv", ["x", "k"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["q"]),
        helper.make_node("Conv", ["q", "m"], ["z"]),
        helper.make_node("Add", ["z", "past"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, CLASSES, 1, 1])],
        [numpy_helper.from_array(value, key) for key, value in tensors.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_what_is_missing_beside_the_pool_is_wanted_of_each_position() -> None:
    made = Model(beside())
    given_ = [{"x": np.concatenate([a["x"], b["x"]])} for a, b in pairwise(feeds(5))]
    network = Network(made, find_weights(made).weights, given_, 1)
    changed = {"n": network.value("n") * np.float32(0.5), "k": network.value("k") * np.float32(0.9)}
    dense, thin = network.runner(), network.runner(changed)
    for level in range(network.levels):
        for run in (dense, thin):
            run.level(level, network.wanted(level))
    (site,) = network.at(network.levels)
    assert (site.skip, site.pooled) == ("past", "c")
    all_of_them, means, without = (
        network.moments(site, dense, *more, positions=positions)[0][0]
        for more, positions in (((thin, changed), True), ((thin, changed), False), ((), False))
    )
    assert (all_of_them.count, means.count) == (8 * SIDE * SIDE, 8)
    np.testing.assert_allclose(all_of_them.y / all_of_them.count, means.y / means.count, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(all_of_them.x / all_of_them.count, means.x / means.count, rtol=1e-4, atol=1e-5)
    assert np.abs(means.y - without.y).max() > 1e-2  # something was missing


@given(arrays(np.float32, (2, 3, 4, 5), elements=st.floats(-10, 10, width=32)), st.integers(1, 50))
def test_the_mean_of_positions_is_the_layer_s_input(x: Any, limit: int) -> None:
    rows = x.mean((2, 3), dtype=np.float64)[None]
    flat = unpool(x, rows)
    assert flat is not None
    assert flat.shape == (2, 20, 3)
    np.testing.assert_allclose(flat.mean(1), rows[0], atol=1e-4)
    some = pick(flat, 0, limit)
    assert some.shape == (1, min(limit, 40), 3)
    np.testing.assert_array_equal(some, pick(flat, 0, limit))
    assert unpool(x, rows + 1) is None
