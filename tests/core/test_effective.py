"""The count: laws first, then rational arithmetic as oracle, then worked numbers."""

import math
from fractions import Fraction
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emp_core import ArgumentError, PoolError, effective_size, hill_number, keep_count
from emp_core.testing import (
    assert_permutation_invariant,
    assert_scale_invariant,
    betas,
    exact_effective_size,
    exact_keep_count,
    scores,
)


@settings(max_examples=200)
@given(scores(max_dims=3), st.data())
def test_keep_count_is_the_rational_one(s, data):
    beta = data.draw(betas(s))
    assert keep_count(s, beta=beta) == exact_keep_count(s, beta)


@given(scores(max_size=40, dtype="float32"), st.data())
def test_keep_count_is_the_rational_one_for_bfloat16(s, data):
    with np.errstate(over="ignore"):
        b = s.astype(ml_dtypes.bfloat16)
    b[~np.isfinite(b.astype(np.float32))] = 1
    beta = data.draw(betas(b))
    assert keep_count(b, beta=beta) == exact_keep_count(b.astype(np.float64), beta)


@given(scores())
def test_effective_size_is_correctly_rounded(s):
    exact = exact_effective_size(s)
    assert effective_size(s) == exact.numerator / exact.denominator


@given(scores(max_dims=3))
def test_between_one_and_n(s):
    assert 1 <= effective_size(s) <= s.size
    assert 1 <= keep_count(s) <= s.size


@given(scores(dtype="float32"), st.integers(-200, 200), st.data())
def test_scale_does_not_matter(s, exponent, data):
    beta = data.draw(betas(s))
    assert_scale_invariant(effective_size, s, -(2.0**exponent))
    assert_scale_invariant(lambda x: keep_count(x, beta=beta), s, 2.0**exponent)


@given(scores(), st.data())
def test_order_does_not_matter(s, data):
    order = data.draw(st.permutations(range(s.size)))
    assert_permutation_invariant(effective_size, s, order)
    assert_permutation_invariant(keep_count, s, order)


@given(st.integers(1, 300), st.floats(-1e300, 1e300).filter(bool))
def test_equal_scores_keep_all(n, value):
    assert effective_size(np.full(n, value)) == n
    assert keep_count(np.full(n, value)) == n


@pytest.mark.parametrize("n", [65_535, 65_536, 65_537, 300_001])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_equal_scores_keep_all_in_long_pools(n, dtype):
    s = np.full(n, 0.1, dtype)
    assert effective_size(s) == n
    assert keep_count(s) == n
    assert keep_count(s, beta=0.5) == n // 2


@given(st.integers(1, 300), st.data(), st.floats(-1e300, 1e300).filter(bool))
def test_one_hot_keeps_one(n, data, value):
    s = np.zeros(n)
    s[data.draw(st.integers(0, n - 1))] = value
    assert effective_size(s) == 1
    assert keep_count(s) == 1


@given(scores(), st.data())
def test_monotone_in_beta(s, data):
    low, high = sorted((data.draw(betas(s)), data.draw(betas(s))))
    assert keep_count(s, beta=low) <= keep_count(s, beta=high)


@given(st.integers(1, 50), betas())
def test_zeros_keep_all(n, beta):
    s = np.zeros(n) * -1.0
    assert effective_size(s) == n
    assert keep_count(s, beta=beta) == n
    assert hill_number(s, order=1) == n


def test_a_naive_floor_drops_one():
    """The reason for all the care: floats alone give 9."""
    s = np.full(10, 0.1)
    assert math.floor(s.sum() ** 2 / (s**2).sum()) == 9
    assert keep_count(s) == 10


@pytest.mark.parametrize(
    ("s", "beta", "k"),
    [
        ([3, 1, 1, 1], 1.0, 3),
        ([1, 1], 0.5, 1),
        ([5e-324, 5e-324, 5e-324], 1.0, 3),
        ([1.7e308] * 7, 1.0, 7),
        ([1.7e308, 5e-324], 1.0, 1),
        ([1.0, 1.0, 5e-324], 1.0, 2),
        ([1e-170, 1e-170, 1e-180], 1.0, 2),
        ([1, 2, 3], 1e-300, 1),
        ([1, 2, 3], 1e300, 3),
        (7.0, 1.0, 1),
    ],
)
def test_worked_numbers(s, beta, k):
    assert keep_count(s, beta=beta) == k


def test_count_on_an_integer_from_either_side():
    """N_eff = 2·(1 ± tiny): the exact value decides, not its rounding."""
    just_above = np.array([1.0, 1.0, 2.0**-1000])
    assert keep_count(just_above) == 2
    just_below = np.array([1.0, 1.0 + 2.0**-52])
    assert exact_effective_size(just_below) < 2
    assert effective_size(just_below) == 2.0  # correctly rounded, and yet
    assert keep_count(just_below) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int8, np.int32, np.uint64])
