"""How a total is spread by what was measured: small changes of what was measured are small changes of the counts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_onnx.refit.allocate import allocate
from emp_onnx.refit.curves import Curve, _mean

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
