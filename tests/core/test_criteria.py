"""Criteria: formulas, shapes, errors."""

import numpy as np
import pytest
from hypothesis import given

from emp_core import ArgumentError, criteria, select
from emp_core.testing import weight_tensors


@given(weight_tensors(dtype="float64"))
def test_formulas(w):
    w = np.clip(w, -1e100, 1e100)
    assert np.array_equal(criteria.magnitude(w), np.abs(w))
    assert np.array_equal(criteria.squared(w), w**2)
    assert np.array_equal(criteria.gradient(w, w[::-1]), np.abs(w * w[::-1]))
    for axis in range(-w.ndim, w.ndim):
        norms = np.arange(w.shape[axis]) + 1.0
        assert np.array_equal(
            np.moveaxis(criteria.wanda(w, norms, axis=axis), axis, -1), np.moveaxis(np.abs(w), axis, -1) * norms
        )


def test_a_criterion_feeds_a_selection():
    w = np.array([[1.0, 1.0], [1.0, 1.0]])
    assert select(criteria.wanda(w, [10.0, 0.1]), scope="rows").mask.tolist() == [[True, False]] * 2


def test_wrong_arguments():
    with pytest.raises(ArgumentError, match=r"gradients must have the shape of the weights \(2,\), got \(3,\)"):
        criteria.gradient(np.ones(2), np.ones(3))
    with pytest.raises(ArgumentError, match="norms must be 1-D with 2 entries"):
        criteria.wanda(np.ones((3, 2)), np.ones(3))
    with pytest.raises(ArgumentError, match=r"axis must be in \[-2, 2\), got 2"):
        criteria.wanda(np.ones((3, 2)), np.ones(3), axis=2)
    with pytest.raises(ArgumentError, match="weights must be an array of real numbers"):
        criteria.magnitude([1j])


def test_obs_is_what_removing_one_weight_costs():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 5))
    h, w = x.T @ x, rng.standard_normal((3, 5))
    scores = criteria.obs(w, np.diag(np.linalg.inv(h)))
    for o in range(3):
        for j in range(5):
            rest = [i for i in range(5) if i != j]
            best = np.linalg.solve(h[np.ix_(rest, rest)], h[rest] @ w[o])
            gap = w[o].copy()
            gap[rest] -= best
            assert scores[o, j] == pytest.approx(gap @ h @ gap)


def test_output_error():
    assert np.array_equal(criteria.output_error([1.0, 2.0], 4.0), [0.25, 0.5])
    assert np.array_equal(criteria.output_error([1.0, 2.0], 0.0), [0.0, 0.0])
    with pytest.raises(ArgumentError, match="energy must be ≥ 0"):
        criteria.output_error([1.0], -1.0)
    with pytest.raises(ArgumentError, match="inverse must be 1-D with 2 entries"):
        criteria.obs(np.ones((3, 2)), np.ones(3))