@pytest.mark.parametrize("n", [70_000, 300_000])
def test_long_pools_against_integers(dtype, n):
    s = (np.random.default_rng(n).standard_normal(n) * 50).astype(dtype if dtype != np.uint64 else np.int16)
    s = np.abs(s).astype(dtype) if dtype == np.uint64 else s
    total = sum(map(abs, map(Fraction, s.tolist())))
    squares = sum(Fraction(x) ** 2 for x in s.tolist())
    for beta in (1.0, 0.37, 1.5):
        assert keep_count(s, beta=beta) == min(n, math.floor(Fraction(beta) * total**2 / squares))
    assert math.isclose(effective_size(s), total**2 / squares, rel_tol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("n", [1, 9, 70_000, 300_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_not_finite_is_an_error_that_names_pool_and_index(bad, n, dtype):
    s = np.ones(n, dtype)
    s[n // 2] = bad
    for f in (effective_size, keep_count, lambda x: hill_number(x, order=1)):
        with pytest.raises(PoolError, match=rf"scores must be finite, got (NaN|an infinity) at .*index.* {n // 2}"):
            f(s)


def test_not_finite_in_a_row_names_the_row():
    s = np.ones((4, 5))
    s[2, 3] = math.nan
    with pytest.raises(PoolError, match=r"pool \(2,\) of scores must be finite, got NaN at index 3"):
        effective_size(s, axis=1)


def test_empty_pools():
    with pytest.raises(PoolError, match="scores must hold at least one score"):
        effective_size([])
    with pytest.raises(PoolError, match=r"pool \(0,\) of scores must hold"):
        effective_size(np.ones((2, 0)), axis=1)
    with pytest.raises(PoolError, match="empty pool"):
        keep_count([1.0, 2.0], where=[False, False])
    assert effective_size(np.ones((0, 3)), axis=1).shape == (0,)


@given(scores(min_dims=2, max_dims=3), st.data())
def test_axis_is_each_pool_by_itself(s, data):
    axis = data.draw(st.integers(-s.ndim, s.ndim - 1))
    moved = np.moveaxis(s, axis, -1)
    beta = data.draw(betas(moved.reshape(-1, moved.shape[-1])[0]))
    size, k = effective_size(s, axis=axis), keep_count(s, beta=beta, axis=axis)
    assert size.shape == k.shape == moved.shape[:-1]
    for i in np.ndindex(moved.shape[:-1]):
        assert size[i] == effective_size(moved[i])
        assert k[i] == keep_count(moved[i], beta=beta)
    assert effective_size(s, axis=axis, keepdims=True).shape == np.max(s, axis=axis, keepdims=True).shape


@given(scores(min_size=2), st.data())
def test_where_is_leaving_out(s, data):
    where = np.array(data.draw(st.lists(st.booleans(), min_size=s.size, max_size=s.size)))
    if where.any():
        assert effective_size(s, where=where) == effective_size(s[where])
        assert keep_count(s, where=where) == keep_count(s[where])


def test_rows_longer_than_a_chunk():
    s = np.random.default_rng(0).standard_normal((3, 100_000)).astype(np.float32)
    assert keep_count(s, axis=1).tolist() == [keep_count(r) for r in s]
    assert keep_count(s.T, axis=0).tolist() == [keep_count(r) for r in s]


@pytest.mark.parametrize("beta", [0, -1.0, math.nan, math.inf, "x", None])
def test_beta_out_of_range(beta):
    with pytest.raises(ArgumentError, match="beta must be a finite number > 0, got"):
        keep_count([1.0], beta=beta)


@pytest.mark.parametrize("bad", [[1j], ["a"], [None], np.array(["2020"], "M8[D]"), object()])
def test_not_numbers(bad):
    with pytest.raises(ArgumentError, match="scores must be"):
        effective_size(bad)


@pytest.mark.parametrize("axis", [2, -3, (0, 0), "a", (1, -1)])
def test_bad_axis(axis):
    with pytest.raises(ArgumentError, match="axis must"):
        effective_size(np.ones((2, 2)), axis=axis)


def test_integers_beyond_float64_are_refused():
    with pytest.raises(ArgumentError, match=r"must be within ±2\*\*53"):
        effective_size(np.array([2**60, 1]))


@settings(max_examples=50)
@given(scores(max_size=30), st.floats(0, 20), st.floats(0, 20))
def test_hill_numbers_do_not_increase(s, a, b):
    low, high = sorted((a, b))
    d = [hill_number(s, order=q) for q in (0, low, high, math.inf)]
    if np.any(s):
        assert d[0] == np.count_nonzero(s)
    assert all(x >= y * (1 - 1e-9) for x, y in pairwise(d))
    assert d[-1] >= 1


@given(scores(max_size=30))
def test_hill_number_of_order_two_is_the_effective_size(s):
    assert hill_number(s, order=2) == effective_size(s)
    assert math.isclose(hill_number(s, order=2 + 1e-9), effective_size(s), rel_tol=1e-6)
    assert math.isclose(hill_number(s, order=1 + 1e-12), hill_number(s, order=1), rel_tol=1e-6)


def test_hill_numbers_of_long_pools_equal_those_of_rows():
    s = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    for q in (0, 0.5, 1, 3, math.inf):
        w = np.abs(s.astype(np.float64)) / np.abs(s.astype(np.float64)).sum()
        if q == 0:
            expected = np.count_nonzero(s)
        elif q == 1:
            expected = np.exp(-np.sum(w * np.log(np.where(w > 0, w, 1))))
        elif q == math.inf:
            expected = 1 / w.max()
        else:
            expected = (w**q).sum() ** (1 / (1 - q))
        assert math.isclose(hill_number(s, order=q), expected, rel_tol=1e-10)


def test_known_families():
    """N_eff/n tends to (E|w|)²/E w²: uniform 3/4, Gaussian 2/π, Laplace 1/2."""
    r = np.random.default_rng(0)
    n = 400_000
    for s, share in ((r.uniform(-1, 1, n), 0.75), (r.standard_normal(n), 2 / math.pi), (r.laplace(size=n), 0.5)):
        assert abs(effective_size(s) / n - share) < 0.005


@pytest.mark.parametrize("order", [-1, math.nan, "x"])
def test_bad_order(order):
    with pytest.raises(ArgumentError, match="order must be a number ≥ 0"):
        hill_number([1.0], order=order)
