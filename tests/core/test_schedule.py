"""Schedules: closed form, ends, monotone between."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_core import ArgumentError, beta_schedule, cubic_schedule

shares = st.floats(0, 0.99)


@given(shares, shares, st.integers(0, 50), st.integers(1, 40), st.integers(1, 20))
def test_cubic_ramp(initial, final, begin, steps, every):
    s = cubic_schedule(initial, final, begin=begin, steps=steps, every=every)
    assert s(0) == initial or begin == 0
    assert s(begin) == initial
    assert s(begin + steps * every) == s(10**9) == final
    for i in range(steps + 1):
        t = begin + i * every
        expected = final + (initial - final) * (1 - (t - begin) / (steps * every)) ** 3
        assert s(t) == pytest.approx(expected, abs=1e-15)
        assert s(t + every - 1) == s(t)
    values = [s(t) for t in range(begin + steps * every + 3)]
    assert values == sorted(values, reverse=initial > final)


@given(st.floats(0.1, 5), st.floats(0.1, 5), st.integers(1, 40))
def test_beta_ramp_is_the_same(initial, final, steps):
    beta = beta_schedule(initial, final, begin=0, steps=steps)
    assert beta(0) == initial
    assert beta(steps) == final
    assert beta(steps // 2) == pytest.approx(final + (initial - final) * (1 - (steps // 2) / steps) ** 3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"initial": -0.1}, r"initial must be a sparsity in \[0, 1\), got -0.1"),
        ({"final": 1.0}, r"final must be a sparsity in \[0, 1\), got 1.0"),
        ({"begin": -1}, "begin must be an integer ≥ 0, got -1"),
        ({"steps": 0}, "steps must be an integer ≥ 1, got 0"),
        ({"every": 0.5}, "every must be an integer ≥ 1, got 0.5"),
    ],
)
def test_out_of_range(kwargs, message):
    values = {"initial": 0.0, "final": 0.8, "begin": 0, "steps": 3} | kwargs
    with pytest.raises(ArgumentError, match=message):
        cubic_schedule(values.pop("initial"), values.pop("final"), **values)
    with pytest.raises(ArgumentError, match="initial must be a finite number > 0"):
        beta_schedule(0, 1, begin=0, steps=1)
