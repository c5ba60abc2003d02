"""Least squares with few weights: against solving every row by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emp_onnx.refit import solve as room
from emp_onnx.refit.solve import Quadratic, descend, effort, ladder, largest, solve


@st.composite
def problems(draw: st.DrawFn):
    groups, out, d = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    x = rng.standard_normal((groups, draw(st.integers(1, 30)), d)) * rng.uniform(0.1, 3, d)
    w = rng.standard_normal((groups, out, d))
    y = x @ w.swapaxes(1, 2)
    n = x.shape[1]
    return Quadratic.ridge(x.swapaxes(1, 2) @ x / n, y.swapaxes(1, 2) @ x / n, w, 1e-2), rng


def by_rows(loss: Quadratic, mask):
    out = np.zeros(mask.shape)
    for g, o in np.ndindex(mask.shape[:2]):
        m = mask[g, o]
        if m.any():
            out[g, o, m] = np.linalg.solve(loss.a[g][np.ix_(m, m)], (loss.a[g] @ loss.best[g, o])[m])
    return out


@pytest.mark.parametrize("way", ["exact", "iterated", "single"])
@settings(max_examples=60, deadline=None)
@given(problems())
def test_solve_is_the_best_of_each_row(way: str, case) -> None:
    loss, rng = case
    mask = rng.random(loss.best.shape) < 0.6
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SMALL": 0, "SINGLE": 0 if way == "single" else room.SINGLE, "BLOCK": 2}.items():
            patch.setattr(room, name, getattr(room, name) if way == "exact" else value)
        found = solve(loss, mask, loss.best, rounds=400)
    assert (found[~mask] == 0).all()
    # weights may differ where the matrix is nearly singular, what they cost may not
    energy = loss.loss(np.zeros(mask.shape))
    near = 1e-4 if way == "single" else 1e-6
    assert loss.loss(found) == pytest.approx(loss.loss(by_rows(loss, mask)), abs=near * energy)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**31))
def test_a_factored_matrix_says_the_same(groups: int, out: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((groups, 2 * d, d)), rng.standard_normal((groups, out, d))
    xx, yx = x.swapaxes(1, 2) @ x, w @ x.swapaxes(1, 2) @ x
    plain = Quadratic.ridge(xx, yx, w, 1e-2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "FACTORED", 0)
        factored = Quadratic.ridge(xx, yx, w, 1e-2)
        np.testing.assert_allclose(factored.rise, plain.rise, rtol=1e-8)
        # not positive definite: the strength is raised until it is
        assert np.isfinite(Quadratic.ridge(xx - 3 * np.eye(d), yx, w, 0.0).best).all()
    np.testing.assert_allclose(factored.best, plain.best, rtol=1e-6, atol=1e-8)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_nothing_nearby_is_better(case) -> None:
    loss, rng = case
    mask = rng.random(loss.best.shape) < 0.6
    found = solve(loss, mask, loss.best)
    for _ in range(5):
        other = found + np.where(mask, rng.standard_normal(mask.shape), 0) * 0.1
        assert loss.loss(found) <= loss.loss(other) + 1e-9 * loss.loss(0 * found)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_descend_keeps_exactly_so_many(case) -> None:
    loss, _ = case
    n = loss.best.size
    counts = ladder(n, max(1, n // 3), 5)
    before, last = np.ones(loss.best.shape, bool), 0.0
    for count, mask, w in descend(loss, counts):
        assert int(mask.sum()) == count
        assert not (mask & ~before).any()
        assert (w[~mask] == 0).all()
        assert loss.loss(w) >= last - 1e-9 * loss.loss(0 * w)
        before, last = mask, loss.loss(w)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_rise_is_what_removing_one_costs(case) -> None:
    loss, rng = case
    g, o, j = (int(rng.integers(s)) for s in loss.best.shape)
    mask = np.ones(loss.best.shape, bool)
    mask[g, o, j] = False
    wanted = loss.best[g, o, j] ** 2 * loss.rise[g, j]
    assert loss.loss(by_rows(loss, mask)) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_steps_are_better_than_magnitude() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 300, 40)) @ rng.standard_normal((40, 40))
    w = rng.standard_normal((1, 20, 40))
    loss = Quadratic.ridge(x.swapaxes(1, 2) @ x / 300, (x @ w.swapaxes(1, 2)).swapaxes(1, 2) @ x / 300, w, 1e-3)
    *_, (_, _, steps) = descend(loss, ladder(800, 400, 12))
    plain = by_rows(loss, largest(np.abs(w), 400))
    assert loss.loss(steps) < 0.6 * loss.loss(plain)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 40))
def test_largest(values: list[int], count: int) -> None:
    scores = np.array(values, float)
    mask = largest(scores, count)
    wanted = np.zeros(len(values), bool)
    wanted[np.lexsort((np.arange(len(values)), -scores))[:count]] = True
    np.testing.assert_array_equal(mask, wanted)


def test_inputs_never_seen_keep_their_weights() -> None:
    xx = np.diag([1.0, 0.0])[None]
    prior = np.array([[[2.0, 3.0]]])
    loss = Quadratic.ridge(xx, prior @ xx, prior, 1e-2)
    np.testing.assert_allclose(loss.best, prior)


def test_a_singular_matrix_without_ridge_is_solved_all_the_same() -> None:
    xx = np.ones((1, 3, 3))
    prior = np.array([[[1.0, 2.0, 3.0]]])
    loss = Quadratic.ridge(xx, prior @ xx, prior, 0.0)
    assert np.isfinite(loss.best).all()
    np.testing.assert_allclose(loss.best, prior, atol=1e-6)


@given(st.integers(1, 4), st.integers(1, 5000), st.integers(1, 5000))
def test_effort_is_bounded(groups: int, out: int, d: int) -> None:
    steps, rounds = effort((groups, out, d))
    assert 6 <= steps <= 24
    assert rounds in (4, 8)


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(1, 30))
def test_ladder_goes_down_to_the_count(n: int, k: int, steps: int) -> None:
    k = min(n, k)
    rungs = ladder(n, k, steps)
    assert rungs[-1] == k
    assert rungs == sorted(set(rungs), reverse=True)
    assert all(k <= rung <= n for rung in rungs)
