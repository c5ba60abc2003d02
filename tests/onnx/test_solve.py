"""Least squares with few weights: against solving every row by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emp_onnx.refit import loss as losses
from emp_onnx.refit import solve as room
from emp_onnx.refit.loss import Few, Quadratic
from emp_onnx.refit.solve import descend, effort, exchange, fair, ladder, largest, solve


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


@pytest.mark.parametrize("way", ["exact", "iterated"])
@settings(max_examples=60, deadline=None)
@given(problems())
def test_solve_is_the_best_of_each_row(way: str, case) -> None:
    loss, rng = case
    mask = rng.random(loss.best.shape) < 0.6
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SMALL": 0, "BLOCK": 2}.items():
            patch.setattr(room, name, getattr(room, name) if way == "exact" else value)
        found = solve(loss, mask, loss.best, rounds=400)
    assert (found[~mask] == 0).all()
    # weights may differ where the matrix is nearly singular, what they cost may not
    energy = loss.loss(np.zeros(mask.shape))
    near = 1e-4 if way == "iterated" else 1e-6
    assert loss.loss(found) == pytest.approx(loss.loss(by_rows(loss, mask)), abs=near * energy)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**31))
def test_a_factored_matrix_says_the_same(groups: int, out: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((groups, 2 * d, d)), rng.standard_normal((groups, out, d))
    xx, yx = x.swapaxes(1, 2) @ x, w @ x.swapaxes(1, 2) @ x
    plain = Quadratic.ridge(xx, yx, w, 1e-2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "FACTORED", 0)
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


@given(st.integers(1, 4), st.integers(1, 5000), st.integers(1, 5000), st.booleans())
def test_effort_is_bounded(groups: int, out: int, d: int, together: bool) -> None:
    steps, sweeps, rounds = effort((groups, out, d), together=together)
    assert 6 <= steps <= room.STEPS
    assert 0 <= sweeps <= room.SWEEPS
    assert room.ROUNDS <= rounds <= room.MORE
    work = 2.0 * groups * out * d * (d + out * together)
    assert steps * rounds * work <= max(room.WORK, 6 * room.ROUNDS * work)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_exchange_keeps_as_many_and_makes_nothing_worse(case) -> None:
    loss, rng = case
    mask = rng.random(loss.best.shape) < 0.5
    w = solve(loss, mask, loss.best)
    found, new = exchange(loss, mask, w)
    assert found.sum() == mask.sum()
    assert (new[~found] == 0).all()
    assert loss.loss(new) <= loss.loss(w) * (1 + 1e-12)


def test_exchange_finds_what_a_bad_mask_missed() -> None:
    rng = np.random.default_rng(0)
    w = np.where(rng.random((1, 20, 60)) < 0.3, rng.standard_normal((1, 20, 60)), 0.01)
    loss = Quadratic(np.eye(60)[None], w)
    bad = ~largest(np.abs(w), 1200 - 360)
    _, found = exchange(loss, bad, solve(loss, bad, w), sweeps=40)
    assert loss.loss(found) < 0.5 * loss.loss(np.where(bad, w, 0))


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([0.0, 0.5, 1.0]))
def test_worth_lies_between_what_others_make_good_and_what_they_do_not(case, lean: float) -> None:
    loss, _ = case
    worth, whole = loss.worth(lean), np.diagonal(loss.a, axis1=1, axis2=2)
    assert (worth >= loss.rise * (1 - 1e-9)).all()
    assert (worth <= whole * (1 + 1e-9)).all()


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(1, 30))
def test_ladder_goes_down_to_the_count(n: int, k: int, steps: int) -> None:
    k = min(n, k)
    rungs = ladder(n, k, steps)
    assert rungs[-1] == k
    assert rungs == sorted(set(rungs), reverse=True)
    assert all(k <= rung <= n for rung in rungs)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 12), st.sampled_from([1e-3, 1e-1, 1.0]), st.integers(0))
def test_few_samples_say_what_their_moments_say(n: int, out: int, d: int, ridge: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, prior = rng.standard_normal((n, d)), rng.standard_normal((n, out)), rng.standard_normal((1, out, d))
    few = Few.fit(x, y, prior, ridge)
    plain = Quadratic.ridge((x.T @ x)[None], (y.T @ x)[None], prior, ridge)
    np.testing.assert_allclose(few.a, plain.a, rtol=1e-9)
    np.testing.assert_allclose(few.best, plain.best, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(few.rise, plain.rise, rtol=1e-6)
    np.testing.assert_allclose(few.diagonal, plain.diagonal, rtol=1e-9)
    w = rng.standard_normal((1, out, d))
    np.testing.assert_allclose(few.whole(w), plain.whole(w), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(few.whole(w.astype(np.float32)), plain.whole(w), rtol=1e-3, atol=1e-3)
    assert few.loss(w) == pytest.approx(plain.loss(w), rel=1e-6)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(1, 5), st.data())
def test_fair_leaves_something_to_every_part(widths: list[int], out: int, data: st.DataObject) -> None:
    scores = np.random.default_rng(data.draw(st.integers(0, 99))).exponential(1, (1, out, sum(widths)))
    scores[..., : widths[0]] *= 1e-6
    count = data.draw(st.integers(1, scores.size))
    mask, start = fair(widths, 0.5)(scores, count), 0
    assert mask.sum() == count
    for width in widths:
        assert mask[..., start : start + width].sum() >= int(0.5 * count * out * width / scores.size)
        start += width
