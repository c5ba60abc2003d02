"""Whole layers left out, feeds near those given, and cuts exchanged: laws first, then small worked cases."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import emp_onnx.shrink.depth as depth
import emp_onnx.shrink.search.exchange as exchanging
from emp_onnx.errors import ModelError, UsageError
from emp_onnx.shrink import shrink
from emp_onnx.shrink.axes.trace import Runner
from emp_onnx.shrink.fitting.distance import missed, misses, output_error, watched
from emp_onnx.shrink.fitting.refit import Origin
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.search.near import mixed, moved, nearby
from emp_onnx.shrink.skip import Skip, find_skips, left_out, skipped
from tests.shrink_fuzz import graph

RIDGE = 1e-9


def model(nodes: list[Any], constants: dict[str, np.ndarray], shape: list[Any], out: list[Any]) -> onnx.ModelProto:
    return helper.make_model(
        helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", 1, shape)], [helper.make_tensor_value_info("y", 1, out)],
            [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=9,
    )  # fmt: skip


def chain(seed: int, width: int = 24, inputs: int = 6) -> onnx.ModelProto:
    """Three layers; the units of the second are always active, so that it and the third are one linear map."""
    rng = np.random.default_rng(seed)
    second = rng.standard_normal((width, width)) / width**0.5
    constants = {
        "a": rng.standard_normal((width, inputs)) / (inputs / 6) ** 0.5, "ab": rng.standard_normal(width),
        "b": second, "bb": np.full(width, 50.0),
        "c": rng.standard_normal((5, width)) / width**0.5, "cb": np.zeros(5),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["x", "a", "ab"], ["h"], transB=1), helper.make_node("Relu", ["h"], ["i"]),
        helper.make_node("Gemm", ["i", "b", "bb"], ["j"], transB=1), helper.make_node("Relu", ["j"], ["k"]),
        helper.make_node("Gemm", ["k", "c", "cb"], ["y"], transB=1),
    ]  # fmt: skip
    return model(nodes, constants, ["n", inputs], ["n", 5])


def branch(seed: int, zero: bool, width: int = 8) -> onnx.ModelProto:
    """A residual block whose branch says nothing, or the same everywhere."""
    rng = np.random.default_rng(seed)
    constants = {
        "a": rng.standard_normal((width, 3, 3, 3)) / 3, "ab": np.ones(width),
        "b": rng.standard_normal((width, width, 3, 3)) / (1e9 if zero else 9), "bb": np.zeros(width),
        "c": rng.standard_normal((4, width, 1, 1)), "cb": np.zeros(4),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "a", "ab"], ["h"], pads=[1] * 4), helper.make_node("Relu", ["h"], ["i"]),
        helper.make_node("Conv", ["i", "b", "bb"], ["j"], pads=[1] * 4), helper.make_node("Add", ["i", "j"], ["k"]),
        helper.make_node("Conv", ["k", "c", "cb"], ["y"]),
    ]  # fmt: skip
    return model(nodes, constants, ["n", 3, 6, 6], ["n", 4, 6, 6])


def feeds(shape: tuple[int, ...], count: int = 40, seed: int = 1) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def without(net: onnx.ModelProto, skip: Skip, some: list[Any]) -> tuple[float, onnx.ModelProto]:
    """The error at the outputs after a skip fitted to some feeds, on others."""
    problem = Problem.of(net, some, biases=True, simpler=False)
    new = skipped(Origin(problem.view, tuple(problem.readers)), problem.view, problem.trace, skip, some, ridge=RIDGE)
    others = feeds(some[0]["x"].shape, seed=2)
    runner = watched(net)
    return output_error([runner(feed) for feed in others], new, others), new


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_a_layer_that_is_linear_goes_without_loss(seed: int) -> None:
    some = feeds((4, 6))
    net = chain(seed)
    error, new = without(net, Skip("i", "k", False), some)
    assert error < 1e-6
    assert [node.op_type for node in new.graph.node] == ["Gemm", "Relu", "Gemm"]


def test_channels_of_another_number_are_read_with_weights_of_that_shape() -> None:
    net = chain(0)
    tensors = {t.name: t for t in net.graph.initializer}
    for name, keep in (("b", np.s_[:10]), ("bb", np.s_[:10]), ("c", np.s_[:, :10])):
        tensors[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensors[name])[keep], name))
    error, new = without(net, Skip("i", "k", False), feeds((4, 6)))
    assert error < 1e-6
    assert {t.name: tuple(t.dims) for t in new.graph.initializer}["c"] == (5, 24)


@pytest.mark.parametrize("zero", [True, False])
def test_a_residual_branch_goes(zero: bool) -> None:
    some = feeds((1, 3, 6, 6))
    error, new = without(branch(3, zero), Skip("i", "k", True), some)
    assert len(new.graph.node) == 3
    assert error < 1e-6 if zero else 1e-6 < error < 0.5


@pytest.mark.parametrize("seed", range(20_000, 20_012))
def test_every_skip_of_a_generated_graph_runs_and_leaves_out_what_it_says(seed: int) -> None:
    net, some, _ = graph(seed)
    problem = Problem.of(net, some, biases=True)
    origin = Origin(problem.view, tuple(problem.readers))
    shapes = {name: value.shape for name, value in Runner(problem.view.model)(some[0]).items()}
    for skip in find_skips(problem.view, problem.trace):
        gone = left_out(problem.view, skip)
        assert gone
        try:
            new = skipped(origin, problem.view, problem.trace, skip, some)
        except ModelError:
            pytest.fail(f"{skip} makes a model that does not run")
        made = {name for node in new.graph.node for name in node.output}
        assert not made & gone
        assert {n for n in problem.view.makers if n not in gone} == made
        for feed in problem.trace.feeds:  # open sizes doubled, too
            assert {n: v.shape for n, v in Runner(new)(feed).items() if feed is some[0]} in ({}, shapes)


def test_a_skip_of_a_skip_still_fits_what_the_dense_model_said() -> None:
    problem = Problem.of(chain(5), feeds((4, 6)), biases=True, simpler=False)
    problem = problem.without(Skip("i", "k", False), problem.feeds)
    assert problem.origin is not None
    assert problem.whole().origin is None
    assert problem.dense is problem.origin.view.model
    assert [s.after for s in problem.skips] == ["k"]
    assert not find_skips(problem.view, problem.trace)


@pytest.mark.alone
def test_a_target_on_latency_is_met_with_proof(tmp_path: Path) -> None:
    onnx.save(branch(7, True, width=32), tmp_path / "net.onnx")
    some = feeds((1, 3, 6, 6), 40)
    # without the layer .57 is left; no cut of units and no split reaches that
    report = shrink(tmp_path / "net.onnx", feeds=some, refit=True, target_latency=0.65)
    assert report.proof.holds
    assert any("went whole" in note for note in report.notes)
    assert report.groups[0].kept == 32
    assert report.error < 1e-3
    assert report.parameters[1] < 0.5 * report.parameters[0]


def test_a_cut_measured_short_by_chance_does_not_end_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first measurement finds units within the target; a later one, of a milder target, finds them outside."""
    asked = []

    def chance(problem: Problem, planner: Any, budget: Any, *others: Any) -> list[int]:
        asked.append(budget.latency)
        if budget.latency > 0.65:
            raise UsageError("target_latency must be one that a cut reaches")
        return [planner.problem.groups[g].units // 2 for g in range(len(planner.problem.groups))]

    monkeypatch.setattr(depth, "fit_budget", chance)
    onnx.save(branch(7, True, width=32), tmp_path / "net.onnx")
    report = shrink(tmp_path / "net.onnx", feeds=feeds((1, 3, 6, 6), 40), refit=True, target_latency=0.65)
    assert any(latency > 0.65 for latency in asked)
    assert report.error < 1e-3


@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_feeds_near_others_have_their_shape_and_stay_in_their_range(seed: int, dims: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = ({"x": rng.standard_normal((1, 2, *[9] * (dims - 1))).astype(np.float32)} for _ in range(2))
    for new, low, high in (
        (mixed(a, b, rng)["x"], np.minimum(a["x"], b["x"]), np.maximum(a["x"], b["x"])),
        (moved(a, rng)["x"], a["x"].min(), a["x"].max()),
    ):
        assert new.dtype == np.float32
        assert new.shape == a["x"].shape
        assert (new >= low - 1e-6).all()
        assert (new <= high + 1e-6).all()
    assert set(moved(a, rng)["x"].reshape(-1)) <= set(a["x"].reshape(-1))


def test_ways_to_more_feeds_fit_the_inputs() -> None:
    view = Problem.of(branch(0, True), feeds((1, 3, 6, 6), 2)).view
    assert set(nearby(view, feeds((1, 3, 6, 6)))) == {"moved"}
    plain = Problem.of(chain(0), feeds((1, 6), 2)).view
    assert set(nearby(plain, feeds((1, 6)))) == {"mixed"}
    assert nearby(plain, [{"x": np.zeros((1, 6), np.int64)}] * 8) == {}
    assert nearby(plain, [*feeds((1, 6)), *feeds((2, 6))]) == {}
    assert nearby(plain, feeds((1, 6), 1)) == {}


@given(st.integers(0, 10**6), st.floats(0.1, 10), st.floats(-5, 5))
@settings(max_examples=20, deadline=None)
def test_scores_stretched_or_moved_as_a_whole_miss_nothing(seed: int, scale: float, shift: float) -> None:
    net = chain(seed)
    some = feeds((4, 6), 6)
    runner = watched(net)
    dense = [runner(feed) for feed in some]
    tensors = {t.name: t for t in net.graph.initializer}
    for name, by in (("c", 0.0), ("cb", shift)):
        values = numpy_helper.to_array(tensors[name]) * np.float32(scale) + np.float32(by)
        tensors[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    assert misses(dense, net, some) < 1e-3


def test_what_changes_answers_is_missed_and_worse() -> None:
    net, other = chain(1), chain(2)
    some = feeds((4, 6), 20)
    runner = watched(net)
    dense = [runner(feed) for feed in some]
    same, bad = missed(dense, net, some), missed(dense, other, some)
    assert bad.total > 0.3 > 1e-3 > same.total
    assert bad.worse(same)
    assert not same.worse(bad)
    assert not same.worse(same)


@given(st.integers(0, 10**6), st.sampled_from(["even", "one high"]), st.sampled_from(["even", "few rows"]))
@settings(max_examples=12, deadline=None)
def test_as_many_are_likely_missed_as_are_missed(seed: int, scores: str, errors: str) -> None:
    """Of all kinds of scores and errors, or plans whose errors are of other kinds could not be compared."""
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((20000, 10))
    if scores == "one high":
        dense[np.arange(20000), rng.integers(0, 10, 20000)] += 5
    error = rng.standard_normal(dense.shape) * dense.std() * rng.uniform(0.2, 0.5)
    if errors == "few rows":
        error *= np.where(rng.random((20000, 1)) < 0.1, 3, 0.3)
    other = dense + error
    said = model([helper.make_node("Identity", ["x"], ["y"])], {}, ["n", 10], ["n", 10])
    likely = missed([{"y": dense.astype(np.float32)}], said, [{"x": other.astype(np.float32)}]).rows.mean()
    share = (dense.argmax(1) != other.argmax(1)).mean()
    assert 0.9 * share - 0.001 <= likely <= 1.5 * share + 0.001


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_exchange_never_makes_a_cut_worse_nor_slower_than_asked(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = int(rng.integers(2, 5))
    price, time = rng.random(groups) + 0.01, rng.random(groups) + 0.1
    grid = [0, 4, 8, 12]
    error = lambda counts: float(sum(p * (n / 16) ** 2 for p, n in zip(price, counts, strict=True)))  # noqa: E731
    share = lambda counts: float(1 - sum(t * n / 16 for t, n in zip(time, counts, strict=True)) / time.sum())  # noqa: E731
    problem = SimpleNamespace(masks=tuple)
    planner: Any = SimpleNamespace(
        problem=problem, predicted=share, guessed=error, measured=error, measure=error, round=lambda g: grid[1:],
    )  # fmt: skip
    start = [int(rng.choice(grid)) for _ in range(groups)]
    target = share(start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchanging.Clock, "share", lambda self, counts, limit=0.0: share(counts))
        end, *others = exchanging.exchange(planner, start, target, best=3)
    assert all(share(other) <= target + 1e-12 and error(other) >= error(end) for other in others)
    assert error(end) <= error(start)
    assert share(end) <= target + 1e-12
    for g in range(groups):  # no single move, and no pair that is predicted right, is left that would be better
        for to in grid:
            counts = [to if i == g else n for i, n in enumerate(end)]
            if share(counts) <= target and abs(grid.index(to) - grid.index(end[g])) <= exchanging.LEVELS:
                assert error(counts) > exchanging.LESS * error(end) or error(end) == 0
