"""Moments in single precision, and the loss made of them: what double precision gives, as far as that matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emp_onnx.calibration import own as room
from emp_onnx.calibration.moments import Samples, Sums
from emp_onnx.calibration.own import Own, OwnSums, merge
from emp_onnx.refit.light import Light
from emp_onnx.refit.loss import Quadratic, pull, root
from emp_onnx.refit.solve import descend


def batches(seed: int, groups: int, d: int, mean: float = 0.0, count: int = 9) -> list[Any]:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((groups, d, d)) / np.sqrt(d)
    sizes = rng.integers(1, 40, count)
    return [(mean + rng.standard_normal((groups, n, d)) @ mix).astype(np.float32) for n in sizes]


def summed(parts: list[Any], w: Any) -> Any:
    sums = OwnSums(*parts[0].shape[::2])
    for part in parts:
        sums.add(part, part)
    return sums.moments(lambda: w)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999), groups=st.integers(1, 3), d=st.sampled_from([1, 5, 70]), rows=st.sampled_from([3, 512]),
    panel=st.sampled_from([32, 512]), mean=st.sampled_from([0.0, 3.0, 3e3]),
)  # fmt: skip
def test_as_in_double_precision(seed: int, groups: int, d: int, rows: int, panel: int, mean: float) -> None:
    parts = batches(seed, groups, d, mean)
    w = np.random.default_rng(seed).standard_normal((groups, 4, d))
    whole = np.concatenate(parts, axis=1, dtype=np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "ROWS", rows)
        patch.setattr(room, "PANEL", panel)
        found = summed(parts, w)
    right = np.stack([np.cov(x.T, bias=True).reshape(d, d) for x in whole])
    size = np.sqrt(np.einsum("gii->gi", right))
    assert found.count == whole.shape[1]
    np.testing.assert_allclose(found.x, whole.sum(1), rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(found.y, np.einsum("god,gd->go", w, whole.sum(1)), rtol=1e-5, atol=1e-2)
    gap = np.abs(found.centred()[0] if isinstance(found, Samples) else found.covariance - right)
    if not isinstance(found, Samples):
        assert (gap <= 2e-5 * size[:, :, None] * size[:, None] + 1e-12).all()  # whatever the mean is
        y = np.einsum("god,gnd->gno", w, whole)
        assert found.variance(True) == pytest.approx(y.var(1).sum(), rel=1e-4)
        assert found.variance(False) == pytest.approx((y**2).mean(1).sum(), rel=1e-4)
        assert found.miss(w, True) == found.miss(w, False) == 0
        np.testing.assert_allclose(found.spread(), np.einsum("gii->gi", right), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("few", [False, True])
def test_merged_is_summed_together(few: bool) -> None:
    d = 200 if few else 20
    parts, w = batches(3, 1, d, 2.0), np.ones((1, 2, d))
    one, other = summed(parts[:2], w), summed(parts[2:], w)
    assert isinstance(one, Samples) == few
    both = merge(one, other)
    whole = np.concatenate(parts, axis=1, dtype=np.float64)[0]
    assert both.count == len(whole)
    np.testing.assert_allclose(both.spread()[0], whole.var(0), rtol=1e-4)
    np.testing.assert_allclose(both.xx[0] / len(whole), whole.T @ whole / len(whole), rtol=1e-3, atol=1e-3)
    if isinstance(one, Samples) and isinstance(other, Own):
        np.testing.assert_allclose(one.merge(other).xx, both.xx, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), groups=st.integers(1, 2), d=st.sampled_from([1, 3, 64, 65, 150]))
def test_a_light_loss_is_the_loss_with_the_pull_in_it(seed: int, groups: int, d: int) -> None:
    parts = batches(seed, groups, d, count=30)
    w = np.random.default_rng(seed).standard_normal((groups, 6, d))
    c = np.stack([np.cov(x.T, bias=True).reshape(d, d) for x in np.concatenate(parts, axis=1, dtype=np.float64)])
    light, right = Light.own(c.astype(np.float32), w, 0.01), Quadratic.ridge(c, w @ c, w, 0.01)
    np.testing.assert_allclose(right.best, w, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(light.a, right.a, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(light.diagonal, right.diagonal, rtol=1e-5)
    np.testing.assert_allclose(light.rise, right.rise, rtol=1e-3)
    np.testing.assert_allclose(light.target, right.target, rtol=1e-4, atol=1e-4)
    thin = w * (np.random.default_rng(seed + 1).random(w.shape) < 0.5)
    assert light.loss(thin) == pytest.approx(right.loss(thin), rel=1e-4)
    counts = [max(1, w.size // 2)]
    ((_, _, one),), ((_, _, other),) = (list(descend(loss, counts, rounds=50)) for loss in (light, right))
    assert right.loss(one) == pytest.approx(right.loss(other), rel=0.02, abs=1e-9)


def test_a_loss_that_single_precision_takes_for_singular() -> None:
    d = 300
    x = np.random.default_rng(0).standard_normal((5, d)).astype(np.float32)
    c = (x.T @ x)[None]
    light = Light(c, np.full((1, d), 1e-7), np.zeros((1, 2, d)))
    assert np.isfinite(light.rise).all()
    assert (light.rise > 0).all()


@pytest.mark.parametrize("d", [1, 2, 63, 64, 65, 130, 200])
def test_root_of_a_matrix(d: int) -> None:
    x = np.random.default_rng(d).standard_normal((2 * d + 2, d))
    a = x.T @ x
    found = root(a.copy())
    assert (np.triu(found, 1) == 0).all()
    np.testing.assert_allclose(found.T @ found @ a, np.eye(d), atol=1e-6)
    with pytest.raises(np.linalg.LinAlgError):
        root(a - 2 * np.trace(a) * np.eye(d))


def test_held_where_it_was() -> None:
    np.testing.assert_allclose(pull(np.array([[2.0, 0.0]])), [[1.9, 0.1]])
    np.testing.assert_array_equal(pull(np.zeros((1, 2))), np.ones((1, 2)))


def test_sums_in_double_precision_say_the_same() -> None:
    parts, w = batches(5, 2, 30, 1.0), np.random.default_rng(5).standard_normal((2, 3, 30))
    plain = Sums(2, 30)
    for part in parts:
        plain.add(part, part)
    one, other = summed(parts, w), plain.moments(w)
    np.testing.assert_allclose(one.yx, other.yx, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(one.yy, other.yy, rtol=1e-4)
    np.testing.assert_allclose(one.rows(np.array([1])).yx, other.yx[:, [1]], rtol=1e-4, atol=1e-2)
