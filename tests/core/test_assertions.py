"""The assertions themselves: they fail where something is wrong, and nowhere else."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from emp_core import ArgumentError, keep_count, select, testing, top_mask
from emp_core.certificates import BFLOAT16

SCORES = np.array([8.0, 4, 2, 1, 1])  # n_eff 2.976…


@pytest.mark.parametrize("k", [2.9767, math.nan, [2, 2], 3, True, None])
def test_a_count_that_is_not_the_count(k):
    for check in (
        lambda: testing.assert_keep_count(SCORES, k),
        lambda: testing.assert_top_mask(SCORES, top_mask(SCORES, 2), k),
        lambda: testing.assert_selection(dataclasses.replace(select(SCORES), k=k), SCORES),
    ):
        with pytest.raises(AssertionError, match=r"keep count|k must|keeps|k is"):
            check()


def test_a_count_of_any_type():
    for k in (2, 2.0, np.int64(2), np.uint8(2), np.array(2)):
        testing.assert_keep_count(SCORES, k)
        testing.assert_top_mask(SCORES, top_mask(SCORES, 2), k)


RULES = [{}, {"beta": 0.7}, {"order": 0}, {"order": 0.5}, {"order": 1}, {"order": 3.0}, {"order": math.inf},
         {"order": 1, "beta": 1.5}, {"sparsity": 0.4}, {"sparsity": 0.0}]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_selections_with_a_wrong_figure(rule):
    given_too = {"sparsity": rule["sparsity"]} if "sparsity" in rule else {}
    chosen = select(SCORES, **rule)
    testing.assert_selection(chosen, SCORES, **given_too)
    for name in ("n", "n_eff", "mass", "mass_lower", "mass_upper"):
        for off in (-0.05, 0.05):
            wrong = dataclasses.replace(chosen, **{name: getattr(chosen, name) + off})
            with pytest.raises(AssertionError):
                testing.assert_selection(wrong, SCORES, **given_too)
    for k in set(range(1, 6)) - {chosen.k}:
        other = select(SCORES, sparsity=1 - k / 5)
        assert other.k == k
        wrong = dataclasses.replace(other, beta=chosen.beta, order=chosen.order)
        with pytest.raises(AssertionError, match=r"k is|keep count is"):
            testing.assert_selection(wrong, SCORES, **given_too)


@settings(max_examples=60)
@given(testing.scores(max_size=24), st.sampled_from([0, 0.5, 1, 1 + 2**-40, 1.5, 3, 40.0, math.inf]), testing.betas())
def test_selections_of_any_order_are_right(s, order, beta):
    testing.assert_selection(select(s, order=order, beta=beta), s)


@given(testing.scores(), st.floats(0, 1, exclude_max=True))
def test_selections_by_sparsity_are_right(s, sparsity):
    testing.assert_selection(select(s, sparsity=sparsity), s, sparsity=sparsity)
    with pytest.raises(ArgumentError, match="sparsity must be given for a selection by sparsity, got None"):
        testing.assert_selection(select(s, sparsity=sparsity), s)


def _jitted(x, rule):
    """The figures under ``jax.jit``, in float32."""
    import jax

    names = ("mask", "n", "n_eff", "k", "mass", "mass_lower", "mass_upper")
    found = jax.jit(lambda a: tuple(getattr(select(a, **rule), name) for name in names))(x)
    return dataclasses.replace(select(np.asarray(x), **rule), **dict(zip(names, found, strict=True)))


def test_selections_in_jax():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    x = jax.numpy.asarray(SCORES, jax.numpy.float32)
    for rule in ({}, {"order": 1}, {"order": math.inf}):
        testing.assert_selection(select(x, **rule), x)
        testing.assert_selection(_jitted(x, rule), x)


def test_masks_that_are_not_booleans():
    before, after = np.array([1.0, 2, 3, 4, 0, 0]), np.array([1.0, 2, 99, 4, 0, 0])
    for mask in (np.array([1, 1, 1, 0, 0, 0]), np.array([0.0, 1, 1, 0, 0, 0])):
        with pytest.raises(AssertionError, match="a mask is boolean"):
            testing.assert_kept_unchanged(before, after, mask)
        with pytest.raises(AssertionError, match="a mask is boolean"):
            testing.assert_mass_within_bounds(before, mask)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_zeros_of_either_sign_are_pruned(dtype):
    mask, before = np.array([True, False, True]), np.array([1.0, -2, 3], np.float32)
    pruned, left = before * mask, np.where(mask, before, np.float32(1e-3))
    assert np.signbit(pruned[1])
    before, pruned, left = (
        (a.view(np.uint32) >> 16).astype(np.uint16).view(BFLOAT16) if dtype == "bfloat16" else a.astype(dtype)
        for a in (before, pruned, left)
    )
    testing.assert_kept_unchanged(before, pruned, mask)
    with pytest.raises(AssertionError, match="a pruned weight is not zero"):
        testing.assert_kept_unchanged(before, left, mask)


def test_orders_that_are_no_orders():
    for order in ([0] * 5, [0, 1, 2, 3], [0, 1, 2, 3, 5], [0.5, 1, 2, 3, 4]):
        with pytest.raises(AssertionError, match="order must name each of 5 scores once"):
            testing.assert_permutation_invariant(keep_count, np.ones(5), order)


def test_masks_of_nothing_and_of_another_length():
    with pytest.raises(AssertionError, match="mask keeps nothing"):
        testing.assert_mass_within_bounds([1.0, 2.0], [False, False])
    with pytest.raises(AssertionError, match="mask has 1 places, there are 2 scores"):
        testing.assert_mass_within_bounds([1.0, 2.0], [True])


@given(testing.scores(), st.sampled_from([0.5, 2.0, 2.0**-40, -(2.0**40), 2.0**1000]))
def test_scaling_of_whatever_is_drawn(s, factor):
    testing.assert_scale_invariant(keep_count, s, factor)


def test_scaling_beside_the_ends_of_float64():
    """The law is tested there too, the other way."""
    for values, factor in (([5e-324, 5e-324, 1e-323], 0.5), ([1.5e308, 1.0], 2.0)):
        testing.assert_scale_invariant(keep_count, np.array(values), factor)
        with pytest.raises(AssertionError, match="under scaling"):
            testing.assert_scale_invariant(lambda x: x.sum(), np.array(values), factor)


FEW = settings(max_examples=300)


def test_no_more_and_no_fewer_scores_than_asked_for():
    with pytest.raises(NoSuchExample):
        find(testing.scores(min_size=3, min_dims=0, max_dims=1), lambda s: s.size < 3, settings=FEW)
    with pytest.raises(NoSuchExample):
        find(testing.scores(min_size=0, max_size=0, min_dims=0), lambda s: s.size > 0, settings=FEW)
    assert find(testing.scores(min_dims=0), lambda s: s.ndim == 0).size == 1
    with pytest.raises(ArgumentError, match="max_dims must be ≥ 1 for 2 to 64 scores, got 0"):
        testing.scores(min_size=2, min_dims=0, max_dims=0)
