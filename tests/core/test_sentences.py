"""What cannot be taken ends in a sentence that names the parameter; integers and floats of NumPy can."""

from __future__ import annotations

import numpy as np
import pytest

import emp_core
from emp_core import ArgumentError, Blocks, Groups, Labels, Moments, signals

X = np.array([3.0, 1, 2])
MASKED = np.ma.masked_array(X, [False, True, False])
HUGE = 10**400

REFUSED = {
    "beta must be a finite number > 0": lambda: emp_core.keep_count(X, beta=HUGE),
    "order must be a number ≥ 0": lambda: emp_core.hill_number(X, order=HUGE),
    r"sparsity must be in \[0, 1\)": lambda: emp_core.select(X, sparsity=HUGE),
    r"where must broadcast to the shape of the scores \(3,\), got \(2,\)": lambda: Moments.of(X, where=[True] * 2),
    "threads must be an integer ≥ 1 or None, got 'a'": lambda: Moments.of(X, threads="a"),
    "shape of Blocks must be a tuple of integers ≥ 1, got 4": lambda: Blocks(4),
    r"patch must be \(height, width\), got 4": lambda: signals.pixels(np.ones((8, 8, 3)), patch=4),
    "labels must be integers or strings, got dtype object": lambda: emp_core.select(
        X, scope=Labels(np.array(["a", None, 1], object))
    ),
    "scores must be a plain array, with where for what is left out, got a masked": lambda: emp_core.select(MASKED),
    "w must be a plain array, with where": lambda: emp_core.select({"w": MASKED}, scope="model"),
    "where must be a plain array, with where": lambda: emp_core.select(X, where=MASKED > 1),
    "part 0 must be a plain array": lambda: emp_core.select_stream([MASKED]),
    "threads must be an integer ≥ 1 or None, got True": lambda: emp_core.select(X, threads=True),
    r"threads must be an integer ≥ 1 or None, got (np\.float32\()?2\.0": lambda: emp_core.select(
        X, threads=np.float32(2)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_sentences(message):
    with pytest.raises(ArgumentError, match=message):
        REFUSED[message]()


def test_a_model_under_jit():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    with pytest.raises(ArgumentError, match=r"scope must be whole, rows or columns under jax\.jit, got Model"):
        jax.jit(lambda a: emp_core.select({"a": a}, scope="model").mask)(jax.numpy.ones(3))


def test_tensors_without_memory_of_their_own():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    negated = torch.tensor([3 + 1j, 1 - 2j, 5j]).conj().imag
    assert negated.is_neg()
    assert emp_core.select(negated).k == emp_core.select(np.array([1.0, 2, 5])).k
    with pytest.raises(ArgumentError, match="scores must hold values, got a tensor on the device meta"):
        emp_core.keep_count(torch.ones(3, device="meta"))


def test_numbers_of_numpy():
    x = np.arange(24.0).reshape(4, 6)
    for kind in (np.int64, np.uint8):
        assert np.array_equal(emp_core.select(x, threads=kind(2)).mask, emp_core.select(x).mask)
        assert Moments.of(x, threads=kind(2)) == Moments.of(x)
        for scope, plain in ((Blocks((kind(2), kind(3))), Blocks((2, 3))), (Groups(kind(4), kind(2)), Groups(4, 2))):
            assert np.array_equal(emp_core.select(x, scope=scope).mask, emp_core.select(x, scope=plain).mask)
        s = emp_core.cubic_schedule(np.float32(0.25), np.float32(0.75), begin=kind(200), steps=kind(4), every=kind(100))
        plain = emp_core.cubic_schedule(0.25, 0.75, begin=200, steps=4, every=100)
        assert [s(t) for t in range(0, 700, 50)] == [plain(t) for t in range(0, 700, 50)]
        beta = emp_core.beta_schedule(np.float32(2), np.int64(1), begin=kind(0), steps=kind(4))
        assert beta(0) == 2.0
    assert Blocks([2, 3]) == Blocks((2, 3))
