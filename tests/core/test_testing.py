"""The strategies draw what they promise."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emp_core import effective_size, keep_count
from emp_core.testing import assert_keep_count, betas, exact_effective_size, scores

POOLS = [[1.0, 2.0, 3.0], [0.1] * 10, np.random.default_rng(0).standard_normal(50), np.float32([7, 1e-3, 2, 2])]


def beside(size, beta):
    """The integer that ``β·N_eff`` lies beside, as near as a double β can bring it, and whether it has reached it."""
    product = Fraction(beta) * size
    near = max(1, round(product))
    step = Fraction(math.ulp(beta)) * size
    return (near, product >= near) if abs(product - near) <= 2 * step else None


def drawn(strategy):
    found = []

    @settings(max_examples=300, database=None)
    @given(strategy)
    def look(value):
        found.append(value)

    look()
    return found


@pytest.mark.parametrize("pool", POOLS, ids=["few", "flat", "bell", "float32"])
def test_betas_of_scores_fall_on_either_side_of_integers(pool):
    size = exact_effective_size(pool)
    hit = {beside(size, beta) for beta in drawn(betas(pool))} - {None}
    sides = {m: {reached for near, reached in hit if near == m} for m, _ in hit}
    assert sum(both == {True, False} for both in sides.values()) >= 2
    assert sides.keys() > {1}


def test_betas_that_know_no_scores_do_not():
    """What they are for: ordinary ones, and those beside 1, which matter where scores are equal."""
    size = exact_effective_size(POOLS[2])
    assert {beside(size, beta) for beta in drawn(betas())} <= {None, (1, True)}
    assert {beside(Fraction(10), beta) for beta in drawn(betas())} >= {(10, True), (10, False)}


@given(scores(max_size=20), st.floats(0.01, 8), st.data())
def test_betas_are_what_beta_may_be(s, most, data):
    beta = data.draw(betas(s, max_value=most))
    assert 0 < beta <= max(most, 1.25) * (1 + 2**-51)
    assert_keep_count(s, keep_count(s, beta=beta), beta=beta)


def test_betas_find_a_count_from_a_rounded_size():
    s = POOLS[2]

    @settings(max_examples=300, database=None)
    @given(betas(s))
    def counted(beta):
        assert_keep_count(s, min(max(math.floor(beta * effective_size(s)), 1), len(s)), beta=beta)

    with pytest.raises(AssertionError, match="keep count is"):
        counted()


def test_betas_of_pools_without_a_size_of_their_own():
    for pool in ([], [0.0, 0.0], 3.0):
        assert all(0 < beta < 5 for beta in drawn(betas(pool)))
