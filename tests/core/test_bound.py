"""The bounds: they hold for every vector, and their witnesses attain them."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from emp_core import (
    ArgumentError,
    effective_size,
    lower_witness,
    mass_lower_bound,
    mass_upper_bound,
    retained_mass,
    top_mask,
    upper_witness,
)
from emp_core.testing import exact_effective_size, scores


@st.composite
def cases(draw, max_n=60):
    n = draw(st.integers(1, max_n))
    v = draw(st.one_of(st.floats(1, n), st.integers(1, n).map(float)))
    return n, v, draw(st.integers(1, n))


def all_edges(n, v, k):
    """The slow way: the least of g(i, j) over every edge of the ordered simplex."""
    best = 1.0
    for i in range(1, math.floor(v) + 1):
        for j in range(math.ceil(v), n + 1):
            at_i, at_j = min(1, k / i), min(1, k / j)
            t = math.sqrt(max(0.0, (j - v) * i / (v * (j - i)))) if j > i else 1.0
            best = min(best, at_j + min(t, 1) * (at_i - at_j))
    return best


@given(scores(min_size=1, max_size=40), st.data())
def test_mass_lies_between_the_bounds_for_every_vector_and_k(s, data):
    k = data.draw(st.integers(1, s.size))
    v = effective_size(s)
    mass = retained_mass(s, top_mask(s, k))
    assert mass_lower_bound(v, n=s.size, k=k) <= mass + 1e-12
    if np.any(s):
        assert mass <= mass_upper_bound(v, n=s.size, k=k) + 1e-12


@given(cases())
def test_lower_bound_is_the_least_over_all_edges(case):
    n, v, k = case
    up = min(math.nextafter(v, math.inf), n)
    assert math.isclose(mass_lower_bound(v, n=n, k=k), all_edges(n, up, k), rel_tol=0, abs_tol=1e-12)


@given(cases())
@example((5, math.nextafter(5, 0), 3))
def test_witnesses_attain_the_bounds(case):
    n, v, k = case
    for witness, bound in ((lower_witness, mass_lower_bound), (upper_witness, mass_upper_bound)):
        w = witness(v, n=n, k=k)
        assert w.shape == (n,)
        assert (w >= 0).all()
        assert (np.diff(w) <= 1e-15).all()
        assert math.isclose(w.sum(), 1, abs_tol=1e-12)
        assert math.isclose(1 / (w**2).sum(), v, rel_tol=1e-12)
        assert abs(w[:k].sum() - bound(v, n=n, k=k)) <= 1e-12


@given(cases())
def test_bounds_are_ordered_and_between_zero_and_one(case):
    n, v, k = case
    low, high = mass_lower_bound(v, n=n, k=k), mass_upper_bound(v, n=n, k=k)
    assert 0 < low <= high * (1 + 1e-12)
    assert high <= 1
    if k == n:
        assert low == high == 1


@given(cases(), st.data())
def test_more_kept_holds_more_and_flatter_holds_less(case, data):
    n, v, k = case
    more, flatter = data.draw(st.integers(k, n)), data.draw(st.floats(v, n))
    for bound in (mass_lower_bound, mass_upper_bound):
        assert bound(v, n=n, k=k) <= bound(v, n=n, k=more) + 1e-12
        assert bound(flatter, n=n, k=k) <= bound(v, n=n, k=k) + 1e-12


def published(floor, n):
    return floor / n + (n - floor) / n * math.sqrt((n - floor - 1) / ((floor + 1) * (n - 1)))


@given(st.integers(3, 200), st.data())
def test_published_form_is_the_infimum_over_its_shell(n, data):
    """For ⌊N_eff⌋ ≥ 2: approached as N_eff rises to the next integer, and never undercut before."""
    floor = data.draw(st.integers(2, n - 1))
    claim = published(floor, n)
    inside = data.draw(st.floats(floor, floor + 1, exclude_max=True))
    assert mass_lower_bound(inside, n=n, k=floor) >= claim - 1e-12
    end = floor + 1 - 1e-9
    if end < n:
        assert abs(mass_lower_bound(end, n=n, k=floor) - claim) < 1e-3 / floor
        assert abs(mass_lower_bound(math.nextafter(floor + 1, 0), n=n, k=floor) - claim) < 1e-7


def test_published_form_fails_where_one_is_kept():
    w = [0.51, 0.49, 0.0]
    assert math.isclose(effective_size(w), 1.9992, abs_tol=1e-4)
    assert math.isclose(published(1, 3), 2 / 3)
    assert retained_mass(w, top_mask(w, 1)) == 0.51 < published(1, 3)
    assert mass_lower_bound(effective_size(w), n=3, k=1) <= 0.51
    assert abs(mass_lower_bound(math.nextafter(2, 0), n=3, k=1) - 0.5) < 1e-7


@given(scores(min_size=2, max_size=12, dtype="float64"))
def test_bounds_against_rational_arithmetic(s):
    """The exact size, not the rounded one, bounds the exact mass."""
    if not np.any(s):
        return
    a = sorted((abs(Fraction(x)) for x in s.tolist()), reverse=True)
    v = exact_effective_size(s)
    for k in range(1, len(a) + 1):
        mass = sum(a[:k]) / sum(a)
        # (mass − k/n)² ≤ k(n−k)/n·(1/ν − 1/n), squared so that it stays rational
        n = len(a)
        assert (mass - Fraction(k, n)) ** 2 <= Fraction(k * (n - k), n) * (1 / v - Fraction(1, n))
        assert mass_lower_bound(float(v), n=n, k=k) <= float(mass) + 1e-12
        assert float(mass) <= mass_upper_bound(float(v), n=n, k=k) + 1e-12


def test_large_pools_are_near_the_density():
    n = 10**9
    v = n * 2 / math.pi
    assert 0 <= mass_lower_bound(v, n=n, k=int(v)) - 2 / math.pi < 1e-3


def test_arrays_broadcast():
    low = mass_lower_bound(np.array([2.0, 3.0]), n=4, k=np.array([1, 2]))
    assert low.tolist() == [mass_lower_bound(2.0, n=4, k=1), mass_lower_bound(3.0, n=4, k=2)]
    assert isinstance(mass_lower_bound(2.0, n=4, k=1), float)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_eff": 2.0, "n": 0, "k": 1}, "n must be an integer ≥ 1, got 0"),
        ({"n_eff": 2.0, "n": 4, "k": 0}, "k must be an integer between 1 and n, got 0 with n = 4"),
        ({"n_eff": 2.0, "n": 4, "k": 5}, "k must be an integer between 1 and n, got 5"),
        ({"n_eff": 0.5, "n": 4, "k": 1}, "n_eff must be between 1 and n, got 0.5"),
        ({"n_eff": 5.0, "n": 4, "k": 1}, "n_eff must be between 1 and n, got 5.0"),
        ({"n_eff": math.nan, "n": 4, "k": 1}, "n_eff must be between 1 and n, got nan"),
    ],
)
def test_out_of_range(kwargs, message):
    v = kwargs.pop("n_eff")
    for f in (mass_lower_bound, mass_upper_bound, lower_witness, upper_witness):
        with pytest.raises(ArgumentError, match=message):
            f(v, **kwargs)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": math.nan}, "k must be an integer between 1 and n, got nan with n = 4"),
        ({"k": 2.5}, "k must be an integer between 1 and n, got 2.5 with n = 4"),
        ({"n": math.nan}, "n must be an integer ≥ 1, got nan"),
        ({"n": 4.5}, "n must be an integer ≥ 1, got 4.5"),
        ({"n": math.inf}, "n must be an integer ≥ 1, got inf"),
        ({"n_eff": math.nan}, "n_eff must be between 1 and n, got nan with n = 4"),
    ],
    ids=str,
)
def test_counts_that_are_none(given, message):
    values = {"n_eff": 2.0, "n": 4, "k": 2} | given
    for f in (mass_lower_bound, mass_upper_bound, lower_witness, upper_witness):
        with pytest.raises(ArgumentError, match=message):
            f(values["n_eff"], n=values["n"], k=values["k"])
    with pytest.raises(ArgumentError, match=message.split(", got")[0]):
        mass_lower_bound(np.array([values["n_eff"]] * 2), n=values["n"], k=np.array([1, values["k"]]))


def test_witnesses_are_of_single_numbers():
    for f in (lower_witness, upper_witness):
        assert np.array_equal(f(2.5, n=4.0, k=np.float64(2)), f(2.5, n=4, k=2))
        with pytest.raises(ArgumentError, match=r"n_eff must be one number for a witness, got \[2\. 3\.\]"):
            f(np.array([2.0, 3.0]), n=4, k=2)
        with pytest.raises(ArgumentError, match=r"k must be one number for a witness, got \[2\]"):
            f(2.0, n=4, k=[2])


def test_bounds_of_two_libraries():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    with pytest.raises(ArgumentError, match="must be numbers or arrays of one library, got arrays of numpy and torch"):
        mass_lower_bound(torch.tensor([2.0]), n=4, k=np.array([1]))
