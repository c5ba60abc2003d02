"""Fits in sequence that make up for what was lost beside a reader's result in a sum: laws, against the slow way."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import emp_onnx.shrink.fitting.refit as fitting
from emp_onnx.shrink.axes.trace import Runner
from emp_onnx.shrink.fitting.moments import cross_moments, samples
from emp_onnx.shrink.fitting.refit import levels, refit, solve, wanted
from emp_onnx.shrink.fitting.sums import beside
from emp_onnx.shrink.problem import Problem

EVERY = np.ones(8, bool)


def blocks(seed: int, kind: str) -> onnx.ModelProto:
    """Two residual blocks of convolutions or of products with biases, and an output that reads the second sum."""
    rng = np.random.default_rng(seed)
    conv = kind == "Conv"
    shape, nodes, constants, at = ([1, 8, 6, 6] if conv else [20, 8]), [], {}, "x"

    def layer(source: str, name: str, outs: int, ins: int) -> str:
        constants[name] = rng.standard_normal((outs, ins, 1, 1) if conv else (ins, outs)) / ins**0.5
        constants[f"{name}b"] = rng.standard_normal(outs)
        if conv:
            nodes.append(helper.make_node("Conv", [source, name, f"{name}b"], [f"{name}y"]))
        else:
            nodes.append(helper.make_node("MatMul", [source, name], [f"{name}p"]))
            nodes.append(helper.make_node("Add", [f"{name}b", f"{name}p"], [f"{name}y"]))
        return f"{name}y"

    for block in "12":
        inner = layer(at, f"a{block}", 16, 8)
        nodes.append(helper.make_node("Relu", [inner], [f"h{block}"]))
        outer = layer(f"h{block}", f"c{block}", 8, 16)
        nodes.append(helper.make_node("Add", [outer, at] if block == "1" else [at, outer], [f"s{block}"]))
        at = f"s{block}"
    nodes.append(helper.make_node("Relu", [at], ["y"]))
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims) for name, dims in (("x", shape), ("y", shape))
    ]
    tensors = [numpy_helper.from_array(v.astype(np.float32), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "blocks", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def problem_of(seed: int, kind: str) -> Problem:
    model = blocks(seed, kind)
    dims = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(seed + 1)
    feeds = [{"x": rng.standard_normal(dims).astype(np.float32)} for _ in range(20)]
    problem = Problem.of(model, feeds)
    problem.measure(feeds)
    return problem


def half(problem: Problem) -> Any:
    return problem.masks([g.units // 2 if g.units == 16 else 0 for g in problem.groups])


def sum_error(problem: Problem, shrunk: Any, name: str) -> float:
    runners = [Runner(model, (name,)) for model in (problem.view.model, shrunk)]
    return float(sum(np.square(runners[0](f)[name] - runners[1](f)[name]).sum() for f in problem.feeds))


@given(st.integers(0, 10**6), st.sampled_from(["Conv", "MatMul"]))
@settings(max_examples=15, deadline=None)
def test_the_second_sum_is_nearer_than_if_each_layer_aimed_at_its_own_result(seed: int, kind: str) -> None:
    """Both end the first block alike, for nothing is lost beside it; then the sum is what least squares bring down."""
    problem = problem_of(seed, kind)
    masks = half(problem)
    errors = []
    for found in (beside, lambda *_: None):
        shrunk = problem.cut(masks)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fitting, "beside", found)
            refit(problem.view, shrunk, masks, problem.readers, problem.feeds, ridge=1e-9)
        errors.append((sum_error(problem, shrunk, "s1"), sum_error(problem, shrunk, "s2")))
    (first, better), (same, own) = errors
    assert first == pytest.approx(same, rel=1e-6)
    assert own > 0
    assert better <= own * (1 + 1e-5)


@pytest.mark.parametrize("kind", ["Conv", "MatMul"])
def test_it_is_the_fit_to_the_dense_sum_less_what_stands_there(kind: str) -> None:
    """Against least squares over all samples, written out."""
    problem = problem_of(5, kind)
    masks = half(problem)
    shrunk = problem.cut(masks)
    reader = next(r for r in problem.readers if r.weight == "c2")
    every, reach = levels(problem.view, problem.readers)
    level = next(i for i, some in enumerate(every) if reader in some)
    by = beside(problem.view, reader, problem.view, reader, EVERY, level, reach)
    assert by is not None
    assert (by.dense, by.changed) == ("s1", "s1")
    ((own, cross, lost),) = cross_moments(problem.view.model, shrunk, [reader], problem.feeds, besides=[by])
    full = reader.matrix(problem.view.constants["c2"])[:, :, 0]
    kept = ~masks[reader.source, reader.axis]
    new, shift = solve(own, wanted(cross, full, lost), full[:, kept], bias=True, ridge=0.0)

    z = samples(shrunk, [reader], problem.feeds)[0].astype(np.float64)
    runners = [Runner(model, ("s1", "s2")) for model in (problem.view.model, shrunk)]
    axis = 1 if kind == "Conv" else -1
    goal = [np.moveaxis(runners[0](f)["s2"] - runners[1](f)["s1"], axis, -1).reshape(-1, 8) for f in problem.feeds]
    ones = np.concatenate([z, np.ones((len(z), 1))], 1)
    slow = np.linalg.lstsq(ones, np.concatenate(goal).astype(np.float64), rcond=None)[0]
    np.testing.assert_allclose(new, slow[:-1].T, atol=1e-4)
    np.testing.assert_allclose(problem.view.constants["c2b"] + shift, slow[-1], atol=1e-4)


def test_what_is_made_by_a_layer_that_is_fitted_later_is_not_made_up_for() -> None:
    problem = problem_of(7, "Conv")
    every, reach = levels(problem.view, problem.readers)
    assert [[r.weight for r in some] for some in every] == [["a1"], ["c1"], ["a2"], ["c2"]]
    assert (reach["s1"], reach["s2"]) == (2, 4)
    readers = {r.weight: r for r in problem.readers}
    one = lambda name, level: beside(problem.view, readers[name], problem.view, readers[name], EVERY, level, reach)  # noqa: E731
    assert one("a1", 0) is None  # goes into no sum
    assert one("c2", 1) is None  # s1 is not yet as it will be
    assert one("c2", 3) is not None


def test_a_tensor_of_another_shape_is_left_alone() -> None:
    problem = problem_of(9, "Conv")
    reader = next(r for r in problem.readers if r.weight == "c2")
    by = beside(problem.view, reader, problem.view, reader, EVERY, 3, {})
    assert by is not None
    whole = {"s1": np.ones((1, 8, 6, 6))}
    assert by.lost(whole, {"s1": np.zeros((1, 8, 1, 1))}) is None
    assert by.lost({"s1": np.ones((1, 1, 6, 6))}, whole) is None
    found = by.lost(whole, {"s1": np.zeros((1, 8, 6, 6))})
    assert found is not None
    assert found.shape == (1, 8, 6, 6)
