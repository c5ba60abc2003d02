"""Latency, load time and memory of models side by side: all in turn, so that a slow spell hits all alike."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np

from emp_onnx.errors import ModelError, UsageError, quote
from emp_onnx.fused.engine import Engine, open_engine
from emp_onnx.runtime.feeds import Feed, Input, check_feed, random_feeds
from emp_onnx.runtime.ort import first_line

__all__ = ["Measured", "Timing", "bench", "feeds_for", "inputs_of"]

SECONDS = 1.0  # for each model, batch size and number of threads
LEAST_RUNS = 5


@dataclass(frozen=True)
class Timing:
    """Latency of one model on one feed.

    Attributes:
        batch: size of the first axis of the inputs, or None where the feeds were given.
        threads: of onnxruntime.
        median, low, high: milliseconds; low and high are the quartiles of the runs.
        runs: how many there were.
        speed: median of the first model divided by this one's.
    """

    batch: int | None
    threads: int
    median: float
    low: float
    high: float
    runs: int
    speed: float


@dataclass(frozen=True)
class Measured:
    """One model by one path.

    Attributes:
        model: its path.
        path: how it ran, in words.
        file: bytes of the file and of its sidecars.
        load: milliseconds to open it, in a process of its own; the median of three.
        resident: bytes of memory that the process holds more than before, once it has loaded the model and run it once.
        timings: for each batch size and number of threads.
    """

    model: str
    path: str
    file: int
    load: float
    resident: int
    timings: tuple[Timing, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain data.

        Example:
            >>> Measured("m.onnx", "onnxruntime alone", 10, 1.0, 0, ()).to_dict()["file"]
            10
        """
        return asdict(self)


def inputs_of(engine: Engine, /) -> tuple[Input, ...]:
    """What a model declares."""
    found = []
    for item in engine.session.get_inputs():
        dims = tuple(d if isinstance(d, str) or (isinstance(d, int) and d > 0) else None for d in item.shape or ())
        found.append(Input(item.name, item.type, dims))
    return tuple(found)


def feeds_for(engine: Engine, batch: int, /, *, seed: int = 0) -> dict[str, Any]:
    """A made-up feed with `batch` samples on which the model runs.

    Raises:
        UsageError: an input that cannot be made up, or none found on which the model runs.
    """
    declared = inputs_of(engine)
    if batch > 1 and not any(item.shape and not isinstance(item.shape[0], int) for item in declared):
        raise UsageError(f"batch sizes must be 1 for a model whose first axis is fixed, got {batch}")
    fixed = tuple(
        Input(item.name, item.type, (batch, *item.shape[1:]))
        if item.shape and not isinstance(item.shape[0], int)
        else item
        for item in declared
    )
    attempts = random_feeds(fixed, seed=seed, count=1)
    why = "no size that fits"
    for feed in chain.from_iterable(attempts):
        try:
            engine.session.run(None, feed)
            return feed
        except Exception as error:  # onnxruntime's own errors have no common base
            why = first_line(error)
    raise UsageError(f"made-up feeds do not fit the model ({why}); give feeds")


def bench(
    models: Sequence[str | os.PathLike[str]],
    /,
    *,
    feed: Feed | None = None,
    batch: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    kernels: str = "both",
    seconds: float = SECONDS,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Measured]:
    """Measure models side by side; the first is what the others are compared with.

    Args:
        models: paths. All must take the same inputs.
        feed: one feed by name of input; made up if not given.
        batch: sizes of the first axis of made-up feeds.
        threads: numbers of threads.
        kernels: both, on, off, or auto. With both, a packed model with weights for kernels is measured twice.
        seconds: for each model, batch size and number of threads.
        seed: of made-up feeds.
        clock: what counts seconds.

    Raises:
        UsageError: an option out of its range, or a feed that does not fit.
        ModelError: a model that onnxruntime does not run.

    Example:
        >>> bench(["missing.onnx"])
        Traceback (most recent call last):
            ...
        emp_onnx.errors.ModelError: model must be an ONNX file, got 'missing.onnx', which does not exist
    """
    if not models:
        raise UsageError("models must be at least one, got none")
    if kernels not in ("both", "auto", "on", "off"):
        raise UsageError(f"kernels must be both, auto, on or off, got {kernels!r}")
    named: list[tuple[str, str]] = []
    for model in [str(os.fspath(model)) for model in models]:
        for way in ("off", "auto") if kernels == "both" else (kernels,):
            if way == "auto" and kernels == "both" and not open_engine(model, threads=1).kernels:
                continue
            named.append((model, way))
    timings: dict[int, list[Timing]] = {i: [] for i in range(len(named))}
    notes: dict[int, str] = {}
    for count in threads:
        engines = [open_engine(model, kernels=way, threads=count) for model, way in named]
        notes.update({i: engine.note for i, engine in enumerate(engines)})
        for size in batch if feed is None else (None,):
            fed = _fed(engines, named, feed, size, seed)
            for i, timing in enumerate(_timed(engines, fed, size, count, seconds, clock)):
                timings[i].append(timing)
        del engines
    out = []
    for i, (model, way) in enumerate(named):
        load, resident = _alone(model, way, threads[0], batch[0] if feed is None else None, feed)
        out.append(Measured(model, notes[i], _file_bytes(model), load, resident, tuple(timings[i])))
    return out


