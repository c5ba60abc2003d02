"""Activations that are not rounded: what is left of 8-bit numbers is where they end, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from emp_onnx import find_weights
from emp_onnx.calibration.network import Network
from emp_onnx.files.model_io import Model
from emp_onnx.refit.fitting import Fitting
from tests.onnx.builders import model, tensor, value

NODE = helper.make_node
W = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


def network(kind: Any = np.uint8, point: int = 3, scale: float = 0.1, moved: bool = True, other: str = "") -> Any:
    """x, rounded, times W, rounded, turned round, and floats again."""
    nodes = [
        NODE("QuantizeLinear", ["x", "s", "p"], ["xq"]),
        NODE("DequantizeLinear", ["xq", "s", "p"], ["xd"]),
        NODE("MatMul", ["xd", "w"], ["z"], name="layer"),
        NODE("QuantizeLinear", ["z", "s", "p"], ["zq"]),
        NODE("Transpose" if moved else "Identity", ["zq"], ["zt"]),
        NODE("DequantizeLinear", ["zt", "t" if other == "scale" else "s", "p"], ["y"]),
    ]
    outs = [value("y", (None, None))]
    if other == "output":
        outs.append(helper.make_tensor_value_info("zt", helper.np_dtype_to_tensor_dtype(np.dtype(kind)), [None, None]))
    if other == "read":
        nodes.append(NODE("Cast", ["zq"], ["read"], to=TensorProto.FLOAT))
        outs.append(value("read", (None, None)))
    consts = [
        tensor("w", W), tensor("s", np.float32(scale)), tensor("t", np.float32(2 * scale)),
        tensor("p", np.array(point, kind)),
    ]  # fmt: skip
    return model(nodes, [value("x", (None, 6))], outs, consts, opset=21)


def ran(made: Any, x: Any, *, smooth: bool, names: tuple[str, ...] = ("y",)) -> tuple[Network, list[Any]]:
    known = Model(made)
    net = Network(known, find_weights(known).weights, [{"x": x}], 1, smooth=smooth)
    run = net.runner()
    for level in range(net.levels + 1):
        run.level(level, names)
    return net, [run.values.get(name, 0) for name in names]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99), kind=st.sampled_from([np.uint8, np.int8, np.int16]), point=st.integers(0, 20),
    scale=st.sampled_from([0.01, 0.1, 1.0]), moved=st.booleans(),
)  # fmt: skip
def test_cut_off_where_the_numbers_end(seed: int, kind: Any, point: int, scale: float, moved: bool) -> None:
    x = (np.random.default_rng(seed).standard_normal((5, 6)) * 3).astype(np.float32)
    ends = np.iinfo(kind)
    low, high = (np.float32(scale) * (end - point) for end in (ends.min, ends.max))
    made = network(kind, point, scale, moved)
    net, (y,) = ran(made, x, smooth=True)
    assert net.smooth
    right = np.clip(np.clip(x, low, high) @ W, low, high)
    np.testing.assert_allclose(y, right.T if moved else right, rtol=1e-5, atol=1e-5)
    net, (rounded,) = ran(made, x, smooth=False)
    assert not net.smooth
    most = scale * (0.5 + 0.5 * np.abs(W).sum(0).max())  # each rounding is off by half a step
    assert np.abs(rounded - y).max() <= most * 1.01


@pytest.mark.parametrize("other", ["output", "read", "scale"])
def test_whole_numbers_that_are_put_to_other_use_stay(other: str) -> None:
    x = np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32)
    names = {"output": ("y", "zt"), "read": ("y", "read"), "scale": ("y",)}[other]
    net, found = ran(network(other=other), x, smooth=True, names=names)
    assert net.smooth  # the first rounding goes
    assert net.program.makers["zq"][0].node.op == "QuantizeLinear"
    assert net.program.makers["xq"][0].node.op == "Min"
    _, right = ran(network(other=other), x, smooth=False, names=names)
    for a, b in zip(found, right, strict=True):
        assert a.dtype == b.dtype


def test_floats_alone_are_left_as_they_are() -> None:
    node = NODE("MatMul", ["x", "w"], ["y"])
    plain = model([node], [value("x", (None, 6))], [value("y", (None, 4))], [tensor("w", W)])
    net, _ = ran(plain, np.ones((2, 6), np.float32), smooth=True)
    assert not net.smooth


def test_fitted_without_rounding_and_measured_with_it() -> None:
    rng = np.random.default_rng(2)
    feeds = [{"x": rng.standard_normal((8, 6)).astype(np.float32)} for _ in range(12)]
    fitting = Fitting(Model(network()), feeds)
    assert fitting.network.smooth
    assert not fitting.answers.network.smooth
    says = fitting.answers(None, feeds)
    _, (right,) = ran(network(), feeds[0]["x"], smooth=False)
    np.testing.assert_array_equal(says[0][0], right)
    thin = fitting.thin(16)
    assert thin.sparsity == pytest.approx(1 / 3)
    assert fitting.moved(thin) < 1
