"""Rows of a convolution: with the kernel they give what onnxruntime gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emp_onnx.calibration.unroll import Window, positions, stuffed, unroll


@st.composite
def convolutions(draw: st.DrawFn):
    axes = draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    dilations = tuple(draw(st.integers(1, 2)) for _ in range(axes))
    strides = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    pads = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(axes))
    sizes = tuple(draw(st.integers(d * (k - 1) + 1, d * (k - 1) + 4)) for k, d in zip(kernel, dilations, strict=True))
    groups = draw(st.integers(1, 3))
    return Window(kernel, strides, dilations, pads), groups, draw(st.integers(1, 2)), sizes, draw(st.integers(0, 2**31))


def slow(x, w, window: Window, groups: int):
    """One output at a time, by the definition."""
    out = window.sizes(x.shape[2:])
    x = np.pad(x, ((0, 0), (0, 0), *window.pads))
    each, made = x.shape[1] // groups, np.zeros((x.shape[0], w.shape[0], *out))
    for place in np.ndindex(*made.shape):
        n, o, at = place[0], place[1], place[2:]
        first = o // (w.shape[0] // groups) * each
        for c in range(each):
            for tap in np.ndindex(*window.kernel):
                where = tuple(
                    a * s + t * d for a, s, t, d in zip(at, window.strides, tap, window.dilations, strict=True)
                )
                made[place] += w[(o, c, *tap)] * x[(n, first + c, *where)]
    return made


@settings(max_examples=60, deadline=None)
@given(convolutions())
def test_rows_times_kernel_is_the_convolution(case) -> None:
    window, groups, batch, sizes, seed = case
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, 2 * groups, *sizes))
    w = rng.standard_normal((3 * groups, 2, *window.kernel))
    rows = unroll(x, window, groups, None)
    y = rows @ w.reshape(groups, 3, -1).swapaxes(1, 2)
    wanted = slow(x, w, window, groups)
    wanted = np.moveaxis(wanted, 1, 0).reshape(groups, 3, -1).swapaxes(1, 2)
    np.testing.assert_allclose(y, wanted, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(convolutions())
def test_some_rows_are_rows_of_all(case) -> None:
    window, groups, batch, sizes, seed = case
    x = np.random.default_rng(seed).standard_normal((batch, groups, *sizes))
    whole = unroll(x, window, groups, None)
    some = positions(whole.shape[1], 3, seed)
    part = unroll(x, window, groups, some)
    np.testing.assert_array_equal(part, whole if some is None else whole[:, some])


@given(st.integers(0, 500), st.integers(1, 100), st.integers(0, 2**31))
def test_positions(count: int, limit: int, seed: int) -> None:
    some = positions(count, limit, seed)
    if count <= limit:
        assert some is None
        return
    assert some is not None
    assert len(some) == limit
    assert (np.diff(some) > 0).all()
    assert some[0] >= 0
    assert some[-1] < count
    np.testing.assert_array_equal(some, positions(count, limit, seed))


@pytest.mark.parametrize("strides", [(1,), (2,), (3, 2)])
def test_stuffed(strides: tuple[int, ...]) -> None:
    x = np.arange(1.0, 1 + 2 * 3 ** len(strides)).reshape(1, 2, *(3,) * len(strides))
    out = stuffed(x, strides)
    assert out.shape[2:] == tuple(2 * s + 1 for s in strides)
    np.testing.assert_array_equal(out[(slice(None), slice(None), *(slice(None, None, s) for s in strides))], x)
    assert out.sum() == x.sum()
