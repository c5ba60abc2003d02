"""Feeds varied for the last fit; what is known is not worked out twice. Laws first."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from emp_onnx.shrink import shallower
from emp_onnx.shrink.fitting.distance import Missed
from emp_onnx.shrink.lighter.edges import Cropped
from emp_onnx.shrink.lighter.lighten import carried
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.report import flops_of
from emp_onnx.shrink.search import last, near
from emp_onnx.shrink.search.fits import Way, every_fit
from emp_onnx.shrink.search.last import affordable, last_fit
from emp_onnx.shrink.search.near import MIXED, MOVED, judging_near, mixed, near_to, nearby
from emp_onnx.shrink.search.quarters import Quarters
from emp_onnx.shrink.search.varied import LOUD, OFFSET, varied
from emp_onnx.shrink.shallower import ranking


def blocks(seed: int, width: int = 8) -> onnx.ModelProto:
    """Two residual blocks, the second of which says nothing, and a mean over places."""
    rng = np.random.default_rng(seed)
    constants = {
        "s": rng.standard_normal((width, 3, 3, 3)) / 3, "sb": np.ones(width),
        "a": rng.standard_normal((width, width, 3, 3)) / 6, "ab": np.zeros(width),
        "b": rng.standard_normal((width, width, 3, 3)) / 6, "bb": np.zeros(width),
        "d": rng.standard_normal((width, width, 3, 3)) / 6, "db": np.zeros(width),
        "e": np.zeros((width, width, 3, 3)), "eb": np.zeros(width),
        "c": rng.standard_normal((4, width)), "cb": np.zeros(4),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "s", "sb"], ["h"], pads=[1] * 4),
        helper.make_node("Relu", ["h"], ["i"]),
    ]
    for one, two, at, to in (("a", "b", "i", "m"), ("d", "e", "m", "o")):
        nodes += [
            helper.make_node("Conv", [at, one, f"{one}b"], [f"{to}1"], pads=[1] * 4),
            helper.make_node("Relu", [f"{to}1"], [f"{to}2"]),
            helper.make_node("Conv", [f"{to}2", two, f"{two}b"], [f"{to}3"], pads=[1] * 4),
            helper.make_node("Add", [f"{to}3", at], [f"{to}4"]), helper.make_node("Relu", [f"{to}4"], [to]),
        ]  # fmt: skip
    nodes += [
        helper.make_node("GlobalAveragePool", ["o"], ["p"]), helper.make_node("Flatten", ["p"], ["q"]),
        helper.make_node("Gemm", ["q", "c", "cb"], ["y"], transB=1),
    ]  # fmt: skip
    return helper.make_model(
        helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", 1, [1, 3, 8, 8])],
            [helper.make_tensor_value_info("y", 1, [1, 4])],
            [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=9,
    )  # fmt: skip


def feeds(count: int, shape: tuple[int, ...] = (1, 3, 8, 8), seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


@given(st.integers(0, 10**6), st.integers(3, 5))
@settings(max_examples=30, deadline=None)
def test_varied_feeds_have_the_shape_of_those_given_and_hold_nothing_much_larger(seed: int, dims: int) -> None:
    some = feeds(3, (1, 2, *[5] * (dims - 2)), seed)
    found = varied(some, 6, seed=seed)
    assert len(found) == 6
    most = max(float(np.abs(feed["x"]).max()) for feed in some)
    spread = max(float(feed["x"].std()) for feed in some)
    for feed in found:
        assert feed["x"].dtype == np.float32
        assert feed["x"].shape == some[0]["x"].shape
        assert np.abs(feed["x"]).max() <= LOUD * most + 6 * OFFSET * spread
    again = varied(some, 6, seed=seed)
    assert all((a["x"] == b["x"]).all() for a, b in zip(found, again, strict=True))
    assert len({feed["x"].tobytes() for feed in found}) == 6


def test_a_problem_that_reads_less_of_its_input_is_fed_as_before() -> None:
    problem = Problem.of(blocks(0), feeds(4), biases=True)
    less = problem.lighter(Cropped("x", 3, 1, 7, 8))
    assert set(nearby(less.view, feeds(4))) == {"mixed"}
    assert [f["x"].shape for f in near_to(less, feeds(4), MOVED)[:2]] == [(1, 3, 8, 8)] * 2
    assert near_to(less, feeds(4), "") == []


def test_curves_that_follow_from_the_same_moments_are_not_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    some = feeds(12)
    problem = Problem.of(blocks(0), some, biases=True)
    problem.measure(some)
    less = problem.lighter(Cropped("x", 3, 1, 7, 8))
    known = carried(problem, less)
    kept = dict(list(known.items())[:1])  # of one reader alone: the others' moments are new
    fresh: list[str] = []
    monkeypatch.setattr(Problem, "curve", lambda self, group: fresh.append(group.name) or self.by_norm(group))
    less.measured(known, problem)
    assert fresh == []
    assert [c.order.tolist() for c in less.curves] == [c.order.tolist() for c in problem.curves]
    less.measured(less.sums(some, kept), problem)
    assert len(fresh) == len([g for g in less.groups if set(less.of_group(g)) - {*kept}])


@given(st.integers(0, 10**6), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_of_two_feeds_that_are_mixed_the_first_has_at_least_its_share(seed: int, least: float) -> None:
    one, other = feeds(2, (1, 6), seed)
    found = mixed(one, other, np.random.default_rng(seed), least)["x"]
    assert (np.abs(found - one["x"]) <= (1 - least) * np.abs(other["x"] - one["x"]) + 1e-5).all()


def test_feeds_are_moved_where_the_input_is_clipped_first() -> None:
    model = blocks(0)
    model.graph.node.insert(0, helper.make_node("Clip", ["x", "", "hi"], ["xc"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(3), "hi"))
    model.graph.node[1].input[0] = "xc"
    assert set(nearby(Problem.of(model, feeds(4), biases=True).view, feeds(4))) == {MOVED}


def test_feeds_that_judge_are_as_many_as_a_comparison_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem.of(blocks(0), feeds(4), biases=True)
    assert judging_near(problem, feeds(4), "") == []
    assert len(judging_near(problem, feeds(4), MOVED)) == near.JUDGING
    each = flops_of(problem, {})[0] + near.RUN
    monkeypatch.setattr(near, "COMPARED", 7.5 * each)
    assert len(judging_near(problem, feeds(4), MOVED)) == 7


def test_how_many_varied_feeds_follows_from_work_and_size_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    small, wide = (Problem.of(blocks(0, width), feeds(4), biases=True) for width in (8, 64))
    monkeypatch.setattr(last, "WORK", 1e9)
    for name in ("process_time", "perf_counter", "thread_time"):
        monkeypatch.setattr(time, name, lambda: pytest.fail("a clock was read"))
    assert affordable(small, {}, 768) == affordable(small, {}, 768)
    assert 0 < affordable(wide, {}, 768) < affordable(small, {}, 768) < last.MOST
    assert affordable(small, {}, near.BYTES // 2) == 2


def test_quarters_of_all_feeds_choose_between_fits_that_those_kept_back_do_not_tell_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = feeds(24)
    problem = Problem.of(blocks(0), some, biases=True)
    problem.measure(some[:20])
    masks = problem.masks([4] * len(problem.groups)) or {}
    found = every_fit(problem, masks, some[:20], some[20:])
    best = min(found, key=lambda one: one.error)
    alike = {one.way for one in found if not one.missed.worse(best.missed)}
    assert len(alike) > 1
    asked: dict[Way, float] = {}
    known = Quarters.misses

    def watched(self: Quarters, masks: Any, way: Way) -> float:
        asked[way] = known(self, masks, way)
        return asked[way]

    monkeypatch.setattr(Quarters, "misses", watched)
    taken: list[Way] = []
    monkeypatch.setattr(last, "fit", lambda problem, masks, way, feeds: taken.append(way))
    last_fit(problem, masks, some[:20], some[20:], "", final=True, more=False)
    assert set(asked) == alike
    assert taken == [min(asked, key=lambda way: asked[way])]
    monkeypatch.setattr(last, "WORK", 1.0)  # nothing is afforded
    asked.clear()
    last_fit(problem, masks, some[:20], some[20:], "", final=True, more=False)
    assert not asked
    assert taken[1:] == [best.way]


def test_layers_are_ranked_by_as_many_feeds_as_work_allows_and_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    small, wide = (Problem.of(blocks(0, width), feeds(4), biases=True) for width in (8, 64))
    monkeypatch.setattr(shallower, "WORK", 8e10)
    assert shallower.FEEDS < ranking(wide, 4000) < ranking(small, 4000) < 4000
    assert ranking(small, 7) == 7
    monkeypatch.setattr(shallower, "WORK", 0.0)
    assert ranking(small, 4000) == shallower.FEEDS


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_of_a_handful_of_feeds_no_quarters_are_made(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A quarter of so few has one feed or none: nothing is mixed of these, and nothing fitted to none."""
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], transB=1), helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "v"], ["y"], transB=1),
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    held = {"w": rng.standard_normal((24, 6)), "v": rng.standard_normal((5, 24))}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, [1, 6])], [helper.make_tensor_value_info("y", 1, [1, 5])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in held.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    some = feeds(count, (1, 6))
    problem = Problem.of(model, some, biases=True)
    problem.measure(some[:-1])
    masks = problem.masks([8] * len(problem.groups)) or {}
    assert masks
    way = MIXED if count > 2 else ""
    monkeypatch.setattr(last, "Quarters", lambda *_: pytest.fail("quarters were made"))
    monkeypatch.setattr(Missed, "worse", lambda *_: False)  # ways that feeds kept back do not tell apart
    found = last_fit(problem, masks, some[:-1], some[-1:], way, final=True, more=False)
    assert all(np.isfinite(numpy_helper.to_array(t)).all() for t in found.shrunk.graph.initializer)
