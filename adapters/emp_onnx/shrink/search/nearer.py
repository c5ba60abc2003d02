"""A cut that was measured too long, made a little smaller: a few more units go, as many as are needed."""

from __future__ import annotations

from emp_onnx.shrink.search.choose import Planner

__all__ = ["nearer"]

TRIED = 8  # steps of one group, those that are predicted to cost least, whose errors are measured


def nearer(planner: Planner, start: list[int], share: float, limit: float) -> list[int]:
    """Counts none of which is less than in `start`, predicted to take `limit`; `start` where that is within already.

    One step of one group after the other, each the one with the least measured error for what it is predicted to save;
    as far as there are steps.

    Args:
        planner: what measures errors and predicts costs.
        start: how many units of each group go.
        share: of the source's latency that `start` was measured to leave.
        limit: share to leave.
    """
    now = list(start)
    before = cost = planner.predicted(now)
    while share * cost / before > limit:
        steps: list[tuple[float, float, list[int]]] = []
        for g, count in enumerate(now):
            for to in planner.steps(g, count):
                counts = [to if i == g else n for i, n in enumerate(now)]
                saved = cost - planner.predicted(counts)
                if saved > 0:
                    steps.append(((planner.guessed(counts) - planner.guessed(now)) / saved, saved, counts))
        if not steps:
            break
        error = planner.measured(now)
        some = sorted(steps, key=lambda s: s[0])[:TRIED]
        _, now = min(((planner.measured(counts) - error) / saved, counts) for _, saved, counts in some)
        cost = planner.predicted(now)
    return now
