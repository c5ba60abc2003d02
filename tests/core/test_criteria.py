"""Criteria: formulas, shapes, errors."""

import functools
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emp_core import ArgumentError, criteria, select
from emp_core._namespace import BFLOAT16
from emp_core.testing import weight_tensors


@given(weight_tensors(dtype="float64"))
def test_formulas(w):
    w = np.clip(w, -1e100, 1e100)
    assert np.array_equal(criteria.magnitude(w), np.abs(w))
    assert np.array_equal(criteria.squared(w), w**2)
    assert np.array_equal(criteria.gradient(w, w[::-1]), np.abs(w * w[::-1]))
    for axis in range(-w.ndim, w.ndim):
        norms = np.arange(w.shape[axis]) + 1.0
        assert np.array_equal(
            np.moveaxis(criteria.wanda(w, norms, axis=axis), axis, -1), np.moveaxis(np.abs(w), axis, -1) * norms
        )


def torch_cpu(a):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if a.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(a.astype(np.float32)).bfloat16()
    return torch.from_numpy(a)


def jax_cpu(a):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    return jax.device_put(a, jax.devices("cpu")[0])


def strict(a):
    return pytest.importorskip("array_api_strict", reason="array-api-strict is not installed").asarray(a)


def bits(a):
    """bfloat16 as bits under its name, as files give it."""
    return a.view(BFLOAT16)


FLOATS = ["float16", "bfloat16", "float32", "float64"]
INTEGERS = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
HOLD = {  # what each library has, and takes into products
    np.asarray: FLOATS + INTEGERS,
    torch_cpu: [*FLOATS, "bool", "int8", "uint8", "int16", "int32", "int64"],
    jax_cpu: [*FLOATS[:3], *INTEGERS[:5]],  # without 64 bits
    strict: [*FLOATS[2:], *INTEGERS],
    bits: ["bfloat16"],
}


@st.composite
def tables(draw, kinds, shape):
    """Numbers of one of these dtypes: all that 16 bits and integers hold (up to 2**53), and floats whose squares are
    normal numbers."""
    name, n = draw(st.sampled_from(kinds)), math.prod(shape)
    kind = np.dtype(getattr(ml_dtypes, name, name) if name == "bfloat16" else name)
    if name == "bool":
        value = st.booleans()
    elif kind.kind in "iu":
        low, high = (max(int(np.iinfo(kind).min), -(2**53)), min(int(np.iinfo(kind).max), 2**53))
        value = st.one_of(st.integers(low, high), st.sampled_from([low, high, 0]))
    elif name == "float16":
        value = st.one_of(st.floats(-65504, 65504, width=16), st.sampled_from([65504.0, -6e4, 2.0**-24]))
    else:
        value = st.floats(-1e6, 1e6, width=32).map(lambda v: v if abs(v) > 1e-6 else 0.0)
    return np.array(draw(st.lists(value, min_size=n, max_size=n))).astype(kind).reshape(shape)


def exact(a):
    """The same numbers as fractions."""
    wide = a if a.dtype.kind in "iub" else a.astype(np.float64)
    return np.array([Fraction(v) for v in wide.reshape(-1).tolist()], object).reshape(a.shape)


def read(found):
    """A score as NumPy; 32 bits at least."""
    if hasattr(found, "detach"):
        found = found.detach().numpy()
    found = np.asarray(found)
    assert found.dtype in (np.float32, np.float64)
    return found


def equal(found, expected, mass=None, *, eps):
    """Equal but for the rounding of a few operations, relative to what was added up."""
    found, expected = read(found), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    around = np.abs(expected) if mass is None else np.asarray(mass, np.float64)
    assert (np.abs(found.astype(np.float64) - expected) <= 64 * eps * around).all(), found


