"""Cuts that were measured too long: laws of how they are made smaller, then a small worked case."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_onnx.shrink import depth
from emp_onnx.shrink.search.nearer import nearer

GRID = [0, 4, 8, 12]


def planner_of(price: Any, time: Any) -> Any:
    """Errors and costs that are known: 16 units of each group, a step is four of them."""
    error = lambda counts: float(sum(p * (n / 16) ** 2 for p, n in zip(price, counts, strict=True)))  # noqa: E731
    cost = lambda counts: float(sum(t * (1 - n / 16) for t, n in zip(time, counts, strict=True)))  # noqa: E731
    return SimpleNamespace(
        predicted=cost, guessed=error, measured=error, steps=lambda g, count: [n for n in GRID if n > count][:3]
    )


@given(st.integers(0, 10**6), st.floats(0.3, 1.2))
def test_units_only_go_and_no_more_steps_than_bring_the_latency_within(seed: int, part: float) -> None:
    rng = np.random.default_rng(seed)
    groups = int(rng.integers(1, 5))
    planner = planner_of(rng.random(groups) + 0.01, rng.random(groups) + 0.1)
    start = [int(rng.choice(GRID)) for _ in range(groups)]
    share = 0.7
    found = nearer(planner, start, share, part * share)
    left = lambda counts: share * planner.predicted(counts) / planner.predicted(start)  # noqa: E731
    assert all(one >= n for one, n in zip(found, start, strict=True))
    assert left(found) <= part * share or found == [GRID[-1]] * groups
    assert (found == start) == (part >= 1 or start == [GRID[-1]] * groups)
    again = nearer(planner, found, left(found), part * share)
    assert again == found


@given(st.integers(0, 10**6))
def test_a_single_step_is_the_cheapest_for_what_it_saves(seed: int) -> None:
    rng = np.random.default_rng(seed)
    planner = planner_of(rng.random(4) + 0.01, rng.random(4) + 0.1)
    start = [4, 0, 4, 0]
    found = nearer(planner, start, 1.0, 1.0 - 1e-9)  # any step is enough
    changed = [g for g in range(4) if found[g] != start[g]]
    assert len(changed) == 1

    def price(counts: list[int]) -> float:
        saved = planner.predicted(start) - planner.predicted(counts)
        return float((planner.measured(counts) - planner.measured(start)) / saved)

    every = [[to if i == g else n for i, n in enumerate(start)] for g in range(4) for to in planner.steps(g, start[g])]
    assert price(found) <= min(price(counts) for counts in every) + 1e-12


@pytest.mark.parametrize("bias", [1.0, 1.05])
def test_what_was_measured_too_short_gives_a_few_more_units_and_is_then_within(
    monkeypatch: pytest.MonkeyPatch, bias: float
) -> None:
    planner = planner_of([0.3, 0.2, 0.1], [1.0, 1.0, 1.0])
    planner.problem = SimpleNamespace(groups=[16] * 3)
    true = lambda counts: planner.predicted(counts) / 3.0  # noqa: E731
    clock = SimpleNamespace(sure=lambda counts, times: bias * true(counts))
    monkeypatch.setattr(depth, "Clock", lambda problem: clock)
    monkeypatch.setattr(depth, "_ends", lambda first, start, planner, limit, seconds, clock: [start])
    start = [4, 4, 4]  # leaves 0.75
    target = 0.75 / depth.SAFE
    found = depth._exchanged(depth.Plan(planner.problem, start, 0.0), planner, target, 1.0)
    assert all(bias * true(plan.counts) <= depth.SAFE * target + 1e-12 for plan in found)
    assert all(one >= n for plan in found for one, n in zip(plan.counts, start, strict=True))
    assert (found[0].counts == start) == (bias == 1.0)
    assert all(plan.within for plan in found)
    assert not any(plan.within for plan in depth._exchanged(found[0], planner, 0.1, 1.0))  # no cut is as small as that
