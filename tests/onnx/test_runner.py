"""Running level by level gives what running at once gives, with little memory too."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from emp_onnx import find_weights
from emp_onnx.calibration import answers as room
from emp_onnx.calibration.answers import Answers, states
from emp_onnx.calibration.network import Network
from emp_onnx.calibration.outputs import distance, rows_of, top1
from emp_onnx.calibration.runner import Runner
from emp_onnx.calibration.values import Values
from emp_onnx.files.model_io import Model
from emp_onnx.refit.prices import enough
from emp_onnx.runtime.feeds import Input
from tests.onnx.test_refit import feeds, network


def prepared() -> Network:
    model = Model(network())
    return Network(model, find_weights(model).weights, feeds(6), 1)


def test_levels_give_what_one_run_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    made = prepared()
    whole = Answers(made)(None, made.feeds)
    monkeypatch.setattr(room, "LARGE", 0)
    levels = Answers(made)
    assert len(levels.cut) == made.levels + 1 == 4
    for one, other in zip(whole, levels(None, made.feeds), strict=True):
        np.testing.assert_allclose(one[0], other[0], rtol=1e-6)


@pytest.mark.parametrize("large", [room.LARGE, 0])
def test_what_follows_a_layer_gives_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch, large: int) -> None:
    monkeypatch.setattr(room, "LARGE", large)
    made = prepared()
    answers, dense, probe = Answers(made), made.runner(), [1, 4]
    some = [made.feeds[i] for i in probe]
    says = answers(None, some)
    for level in range(made.levels):
        dense.level(level, made.wanted(level))
        after = answers.beyond(level, dense, probe, says)
        for site in made.at(level + 1):
            changed = {key: made.value(key) * np.float32(0.5) for key in site.keys}
            one, other = answers(changed, some), after(changed)
            assert distance(one, says) > 1e-6
            for a, b in zip(one, other, strict=True):
                np.testing.assert_allclose(a[0], b[0], rtol=1e-6)


def pyramid() -> onnx.ModelProto:
    """As detectors have it: twice a coarse map is made as large as the next finer one, by sizes that are read from
    shapes, and added to it."""
    rng, node = np.random.default_rng(0), helper.make_node
    held: dict[str, Any] = {
        f"w{i}": (rng.standard_normal((8, 8 if i else 3, 3, 3)) / 5).astype(np.float32) for i in range(5)
    }
    held |= {"zero": np.array([0]), "two": np.array([2]), "h": np.array(2), "w": np.array(3), "n": np.zeros(0, "f")}
    nodes: list[Any] = []

    def conv(x: str, weight: str, y: str, stride: int) -> None:
        nodes.append(node("Conv", [x, weight], [y], kernel_shape=[3, 3], pads=[1] * 4, strides=[stride] * 2))

    def enlarged(x: str, like: str, y: str) -> None:
        for i in "hw":
            nodes.append(node("Shape", [like], [f"{y}_shape_{i}"]))
            nodes.append(node("Gather", [f"{y}_shape_{i}", i], [f"{y}_one_{i}"]))
            nodes.append(node("Unsqueeze", [f"{y}_one_{i}"], [f"{y}_{i}"], axes=[0]))
        nodes.extend([
            node("Shape", [x], [f"{y}_all"]), node("Slice", [f"{y}_all", "zero", "two", "zero"], [f"{y}_first"]),
            node("Concat", [f"{y}_first", f"{y}_h", f"{y}_w"], [f"{y}_size"], axis=0),
            node("Resize", [x, "n", "n", f"{y}_size"], [f"{y}_large"], mode="nearest"),
            node("Add", [like, f"{y}_large"], [y]),
        ])  # fmt: skip

    for i, (x, y) in enumerate(("xa", "ab", "bc")):
        conv(x, f"w{i}", y, 2)
    enlarged("c", "b", "p")
    enlarged("p", "a", "q")
    conv("q", "w3", "r", 1)
    nodes.append(node("Relu", ["r"], ["e"]))
    conv("e", "w4", "y", 1)
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, [1, 3, "H", "W"])],
        [helper.make_tensor_value_info("y", 1, None)], [numpy_helper.from_array(v, k) for k, v in held.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)


def test_sizes_that_follow_from_shapes_are_left_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime refuses a part of such a network where it knows how many axes its inputs have, but not how long."""
    model = Model(pyramid())
    rng = np.random.default_rng(1)
    some = [{"x": rng.standard_normal((1, 3, 40, side)).astype(np.float32)} for side in (40, 24)]
    made = Network(model, find_weights(model).weights, some, 1)
    whole = Answers(made)(None, some)
    monkeypatch.setattr(room, "LARGE", 0)
    levels = Answers(made)
    assert len(levels.cut) > 1
    for one, other in zip(whole, levels(None, some), strict=True):
        np.testing.assert_allclose(one[0], other[0], rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_goes_to_files() -> None:
    made = prepared()
    outs: list[Any] = []
    for space in (1 << 30, 0):
        run = Runner(made.program, made.cut, made.value, threads=1, room=space)
        run.start([{"x": np.repeat(feed["x"], 20, axis=0)} for feed in made.feeds])
        for level in range(made.levels + 1):
            run.level(level)
            assert run.values.held <= space
        outs.append([run.values.get("z2", i) for i in range(6)])
    for one, other in zip(*outs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_values_are_forgotten() -> None:
    values = Values(room=1 << 20)
    for name in "ab":
        for feed in range(3):
            values.put(name, feed, np.full(10_000, feed, np.float32))
    assert values.held == 6 * 40_000
    values.drop("b")
    assert values.held == 3 * 40_000
    assert values.get("a", 0) is None
    assert values.get("b", 2)[0] == 2  # type: ignore[index]


def test_distance_and_agreement() -> None:
    one = [[np.array([[1.0, 2.0, 0.0]], np.float32)], [np.array([[0.0, 0.0, 3.0]], np.float32)]]
    same = [[value.copy() for value in feed] for feed in one]
    assert distance(one, same) == 0
    assert top1(one, same) == 1
    same[0][0][0, 0] = 9
    assert distance(one, same) > 0
    assert top1(one, same) == 0.5
    assert distance(one, [[np.zeros((2, 3), np.float32)]] * 2) == float("inf")
    assert top1([[np.zeros(3, np.float32)]], [[np.zeros(3, np.float32)]]) is None


def test_sequences_need_fewer_feeds() -> None:
    assert [enough([1] * 64), enough([0] * 3), enough([])] == [64, 3, 0]
    assert enough([2000] * 64) == 16
    assert enough([2000] * 10) == 10
    assert rows_of([np.zeros((1, 7, 15)), np.zeros((1, 3))]) == 7
    assert rows_of([np.zeros(4)]) == 4
    assert rows_of([np.zeros((1, 1000, 1, 1))]) == 1
    assert rows_of([np.zeros(())]) == 1
    assert rows_of([np.zeros((0, 5))]) == 0


def test_what_is_read_again_at_the_next_step_is_no_score() -> None:
    def value(name: str, *shape: int | str | None, kind: str = "float") -> Input:
        return Input(name, f"tensor({kind})", shape)

    x, past = value("x", "n", 64), value("past", "n", 4, "before", 16)
    again, other = value("now", "n", 4, "after", 16), value("y", "n", "t", 50)
    assert states([x, past], [other, again]) == {"now"}
    assert states([x, past], [other, value("now", "n", 4, "after", 16, kind="float16")]) == set()
    assert states([x, past], [other, value("now", "n", 4, "after", 15)]) == set()
    assert states([value("image", 1, 3, None, None)], [value("painted", 1, 3, None, None)]) == set()
    assert states([value("x", 1, None)], [value("y", 1, None), value("z", 1, None)]) == set()


@given(st.integers(0, 1000), st.integers(2, 9), st.integers(0, 20), st.booleans())
def test_scores_that_are_large_are_as_far_apart_as_small_ones(seed: int, classes: int, power: int, said: bool) -> None:
    """Leads of which half are beyond `SURE` count by what they are to each other: not as probabilities of 0 and 1."""
    rng = np.random.default_rng(seed)
    one = rng.standard_normal((16, classes))
    one[:, 0] = 1 + one[:, 1:].max(1)  # so that leads are 1
    other = one + 0.1 * rng.standard_normal(one.shape)

    def apart(scale: float) -> float:
        return distance([[one * scale]], [[other * scale]])

    large = apart(16.0)
    assert large > 0
    assert apart(16.0 * 2**power) == pytest.approx(large, rel=1e-9)
    if said:  # the same as probabilities, while these can still be told from 0
        scores = 16 * one, 16 * other
        odds = [np.exp(x - x.max(1, keepdims=True)) for x in scores]
        if min(x.min() for x in odds) > 1e-40:
            made = [x / x.sum(1, keepdims=True) for x in odds]
            assert distance([[made[0]]], [[made[1]]]) == pytest.approx(large, rel=1e-6)


def test_scores_that_are_masked_are_no_lead() -> None:
    one = np.array([[-np.inf, -np.inf, -np.inf], [1.0, 2.0, -np.inf]])
    with np.errstate(all="raise"):
        assert distance([[one[1:]]], [[one[1:]]]) == 0
        distance([[one]], [[one]])


@given(st.integers(0, 1000))
def test_scores_of_usual_size_are_compared_as_probabilities(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.standard_normal((2, 50, 4))

    def roots(scores: Any) -> Any:
        odds = np.exp(scores)
        return np.sqrt(odds / odds.sum(1, keepdims=True))

    p, q = roots(one), roots(other)
    wanted = ((p - q) ** 2).sum() / ((p - p.mean()) ** 2).sum()
    assert distance([[one]], [[other]]) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("size", [8, None])
def test_a_state_counts_as_numbers(size: int | None) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["s", "w"], ["t"]), helper.make_node("MatMul", ["t", "v"], ["y"])], "g",
        [helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, [None, size])],
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None, k]) for n, k in (("y", 5), ("t", size))],
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, 8)), ("v", (8, 5))):
        graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    given = [{"s": rng.standard_normal((3, 8)).astype(np.float32)}]
    answers = Answers(Network(model, find_weights(model).weights, given, 1))
    ((y, state),) = answers.dense(given)
    assert (y.shape, state.shape, answers.states) == ((3, 5), (24,), {"t"})
    assert [value.shape for value in answers.told([y, state])] == [(3, 5)]
    turned = state.copy()
    turned[:8] = turned[7::-1]
    assert top1([[y, state]], [[y, turned]]) == 1
    assert distance([[y, state]], [[y, turned]]) > 0
