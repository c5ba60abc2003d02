"""Of which layers directions go, and how many: in the order of their price, each measured alone.

Steps are taken until the next would cost more than units do, or the target is met; then all are measured together,
and directions come back, the dearest first, as long as the target stays met.
"""

from __future__ import annotations

from collections.abc import Sequence

from emp_onnx.errors import ModelError
from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.cost import Costs
from emp_onnx.shrink.fitting.distance import misses
from emp_onnx.shrink.fitting.moments import moments
from emp_onnx.shrink.fitting.refit import Origin
from emp_onnx.shrink.lighter.thin import Split, Thin, find_thin, splittable
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.search.budget import MARGIN
from emp_onnx.shrink.search.judge import Judge

__all__ = ["thinner"]

LEAST = 0.003  # of the latency, at least, that one layer's split is likely to save
BACK = 16  # times that it is tried whether directions may come back
Step = tuple[Thin, float, float]  # a split, the share of latency it is likely to save, and its error


def thinner(problem: Problem, target: float, rate: float, fit: Sequence[Feed], judge: Judge) -> Problem:
    """With layers split in two thin ones, as long as that is worth it; arguments as in `lighten.opened`."""
    share, start = judge.share(problem), judge.error(problem)
    readers = splittable(problem.view, problem.readers)
    if not readers or share <= MARGIN * target:
        return problem
    thin = find_thin(problem.view, readers, moments(problem.view.model, readers, fit, threads=problem.threads))
    costs = Costs(problem.view, problem.trace, problem.feeds)
    whole, origin = costs.total({}), Origin(problem.view, tuple(problem.readers))
    options: dict[str, list[Step]] = {}
    for part in thin:
        saved = share * _saved(problem, costs, part) / whole
        if saved < LEAST:
            continue
        model = Split((part,)).made(problem.view, problem.readers, origin)[0]
        error = max(misses(judge.dense, model, judge.held, problem.threads) - start, 0.0)
        options.setdefault(part.weight, []).append((part, saved, error))
    chosen: dict[str, Step] = {}
    order: list[Step] = []
    while (step := _next(options, chosen, rate)) is not None:
        chosen[step[0].weight] = step
        order.append(step)
    best, count, falling, left = problem, _enough(order, share, MARGIN * target), False, share
    while count:
        chosen = {step[0].weight: step for step in order[:count]}
        try:
            other = _split(problem, chosen)
        except ModelError:
            break
        now, more = judge.share(other), judge.error(other) - start
        if more <= rate * (share - now):
            best, left = other, now
            if falling or left <= MARGIN * target or count == len(order):
                break
            count = min(count + max(1, count // 4), len(order))
        elif best is problem:  # together they cost more than each by itself
            count, falling = count * 3 // 4, True
        else:
            break
    return _back(problem, best, chosen, options, target, judge) if left <= MARGIN * target else best


def _back(
    problem: Problem, best: Problem, chosen: dict[str, Step], options: dict[str, list[Step]], target: float,
    judge: Judge,
) -> Problem:  # fmt: skip
    """Directions given back, those first that cost most for what they save, as long as the target is met: measured, for
    what steps save is a guess."""
    tries, better = BACK, True
    while better:
        better = False
        ways: list[tuple[float, dict[str, Step]]] = []
        for weight, step in chosen.items():
            less = [o for o in options[weight] if o[1] < step[1]]
            to = max(less, key=lambda o: o[1], default=(step[0], 0.0, 0.0))
            without = {w: s for w, s in chosen.items() if w != weight}
            price = (step[2] - to[2]) / (step[1] - to[1])
            if price > 0:
                ways.append((price, {**without, weight: to} if less else without))
        for _, way in sorted(ways, key=lambda w: -w[0])[:tries]:
            tries -= 1
            other = _split(problem, way) if way else problem
            if judge.share(other) <= MARGIN * target:
                best, chosen, better = other, way, True
                break
    return best


def _split(problem: Problem, chosen: dict[str, Step]) -> Problem:
    return problem.lighter(Split(tuple(step[0] for step in chosen.values())))


def _enough(order: list[Step], share: float, target: float) -> int:
    """How many of these steps are likely to meet a target; all, if that is too few."""
    saved: dict[str, float] = {}
    for count, (part, less, _) in enumerate(order, 1):
        saved[part.weight] = less
        if share - sum(saved.values()) <= target:
            return count
    return len(order)


def _next(options: dict[str, list[Step]], chosen: dict[str, Step], rate: float) -> Step | None:
    """The step, from what is chosen of one layer to fewer directions of it, with the least error for what it saves."""
    best: tuple[float, Step] | None = None
    for weight, parts in options.items():
        _, saved, error = chosen.get(weight, (None, 0.0, 0.0))
        for option in parts:
            if option[1] <= saved:
                continue
            price = max(option[2] - error, 0.0) / (option[1] - saved)
            if price <= rate and (best is None or price < best[0]):
                best = price, option
    return None if best is None else best[1]


def _saved(problem: Problem, costs: Costs, part: Thin) -> float:
    """Microseconds that a split is likely to save: of the work, less one more operation."""
    index = next(op.index for op in problem.view.ops if part.weight in op.inputs)
    outs = len(part.basis)
    ins = problem.view.constants[part.weight].size // outs
    overhead = min((t for t in costs.micros.values() if t > 0), default=0.0)
    time = max(costs.micros.get(index, 0.0) - overhead, 0.0)
    return time * (1 - part.rank * (outs + ins) / (outs * ins)) - overhead
