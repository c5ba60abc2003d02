"""Two models on the same feeds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest

from emp_onnx import Model, UsageError
from emp_onnx.errors import MissingExtraError
from emp_onnx.runtime.compare import Behaviour, NotRunError, Session, _Tally, compare
from tests.onnx.builders import gemm, model, tensor, two_layers, value


def tally(before: Any, after: Any) -> Any:
    item = _Tally("y")
    problem = item.add(np.asarray(before), np.asarray(after))
    return item.result(), problem


def test_differences_are_what_they_say() -> None:
    result, problem = tally(np.array([[3.0, 4.0]]), np.array([[3.0, 9.0]]))
    assert (result.max_abs, result.relative, result.top1, problem) == (5.0, 1.0, 1.0, None)
    result, _ = tally(np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([[2.0, 1.0], [2.0, 1.0]]))
    assert result.top1 == 0.5
    result, _ = tally(np.zeros((2, 2)), np.zeros((2, 2)))
    assert (result.max_abs, result.relative) == (0.0, 0.0)
    result, _ = tally(np.zeros(2), np.ones(2))
    assert result.relative is None


def test_top1_is_for_what_looks_like_class_scores() -> None:
    assert tally(np.zeros((2, 10, 1, 1)), np.zeros((2, 10, 1, 1)))[0].top1 == 1.0
    for shape in [(2, 1), (10,), (2, 3, 4), (0, 3), ()]:
        assert tally(np.zeros(shape), np.zeros(shape))[0].top1 is None
    assert tally(np.zeros((2, 3), np.int64), np.zeros((2, 3), np.int64))[0].top1 is None


def test_shapes_that_follow_from_values_are_a_difference_and_no_fault() -> None:
    result, problem = tally(np.zeros(3), np.zeros(4))
    assert (result.max_abs, problem) == (math.inf, None)


def test_infinities_in_both_are_no_fault_in_one_they_are() -> None:
    result, problem = tally(np.array([np.inf, np.nan]), np.array([np.inf, np.nan]))
    assert (result.max_abs, problem) == (0.0, None)
    result, problem = tally(np.array([1.0]), np.array([np.nan]))
    assert result.max_abs == math.inf
    assert "holds NaN" in str(problem)


def sessions() -> tuple[Session, Session]:
    case = two_layers(np.random.default_rng(0))
    source = Model(case.model)
    return Session(source), Session(source.replaced({"a": case.weights["a"] * 0}, {}))


def test_given_feeds_are_all_run() -> None:
    before, after = sessions()
    seen = compare(before, after, [{"x": np.ones((2, 4), np.float32)}] * 3)
    assert (seen.feeds, seen.random) == (3, False)
    assert compare(before, before, None).outputs[0].max_abs == 0.0


def test_feeds_that_do_not_fit_or_do_not_run() -> None:
    before, after = sessions()
    with pytest.raises(UsageError, match="feed 1 must hold"):
        compare(before, after, [{"x": np.ones((2, 4), np.float32)}, {"z": np.ones(1)}])
    with pytest.raises(NotRunError, match="no feeds were given"):
        compare(before, after, [])
    nodes = [onnx.helper.make_node("Gather", ["w", "i"], ["y"])]
    proto = model(nodes, [value("i", ["N"], 7)], [value("y", None)], [tensor("w", np.ones((2, 2), np.float32))])
    session = Session(Model(proto))
    with pytest.raises(UsageError, match="feed 0 must be one that the original model runs on"):
        compare(session, session, [{"i": np.array([99])}])


def test_made_up_indices_shrink_until_they_fit() -> None:
    nodes = [onnx.helper.make_node("Gather", ["w", "i"], ["y"])]
    proto = model(nodes, [value("i", ["N"], 7)], [value("y", None)], [tensor("w", np.ones((1, 2), np.float32))])
    session = Session(Model(proto))
    assert isinstance(compare(session, session, None), Behaviour)


def test_sizes_are_tried_until_they_fit() -> None:
    nodes = [onnx.helper.make_node("Reshape", ["x", "s"], ["y"])]
    proto = model(nodes, [value("x", ["T"])], [value("y", None)], [tensor("s", np.array([16, 2]))])
    session = Session(Model(proto))
    assert compare(session, session, None).feeds == 4
    proto.graph.initializer[0].CopyFrom(tensor("s", np.array([17, 19])))
    session = Session(Model(proto))
    with pytest.raises(NotRunError, match="made-up feeds do not fit it"):
        compare(session, session, None)


def test_a_pruned_model_that_fails_is_a_problem() -> None:
    nodes = [onnx.helper.make_node("Reshape", ["x", "s"], ["y"])]
    good = model(nodes, [value("x", [4])], [value("y", None)], [tensor("s", np.array([2, 2]))])
    bad = onnx.ModelProto.FromString(good.SerializeToString())
    bad.graph.initializer[0].CopyFrom(tensor("s", np.array([3, 2])))
    bad.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    seen = compare(Session(Model(good)), Session(Model(bad)), None)
    assert "fails where the original runs" in seen.problems[0]


def test_overridable_inputs_may_be_fed_or_left_out() -> None:
    case = gemm(np.random.default_rng(0))
    case.model.graph.input.append(value("w", case.weights["w"].shape))
    session = Session(Model(case.model))
    x = np.ones((4, 5), np.float32)
    seen = compare(session, session, [{"x": x}, {"x": x, "w": case.weights["w"]}])
    assert (seen.problems, seen.feeds) == ((), 2)


def test_a_missing_runtime_says_how_to_add_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'effective-pruning\[onnx\]'$"):
        Session(Model(gemm(np.random.default_rng(0)).model))
