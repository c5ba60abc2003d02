"""Finding the amount: the most sparsity that a budget allows, or the least that a size asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from emp_onnx.budget.point import Budget, Point, Seal, measure
from emp_onnx.budget.slope import Slope
from emp_onnx.budget.turns import LARGE, Turns
from emp_onnx.refit.fitting import Fitting, Thin

__all__ = ["Tried", "in_turns", "search"]

MOST = 0.98  # sparsity beyond which no search goes
TRIES = 7  # amounts that are looked at; in turns twice as many where none of them is within
AIM, ENOUGH = 0.99, 0.98  # shares of the budget: what a step aims at, and from where on no further step is taken
FEW, NEARLY = 4, (0.9, 0.8)  # the same for large networks


@dataclass(frozen=True, eq=False)
class Tried:
    """The outcome: the model found, what was seen there, and all that was seen, by sparsity."""

    thin: Thin
    point: Point
    curve: tuple[Point, ...]
    within: bool


def in_turns(budget: Budget) -> bool:
    """Whether a budget is measured on all feeds, kept back in turn: what does not ask the finished model itself."""
    return budget.size is None and budget.score is None


def search(
    fitting: Fitting, budget: Budget, *, how: str = "error", criterion: str = "obs", update: bool = True,
    seal: Seal | None = None,
) -> Tried:
    """The most sparsity within the budget (of a size: the least that is small enough); or `within` is False and the
    outcome is as near as can be.

    Args:
        fitting: one that learns from all of its feeds (`held` 0) where `in_turns` holds.
        budget: what is asked for.
        how, criterion, update: see `Fitting.thin`.
        seal: makes the certificate that the file will have; its bytes count for a size.
    """
    if in_turns(budget):
        return _in_turns(fitting, budget, Turns(fitting, how=how, criterion=criterion, update=update))
    seen: dict[int, tuple[Thin, Point]] = {}
    n, sized = fitting.total, budget.size is not None

    def look(keep: int) -> Point:
        if keep not in seen:
            thin = fitting.thin(keep, how=how, criterion=criterion, update=update) if keep < n else _dense(fitting)
            seen[keep] = thin, measure(fitting, thin, score=budget.score, size=sized, seal=seal)
        return seen[keep][1]

    dense, fewest = look(n), max(1, round(n * (1 - MOST)))

    def within(keep: int) -> bool:
        return budget.lost(look(keep), dense) <= budget.most

    if sized:
        best = n if within(n) else _halved(n, fewest, within)
    else:
        best = _halved(fewest, n, within)
    done = within(best)
    curve = sorted((point for _, point in seen.values()), key=lambda point: point.sparsity)
    return Tried(*seen[best], tuple(curve), done)


def _halved(bad: int, good: int, within: Callable[[int], bool]) -> int:
    """The amount nearest to `bad`, coming from `good`, that is within."""
    if good < bad and not within(good):
        return good
    for _ in range(TRIES):
        middle = (bad + good) // 2
        bad, good = (bad, middle) if within(middle) else (middle, good)
    return good


def _dense(fitting: Fitting) -> Thin:
    return Thin({}, fitting.thin_masks())


def _in_turns(fitting: Fitting, budget: Budget, turns: Turns) -> Tried:
    """What a drop or an error allows, measured on feeds that are kept back in turn. The model is fitted to all of them
    in the end, at the least amount that was within the budget, if that model is within it too on these feeds, which it
    learnt from; else at the next."""
    n, points = fitting.total, {fitting.total: turns.dense}
    tries, (aim, enough) = (FEW, NEARLY) if n > LARGE else (TRIES, (AIM, ENOUGH))
    slope = Slope(n, max(1, round(n * (1 - MOST))), budget.most, aim * budget.most)

    def look(keep: int, every: bool) -> None:
        points[keep] = turns.point(keep, budget, every=every)
        slope.seen[keep] = budget.lost(points[keep], turns.dense)

    while True:
        best, looks = slope.best, len(points) - 1
        near = best < n and slope.seen[best] >= enough * budget.most
        keep = None
        if not near and (looks < tries or (best == n and looks < 2 * tries)):
            keep = slope.next(fitting.count())
        if keep is not None:
            look(keep, False)
        elif points[best].feeds != turns.dense.feeds:
            look(best, True)
        else:
            break
    for best in sorted(keep for keep in points if slope.best <= keep):
        thin = turns.thin(best) if best < n else _dense(fitting)
        if best == n or budget.lost(turns.whole(thin), turns.dense) <= budget.most:
            break
    curve = sorted(points.values(), key=lambda point: point.sparsity)
    return Tried(thin, replace(points[best], sparsity=thin.sparsity), tuple(curve), True)
