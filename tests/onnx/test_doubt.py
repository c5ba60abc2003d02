"""What to expect on other inputs, from how near answers came to change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_onnx.budget.doubt import LOST, ONE_SIDED, WHOLE, doubt
from emp_onnx.budget.point import point_of


def answers(scores: Any) -> list[list[Any]]:
    return [[row[None]] for row in scores]


@given(st.integers(2, 40), st.integers(2, 30), st.floats(0, 3), st.integers(0, 99))
def test_it_is_a_share_and_nothing_changes_where_nothing_moved(n: int, classes: int, size: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    before = rng.standard_normal((n, classes))
    found = doubt(answers(before), answers(before + size * rng.standard_normal(before.shape)))
    assert found is not None
    for mean, error in (found.changed, found.cost):
        assert 0 <= mean <= 1
        assert 0 <= error <= 1
    assert found.cost[0] <= found.changed[0] + 1e-12
    same = doubt(answers(before), answers(before))
    assert same is not None
    assert same.changed == same.cost == (0, 0)


def test_it_foretells_better_than_a_count() -> None:
    rng = np.random.default_rng(0)

    def some(n: int) -> tuple[Any, Any]:
        before = 3 * rng.standard_normal((n, 10))
        return before, before + 0.15 * rng.standard_normal(before.shape)

    def count(pair: tuple[Any, Any]) -> float:
        return float((pair[0].argmax(1) != pair[1].argmax(1)).mean())

    true = count(some(100_000))
    pairs = [some(40) for _ in range(60)]
    found = [doubt(answers(a), answers(b)) for a, b in pairs]
    mine = [f.changed[0] for f in found if f is not None]
    assert np.mean(mine) == pytest.approx(true, rel=0.25)
    assert np.std(mine) < 0.8 * np.std([count(pair) for pair in pairs])


def test_what_an_answer_costs_is_what_the_model_believed() -> None:
    odds = np.log(np.array([[0.9, 0.1]] * 8))
    turned = odds[:, ::-1]
    found = doubt(answers(odds), answers(turned))
    assert found is not None
    assert found.changed[0] == pytest.approx(1)
    assert found.cost == pytest.approx((0.8, WHOLE * 0.2))


@given(st.integers(2, 40), st.integers(2, 30), st.integers(0, 99))
def test_a_model_that_is_sure_of_nothing_is_not_believed(n: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, moved = rng.uniform(0, 0.4, (2, n, classes))
    found = doubt(answers(before), answers(before + moved))
    assert found is not None
    assert found.cost == pytest.approx((found.changed[0], ONE_SIDED * found.changed[1]))
    assert found.either == pytest.approx(found.changed[0])
    assert found.paid == pytest.approx(np.mean(before.argmax(1) != (before + moved).argmax(1)))


@given(st.integers(2, 40), st.integers(2, 30), st.floats(0, 3), st.integers(0, 99))
def test_a_tenth_of_the_changed_answers_may_cost_a_whole_one(n: int, classes: int, size: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    before = 4 * rng.standard_normal((n, classes))
    found = doubt(answers(before), answers(before + size * rng.standard_normal(before.shape)))
    assert found is not None
    assert WHOLE * found.either - 1e-12 <= sum(found.cost)
    assert found.cost[0] <= found.changed[0] + 1e-12


@given(st.integers(2, 40), st.integers(2, 30), st.floats(0, 3), st.integers(0, 99))
def test_what_to_reckon_with_is_no_less_than_anything_seen(n: int, classes: int, size: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    before = 4 * rng.standard_normal((n, classes))
    found = doubt(answers(before), answers(before + size * rng.standard_normal(before.shape)))
    assert found is not None
    assert found.bound >= max(min(1, sum(found.cost)), found.paid, LOST * found.either)
    assert found.cost[0] - 1e-12 <= found.either <= found.changed[0] + 1e-12
    assert found.bound <= 1


def test_ties_that_change_are_not_free() -> None:
    even = np.log(np.array([[0.4, 0.4, 0.2], [0.9, 0.05, 0.05]] * 8))
    even[::2, 0] += 1e-6
    turned = even.copy()
    turned[::2, 1] += 2e-6
    found = doubt(answers(even), answers(turned))
    assert found is not None
    assert found.paid == pytest.approx(0, abs=1e-5)
    assert found.bound == pytest.approx(LOST * found.either)
    assert found.either == pytest.approx(0.8 * found.changed[0], rel=1e-5)


def test_probabilities_count_as_their_logarithms() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.standard_normal((2, 30, 5))
    soft = [np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (one, other)]
    plain, shared = doubt(answers(one), answers(other)), doubt(answers(soft[0]), answers(soft[1]))
    assert plain is not None
    assert shared is not None
    assert shared.changed[0] == pytest.approx(plain.changed[0], abs=0.1)


def test_other_outputs_and_other_shapes() -> None:
    assert doubt([[np.zeros(3)]], [[np.ones(3)]]) is None
    far = doubt([[np.zeros((1, 3))]], [[np.zeros((1, 4))]])
    assert far is not None
    assert far.changed == (1.0, 0.0)
    masked = np.array([[1.0, -np.inf, 0.0]] * 4)
    still = doubt(answers(masked), answers(masked))
    assert still is not None
    assert still.changed == (0, 0)


@given(st.integers(2, 40), st.integers(1, 3), st.integers(0, 99))
def test_a_probability_of_one_thing_is_one_of_two(n: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.uniform(0, 1, (2, n, rows, 1)).astype(np.float32)
    found = doubt([[x] for x in one], [[x] for x in other])
    assert found is not None
    turned = ((one >= 0.5) != (other >= 0.5)).mean()
    assert found.paid == pytest.approx(turned)
    assert found.cost == pytest.approx(found.changed)
    assert found.bound >= min(1, sum(found.cost)) - 1e-9
    assert doubt([[x - 1] for x in one], [[x] for x in other]) is None


def test_what_is_handed_on_may_not_be_off_by_more_than_what_may_be_lost() -> None:
    rng = np.random.default_rng(0)
    one = [[rng.uniform(0.6, 0.9, (1, 1)), rng.standard_normal(64)] for _ in range(20)]
    other = [[y, state + 0.05 * rng.standard_normal(64)] for y, state in one]
    alone, handed = (point_of(0.5, one, other, handed=handed) for handed in (False, True))
    assert alone.cost is not None
    assert handed.cost is not None
    assert alone.cost < 0.01 < handed.cost
    assert handed.cost == pytest.approx(handed.error)


@given(st.integers(2, 6), st.integers(300, 900), st.floats(0, 1), st.integers(0, 99))
def test_of_many_answers_no_change_is_overlooked(feeds: int, each: int, size: float, seed: int) -> None:
    """Where only some are looked up, all are counted."""
    rng = np.random.default_rng(seed)
    before = 4 * rng.standard_normal((feeds, each, 5))
    after = before + size * rng.standard_normal(before.shape)
    found = doubt([[x] for x in before], [[x] for x in after])
    assert found is not None
    own, now = before.argmax(-1), after.argmax(-1)
    odds = np.exp(before - before.max(-1, keepdims=True))
    odds /= odds.sum(-1, keepdims=True)
    at = np.indices(own.shape)
    paid = odds[(*at, own)] - odds[(*at, now)]
    assert found.paid == pytest.approx(paid.mean())
    assert sum(found.changed) >= (own != now).mean() - 1e-12
    assert found.bound >= found.paid


def test_answers_are_not_looked_up_at_even_distances() -> None:
    """Every hundredth answer changes, where a step of a hundred would see all of them or none."""
    before = np.zeros((1, 51200, 2))
    before[..., 0] = 5
    after = before.copy()
    after[:, ::100] = after[:, ::100, ::-1]
    found = doubt([[before[0]]], [[after[0]]])
    assert found is not None
    assert 0.005 < found.changed[0] < 0.03  # those that are looked up stand for others like them
    assert found.paid == pytest.approx(0.01, rel=0.05)


def test_a_change_from_one_wrong_answer_to_another_costs_nothing() -> None:
    """Of many classes the two that change places may both be unlikely."""
    rng = np.random.default_rng(0)
    odds = np.full((400, 1000), 0.5 / 998)
    odds[:, :2] = 0.26, 0.24
    odds[0] = 1e-6
    odds[0, 0] = 1 - 999e-6  # one answer that it is sure of, so that it is believed
    before = np.log(odds)
    after = before + 0.1 * rng.standard_normal(before.shape)
    found = doubt(answers(before), answers(after))
    assert found is not None
    assert found.either == pytest.approx(0.5 * found.changed[0], rel=0.01)
    assert found.bound < 0.6 * LOST * found.changed[0]
