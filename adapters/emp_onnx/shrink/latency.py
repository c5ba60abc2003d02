"""Latency of models in onnxruntime, in turn, so that a slow spell hits all alike: the least of many runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.axes.trace import Runner

__all__ = ["latencies"]

FINE = time.get_clock_info("thread_time").resolution < 1e-6  # seconds; coarse on some systems
BUILDS = 3  # sessions of each model
ROUNDS = (5, 1000)  # of each session, at least and at most


def latencies(models: Sequence[Any], feeds: Sequence[Feed], *, seconds: float = 2.0, threads: int = 1) -> list[float]:
    """Microseconds of a run of each model: mean over feeds of the least of runs taken in turn for about `seconds` in
    all.

    On one thread it is that thread's own time on the processor that counts: alone on a machine it is the latency, and
    other work there adds little to it. Where a session happens to lie in memory moves the time of a small model by
    some hundredths, so there are several of each model, as long as there is time, and their mean counts.
    """
    clock = time.thread_time if threads == 1 and FINE else time.perf_counter
    feeds = feeds[:4]
    found: list[Any] = []
    start = time.perf_counter()
    while len(found) < BUILDS and (not found or time.perf_counter() - start < seconds):
        runners = [Runner(model, threads=threads) for model in models]
        found.append(_least(runners, feeds, seconds / BUILDS, clock))
    return [float(t) * 1e6 for t in np.mean(found, 0)]


def _least(runners: Sequence[Runner], feeds: Sequence[Feed], seconds: float, clock: Callable[[], float]) -> Any:
    """Seconds of a run of each, the mean over feeds of the least."""
    best = np.full((len(runners), len(feeds)), np.inf)
    for runner in runners:
        for feed in feeds:
            runner(feed)
    start, rounds = time.perf_counter(), 0
    while rounds < ROUNDS[0] or (time.perf_counter() - start < seconds and rounds < ROUNDS[1]):
        for j, feed in enumerate(feeds):
            for i, runner in enumerate(runners):
                begin = clock()
                runner(feed)
                best[i, j] = min(best[i, j], clock() - begin)
        rounds += 1
    return best.mean(1)
