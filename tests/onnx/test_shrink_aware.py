"""Fits that know of the bound behind a reader, elimination in rounds, sums in lots: laws, against the slow way."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import emp_onnx.shrink.fitting.moments as adding
import emp_onnx.shrink.fitting.order as ordering
from emp_onnx.shrink.axes.trace import Runner
from emp_onnx.shrink.fitting.aware import bounded, refit_bounded, towards
from emp_onnx.shrink.fitting.moments import cross_moments, moments, samples
from emp_onnx.shrink.fitting.order import eliminate, side
from emp_onnx.shrink.fitting.readers import Reader
from emp_onnx.shrink.fitting.refit import Solved, refit_locally, solve, wanted
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.search.choose import neighbours

BOUNDS = [(0.0, np.inf), (0.0, 1.0), (-np.inf, 0.5), (-np.inf, np.inf)]


def layer(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, 8)) @ rng.standard_normal((8, 8))
    kept = np.append(rng.random(7) < 0.6, True)
    return x, kept, rng.standard_normal((5, 8)), rng.standard_normal(5)


@given(st.integers(0, 10**6), st.sampled_from(BOUNDS))
@settings(max_examples=60, deadline=None)
def test_every_round_brings_down_what_counts(seed: int, bounds: tuple[float, float]) -> None:
    """The squared error within the bounds, and beyond them of what comes back inside; with the ridge."""
    x, kept, m, b = layer(seed)
    y = x @ m.T + b
    low, high = bounds
    h = np.cov(x[:, kept].T.reshape(kept.sum(), -1), bias=True).reshape(kept.sum(), -1)
    level = 0.03 * np.trace(h) / len(h)

    def counts(new: np.ndarray, bias: np.ndarray) -> float:
        z = x[:, kept] @ new.T + bias
        gap = np.where(y < low, np.maximum(z - low, 0), np.where(y > high, np.minimum(z - high, 0), z - y))
        return float(np.square(gap).sum() / len(x) + level * np.square(new - m[:, kept]).sum())

    errors = [counts(*towards(x, kept, m, b, bounds, rounds=rounds)) for rounds in range(5)]
    assert all(after <= before * (1 + 1e-9) + 1e-9 for before, after in pairwise(errors))


def test_without_bounds_it_is_the_fit_from_moments() -> None:
    x, kept, m, b = layer(3)
    ones = np.concatenate([x, np.ones((len(x), 1))], 1)
    moment, stays = ones.T @ ones / len(x), np.append(kept, True)
    new, shift = solve(moment[np.ix_(stays, stays)], wanted(moment[stays], m), m[:, kept], bias=True)
    found, bias = towards(x, kept, m, b, (-np.inf, np.inf))
    np.testing.assert_allclose(found, new, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(bias - b, shift, rtol=1e-6, atol=1e-6)


def two_convolutions(seed: int, behind: str) -> onnx.ModelProto:
    """Conv, Relu, Conv, and then a bound, a sum, or an output."""
    rng = np.random.default_rng(seed)
    constants = {
        "a": rng.standard_normal((16, 3, 3, 3)), "ab": rng.standard_normal(16),
        "b": rng.standard_normal((8, 16, 3, 3)) / 12, "bb": rng.standard_normal(8) - 1,
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "a", "ab"], ["h"], pads=[1] * 4), helper.make_node("Relu", ["h"], ["i"]),
        helper.make_node("Conv", ["i", "b", "bb"], ["j"]),
        helper.make_node(behind, ["j", "j"] if behind == "Add" else ["j"], ["y"]),
    ]  # fmt: skip
    return helper.make_model(
        helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", 1, [1, 3, 9, 9])],
            [helper.make_tensor_value_info("y", 1, [1, 8, 7, 7])],
            [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=9,
    )  # fmt: skip


def problem_of(behind: str, seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed + 1)
    feeds = [{"x": rng.standard_normal((1, 3, 9, 9)).astype(np.float32)} for _ in range(24)]
    problem = Problem.of(two_convolutions(seed, behind), feeds, biases=True, simpler=False)
    problem.measure(feeds)
    return problem


@pytest.mark.parametrize(("behind", "found"), [("Relu", ["a", "b"]), ("Add", ["a"]), ("Sigmoid", ["a"])])
def test_readers_before_a_bound_are_found(behind: str, found: list[str]) -> None:
    problem = problem_of(behind)
    assert [problem.readers[i].weight for i in bounded(problem.view, problem.readers)] == found


@pytest.mark.parametrize("seed", range(3))
def test_a_fit_that_knows_of_the_bound_is_nearer_behind_it(seed: int) -> None:
    problem = problem_of("Relu", seed)
    masks = problem.masks([8 for _ in problem.groups])
    assert masks
    plain, aware = problem.cut(masks), problem.cut(masks)
    for model in (plain, aware):
        refit_locally(problem.view, model, masks, problem.readers, problem.moments)
    refit_bounded(problem.view, aware, masks, problem.readers, problem.feeds)
    dense = Runner(problem.view.model)

    def error(model: Any) -> float:
        runner = Runner(model)
        return float(sum(np.square(dense(f)["y"] - runner(f)["y"]).sum() for f in problem.feeds))

    assert error(aware) < 0.98 * error(plain)


@given(st.integers(0, 10**6), st.integers(1, 2), st.sampled_from([1, 9]))
@settings(max_examples=8, deadline=None)
def test_errors_of_elimination_in_rounds_are_those_of_least_squares(seed: int, sides: int, places: int) -> None:
    """Whatever the order, the error after each unit is that of the others making up for all that went."""
    rng = np.random.default_rng(seed)
    units, made, whole = 24, [], []
    for _ in range(sides):
        size = units * places
        x = rng.standard_normal((3 * size, size)) @ rng.standard_normal((size, size))
        w = rng.standard_normal((4, units, places))
        ones = np.concatenate([x, np.ones((len(x), 1))], 1)
        reader = Reader(None, "w", "x", "conv", 1, 0, "b", channels=units)  # type: ignore[arg-type]
        one = side(reader, w, ones.T @ ones / len(x), np.arange(units), units)
        assert one is not None
        h = np.cov(x.T, bias=True)
        whole.append((w.reshape(4, -1), h + np.eye(size) * (ordering.RIDGE * np.trace(h) / size + 1e-12), one.scale))
        made.append(one)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordering, "ROUND", 5)
        patch.setattr(ordering, "CHOICE", 2)
        curve = eliminate(made, units)
    assert sorted(curve.order) == [*range(units)]
    for count in (1, 7, 15, 23):
        stays = ~np.repeat(np.isin(np.arange(units), curve.order[:count]), places)
        total = 0.0
        for w, h, scale in whole:
            gap = -w.copy()
            gap[:, stays] += w @ h[:, stays] @ np.linalg.inv(h[np.ix_(stays, stays)])
            total += float(np.einsum("of,fg,og->", gap, h, gap)) / scale / sides
        np.testing.assert_allclose(curve.error[count - 1], total, rtol=1e-6)


@pytest.mark.parametrize("waiting", [1, 1 << 30])
def test_sums_are_those_of_the_samples_however_many_wait(monkeypatch: pytest.MonkeyPatch, waiting: int) -> None:
    problem = problem_of("Relu")
    monkeypatch.setattr(adding, "WAITING", waiting)
    model = problem.view.model
    found = moments(model, problem.readers, problem.feeds)
    every = samples(model, problem.readers, problem.feeds)
    both = cross_moments(model, model, problem.readers, problem.feeds)
    for reader, moment, x, (own, cross, lost) in zip(problem.readers, found, every, both, strict=True):
        assert lost is None
        assert x.shape == (len(problem.feeds) * (81 if reader.weight == "a" else 49), len(moment) - 1)
        ones = np.concatenate([x, np.ones((len(x), 1))], 1).astype(np.float64)
        np.testing.assert_allclose(moment, ones.T @ ones / len(x), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(own, moment, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(cross, moment, rtol=1e-9, atol=1e-12)


def test_what_is_remembered_of_fits_is_let_go_where_moments_change(monkeypatch: pytest.MonkeyPatch) -> None:
    x, kept, m, _ = layer(5)
    ones = np.concatenate([x, np.ones((len(x), 1))], 1)
    moment, stays = ones.T @ ones / len(x), np.append(kept, True)
    solved = Solved()
    first = solved.of(0, moment, stays, m, bias=True, ridge=0.1)
    assert solved.of(0, moment, stays, m, bias=True, ridge=0.1)[0] is first[0]
    assert solved.of(0, moment * 1.0, stays, m, bias=True, ridge=0.1)[0] is not first[0]
    assert solved.of(0, moment, stays, m, bias=True, ridge=0.2)[0] is not first[0]
    monkeypatch.setattr("emp_onnx.shrink.fitting.refit.MEMORY", 1)
    solved.of(1, moment, stays, m, bias=True, ridge=0.1)
    assert len(solved.found) == 1


def test_groups_are_neighbours_where_one_operation_knows_both() -> None:
    """Beside itself, the channels of the first convolution know those of the second, which read them."""
    problem = problem_of("Relu")
    ops = [{a for a, _ in group.axes} for group in problem.groups]
    for i, near in enumerate(neighbours(problem)):
        assert i in near
        assert all((j in near) == (i in neighbours(problem)[j]) for j in range(len(ops)))
