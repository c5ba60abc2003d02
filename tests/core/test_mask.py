"""Masks and retained mass against sorting and rational arithmetic."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_core import ArgumentError, PoolError, _top, keep_count, retained_mass, top_mask
from emp_core._exact import CHUNK
from emp_core._stream import Stream
from emp_core.testing import (
    assert_mass_within_bounds,
    assert_top_mask,
    exact_top_mask,
    scores,
    weight_tensors,
)


@given(scores(max_dims=3), st.data())
def test_exactly_the_k_largest_ties_to_the_lower_index(s, data):
    k = data.draw(st.integers(0, s.size))
    assert_top_mask(s, top_mask(s, k), k)


@given(weight_tensors(), st.data())
def test_memory_layout_does_not_matter(w, data):
    k = data.draw(st.integers(1, w.size))
    before = w.tobytes()
    assert np.array_equal(top_mask(w, k), exact_top_mask(w, k))
    assert w.tobytes() == before


def slow(s, k):
    mask = np.zeros(s.size, bool)
    mask[np.argsort(-np.abs(s.astype(np.float64)), kind="stable")[:k]] = True
    return mask


LONG = {
    "bell": lambda r, n: r.standard_normal(n),
    "heavy": lambda r, n: r.standard_cauchy(n),
    "few values": lambda r, n: r.integers(-3, 4, n),
    "many values": lambda r, n: r.integers(-100, 101, n),
    "flat": lambda r, n: np.full(n, 2.5),
    "mostly zero": lambda r, n: r.standard_normal(n) * (r.random(n) < 0.01),
    "sorted": lambda r, n: np.sort(r.standard_normal(n)),
    "two levels": lambda r, n: np.where(np.arange(n) < n // 2, 1.0, 1.0 + 2**-10),
    "spike": lambda r, n: np.eye(1, n, n // 3)[0] + 1e-6,
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n", [CHUNK + 1, 5 * CHUNK + 17])
def test_long_pools_bit_for_bit(kind, dtype, n):
    with np.errstate(over="ignore"):
        s = LONG[kind](np.random.default_rng(n), n).astype(dtype)
    s[~np.isfinite(s)] = 0
    for k in {1, 2, n // 3, keep_count(s), n // 2, n - 1, n}:
        assert np.array_equal(top_mask(s, k), slow(s, k)), k


@pytest.mark.parametrize("kind", LONG)
def test_radix_and_bracket_agree(kind):
    """The road for bad luck and ties is right by itself."""
    n = 5 * CHUNK + 17
    s = LONG[kind](np.random.default_rng(1), n).astype(np.float32)
    for threads in (1, 3):
        stream = Stream([s], [None], ["scores"], threads)
        for k in (1, n // 3, n - 1):
            mask = [np.empty(n, bool)]
            _top.keep_from(stream, _top.kth_largest(stream, k), k, mask)
            assert np.array_equal(mask[0], slow(s, k))


def test_threads_do_not_matter():
    s = np.random.default_rng(0).standard_normal(2_500_000).astype(np.float32)
    reference = Stream([s], [None], ["s"], 1)
    for threads in (2, 5):
        stream = Stream([s], [None], ["s"], threads)
        assert stream.sums() == reference.sums()
        assert np.array_equal(_top.top_mask(stream, 1_000_000)[0], _top.top_mask(reference, 1_000_000)[0])


@given(scores(min_dims=2, max_dims=3), st.data())
def test_axis_is_each_pool_by_itself(s, data):
    axis = data.draw(st.integers(0, s.ndim - 1))
    k = keep_count(s, axis=axis)
    mask = np.moveaxis(top_mask(s, k, axis=axis), axis, -1)
    moved = np.moveaxis(s, axis, -1)
    for i in np.ndindex(moved.shape[:-1]):
        assert np.array_equal(mask[i], exact_top_mask(moved[i], k[i]))


@given(scores(min_size=2), st.data())
def test_where_is_leaving_out(s, data):
    where = np.array(data.draw(st.lists(st.booleans(), min_size=s.size, max_size=s.size)))
    if where.any():
        k = data.draw(st.integers(0, int(where.sum())))
        mask = top_mask(s, k, where=where)
        assert not mask[~where].any()
        assert np.array_equal(mask[where], exact_top_mask(s[where], k))


@given(scores(), st.data())
def test_mass_against_rationals_and_bounds(s, data):
    k = data.draw(st.integers(1, s.size))
    mask = top_mask(s, k)
    mass = retained_mass(s, mask)
    assert 0 <= mass <= 1
    if np.any(s):
        assert_mass_within_bounds(s, mask)
    wide = np.abs(s.astype(np.float64)) / (np.abs(s.astype(np.float64)).max() or 1)
    total = math.fsum(wide)
    assert math.isclose(mass, math.fsum(wide[mask]) / total if total else 1.0, rel_tol=1e-12, abs_tol=1e-300)


def test_mass_of_any_mask_and_of_long_pools():
    r = np.random.default_rng(0)
    s = r.standard_normal(200_000)
    mask = r.random(200_000) < 0.3
    assert math.isclose(retained_mass(s, mask), np.abs(s[mask]).sum() / np.abs(s).sum(), rel_tol=1e-12)
    huge = s * 1e300
    assert math.isclose(retained_mass(huge, mask), retained_mass(s, mask), rel_tol=1e-12)
    rows = retained_mass(s.reshape(4, -1), mask.reshape(4, -1), axis=1, keepdims=True)
    assert rows.shape == (4, 1)
    assert math.isclose(rows[2, 0], retained_mass(s[100_000:150_000], mask[100_000:150_000]), rel_tol=1e-12)


def test_nothing_else_is_touched():
    s = np.random.default_rng(0).standard_normal(1000)
    s.flags.writeable = False
    assert top_mask(s, 10).flags.owndata or top_mask(s, 10).base is not s
    assert top_mask(np.float64(3.0), 1) == np.True_
    assert top_mask(s.astype(">f8"), 10).tolist() == top_mask(s, 10).tolist()


@pytest.mark.parametrize("k", [-1, 5, 1.5, "a"])
def test_k_out_of_range(k):
    with pytest.raises(ArgumentError, match="k must be"):
        top_mask(np.ones(4), k)


def test_wrong_masks():
    with pytest.raises(ArgumentError, match="mask must be a boolean array, got dtype int64"):
        retained_mass(np.ones(3), np.ones(3, np.int64))
    with pytest.raises(ArgumentError, match=r"mask must have the shape of the scores \(3,\), got \(2,\)"):
        retained_mass(np.ones(3), np.ones(2, bool))
    with pytest.raises(ArgumentError, match=r"where must broadcast"):
        top_mask(np.ones(3), 1, where=np.ones(2, bool))
    with pytest.raises(ArgumentError, match="k must have one value per pool"):
        top_mask(np.ones((2, 3)), [1, 1, 1], axis=1)


@pytest.mark.parametrize("n", [5, 100_000, 400_000])
def test_nan_is_refused(n):
    s = np.ones(n, np.float32)
    s[3] = math.nan
    with pytest.raises(PoolError, match=r"got NaN at .*index.* 3"):
        top_mask(s, 2)
