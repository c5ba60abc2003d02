"""How a total is spread by what was measured: small changes of what was measured are small changes of the counts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_onnx.calibration.answers import Answers
from emp_onnx.files.model_io import Model
from emp_onnx.refit.allocate import allocate
from emp_onnx.refit.curves import Curve, _mean, curves
from emp_onnx.refit.fitting import Fitting
from emp_onnx.refit.prices import COMMON, steadied
from tests.onnx.test_refit import feeds, network

COUNTS = (1000, 800, 600, 400, 200, 50)


def curve(errors: list[float], price: float = 1.0) -> Curve:
    problem: Any = SimpleNamespace(shape=(1, 10, 100), parts=[("w", None)])
    site: Any = SimpleNamespace()
    return Curve(site, problem, COUNTS, tuple(np.cumsum([0.0, *errors]).tolist()), price, 1e-2, 100, 0.0)


LAYER = st.lists(st.floats(1e-6, 1e3), min_size=5, max_size=5).map(sorted)


@given(st.lists(LAYER, min_size=1, max_size=4), st.integers(1, 4000))
def test_the_total_is_kept_and_no_layer_overflows(layers: list[list[float]], total: int) -> None:
    curves = [curve(errors) for errors in layers]
    kept = allocate("error", curves, total, lambda c: np.ones(c.problem.shape))
    assert sum(kept) == min(max(total, len(curves)), 1000 * len(curves))
    assert all(1 <= k <= 1000 for k in kept)


def test_equal_layers_share_evenly() -> None:
    errors = [1.0, 2.0, 4.0, 8.0, 16.0]
    kept = allocate("error", [curve(errors), curve(errors)], 1100, lambda c: np.ones(c.problem.shape))
    assert abs(kept[0] - kept[1]) <= 25  # an eighth of a step; along lines it was a whole one


def test_dearer_layers_keep_more() -> None:
    errors = [1.0, 2.0, 4.0, 8.0, 16.0]
    kept = allocate("error", [curve(errors), curve(errors, 4.0)], 1100, lambda c: np.ones(c.problem.shape))
    assert kept[1] > kept[0]


def test_the_mean_of_two_halves() -> None:
    one, other = curve([1.0, 1.0, 1.0, 1.0, 1.0], 2.0), curve([3.0, 3.0, 3.0, 3.0, 3.0], 4.0)
    found = _mean(replace(one, ridge=1e-2), replace(other, ridge=1e-4))
    assert found.errors == (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
    assert (found.price, found.ridge) == (2.0, pytest.approx(1e-3))


@given(st.lists(st.just(0.0) | st.floats(1e-200, 1e6), max_size=6), st.integers(0, 10**6))
def test_costs_are_drawn_towards_each_other_the_more_the_fewer_the_answers(costs: list[float], rows: int) -> None:
    found = steadied(costs, rows)
    real = [(a, b) for a, b in zip(costs, found, strict=True) if a > 0]
    assert all(b == 0 for a, b in zip(costs, found, strict=True) if a == 0)
    if not real:
        return
    before, after = np.log(real).T
    assert after.mean() == pytest.approx(before.mean(), abs=1e-6)
    assert np.ptp(after) == pytest.approx(np.ptp(before) * rows / (rows + COMMON), abs=1e-6)
    assert (np.diff(after[np.argsort(before, kind="stable")]) >= -1e-9).all()  # which is dearer stays as it was


def test_costs_without_answers_or_bounds() -> None:
    assert steadied([], 0) == []
    assert steadied([0.0, np.inf], 0) == [0.0, np.inf]
    assert steadied([1.0, 4.0, np.inf], 0) == pytest.approx([2.0, 2.0, np.inf])


@pytest.mark.parametrize("count", [1, 2, 3, 8, 40])
def test_answers_are_looked_at_on_feeds_that_were_not_learnt_from(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fitting, looked = Fitting(Model(network()), feeds(count)), list[int]()
    usual = Answers.beyond

    def beyond(self: Answers, level: int, dense: Any, some: Any, says: Any) -> Any:
        looked.extend(some)
        return usual(self, level, dense, some, says)

    monkeypatch.setattr(Answers, "beyond", beyond)
    found = curves(fitting.network, fitting.answers)
    assert len(found) == 3
    learnt = [i for i in range(count) if fitting.network.half(i) == 0]
    assert looked
    assert count == 1 or not set(looked) & set(learnt)
