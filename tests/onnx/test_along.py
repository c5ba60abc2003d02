"""Along which axis of an answer the scores of classes lie: the same classes, however a network lays them out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from emp_onnx.calibration.along import laid, scores_along
from emp_onnx.calibration.answers import Answers
from emp_onnx.calibration.network import Network
from emp_onnx.calibration.outputs import agreement, classes, sides
from emp_onnx.files.model_io import Model
from emp_onnx.shrink.fitting.distance import agreement as agreement_of
from emp_onnx.shrink.fitting.said import Said
from emp_onnx.weights.find import find_weights

SIDE, CLASSES = 4, 5


def answers(nodes: list[Any], weights: dict[str, Any], shape: tuple[int, ...], *, version: int = 17) -> Answers:
    """Of a network of these nodes from x to y, looked at on one feed of `shape`."""
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items()],
    )  # fmt: skip
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8))
    feed = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    found = Answers(Network(model, find_weights(model).weights, [feed], 1))
    found.feed = feed  # type: ignore[attr-defined]
    return found


def node(op: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def says(found: Answers) -> Any:
    return found(None, [found.feed])[0][0]  # type: ignore[attr-defined]


def one_by_one(scale: float, channels: int = 3, out: int = CLASSES) -> Any:
    return (scale * np.random.default_rng(1).standard_normal((out, channels, 1, 1))).astype(np.float32)


@settings(deadline=None, max_examples=25)
@given(st.permutations([1, 2, 3]), st.sampled_from(["", "Identity", "Neg", "Softmax"]), st.booleans())
def test_classes_of_pixels_are_found_wherever_they_lie(perm: list[int], then: str, before: bool) -> None:
    """A convolution's channels, moved to any place, with what follows before or behind the move."""
    order = [0, *perm]
    turn = node("Transpose", "a", "b", perm=order) if not before else node("Transpose", "b", "y", perm=order)
    axis = 1 if before else order.index(1)
    more = {"axis": axis} if then == "Softmax" else {}
    work = node(then or "Identity", ("b", "a")[before], "b" if before else "y", **more)
    nodes = [node("Conv", "x w", "a"), *((work, turn) if before else (turn, work))]
    found = answers(nodes, {"w": one_by_one(9)}, (1, 3, SIDE, SIDE))
    y = says(found)
    assert found.along == {"y": order.index(1)}
    assert y.shape[-1] == CLASSES
    assert classes(y).shape == (SIDE * SIDE, CLASSES)  # type: ignore[union-attr]


@settings(deadline=None, max_examples=20)
@given(st.permutations([1, 2, 3]), st.sampled_from([(1, -1, CLASSES), (-1, CLASSES), (1, SIDE * SIDE, CLASSES, 1, 1)]))
def test_detectors_lay_places_flat_behind_a_turn(perm: list[int], shape: tuple[int, ...]) -> None:
    """Channels of a convolution that a Transpose moves last are columns after a Reshape too; elsewhere nobody knows."""
    nodes = [node("Conv", "x w", "a"), node("Transpose", "a", "t", perm=[0, *perm]), node("Reshape", "t s", "y")]
    weights = {"w": one_by_one(9), "s": np.array(shape, np.int64)}
    found = answers(nodes, weights, (1, 3, SIDE, SIDE))
    y = says(found)
    if perm[-1] == 1 and len(shape) < 4:
        assert classes(y).shape == (SIDE * SIDE, CLASSES)  # type: ignore[union-attr]
    proto = helper.make_model(
        helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", 1, (1, 3, SIDE, SIDE))],
            [helper.make_tensor_value_info("y", 1, None)], [numpy_helper.from_array(v, k) for k, v in weights.items()],
        )
    )  # fmt: skip
    value = onnx.reference.ReferenceEvaluator(proto).run(None, found.feed)[0]  # type: ignore[attr-defined]
    rows = Said(proto, {"y": value}, found.feed).rows("y", value)  # type: ignore[attr-defined]
    if perm[-1] == 1 and len(shape) < 4:  # both ways of asking say the same
        np.testing.assert_allclose(rows, classes(y), rtol=1e-4, atol=1e-4)


def test_as_columns_of_a_product_they_are_the_same() -> None:
    w = one_by_one(9)
    by_conv = says(answers([node("Conv", "x w", "y")], {"w": w}, (1, 3, SIDE, SIDE)))
    nodes = [node("Transpose", "x", "t", perm=[0, 2, 3, 1]), node("MatMul", "t w", "y")]
    by_product = says(answers(nodes, {"w": w[:, :, 0, 0].T.copy()}, (1, 3, SIDE, SIDE)))
    np.testing.assert_allclose(by_conv, by_product, rtol=1e-4, atol=1e-5)
    turned = np.roll(by_conv, 1, axis=-1)
    assert agreement([[by_conv]], [[by_conv]]) == 1
    assert agreement([[by_conv]], [[turned]]) == 0  # of pixels, each of which is of another class


