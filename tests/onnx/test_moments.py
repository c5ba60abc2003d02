"""Sums of samples, and places of matrices in tensors: the same as the slow and obvious way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_onnx.calibration import moments as module
from emp_onnx.calibration.moments import Moments, Samples, Sums
from emp_onnx.calibration.places import Places

MADE = ("follows", "crossed", "made")


def pieces(rng: Any, groups: int, d: int, lengths: list[int]) -> list[Any]:
    return [rng.standard_normal((groups, n, d)).astype(np.float32) for n in lengths]


def summed(way: str, w: Any, have: list[Any], want: list[Any]) -> Moments | Samples:
    groups, out, d = w.shape
    sums = Sums(groups, d, out if way == "made" else None, way != "follows")
    for x, dense in zip(have, want, strict=True):
        if way == "made":
            sums.add(x, y=dense.astype(np.float64) @ w.swapaxes(1, 2))
        else:
            sums.add(x, dense)
    return sums.moments(w)


@pytest.mark.parametrize("way", MADE)
@given(
    st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 3, 63, 64, 70]), st.lists(st.integers(0, 40), max_size=5),
    st.integers(0, 99),
)  # fmt: skip
def test_sums_are_those_of_all_samples(way: str, groups: int, out: int, d: int, lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    w, have = rng.standard_normal((groups, out, d)), pieces(rng, groups, d, lengths)
    want = have if way == "follows" else pieces(rng, groups, d, lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS", 32)
        patch.setattr(module, "PANEL", 32)
        found = summed(way, w, have, want)
        cut = len(lengths) // 2
        merged = summed(way, w, have[:cut], want[:cut]).merge(summed(way, w, have[cut:], want[cut:]))
    x, y = (np.concatenate([*parts, np.zeros((groups, 0, d))], 1) for parts in (have, want))
    y = y @ w.swapaxes(1, 2)
    expected = {
        "x": x.sum(1), "y": y.sum(1), "xx": x.swapaxes(1, 2) @ x, "yx": y.swapaxes(1, 2) @ x, "yy": (y * y).sum(1)
    }  # fmt: skip
    for one in (found, merged):
        assert one.count == sum(lengths)
        assert one.yy is not None or way != "follows"
        for name, value in expected.items():
            if name == "yy" and one.yy is None:
                continue
            np.testing.assert_allclose(getattr(one, name), value, rtol=1e-6, atol=1e-5, err_msg=name)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4), st.permutations(range(4)), st.lists(st.booleans(), min_size=4),
    st.integers(0, 9),
)  # fmt: skip
def test_places_are_the_indices(shape: list[int], order: list[int], flips: list[bool], skip: int) -> None:
    size = int(np.prod(shape))
    index = (np.arange(size) + skip).reshape(shape)
    index = index.transpose([axis for axis in order if axis < len(shape)])
    index = np.flip(index, [axis for axis in range(len(shape)) if flips[axis]])
    rng = np.random.default_rng(size)
    stored = rng.standard_normal(size + 12)
    for some in (index, rng.permutation(index.reshape(-1)).reshape(index.shape), index[:0]):
        places = Places(some)
        assert (places.shape, places.size) == (some.shape, some.size)
        np.testing.assert_array_equal(places.of(stored), stored[some])
        one, other, values = stored.copy(), stored.copy(), rng.standard_normal(some.shape)
        one[some] = values
        places.put(other, values)
        np.testing.assert_array_equal(one, other)


def test_a_transposed_matrix_takes_no_memory() -> None:
    stored = np.arange(12.0)
    assert np.shares_memory(Places(np.arange(12).reshape(3, 4).T[None]).of(stored), stored)


@given(st.integers(1, 40), st.integers(1, 5), st.booleans(), st.integers(0, 99))
def test_few_samples_have_the_face_of_their_moments(n: int, out: int, centred: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, w = rng.standard_normal((n, 90)), rng.standard_normal((n, out)), rng.standard_normal((1, out, 90))
    few = Samples(x, y)
    plain = Moments(n, few.x, few.y, (x.T @ x)[None], (y.T @ x)[None], np.square(y).sum(0)[None])
    for mine, theirs in zip((*few.centred(), *few.raw()), (*plain.centred(), *plain.raw()), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-9)
    assert few.variance(centred) == pytest.approx(plain.variance(centred))
    gap = few.miss(w, centred) - few.miss(0 * w, centred)
    assert gap == pytest.approx(plain.miss(w, centred) - plain.miss(0 * w, centred))
    both = few.merge(few)
    assert isinstance(both, Samples) == (4 * n <= 90)
    np.testing.assert_allclose(both.xx, 2 * plain.xx)
