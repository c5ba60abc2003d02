"""Latency of models in onnxruntime, in turn, so that a slow spell hits all alike: the least of many runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.trace import Runner

__all__ = ["latencies"]

FINE = time.get_clock_info("thread_time").resolution < 1e-6  # seconds; coarse on some systems


def latencies(models: Sequence[Any], feeds: Sequence[Feed], *, seconds: float = 2.0, threads: int = 1) -> list[float]:
    """Microseconds of a run of each model: mean over feeds of the least of runs taken in turn for about `seconds` in
    all. On one thread it is that thread's own time on the processor that counts: alone on a machine it is the latency,
    and other work there adds little to it."""
    clock = time.thread_time if threads == 1 and FINE else time.perf_counter
    runners = [Runner(model, threads=threads) for model in models]
    feeds = feeds[:4]
    best = np.full((len(runners), len(feeds)), np.inf)
    for runner in runners:
        for feed in feeds:
            runner(feed)
    start, rounds = time.perf_counter(), 0
    while rounds < 5 or (time.perf_counter() - start < seconds and rounds < 3000):
        for j, feed in enumerate(feeds):
            for i, runner in enumerate(runners):
                begin = clock()
                runner(feed)
                best[i, j] = min(best[i, j], clock() - begin)
        rounds += 1
    return [float(b) * 1e6 for b in best.mean(1)]
