"""Under `jax.jit` and `jax.grad`: the counts and masks of eager calls, and their gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emp_core import attention, select, top_mask

jax = pytest.importorskip("jax", reason="JAX is not installed")
jnp = jax.numpy


@pytest.mark.parametrize("where", ["none", "known", "traced"])
@pytest.mark.parametrize("scope", ["whole", "rows", "columns"])
@pytest.mark.parametrize("sparsity", [0.35, 0.7])
def test_the_count_for_a_sparsity(sparsity, scope, where):
    """.35·10 is 3 in rational numbers, since the double lies below .35; 4 in float32."""
    for shape in ((10,), (20, 10)):
        x = jnp.arange(1.0, math.prod(shape) + 1).reshape(shape)
        inside = jnp.asarray(np.random.default_rng(1).random(shape) < 0.8).at[..., :2].set(True)
        inside = inside if len(shape) < 2 else inside.at[:2].set(True)
        if len(shape) == 1 and scope != "whole":
            continue
        if where == "none":
            expected = select(x, sparsity=sparsity, scope=scope)
            found = jax.jit(lambda a: select(a, sparsity=sparsity, scope=scope).k)(x)
        elif where == "known":
            expected = select(x, sparsity=sparsity, scope=scope, where=inside)
            found = jax.jit(lambda a, w=inside: select(a, sparsity=sparsity, scope=scope, where=w).k)(x)
        else:
            expected = select(x, sparsity=sparsity, scope=scope, where=inside)
            found = jax.jit(lambda a, w: select(a, sparsity=sparsity, scope=scope, where=w).k)(x, inside)
        assert np.array_equal(found, expected.k)


@settings(max_examples=12, deadline=None)
@given(st.data(), st.sampled_from(["int8", "uint8", "int16", "int32", "uint32", "bool"]))
def test_the_order_of_integers(data, dtype):
    lowest, highest = (0, 1) if dtype == "bool" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    some = st.one_of(st.integers(lowest, highest), st.sampled_from([lowest, lowest + 1, highest - 1, highest, 0, 1]))
    x = np.array(data.draw(st.lists(some, min_size=6, max_size=6)), dtype).reshape(2, 3)
    inside = np.array(data.draw(st.lists(st.booleans(), min_size=6, max_size=6))).reshape(2, 3)
    inside[:, data.draw(st.integers(0, 2))] = True
    k = inside.sum(axis=1)[:, None].min(initial=9)
    for axis, where, count in ((None, None, 3), (1, None, 2), (1, inside, int(k)), (None, inside, 2)):
        expected = top_mask(x, count, axis=axis, where=where)
        found = jax.jit(lambda a, axis=axis, w=where, k=count: top_mask(a, k, axis=axis, where=w))(x)
        assert np.array_equal(found, expected)


def test_integers_beyond_float32():
    x = jnp.array([2**24, 2**24 + 1, -(2**24) - 2])
    for k in (1, 2):
        assert np.array_equal(jax.jit(lambda a, k=k: top_mask(a, k))(x), top_mask(x, k))


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_pass_around_the_count(compiled):
    def through(f):
        g = jax.grad(f)
        return jax.jit(g) if compiled else g

    x = jnp.array([[3.0, 1.0, 0.1], [2.0, 2.0, 0.5]])
    for rule in ({}, {"scope": "rows"}, {"order": 1.0}, {"sparsity": 0.5}):
        mask = select(x, **rule).mask
        found = through(lambda a, rule=rule: jnp.where(select(a, **rule).mask, a, 0).sum())(x)
        assert np.array_equal(found, mask)
        mass = through(lambda a, rule=rule: select(a, **rule).mass.sum())(x)
        assert np.isfinite(mass).all()
    for renormalise in (True, False):
        given_weights = jax.nn.softmax(x)
        kept = attention.edges(given_weights).mask

        def by_hand(a, kept=kept, renormalise=renormalise):
            held = jnp.where(kept, jax.nn.softmax(a), 0)
            return ((held / held.sum(axis=-1, keepdims=True) if renormalise else held) ** 2).sum()

        found = through(
            lambda a, r=renormalise: (attention.prune_weights(jax.nn.softmax(a), renormalise=r) ** 2).sum()
        )(x)
        np.testing.assert_allclose(found, jax.grad(by_hand)(x), rtol=1e-5, atol=1e-7)


def test_rows_in_which_everything_is_masked():
    w = jax.nn.softmax(jnp.array([[-jnp.inf] * 2, [0.0, 5.0]]))
    expected = attention.prune_weights(w)
    assert np.isnan(expected[0]).all()
    np.testing.assert_array_equal(jax.jit(attention.prune_weights)(w), expected)
    np.testing.assert_array_equal(jax.jit(lambda a: attention.edges(a).mask)(w), attention.edges(w).mask)
