"""Moments: merging in any order equals the whole, exactly."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_core import ArgumentError, Moments, PoolError, effective_size, keep_count
from emp_core.testing import betas, exact_keep_count, scores


@given(scores(max_dims=2), st.data())
def test_equal_to_the_array_functions(s, data):
    beta = data.draw(betas(s))
    m = Moments.of(s)
    assert m.n == s.size
    assert m.n_eff == effective_size(s)
    assert m.keep_count(beta) == keep_count(s, beta=beta) == exact_keep_count(s, beta)
    assert m.largest == np.abs(s.astype(np.float64)).max()


@given(scores(min_size=2), st.data())
def test_merging_in_any_order_is_the_whole(s, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, s.size), max_size=5)))
    parts = [Moments.of(p) for p in np.split(s, cuts)]
    order = data.draw(st.permutations(parts))
    left, right = Moments(), Moments()
    for p in order:
        left = left | p
    for p in reversed(order):
        right = p | right
    assert left == right == Moments.of(s)


def test_threads_chunks_and_pickles():
    s = np.random.default_rng(0).standard_normal(2_500_000).astype(np.float32)
    whole = Moments.of(s, threads=1)
    assert Moments.of(s, threads=3) == whole
    assert Moments.of(s[:1_000_001]) | Moments.of(s[1_000_001:]) == whole
    assert pickle.loads(pickle.dumps(whole)) == whole
    assert whole.keep_count() == keep_count(s)
    assert math.isclose(whole.l1, np.abs(s).sum(dtype=np.float64), rel_tol=1e-12)


def test_where_and_empty():
    assert Moments.of([1.0, 2.0, 3.0], where=[True, False, True]) == Moments.of([1.0, 3.0])
    assert Moments.of([]) == Moments()
    for bad in (lambda: Moments().n_eff, lambda: Moments().keep_count()):
        with pytest.raises(PoolError, match="Moments must hold at least one score"):
            bad()
    with pytest.raises(PoolError, match="got NaN at flat index 1"):
        Moments.of([1.0, math.nan])
    with pytest.raises(ArgumentError, match="beta must be"):
        Moments.of([1.0]).keep_count(-1)
    with pytest.raises(TypeError):
        Moments() | 3