def _fed(
    engines: Sequence[Engine], named: Sequence[tuple[str, str]], feed: Feed | None, size: int | None, seed: int
) -> Feed:
    fed = feed if feed is not None else feeds_for(engines[0], size or 1, seed=seed)
    for engine, (model, _) in zip(engines, named, strict=True):
        try:
            check_feed(fed, inputs_of(engine), 0)
        except UsageError as error:
            raise UsageError(f"models must take the same inputs: {error}, by {quote(model)}") from error
        try:
            engine.session.run(None, dict(fed))
        except Exception as error:  # as above
            raise ModelError(f"onnxruntime cannot run {quote(model)}: {first_line(error)}") from error
    return fed


def _timed(
    engines: Sequence[Engine], feed: Feed, size: int | None, threads: int, seconds: float, clock: Callable[[], float]
) -> Iterator[Timing]:
    spent: list[list[float]] = [[] for _ in engines]
    until = time.perf_counter() + seconds * len(engines)
    while time.perf_counter() < until or len(spent[0]) < LEAST_RUNS:
        for engine, taken in zip(engines, spent, strict=True):
            start = clock()
            engine.session.run(None, dict(feed))
            taken.append(clock() - start)
    medians = [statistics.median(taken) for taken in spent]
    for taken, median in zip(spent, medians, strict=True):
        low, _, high = statistics.quantiles(taken, n=4)
        yield Timing(size, threads, median * 1e3, low * 1e3, high * 1e3, len(taken), medians[0] / max(median, 1e-12))


def _file_bytes(model: str) -> int:
    from emp_onnx.files.model_io import load

    return os.path.getsize(model) + sum(os.path.getsize(path) for path in load(model).sidecars().values())


_CHILD = """
import json, sys, time
import numpy as np
import onnxruntime
from emp_onnx.fused.bench import feeds_for, resident_bytes
from emp_onnx.fused.engine import open_engine
model, kernels, threads, batch, feeds = json.loads(sys.argv[1])
before, start = resident_bytes(), time.perf_counter()
engine = open_engine(model, kernels=kernels, threads=threads)
load = time.perf_counter() - start
feed = dict(np.load(feeds)) if feeds else feeds_for(engine, batch or 1)
engine.session.run(None, feed)
sys.stdout.write(json.dumps([load * 1e3, resident_bytes() - before]))
"""


def resident_bytes() -> int:
    """Memory that this process holds now; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _alone(model: str, way: str, threads: int, batch: int | None, feed: Feed | None) -> tuple[float, int]:
    """Load time and memory, from processes that do nothing else: the medians of three."""
    import tempfile

    loads, sizes = [], []
    with tempfile.TemporaryDirectory() as scratch:
        feeds = os.path.join(scratch, "feed.npz") if feed is not None else ""
        if feed is not None:
            np.savez(feeds, allow_pickle=False, **{name: np.asarray(value) for name, value in feed.items()})
        for _ in range(3):
            asked = json.dumps([model, way, threads, batch, feeds])
            done = subprocess.run(
                [sys.executable, "-c", _CHILD, asked], capture_output=True, text=True, env=_environment()
            )
            if done.returncode:
                raise ModelError(
                    f"onnxruntime cannot run {quote(model)}: {(done.stderr.strip().splitlines() or [''])[-1]}"
                )
            load, size = json.loads(done.stdout.splitlines()[-1])
            loads.append(load)
            sizes.append(size)
    return statistics.median(loads), int(statistics.median(sizes))


def _environment() -> Mapping[str, str]:
    """Children find the same packages as this process."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
