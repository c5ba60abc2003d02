"""A cut made better at the same latency: units of one group come back for units of another, by measurement.

A path of cuts is greedy, and what it goes by is predicted: errors of groups do not add up, and latency goes in steps
that are a kernel's own. So from where the path ends, one group after the other is tried a step larger and a step
smaller, by itself; then those pairs that promise most are tried together. A pair stays if the measured error is less
and the measured latency within what was asked.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from emp_onnx.shrink.latency import alike, pace, share
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.search.choose import Planner

__all__ = ["Clock", "exchange"]

LEVELS = 2  # steps up or down that are tried of one group
TRIED = 24  # moves and pairs measured in a round
HOPE = 1.1  # of the error: a pair that promises no more than this is not tried
DOUBT = 0.02  # so near a limit one measurement does not tell; two do
NEAR = 1.2  # of the least error: what is as good, for all that so few feeds show
TINY = 1e-9  # errors are compared as shares
LESS = 0.99  # of the error: what counts as better
SLACK = 1.03  # of the latency asked for: what is predicted to take more is not measured
Counts = tuple[int, ...]
Move = tuple[float, float, list[tuple[int, int]]]  # shares of error and cost left; how many of which groups go


@dataclass
class Clock:
    """Shares of the source's latency that cuts leave, each measured once; again where another pace of the processor was
    the usual one then (`latency.py`)."""

    problem: Problem
    seconds: float = 0.25
    seen: dict[Counts, Timed] = field(default_factory=dict)

    def share(self, counts: Counts, limit: float = 0.0) -> float:
        """Of one cut; infinite where it leaves an axis empty. Near a limit it is measured more than once."""
        known = self.seen.get(counts)
        if known is None or not alike(known.pace, pace()):
            if self.problem.masks(counts) is None:
                return float("inf")
            self.seen[counts] = self._timed(counts, self.seconds)
            if limit and abs(self.seen[counts].share / limit - 1) < DOUBT:
                self.sure(counts, 1.0)
        return self.seen[counts].share

    def sure(self, counts: Counts, times: float) -> float:
        """The same once more, for so many times as long: the mean of all."""
        if self.share(counts) < float("inf"):
            self.seen[counts] = self.seen[counts].also(self._timed(counts, times * self.seconds))
        return self.share(counts)

    def _timed(self, counts: Counts, seconds: float) -> Timed:
        masks = self.problem.masks(counts) or {}
        model = self.problem.finish(self.problem.cut(masks))
        return Timed(share(self.problem.source, model, self.problem.feeds, seconds=seconds), seconds, pace())


@dataclass(frozen=True)
class Timed:
    """A share of a latency, from measurements of so many seconds, at this pace of the processor."""

    share: float
    seconds: float
    pace: float

    def also(self, other: Timed) -> Timed:
        """Both measurements as one."""
        every = self.seconds + other.seconds
        return Timed((self.share * self.seconds + other.share * other.seconds) / every, every, other.pace)


def exchange(
    planner: Planner, start: list[int], target: float, *, seconds: float = 60.0, best: int = 1,
    clock: Clock | None = None,
) -> list[list[int]]:  # fmt: skip
    """Counts of least measured error that are found around `start` within `target` of the source's latency; `best` of
    them at most, the least first.

    Args:
        planner: what measures errors and predicts costs.
        start: how many units of each group go.
        target: share of the source's latency that may be left.
        seconds: of the processor, after which no round begins. Where measuring every move would take more than a
            quarter of it, what is predicted says which pairs promise most.
        best: how many.
        clock: what has measured latencies of the problem before.
    """
    clock = Clock(planner.problem) if clock is None else clock
    now, end = tuple(start), time.process_time() + seconds
    errors = {now: max(planner.measured(now), TINY)}

    def error(counts: Counts) -> float:
        if counts not in errors:
            errors[counts] = max(planner.measured(counts), TINY)
        return errors[counts]

    share, failed = clock.share(now, target), set[Counts]()
    begin = time.process_time()
    planner.measure(now)  # anew: what is known takes no time
    slow = (time.process_time() - begin) * len(_moves(planner, now)) > seconds / 4
    while time.process_time() < end:
        whole = planner.predicted(now)
        worth: list[Move] = []
        for g, to in _moves(planner, now):
            counts = _with(now, [(g, to)])
            if time.process_time() < end and (cost := planner.predicted(counts)) < np.inf:
                ratio = planner.guessed(counts) / planner.guessed(now) if slow else error(counts) / errors[now]
                worth.append((ratio, cost / whole, [(g, to)]))
        pairs = [
            (a[0] * b[0], a[1] * b[1], a[2] + b[2])
            for i, a in enumerate(worth) for b in worth[i + 1 :] if a[2][0][0] != b[2][0][0]
        ]  # fmt: skip
        limit = max(target, share if share > target else 0.0)
        tries = [t for t in (*worth, *pairs) if t[0] < HOPE and share * t[1] <= limit * SLACK]
        found: list[tuple[float, Counts]] = []
        for _, _, changes in sorted(tries, key=lambda t: t[0])[:TRIED]:
            counts = _with(now, changes)
            if time.process_time() > end:
                break
            if counts not in failed and planner.predicted(counts) < np.inf and error(counts) <= LESS * errors[now]:
                found.append((errors[counts], counts))
        better = None
        for _, counts in sorted(found):
            if clock.share(counts, limit) <= limit:
                better = counts
                break
            failed.add(counts)
        if better is None:
            break
        now, share = better, clock.share(better, limit)
    met = [counts for counts in errors if counts in clock.seen and clock.share(counts) <= max(target, share)]
    out = sorted({now, *met}, key=errors.__getitem__)[:best]
    for counts in sorted(errors, key=errors.__getitem__):  # others that are as good, measured now
        if len(out) >= best or errors[counts] > NEAR * errors[now] or time.process_time() > end:
            break
        if counts not in out and clock.share(counts, target) <= max(target, share):
            out.append(counts)
    return [list(counts) for counts in out]


def _with(counts: Counts, changes: list[tuple[int, int]]) -> Counts:
    out = list(counts)
    for g, to in changes:
        out[g] = to
    return tuple(out)


def _moves(planner: Planner, counts: Counts) -> list[tuple[int, int]]:
    """One group each, some steps to fewer or to more units; of counts that cost the same, the least alone."""
    out = []
    for g, count in enumerate(counts):
        costs: dict[float, int] = {}
        for n in (0, *planner.round(g)):
            costs.setdefault(round(planner.predicted(_with(counts, [(g, n)])), 3), n)
        grid = sorted({*costs.values()} - {count})
        above = [n for n in grid if n > count][:LEVELS]
        below = [n for n in grid if n < count][::-1][:LEVELS]
        out += [(g, n) for n in (*above, *below)]
    return out
