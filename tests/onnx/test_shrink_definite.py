"""Matrices solved and inverted where they lie: NumPy's own ways are the oracle."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import emp_onnx.shrink.fitting.definite as definite
from emp_onnx.shrink.fitting.definite import add_products, invert_in_place, mirror, solve_in_place, take_off


def spd(seed: int, n: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((2 * n + 3, n))
    return np.asarray(x.T @ x / len(x) + 0.01 * np.eye(n))


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 5), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_they_say_what_numpy_says(seed: int, n: int, outputs: int, block: int) -> None:
    a, v = spd(seed, n), np.random.default_rng(seed).standard_normal(n)
    right = np.random.default_rng(seed + 1).standard_normal((n, outputs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(definite, "BLOCK", block)
        less = a.copy()
        take_off(less, v)
        assert np.array_equal(less, a - np.outer(v, v))
        assert np.allclose(solve_in_place(a.copy(), right), np.linalg.solve(a, right), rtol=1e-9, atol=1e-10)
        products, rows = np.zeros((n, n)), np.random.default_rng(seed).standard_normal((outputs, n))
        add_products(products, rows)
        add_products(products, rows)
        mirror(products)
        assert np.allclose(products, 2 * rows.T @ rows, rtol=1e-12, atol=1e-12)
        found = invert_in_place(a.copy())
        assert np.allclose(found, np.linalg.inv(a), rtol=1e-9, atol=1e-10)
        assert np.array_equal(found, found.T)


@given(st.integers(0, 10**6), st.integers(2, 20))
@settings(max_examples=30, deadline=None)
def test_a_matrix_that_is_not_definite_is_eliminated(seed: int, n: int) -> None:
    a = spd(seed, n)
    a -= 2 * np.linalg.eigvalsh(a)[0] * np.eye(n) + 0.1 * np.eye(n)
    if np.abs(np.linalg.eigvalsh(a)).min() < 1e-3:
        return
    right = np.random.default_rng(seed).standard_normal((n, 2))
    assert np.linalg.eigvalsh(a)[0] < 0
    assert np.allclose(solve_in_place(a.copy(), right), np.linalg.solve(a, right), rtol=1e-6, atol=1e-6)
    assert np.allclose(invert_in_place(a.copy()), np.linalg.inv(a), rtol=1e-6, atol=1e-6)


def test_what_is_no_number_stays_none_and_what_is_singular_is_an_error() -> None:
    a = spd(0, 6)
    a[2, 3] = a[3, 2] = np.nan
    assert np.isnan(solve_in_place(a, np.ones((6, 1)))).any()
    with pytest.raises(np.linalg.LinAlgError):
        solve_in_place(np.zeros((3, 3)), np.ones((3, 1)))


def test_no_second_matrix_is_made() -> None:
    n = 1500
    a, right = spd(1, n), np.ones((n, 2))
    tracemalloc.start()
    try:
        for work in (lambda: take_off(a, np.ones(n) * 1e-3), lambda: solve_in_place(a.copy(), right),
                     lambda: invert_in_place(a.copy()), lambda: add_products(a, right.T)):  # fmt: skip
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            work()
            assert tracemalloc.get_traced_memory()[1] - before < 1.6 * a.nbytes  # one copy, and some rows
    finally:
        tracemalloc.stop()