@pytest.mark.parametrize("make", HOLD, ids=lambda f: f.__name__)
@settings(max_examples=60)
@given(data=st.data())
def test_scores_are_the_rational_ones_of_every_dtype(make, data):
    """No integer wraps, no number of 16 bits overflows."""
    w, g = (data.draw(tables(HOLD[make], (2, 3))) for _ in range(2))
    x = data.draw(tables(HOLD[make], (3,)))
    if make is torch_cpu and "bool" in (w.dtype, g.dtype):
        g = g.astype(w.dtype)
    fw, fg, fx = exact(w), exact(g), exact(x)
    ew, eg, ex = make(w), make(g), make(x)
    wide = make is not jax_cpu and all(a.dtype == np.float64 or a.dtype.kind in "iub" for a in (w, g, x))
    close = functools.partial(equal, eps=np.finfo(np.float64 if wide else np.float32).eps)
    size = abs(fw)
    if w.dtype.kind not in "fV":
        close(criteria.magnitude(ew), size)
    close(criteria.squared(ew), fw * fw)
    close(criteria.gradient(ew, eg), abs(fw * fg))
    close(criteria.taylor(ew, eg, axis=1), abs((fw * fg).sum(axis=1)), abs(fw * fg).sum(axis=1))
    close(criteria.wanda(ew, ex), size * fx)
    if (fx != 0).all():
        close(criteria.obs(ew, ex), fw * fw / fx)
    close(criteria.output_error(ew, 4.0), fw / 4)
    parts = fw, abs(fw) + 0, fg, fw
    sums = sum((abs(p) ** 2).sum(axis=1) for p in parts)
    close(criteria.heads(ew, ew, eg, ew), [math.sqrt(s) for s in sums])
    close(criteria.heads(ew, ew, eg, ew, norm=1), sum(abs(p).sum(axis=1) for p in parts))
    close(criteria.kan_edges(None, ew), size.sum(axis=1))
    close(criteria.kan_edges(ex[:2], ew, norm=2), [math.sqrt(s) for s in (fw * fw).sum(axis=1) + fx[:2] ** 2])
    close(criteria.kan_nodes(ew, make(np.ascontiguousarray(g.T))), np.minimum(size.max(axis=1), abs(fg).max(axis=1)))
    one, two = size.sum() or 1, abs(fg).sum() or 1
    close(criteria.combined(ew, eg, share=0.25), size / one * Fraction(3, 4) + abs(fg) / two / 4)


@pytest.mark.parametrize("make", [m for m in HOLD if m is not strict], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_magnitudes_of_16_bits_need_no_more(make, name):
    if name not in HOLD[make] or make is bits:
        pytest.skip("it has no such numbers")
    w = np.array([-65504.0, 2.0**-14, 0]).astype(getattr(ml_dtypes, name, name) if name == "bfloat16" else name)
    found = criteria.magnitude(make(w))
    assert found.dtype == make(w).dtype
    assert np.array_equal(np.asarray(found.float() if make is torch_cpu else found, np.float64), abs(w.astype(float)))


@pytest.mark.parametrize("make", [np.asarray, strict, torch_cpu], ids=lambda f: f.__name__)
def test_integers_that_float64_would_round_are_refused(make):
    for value in (2**53 + 1, -(2**63)):
        with pytest.raises(ArgumentError, match=rf"integer weights must be within ±2\*\*53, got {value}"):
            criteria.magnitude(make(np.array([1, value])))
    assert float(criteria.magnitude(make(np.array([-(2**53)])))[0]) == 2.0**53


def test_f_statistics_of_16_bits_are_those_of_their_numbers():
    r = np.random.default_rng(0)
    a, y = (r.standard_normal((30, 4)) * 100).astype(ml_dtypes.bfloat16), np.arange(30) % 3
    expected = criteria.f_statistic(a.astype(np.float64), y)
    for make in (np.asarray, bits, torch_cpu, jax_cpu):
        assert np.array_equal(criteria.f_statistic(make(a), y), expected)


def test_a_criterion_feeds_a_selection():
    w = np.array([[1.0, 1.0], [1.0, 1.0]])
    assert select(criteria.wanda(w, [10.0, 0.1]), scope="rows").mask.tolist() == [[True, False]] * 2


def test_wrong_arguments():
    with pytest.raises(ArgumentError, match=r"gradients must have the shape of the weights \(2,\), got \(3,\)"):
        criteria.gradient(np.ones(2), np.ones(3))
    with pytest.raises(ArgumentError, match="norms must be 1-D with 2 entries"):
        criteria.wanda(np.ones((3, 2)), np.ones(3))
    with pytest.raises(ArgumentError, match=r"axis must be in \[-2, 2\), got 2"):
        criteria.wanda(np.ones((3, 2)), np.ones(3), axis=2)
    with pytest.raises(ArgumentError, match="weights must be an array of real numbers"):
        criteria.magnitude([1j])


def test_obs_is_what_removing_one_weight_costs():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 5))
    h, w = x.T @ x, rng.standard_normal((3, 5))
    scores = criteria.obs(w, np.diag(np.linalg.inv(h)))
    for o in range(3):
        for j in range(5):
            rest = [i for i in range(5) if i != j]
            best = np.linalg.solve(h[np.ix_(rest, rest)], h[rest] @ w[o])
            gap = w[o].copy()
            gap[rest] -= best
            assert scores[o, j] == pytest.approx(gap @ h @ gap)


def test_output_error():
    assert np.array_equal(criteria.output_error([1.0, 2.0], 4.0), [0.25, 0.5])
    assert np.array_equal(criteria.output_error([1.0, 2.0], 0.0), [0.0, 0.0])
    with pytest.raises(ArgumentError, match="energy must be ≥ 0"):
        criteria.output_error([1.0], -1.0)
    with pytest.raises(ArgumentError, match="inverse must be 1-D with 2 entries"):
        criteria.obs(np.ones((3, 2)), np.ones(3))
