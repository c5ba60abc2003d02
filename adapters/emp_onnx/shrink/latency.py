"""Latency of models in onnxruntime, in turn, so that a slow spell hits all alike; all at one pace of the processor.

A core that another thread's work shares (another user's, often) runs what is between products at two thirds of its
pace, and products hardly slower. So a small model is slower there beside a large one: the ratio of one pair was .42 in
some seconds and .47 in others. Of a hundred cuts that are measured, those would be taken that met a fast spell. So a
loop that multiplies nothing is timed beside every run, and runs at the usual pace are what counts: the faster one, if
a quarter of the time is spent there, for that is the latency on a core of one's own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.axes.trace import Runner

__all__ = ["alike", "latencies", "pace", "share", "together"]

FINE = time.get_clock_info("thread_time").resolution < 1e-6  # seconds; coarse on some systems
BUILDS = 3  # sessions of each model
ROUNDS = (5, 1000)  # of each session, at least and at most; at least so many at the usual pace
PATIENCE = 4.0  # times as long as was asked for runs at the usual pace
BATCH, SLOW = 16, 20e3  # feeds at once; microseconds for so many that are too long to be measured each time
LOOP = 300  # steps of the loop that tells the pace
USUAL = 25  # percentile of the paces of lots of runs that is the usual one
SAME = 1.25  # times as long, or as short, the loop may take: what differs more is another pace
QUARTER = 25  # percentile of runs: beside other work some are held up, by more than any is too short
Wide = NDArray[np.float64]
PACES: deque[float] = deque(maxlen=400)  # seconds of the loop, the median of each lot of runs of this process


def latencies(models: Sequence[Any], feeds: Sequence[Feed], *, seconds: float = 2.0, threads: int = 1) -> list[float]:
    """Microseconds of a run of each model, taken in turn for about `seconds` in all: mean over feeds.

    On one thread it is that thread's own time on the processor that counts: alone on a machine it is the latency, and
    other work there adds little to it. Where a session happens to lie in memory moves the time of a small model by
    some hundredths, so there are several of each model, as long as there is time, and their median counts.
    """
    clock = time.thread_time if threads == 1 and FINE else time.perf_counter
    feeds = feeds[:4]
    found: list[Wide] = []
    start = time.perf_counter()
    while len(found) < BUILDS and (not found or time.perf_counter() - start < seconds):
        runners = [Runner(model, threads=threads) for model in models]
        found.append(_timed(runners, feeds, seconds / BUILDS, clock))
    return [float(t) * 1e6 for t in np.median(found, 0)]


def share(source: Any, model: Any, feeds: Sequence[Feed], *, seconds: float) -> float:
    """A model's share of the source's latency: where the source leaves the batch open, and many are not slow, the
    larger one of that for one feed and for sixteen at once, since what is saved between products shows less there."""
    feeds = feeds[:2]
    before, after = latencies([source, model], feeds, seconds=seconds)
    many = together(source, feeds[0], BATCH) if before * BATCH < SLOW else None
    if many is None:
        return after / before
    one, other = latencies([source, model], [many], seconds=seconds / 2)
    return max(after / before, other / one)


def together(model: Any, feed: Feed, count: int) -> dict[str, NDArray[Any]] | None:
    """A feed so many times along the first axis, where all inputs leave that open by one name; else None."""
    firsts = {
        i.name: i.type.tensor_type.shape.dim[0].dim_param
        for i in model.graph.input
        if i.type.tensor_type.shape.dim and i.name in feed
    }
    values = {name: np.asarray(value) for name, value in feed.items()}
    if len(set(firsts.values())) != 1 or not all(firsts.values()) or any(len(values[name]) != 1 for name in firsts):
        return None
    return {name: np.repeat(value, count, 0) if name in firsts else value for name, value in values.items()}


def pace(*more: float) -> float:
    """Seconds of the loop at the usual pace, as far as this process has seen; 0 where it has seen none."""
    return float(np.percentile([*PACES, *more], USUAL)) if PACES or more else 0.0


def alike(one: float, other: float) -> bool:
    """Whether two times of the loop are of one pace.

    >>> alike(8.0, 8.8), alike(8.0, 5.2)
    (True, False)
    """
    return max(one, other) <= SAME * min(one, other)


def _timed(runners: Sequence[Runner], feeds: Sequence[Feed], seconds: float, clock: Callable[[], float]) -> Wide:
    """Seconds of a run of each: the lower quartile of those at the usual pace, the mean over feeds; of all where none
    was seen in time."""
    for runner in runners:
        for feed in feeds:
            runner(feed)
    rows: list[list[list[float]]] = [[] for _ in feeds]
    loops: list[list[float]] = [[] for _ in feeds]
    start, rounds = time.perf_counter(), 0
    while True:
        for j, feed in enumerate(feeds):
            loops[j].append(_loop(clock))
            row = []
            for runner in runners:
                begin = clock()
                runner(feed)
                row.append(clock() - begin)
            rows[j].append(row)
        rounds += 1
        spent = time.perf_counter() - start
        if rounds < ROUNDS[0] or (spent < seconds and rounds < ROUNDS[1]):
            continue
        last = _loop(clock)
        usual = pace(float(np.median([*np.concatenate(loops), last])))
        lots = [
            (np.array(row), np.array([alike(a, usual) and alike(b, usual) for a, b in pairwise([*loop, last])]))
            for row, loop in zip(rows, loops, strict=True)
        ]
        if spent > PATIENCE * seconds or all(held.sum() >= ROUNDS[0] for _, held in lots):
            break
    PACES.append(float(np.median(np.concatenate(loops))))
    return np.asarray(
        np.mean([np.percentile(lot[held] if held.any() else lot, QUARTER, axis=0) for lot, held in lots], 0)
    )


def _loop(clock: Callable[[], float]) -> float:
    """Seconds of a loop that multiplies nothing."""
    begin, total = clock(), 0
    for i in range(LOOP):
        total += i
    return clock() - begin
