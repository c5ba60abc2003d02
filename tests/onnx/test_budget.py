"""The search for an amount: along a power law, and on feeds that are kept back in turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from emp_onnx import Budget, UsageError, load
from emp_onnx.budget.point import Point
from emp_onnx.budget.search import FEW, search
from emp_onnx.budget.slope import Slope
from emp_onnx.budget.turns import TURNS, Turns
from emp_onnx.refit.fitting import Fitting, Thin
from emp_onnx.refitting import refit
from tests.onnx.test_refit import feeds, network


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "in.onnx"
    onnx.save(network(), file)
    return file


@example(100, 0.5, 1.0, 0.5, 1.0)  # 45 lies between 44 and 48, and rounds to one of them
@example(4868, 0.5, 0.046875, 0.3125, 1.0)  # the fewest are more than the aim, and within
@given(st.integers(100, 10**7), st.floats(0.5, 9), st.floats(1e-4, 10), st.floats(1e-4, 0.5), st.floats(0.05, 1))
def test_a_power_law_is_followed_to_where_the_budget_ends(
    total: int, power: float, factor: float, most: float, first: float
) -> None:
    fewest = max(1, round(0.02 * total))

    def loss(keep: int) -> float:
        return factor * ((total / keep) ** power - 1)

    slope = Slope(total, fewest, most, 0.9 * most)
    looks = 0
    while (keep := slope.next(round(first * total))) is not None:
        looks += 1
        assert fewest <= keep < total
        assert keep not in slope.seen
        slope.seen[keep] = loss(keep)
    assert looks < 30
    best = slope.best
    assert best == total or loss(best) <= most
    fewer = round(best * 0.97) - 2
    assert fewer < fewest or loss(fewer) > most


@given(st.dictionaries(st.integers(1, 99), st.floats(0, 1), max_size=9), st.floats(0, 1))
def test_the_best_is_within_and_nothing_beyond_it_was_not(seen: dict[int, float], most: float) -> None:
    best = Slope(100, 2, most, most, seen).best
    assert best == 100 or seen[best] <= most
    assert all(loss <= most for keep, loss in seen.items() if keep >= best)


@pytest.mark.parametrize("count", [40, 3, 1])
def test_every_feed_is_kept_back_once_and_is_not_learnt_from(path: Path, count: int) -> None:
    given = feeds(count)
    turns = Turns(Fitting(load(path), given), how="emp", criterion="obs", update=True)
    assert sorted(i for share in turns.shares for i in share) == list(range(count))
    assert len(turns.shares) == min(count, TURNS)
    for turn, share in enumerate(turns.shares):
        part = turns._part(turn)
        ids = [id(feed) for feed in part.kept_back]
        assert ids == [id(turns.fitting.kept_back[i]) for i in share]
        if count > 1:
            assert not set(ids) & {id(feed) for feed in part.network.feeds}
            assert len(part.network.feeds) + len(share) == count
    assert len(turns.fitting.network.feeds) == count


@pytest.mark.parametrize("density", [0.1, 0.4, 0.9])
def test_a_turn_answers_as_a_fitting_without_its_feeds_does(path: Path, density: float) -> None:
    given = feeds(12)
    turns = Turns(Fitting(load(path), given), how="emp", criterion="obs", update=True)
    keep, share = round(density * turns.fitting.total), turns.shares[1]
    alone = Fitting(load(path), [feed for i, feed in enumerate(given) if i not in share])
    thin, part = alone.thin(keep, how="emp"), turns._part(1)
    one = alone.answers(thin.changed, [given[i] for i in share])
    for a, b in zip(one, part.answers(part.thin(keep, how="emp").changed, part.kept_back), strict=True):
        np.testing.assert_allclose(a[0], b[0], rtol=1e-4, atol=1e-5)


def test_what_is_found_is_within_on_all_feeds(path: Path) -> None:
    fitting = Fitting(load(path), feeds())
    for budget in (Budget(drop=0.05), Budget(drop=0.05, drop_in="agreement"), Budget(error=0.1)):
        tried = search(fitting, budget, criterion="magnitude")
        assert tried.within
        assert tried.point.feeds == len(feeds())
        assert budget.lost(tried.point, tried.curve[0]) <= budget.most
        assert 0 < tried.point.sparsity == tried.thin.sparsity < 1


def test_turns_may_be_taken_some_now_and_the_others_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitting, free = Fitting(load(path), feeds()), Budget(error=1.0)
    keep = fitting.total // 2
    at_once = Turns(fitting, how="emp", criterion="obs", update=True).point(keep, free)
    monkeypatch.setattr("emp_onnx.budget.turns.LARGE", 0)
    turns = Turns(fitting, how="emp", criterion="obs", update=True)
    some = turns.point(keep, free)
    assert some.feeds == sum(map(len, turns.shares[: turns.taken])) < len(feeds())
    fits = count_fits(monkeypatch)
    assert turns.point(keep, free) == some
    assert not fits
    assert turns.point(keep, free, every=True) == at_once
    assert len(fits) == TURNS - turns.taken
    assert turns.point(keep, free, every=True) == at_once  # from the start, as nothing is kept of it
    assert len(fits) == 2 * TURNS - turns.taken


def count_fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    fits: list[int] = []
    real = Fitting.thin

    def thin(self: Fitting, keep: int, **how: Any) -> Thin:
        fits.append(keep)
        return real(self, keep, **how)

    monkeypatch.setattr(Fitting, "thin", thin)
    return fits


@pytest.mark.parametrize("budget", [Budget(drop=0.05), Budget(error=0.1), Budget(error=0.02)])
def test_of_large_networks_what_is_found_is_within_on_all_feeds_too(
    path: Path, monkeypatch: pytest.MonkeyPatch, budget: Budget
) -> None:
    monkeypatch.setattr("emp_onnx.budget.turns.LARGE", 0)
    monkeypatch.setattr("emp_onnx.budget.search.LARGE", 0)
    fitting = Fitting(load(path), feeds())
    fits = count_fits(monkeypatch)
    tried = search(fitting, budget, criterion="magnitude")
    assert tried.within
    assert tried.point.feeds == len(feeds())
    assert budget.lost(tried.point, tried.curve[0]) <= budget.most
    assert 0 < tried.point.sparsity == tried.thin.sparsity < 1
    assert len(fits) <= TURNS * (2 * FEW) + len(tried.curve)


def test_an_amount_that_only_the_first_turns_bear_out_is_not_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the feeds lose nothing up to 60 %, and all of them lose too much from 40 % on."""
    monkeypatch.setattr("emp_onnx.budget.turns.LARGE", 0)
    monkeypatch.setattr("emp_onnx.budget.search.LARGE", 0)
    fitting, budget = Fitting(load(path), feeds()), Budget(error=0.1)
    total = fitting.total

    def point(self: Turns, keep: int, budget: Budget, *, every: bool = False) -> Point:
        sparsity = 1 - keep / total
        lost = 0.0 if sparsity < (0.4 if every else 0.6) else 0.5
        return Point(sparsity, 1.0, lost, feeds=len(feeds()) // (1 if every else 2))

    monkeypatch.setattr(Turns, "point", point)
    monkeypatch.setattr(Turns, "whole", lambda self, thin: Point(thin.sparsity, 1.0, 0.0, feeds=len(feeds())))
    tried = search(fitting, budget, criterion="magnitude")
    assert tried.point.feeds == len(feeds())
    assert 0 < tried.point.sparsity < 0.4


def test_a_last_fit_that_fails_is_not_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it comes that the fit to all feeds is worse than those to three quarters of them."""
    fitting, budget, last = Fitting(load(path), feeds()), Budget(error=0.1), Turns.thin
    usual = search(fitting, budget, criterion="magnitude")
    asked: list[int] = []

    def thin(self: Turns, keep: int) -> Thin:
        asked.append(keep)
        good = last(self, keep)
        if len(asked) > 1:
            return good
        return Thin({key: 0 * value for key, value in good.changed.items()}, good.masks, good.notes)

    monkeypatch.setattr(Turns, "thin", thin)
    tried = search(fitting, budget, criterion="magnitude")
    assert tried.within
    assert asked == sorted(asked)
    assert tried.thin.sparsity == tried.point.sparsity < usual.thin.sparsity
    assert (
        budget.lost(Turns(fitting, how="error", criterion="magnitude", update=True).whole(tried.thin), tried.curve[0])
        <= 0.1
    )


@pytest.mark.parametrize("given", ["error", "score"])
def test_a_budget_that_allows_nothing(path: Path, tmp_path: Path, given: str) -> None:
    falling = iter(range(99, 0, -1))
    budget = Budget(error=0.0) if given == "error" else Budget(drop=0.0, score=lambda _: float(next(falling)))
    with pytest.raises(UsageError, match=r"max_\w+ must allow some weights to be removed, got 0: at .*% sparsity"):
        refit(path, tmp_path / "a.onnx", feeds=feeds(), budget=budget, criterion="magnitude")
    assert not (tmp_path / "a.onnx").exists()
