"""Mirrored copies of feeds: in the same half as these, and learnt from only where that does no harm."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from emp_onnx import Fitting, find_weights
from emp_onnx.calibration.answers import Answers
from emp_onnx.calibration.mirrored import mirrored, slid
from emp_onnx.calibration.network import Network
from emp_onnx.files.model_io import Model
from emp_onnx.refit.further import helped, mirrored_feeds

SIDE, CHANNELS, CLASSES = 12, 6, 5
images = arrays(np.float32, st.tuples(*[st.integers(1, 20)] * 4), elements=st.floats(-9, 9, width=32))


def model(*, pooled: bool = True, before: tuple[str, ...] = (), kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Two convolutions, a mean over all places and a product; or one convolution that tells all places apart."""
    rng = np.random.default_rng(3)
    shapes = {"a": (CHANNELS, 2, 3, 3), "b": (CHANNELS, CHANNELS, 3, 3), "c": (CHANNELS, CLASSES)}
    shapes = shapes if pooled else {"a": (CLASSES, 2, SIDE, SIDE)}
    tensors: dict[str, Any] = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    nodes, name = [], "x"
    for i, op in enumerate(before):
        more: dict[str, Any] = {"to": TensorProto.FLOAT} if op == "Cast" else {}
        nodes.append(helper.make_node(op, [name], [f"p{i}"], **more))
        name = f"p{i}"
    if pooled:
        nodes += [
            helper.make_node("Conv", [name, "a"], ["h"], pads=[1] * 4), helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Conv", ["r", "b"], ["k"], pads=[1] * 4), helper.make_node("Relu", ["k"], ["s"]),
            helper.make_node("GlobalAveragePool", ["s"], ["g"]), helper.make_node("Flatten", ["g"], ["f"]),
            helper.make_node("MatMul", ["f", "c"], ["y"]),
        ]  # fmt: skip
    else:
        nodes += [helper.make_node("Conv", [name, "a"], ["h"]), helper.make_node("Flatten", ["h"], ["y"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, [1, 2, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(value, key) for key, value in tensors.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def feeds(count: int, *, left: bool = False) -> list[dict[str, Any]]:
    """Noise all over the picture, or left of two thirds alone."""
    rng = np.random.default_rng(4)
    out = []
    for _ in range(count):
        x = rng.normal(size=(1, 2, SIDE, SIDE)).astype(np.float32)
        if left:
            x[..., 2 * SIDE // 3 :] = 0
        out.append({"x": x})
    return out


def network(some: list[dict[str, Any]], **more: Any) -> Network:
    made = Model(model(**more))
    return Network(made, find_weights(made).weights, some, 1)


@given(images)
def test_a_copy_is_the_feed_from_right_to_left(x: np.ndarray) -> None:
    one = mirrored({"x": x})
    assert [*one] == ["x"]
    assert np.shares_memory(one["x"], x) or not x.size
    np.testing.assert_array_equal(one["x"], np.flip(x, 3))
    np.testing.assert_array_equal(mirrored(one)["x"], x)


@settings(max_examples=20)
@given(st.integers(1, 40))
def test_a_copy_is_in_the_half_of_its_feed(count: int) -> None:
    some = feeds(count)
    alone = network(some)
    both = alone.on(some, mirrored_feeds(alone, some))
    assert both.copied == count
    assert [both.half(i) for i in range(count)] == [alone.half(i) for i in range(count)]
    assert [both.half(i + count) for i in range(count)] == [alone.half(i) for i in range(count)]
    assert both.on(some).copied == 0


def test_only_what_convolutions_slide_over_is_mirrored() -> None:
    some = feeds(3)
    assert len(mirrored_feeds(network(some), some)) == 3
    assert len(mirrored_feeds(network(some, before=("Relu", "Neg")), some)) == 3
    assert mirrored_feeds(network(some, before=("Softmax",)), some) == []
    whole = [{"x": feed["x"].astype(np.int32)} for feed in some]
    assert mirrored_feeds(network(whole, before=("Cast",), kind=TensorProto.INT32), whole) == []
    assert not slid(lambda name: [("Conv", 1, "y")], "x", ())  # a kernel
    assert not slid(lambda name: [], "x", ())
    assert not slid(lambda name: [("Conv", 0, "y"), ("Flatten", 0, "z")], "x", ())


def test_copies_that_are_of_another_kind_are_not_learnt_from() -> None:
    """Each place counts by itself, and what is seen at the right end is seen in copies alone."""
    some = feeds(400, left=True)
    one = network(some, pooled=False)
    assert not helped(one, Answers(one), mirrored_feeds(one, some))
    fitting = Fitting(Model(model(pooled=False)), some, threads=1)
    assert fitting.network.copied == 0


def test_copies_of_the_same_kind_are() -> None:
    fitting = Fitting(Model(model()), feeds(48), threads=1)
    assert fitting.network.copied == 48
    assert fitting.calibrated[0] == 48
    part = fitting.without([0, 5])
    assert (len(part.network.feeds), part.network.copied, len(part.kept_back)) == (92, 46, 2)
    for one, copy in zip(part.network.feeds[:46], part.network.feeds[46:], strict=True):
        assert np.shares_memory(one["x"], copy["x"])


@pytest.mark.parametrize("count", [1, 2, 8])
def test_few_feeds_tell_nothing_apart(count: int) -> None:
    assert Fitting(Model(model()), feeds(count), threads=1).network.copied == 0


def test_figures_are_of_the_feeds_that_were_given() -> None:
    some = feeds(48)
    fitting = Fitting(Model(model()), some, threads=1)
    assert fitting.digest() == Fitting(Model(model(pooled=False)), some, threads=1).digest()
    assert fitting.kept_back == some
