"""Budgets: the farthest point on a path of cuts that keeps what was asked, by measurement and not by prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from emp_onnx.errors import UsageError
from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.fitting.distance import agreement, output_error
from emp_onnx.shrink.latency import share
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.search.choose import Path, Planner

__all__ = ["MARGIN", "Budget", "fit_budget"]

FARTHER = 0.6  # of a target on latency: so far paths go, since predictions are not measurements
FLOOR = 0.08  # paths end here: a model with less of its cost left is none
TRIES = 9
SECONDS = 0.5  # of a measurement of latency
MARGIN = 0.96  # of a target on latency: what is measured to be within, another measurement finds so too, at most paces
CLOSE = 0.95  # of a target on latency: near enough not to look for a smaller cut
HALF = 0.6  # of the cost: where paths are compared when no target says where


@dataclass(frozen=True)
class Budget:
    """What was asked for; None where nothing was."""

    max_drop: float | None = None
    max_error: float | None = None
    latency: float | None = None
    flops: float | None = None
    size: float | None = None

    @property
    def any(self) -> bool:
        """Whether anything was asked for."""
        return any(v is not None for v in (self.max_drop, self.max_error, self.latency, self.flops, self.size))


def fit_budget(
    problem: Problem, planner: Planner, budget: Budget, build: Callable[[Any], Any], held: Sequence[Feed]
) -> list[int]:
    """Counts for each group, the most that the budget allows.

    Raises:
        UsageError: a target that no cut reaches, or a drop asked for where no output shows classes.
    """
    path = _target(problem, planner, budget)
    if budget.max_drop is None and budget.max_error is None:
        return path[-1][0]

    def within(counts: list[int]) -> bool:
        masks = problem.masks(counts)
        model = build(masks) if masks else problem.view.model
        if budget.max_error is not None and output_error(planner.dense, model, held) ** 0.5 > budget.max_error:
            return False
        if budget.max_drop is not None:
            share = agreement(planner.dense, model, held)
            if share is None:
                raise UsageError(
                    "max_drop must come with a model one of whose outputs are class scores, got none; use max_error"
                )
            return 1 - share <= budget.max_drop
        return True

    low, high = 0, len(path) - 1
    while low < high:  # errors grow along the path, up to noise; what is returned has been measured itself
        middle = (low + high + 1) // 2
        if within(path[middle][0]):
            low = middle
        else:
            high = middle - 1
    return path[low][0]


def _target(problem: Problem, planner: Planner, budget: Budget) -> Path:
    """The best of the paths to the target on latency, multiply-adds or size, or as far as paths go."""
    costs = planner.costs
    if budget.flops is not None:
        return _reached(planner, planner.paths(costs.total_flops, budget.flops), budget.flops, "target_flops")
    if budget.size is not None:
        paths = planner.paths(lambda masks: _bytes(problem, masks), budget.size)
        return _reached(planner, paths, budget.size, "target_size")
    paths = planner.paths(costs.total, FLOOR if budget.latency is None else budget.latency * FARTHER)
    if budget.latency is None:
        return _best(planner, [_until(path, HALF) for path in paths], paths)
    uncut = problem.settle()
    if uncut <= MARGIN * budget.latency:
        return [([0] * len(problem.groups), 1.0)]
    found: Path | None = None
    deep, shallow = 0.0, 1.0  # aims that were enough, and that were not
    aim, ratio = budget.latency / uncut, 1.0
    for _ in range(TRIES):
        path = _best(planner, [_until(path, aim) for path in paths])
        masks = problem.masks(path[-1][0])
        if masks:
            ratio = share(problem.source, problem.finish(problem.cut(masks)), problem.feeds, seconds=SECONDS)
        if masks and ratio <= MARGIN * budget.latency:
            found, deep = path, aim
            if ratio > CLOSE * MARGIN * budget.latency:
                break
        else:
            shallow = aim
        guess = aim * min(max(MARGIN * budget.latency / ratio, 0.7), 1.2 if found else 0.94)
        aim = guess if deep < guess < shallow else (deep + shallow) / 2
    if found is None:
        raise UsageError(
            f"target_latency must be one that a cut reaches, got {budget.latency:g}x; measured last: {ratio:.2f}x"
        )
    return found


def _until(path: Path, share: float) -> Path:
    """A path as far as the first point whose cost is at most this share."""
    return path[: next((i for i, (_, left) in enumerate(path) if left <= share), len(path) - 1) + 1]


def _best(planner: Planner, ends: list[Path], whole: list[Path] | None = None) -> Path:
    """The path with the least measured error at its end; of `whole`, the one it is a part of."""
    errors = [planner.measured(path[-1][0]) for path in ends]
    return (whole or ends)[errors.index(min(errors))]


def _reached(planner: Planner, paths: list[Path], until: float, name: str) -> Path:
    there = [path for path in paths if path[-1][1] <= until]
    if not there:
        least = min(path[-1][1] for path in paths)
        raise UsageError(f"{name} must be one that a cut reaches, got {until:g}x; the least is {least:.2f}x")
    return _best(planner, there)


def _bytes(problem: Problem, masks: Any) -> float:
    total = 0.0
    for name, values in problem.view.constants.items():
        size = float(values.itemsize)
        for axis, length in enumerate(values.shape):
            mask = masks.get((name, axis))
            size *= length if mask is None else length - int(mask.sum())
        total += size
    return total