@pytest.mark.parametrize("scale", [0.01, 9.0])
def test_a_picture_is_numbers(scale: float) -> None:
    """With as many channels as came in, or with nothing that is sure of itself."""
    out = 3 if scale > 1 else CLASSES
    found = answers([node("Conv", "x w", "y")], {"w": one_by_one(scale, out=out)}, (1, 3, SIDE, SIDE))
    assert says(found).shape == (out * SIDE * SIDE,)
    assert found.along == {"y": None}


def test_a_mask_is_one_thing_for_every_pixel() -> None:
    nodes = [node("Conv", "x w", "a"), node("Sigmoid", "a", "y")]
    y = says(answers(nodes, {"w": one_by_one(30, out=1)}, (1, 3, SIDE, SIDE)))
    assert y.shape == (SIDE * SIDE, 1)
    assert sides([y]) is not None
    gray = says(answers(nodes, {"w": one_by_one(0.01, out=1)}, (1, 3, SIDE, SIDE)))
    assert gray.shape == (SIDE * SIDE,)


def test_pixels_that_were_shuffled_are_numbers() -> None:
    nodes = [node("Conv", "x w", "a"), node("DepthToSpace", "a", "y", blocksize=2)]
    assert says(answers(nodes, {"w": one_by_one(9, out=4)}, (1, 3, SIDE, SIDE))).shape == (4 * SIDE * SIDE,)


@pytest.mark.parametrize("version", [11, 17])
def test_what_a_softmax_goes_along_is_classes(version: int) -> None:
    """Also with its axis left to the operator set: the second one up to 12, the last from 13."""
    nodes = [node("Conv", "x w", "a"), node("GlobalAveragePool", "a", "b"), node("Flatten", "b", "c")]
    nodes = [*nodes[: 3 if version > 12 else 2], node("Softmax", "c" if version > 12 else "b", "y")]
    y = says(answers(nodes, {"w": one_by_one(1)}, (2, 3, SIDE, SIDE), version=version))
    assert classes(y).shape == (2, CLASSES)  # type: ignore[union-attr]


def test_samples_come_first() -> None:
    """A product that is turned round has its columns first, and still one answer for every row."""
    w = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    nodes = [node("MatMul", "x w", "a"), node("Transpose", "a", "y")]
    assert classes(says(answers(nodes, {"w": w}, (6, 8)))).shape == (4, 6)  # type: ignore[union-attr]


def test_tokens_have_their_classes_last() -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((8, 30)).astype(np.float32), "s": np.array([1, 6, 30], np.int64)}
    for nodes in ([node("MatMul", "x w", "y")], [node("MatMul", "x w", "a"), node("Reshape", "a s", "y")]):
        assert classes(says(answers(nodes, weights, (1, 6, 8)))).shape == (6, 30)  # type: ignore[union-attr]


@given(st.integers(1, 3), st.integers(2, 6), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_laying_out_loses_and_repeats_nothing(n: int, channels: int, h: int, w: int, seed: int) -> None:
    value = np.random.default_rng(seed).standard_normal((n, channels, h, w))
    for axis in (1, 2, 3, None):
        found = laid(value, axis)
        np.testing.assert_array_equal(np.sort(found, axis=None), np.sort(value, axis=None))
    assert scores_along(value * 0, 1) in ((None,) if h > 1 or w > 1 else (1,))


def test_shrinking_counts_the_same_answers() -> None:
    """Its values come from protobufs, not from programs."""
    w = one_by_one(9)
    nodes = [node("Conv", "x w", "a"), node("Transpose", "a", "y", perm=[0, 2, 1, 3])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 3, SIDE, SIDE))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)], [numpy_helper.from_array(w, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)}
    (y,) = onnx.reference.ReferenceEvaluator(model).run(None, feed)
    said = Said(model, {"y": y}, feed)
    np.testing.assert_array_equal(said.rows("y", y).argmax(1), y.argmax(2).reshape(-1))
    other = y.copy()
    other[:, 0, :, 0] = np.roll(other[:, 0, :, 0], 1, axis=-1)  # another class for one of the pixels
    assert agreement_of([{"y": other}], model, [feed]) == 1 - 1 / SIDE**2
    picture = {"y": 0.01 * y}
    assert Said(model, picture, feed).rows("y", picture["y"]) is None
