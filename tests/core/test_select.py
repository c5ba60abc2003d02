"""Selections over every scope, against a loop over pools."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import emp_core
from emp_core import ArgumentError, Blocks, Groups, Labels, PoolError, Rows, hill_number, select
from emp_core.testing import assert_selection, betas, exact_keep_count, exact_top_mask, scores, weight_tensors


@given(scores(max_dims=3), st.data())
def test_one_pool(s, data):
    beta = data.draw(betas(s))
    chosen = select(s, beta=beta)
    assert_selection(chosen, s)
    assert chosen.density + chosen.sparsity == pytest.approx(1)
    assert (type(chosen.n), type(chosen.k), type(chosen.n_eff), type(chosen.mass)) == (int, int, float, float)


@given(weight_tensors(), st.data())
def test_layouts(w, data):
    assert_selection(select(w, beta=data.draw(betas(w))), w)


def pools_of(shape, scope):
    """Flat indices of each pool, the slow way."""
    index = np.arange(math.prod(shape)).reshape(shape)
    if scope == "whole":
        return [index.reshape(-1)]
    if scope == "rows":
        return [index[i].reshape(-1) for i in range(shape[0])]
    if scope == "columns":
        return [index[..., i].reshape(-1) for i in range(shape[-1])]
    if isinstance(scope, Rows):
        axes = scope.axis if isinstance(scope.axis, tuple) else (scope.axis,)
        moved = np.moveaxis(index, axes, range(len(axes)))
        return list(moved.reshape(math.prod(moved.shape[: len(axes)]), -1))
    if isinstance(scope, Groups):
        scope = Blocks((scope.m,))
    if isinstance(scope, Blocks):
        lead = len(shape) - len(scope.shape)
        counts = [*shape[:lead], *(-(-d // b) for d, b in zip(shape[lead:], scope.shape, strict=True))]
        sides = [*([1] * lead), *scope.shape]
        return [
            index[tuple(slice(i * b, (i + 1) * b) for i, b in zip(block, sides, strict=True))].reshape(-1)
            for block in np.ndindex(*counts)
        ]
    labels = np.broadcast_to(scope.labels, shape).reshape(-1)
    return [np.flatnonzero(labels == x) for x in np.unique(labels)]


@st.composite
def scoped(draw):
    w = draw(weight_tensors(max_side=6))
    choices = [
        st.sampled_from(["whole", "rows", "columns"]),
        st.integers(0, w.ndim - 1).map(Rows),
        st.just(Rows((0, 1))),
        st.lists(st.integers(1, 4), min_size=1, max_size=w.ndim).map(lambda b: Blocks(tuple(b))),
        st.integers(1, 5).map(Groups),
        st.lists(st.integers(0, 3), min_size=w.size, max_size=w.size).map(lambda x: Labels(np.reshape(x, w.shape))),
    ]
    return w, draw(st.one_of(choices))


@settings(max_examples=150)
@given(scoped(), st.data())
def test_every_scope_is_each_pool_by_itself(case, data):
    w, scope = case
    pools, flat = pools_of(w.shape, scope), w.reshape(-1)
    beta = data.draw(betas(flat[data.draw(st.sampled_from(pools))]))
    chosen = select(w, beta=beta, scope=scope)
    mask = chosen.mask.reshape(-1)
    figures = {f: np.reshape(getattr(chosen, f), -1) for f in ("n", "n_eff", "k", "mass", "mass_lower", "mass_upper")}
    assert all(len(v) == len(pools) for v in figures.values())
    for i, pool in enumerate(pools):
        s = flat[pool]
        k = exact_keep_count(s, beta)
        assert figures["n"][i] == len(s)
        assert figures["k"][i] == k
        assert np.array_equal(mask[pool], exact_top_mask(s, k))
        assert figures["n_eff"][i] == emp_core.effective_size(s)
        assert figures["mass"][i] == pytest.approx(emp_core.retained_mass(s, mask[pool]), abs=1e-14)
        assert figures["mass_lower"][i] <= figures["mass"][i] <= figures["mass_upper"][i]


@given(weight_tensors(max_side=5), st.integers(1, 4), st.data())
def test_n_of_m(w, m, data):
    keep = data.draw(st.integers(1, m))
    chosen = select(w, scope=Groups(m, keep))
    for pool in pools_of(w.shape, Groups(m)):
        assert chosen.mask.reshape(-1)[pool].sum() == min(keep, len(pool))


@given(st.lists(scores(max_size=12, max_dims=2), min_size=1, max_size=4), st.data())
def test_model_is_one_pool_over_all(arrays, data):
    named = {f"w{i}": a for i, a in enumerate(arrays)}
    flat = np.concatenate([a.reshape(-1).astype(np.float64) for a in arrays])
    beta = data.draw(betas(flat))
    chosen = select(named, beta=beta, scope="model")
    mask = np.concatenate([chosen.mask[name].reshape(-1) for name in named])
    k = exact_keep_count(flat, beta)
    assert chosen.k == k
    assert np.array_equal(mask, exact_top_mask(flat, k))
    assert {n: m.shape for n, m in chosen.mask.items()} == {n: a.shape for n, a in named.items()}
    assert chosen.mass_lower <= chosen.mass <= chosen.mass_upper


def test_model_of_long_arrays():
    r = np.random.default_rng(0)
    named = {"a": r.standard_normal((300, 1000)).astype(np.float32), "b": r.standard_normal(500_000).astype(np.float16)}
    chosen = select(named, scope="model")
    flat = np.concatenate([a.reshape(-1).astype(np.float64) for a in named.values()])
    whole = select(flat)
    assert (chosen.k, chosen.n) == (whole.k, whole.n)
    assert np.array_equal(np.concatenate([m.reshape(-1) for m in chosen.mask.values()]), whole.mask)


@given(scores(min_size=2), st.data())
def test_where(s, data):
    where = np.array(data.draw(st.lists(st.booleans(), min_size=s.size, max_size=s.size)))
    if where.any():
        beta = data.draw(betas(s[where]))
        chosen = select(s, beta=beta, where=where)
        assert chosen.n == where.sum()
        assert not chosen.mask[~where].any()
        assert np.array_equal(chosen.mask[where], select(s[where], beta=beta).mask)


@given(scores(), st.floats(0, 1, exclude_max=True))
def test_sparsity_is_exactly_that_share(s, sparsity):
    chosen = select(s, sparsity=sparsity)
    assert chosen.k == max(1, s.size - round(Fraction(sparsity) * s.size))
    assert np.array_equal(chosen.mask, exact_top_mask(s, chosen.k))
    assert chosen.beta is None


@given(scores(), st.sampled_from([0, 0.5, 1, 1.5, 3, 7, math.inf]), betas())
def test_other_orders_never_keep_fewer_than_the_rule(s, order, beta):
    chosen = select(s, order=order, beta=beta)
    d = hill_number(s, order=order)
    if np.any(s):
        assert chosen.k >= min(max(math.floor(Fraction(beta) * Fraction(d) * (1 - Fraction(1, 10**12))), 1), s.size)
        assert chosen.k <= max(1, math.floor(Fraction(beta) * Fraction(d) * (1 + Fraction(1, 10**11))))
    else:
        assert chosen.k == s.size


@given(scores(min_dims=2, max_dims=2), st.sampled_from([0, 1, 3]))
def test_orders_by_row(s, order):
    chosen = select(s, order=order, scope="rows")
    assert chosen.k.tolist() == [select(r, order=order).k for r in s]


def test_lower_order_keeps_more():
    s = np.random.default_rng(0).laplace(size=10_000)
    assert select(s, order=0).k >= select(s, order=1).k >= select(s).k >= select(s, order=math.inf).k


@pytest.mark.parametrize("n", [1000, 400_000])
def test_long_and_short_selections_agree_with_their_parts(n):
    for s in (
        np.random.default_rng(n).standard_normal(n).astype(np.float32),
        np.random.default_rng(n).standard_cauchy(n),
    ):
        for beta in (1.0, 0.2, 1.4):
            chosen = select(s, beta=beta)
            assert chosen.k == emp_core.keep_count(s, beta=beta)
            assert np.array_equal(chosen.mask, emp_core.top_mask(s, chosen.k))
            assert chosen.n_eff == emp_core.effective_size(s)
            assert chosen.mass == pytest.approx(emp_core.retained_mass(s, chosen.mask), rel=1e-12)
            assert chosen.mass_lower <= chosen.mass <= chosen.mass_upper


def test_equal_calls_give_equal_selections():
    s = np.random.default_rng(0).standard_normal(3_000_000).astype(np.float32)
    a, b = select(s, threads=1), select(s, threads=4)
    assert np.array_equal(a.mask, b.mask)
    assert dataclasses.replace(a, mask=None).__dict__ == dataclasses.replace(b, mask=None).__dict__


def test_a_selection_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        select([1.0]).k = 3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"beta": 0}, "beta must be a finite number > 0, got 0"),
        ({"order": -1}, "order must be a number ≥ 0, got -1"),
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1.0"),
        ({"sparsity": -0.1}, r"sparsity must be in \[0, 1\), got -0.1"),
        ({"sparsity": 0.5, "beta": 2.0}, "sparsity fixes the count, so beta and order must be left alone"),
        ({"scope": "row"}, "scope must be one of whole, rows, columns, model"),
        ({"scope": "model"}, "scores must be a mapping of names to arrays with scope model, got ndarray"),
        ({"threads": 0}, "threads must be an integer ≥ 1 or None, got 0"),
        ({"scope": Blocks((1, 1, 1))}, "shape of Blocks must have at most 2 axes"),
        ({"scope": Labels([1, 2, 3, 4, 5])}, "labels must broadcast"),
        ({"where": np.ones(7, bool)}, "where must broadcast"),
    ],
)
def test_wrong_parameters(kwargs, message):
    with pytest.raises(ArgumentError, match=message):
        select(np.ones((2, 3)), **kwargs)


def test_wrong_scopes():
    for make in (
        lambda: Blocks(()),
        lambda: Blocks((0,)),
        lambda: Groups(0),
        lambda: Groups(4, 5),
        lambda: Groups(4, 0),
    ):
        with pytest.raises(ArgumentError, match="must be"):
            make()
    with pytest.raises(ArgumentError, match="scope must be model for a mapping"):
        select({"a": np.ones(2)})
    with pytest.raises(ArgumentError, match="at least one axis"):
        select(1.0, scope="rows")


@pytest.mark.parametrize(
    ("scope", "where"),
    [
        ("rows", r"pool \(1,\)"),
        ("columns", r"pool \(2,\)"),
        (Blocks((1, 2)), r"block \(1, 1\)"),
        (Labels([[0, 0, 0], [0, 0, 9]]), "group 9"),
    ],
)
def test_errors_name_the_pool(scope, where):
    s = np.ones((2, 3))
    s[1, 2] = np.nan
    with pytest.raises(PoolError, match=f"{where} of scores must be finite, got NaN"):
        select(s, scope=scope)


def test_errors_name_the_tensor():
    with pytest.raises(PoolError, match="fc2 must be finite, got an infinity at flat index 1"):
        select({"fc1": np.ones(3), "fc2": np.array([1.0, np.inf])}, scope="model")
    with pytest.raises(PoolError, match="the model must hold at least one score"):
        select({}, scope="model")


def test_names_of_a_model_stay_what_they_are():
    """1 and "1" are two names, and masks are found under those that were given."""
    scores = {1: np.array([3.0, 1, 2]), "1": np.array([5.0, 5]), ("a", 0): np.array([1.0, 4])}
    where = {1: np.array([True, False, True])}
    plain = [{str(i): v for i, v in enumerate(m.values())} for m in (scores, where)]
    for kwargs, others in (({}, {}), ({"where": where}, {"where": plain[1]})):
        found, expected = select(scores, scope="model", **kwargs), select(plain[0], scope="model", **others)
        assert list(found.mask) == list(scores)
        assert (found.n, found.k, found.n_eff) == (expected.n, expected.k, expected.n_eff)
        for ours, theirs in zip(found.mask.values(), expected.mask.values(), strict=True):
            assert np.array_equal(ours, theirs)
    with pytest.raises(ArgumentError, match="where must be a mapping with names of scores"):
        select(scores, scope="model", where={"2": where[1]})
    with pytest.raises(PoolError, match="1 must be finite, got NaN at flat index 0"):
        select({1: np.array([math.nan])}, scope="model")


@pytest.mark.parametrize("rule", [{"sparsity": 0.75}, {"beta": 9.0}, {"order": 1}], ids=str)
def test_groups_that_keep_so_many_take_no_other_rule(rule):
    with pytest.raises(
        ArgumentError, match=r"keep of Groups\(m=4, keep=2\) fixes the count, so beta, order and sparsity"
    ):
        select(np.arange(12.0).reshape(3, 4), scope=Groups(4, keep=2), **rule)
    assert select(np.arange(12.0).reshape(3, 4), scope=Groups(4), **rule).k.shape == (3, 1)
