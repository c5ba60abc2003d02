"""Two models run in onnxruntime on the same feeds, and how far their outputs are apart."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from emp_onnx.errors import MissingExtraError, ModelError, UsageError, quote
from emp_onnx.files.model_io import Model
from emp_onnx.runtime import ort
from emp_onnx.runtime.feeds import Feed, Input, check_feed, random_feeds

__all__ = [
    "Behaviour",
    "CrashedError",
    "Difference",
    "NotRunError",
    "Session",
    "Sessions",
    "compare",
    "compare_runs",
    "declared",
    "runs_of",
]

RANDOM_FEEDS = 4
PATIENCE = 30.0  # seconds to look for made-up feeds that fit


class NotRunError(Exception):
    """The models were not run, and why; behaviour is then unknown, which is not the same as wrong."""


class CrashedError(NotRunError):
    """onnxruntime's process is gone, and with it every session there."""


@dataclass(frozen=True)
class Difference:
    """How far one output moved over all feeds.

    Attributes:
        name: of the output.
        max_abs: largest absolute difference.
        relative: ‖difference‖₂ / ‖original‖₂ over all feeds; 0 when both are zero, None when only the original is.
        top1: share of rows whose largest entry stayed the same, where the output looks like class scores, else None.
    """

    name: str
    max_abs: float
    relative: float | None
    top1: float | None


@dataclass(frozen=True)
class Behaviour:
    """Both models on the same feeds: how many, whether made up, the differences, and what went wrong after."""

    feeds: int
    random: bool
    outputs: tuple[Difference, ...]
    problems: tuple[str, ...] = ()


Run = tuple[Feed, dict[str, Any]]  # a feed, and the outputs for it by name
LIMIT = 10.0  # seconds that one run on made-up feeds may take


class Sessions(Protocol):
    """A model that can be run, here or in another process."""

    inputs: tuple[Input, ...]
    overridable: tuple[Input, ...]
    outputs: tuple[str, ...]

    def run(self, feed: Feed, /, limit: float | None = None) -> dict[str, Any]:
        """One run; see `Session.run`."""
        ...


class Session:
    """A model in onnxruntime on the CPU, in this process. Where the file may be anyone's, see `Isolated`.

    Raises:
        NotRunError: onnxruntime cannot load the model (an operation it does not have, say).
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, model: Model | Path, /, *, threads: int | None = None, plain: bool = False) -> None:
        try:
            source = str(model) if isinstance(model, Path) else model.to_bytes()
            self._session: Any = ort.open_session(source, threads, plain)
            facts = ort.facts(self._session)
        except ImportError as error:
            raise MissingExtraError("onnxruntime") from error
        except ModelError:
            raise
        except UnicodeDecodeError as error:
            raise NotRunError("its inputs and outputs have names or sizes that are no text") from error
        except Exception as error:  # onnxruntime's own errors have no common base
            raise NotRunError(f"onnxruntime cannot load it: {ort.first_line(error)}") from error
        self.inputs = tuple(declared(*item) for item in facts["inputs"])
        self.overridable = tuple(declared(*item) for item in facts["overridable"])
        self.outputs: tuple[str, ...] = tuple(facts["outputs"])

    def run(self, feed: Feed, /, limit: float | None = None) -> dict[str, Any]:
        """One run, of at most `limit` seconds; outputs by name.

        Raises:
            NotRunError: onnxruntime refused the feed.
        """
        try:
            return dict(zip(self.outputs, ort.run_session(self._session, feed, limit), strict=True))
        except Exception as error:  # as above
            raise NotRunError(f"onnxruntime cannot run it: {ort.first_line(error)}") from error


def compare(original: Sessions, pruned: Sessions, feeds: Iterable[Feed] | None, /, *, seed: int = 0) -> Behaviour:
    """Run both on the feeds given, or on seeded random ones, and measure how far the outputs moved.

    Raises:
        UsageError: a feed that does not fit the model, or on which the original does not run.
        NotRunError: no feeds given, and none could be made up on which the original runs.
    """
    return compare_runs(runs_of(original, feeds, seed=seed), original.outputs, pruned, random=feeds is None)


def runs_of(original: Sessions, feeds: Iterable[Feed] | None, /, *, seed: int = 0) -> Iterable[Run]:
    """The feeds with the original's outputs: made-up ones are run at once, given ones when they are asked for.

    Raises:
        UsageError, NotRunError: as `compare`.
    """
    return _random(original, seed) if feeds is None else _given(original, feeds)


def compare_runs(runs: Iterable[Run], outputs: Sequence[str], pruned: Sessions, /, *, random: bool) -> Behaviour:
    """`compare` for runs of the original."""
    tally: dict[str, _Tally] = {name: _Tally(name) for name in outputs}
    problems: dict[str, None] = {}
    count = 0
    for feed, before in runs:
        count += 1
        try:
            after = pruned.run(feed, 10 * LIMIT if random else None)
        except NotRunError as error:
            problems[f"the pruned model fails where the original runs: {error}"] = None
            if isinstance(error, CrashedError):
                break
            continue
        for name, item in tally.items():
            if problem := item.add(before[name], after.get(name)):
                problems[problem] = None
    if not count:
        raise NotRunError("no feeds were given")
    moved = tuple(item.result() for item in tally.values() if item.seen)
    return Behaviour(count, random, moved, tuple(problems))


def _given(original: Sessions, feeds: Iterable[Feed]) -> Iterator[Run]:
    optional = frozenset(item.name for item in original.overridable)
    for i, feed in enumerate(feeds):
        check_feed(feed, (*original.inputs, *original.overridable), i, optional)
        try:
            yield feed, original.run(feed)
        except NotRunError as error:
            raise UsageError(f"feed {i} must be one that the original model runs on: {error}") from error


def _random(original: Sessions, seed: int) -> list[Run]:
    try:
        attempts = random_feeds(original.inputs, seed=seed, count=RANDOM_FEEDS)
        attempts = chain([next(attempts)], attempts)
    except UsageError as error:
        raise NotRunError(f"{error}; give feeds") from error
    last: Exception | None = None
    fallback: list[Run] = []
    until = time.monotonic() + PATIENCE
    for feeds in attempts:
        if time.monotonic() > until:
            break
        try:
            ran: list[Run] = [(feed, original.run(feed, LIMIT)) for feed in feeds]
        except CrashedError as error:
            raise CrashedError(f"{error}, on made-up feeds; give feeds") from error
        except (NotRunError, MemoryError) as error:
            last = error
            continue
        if all(_finite(value) for _, out in ran for value in out.values()):
            return ran
        fallback = fallback or ran
    if not fallback:
        raise NotRunError(f"made-up feeds do not fit it ({last}); give feeds")
    return fallback


class _Tally:
    """The running difference of one output."""

    def __init__(self, name: str) -> None:
        self.name, self.seen = name, False
        self.max_abs = self.moved = self.total = 0.0
        self.rows = self.same = 0

    def add(self, before: Any, after: Any) -> str | None:
        if not isinstance(before, np.ndarray) or before.dtype.kind not in "fiub":
            return None
        if not isinstance(after, np.ndarray) or after.dtype != before.dtype:
            return f"output {quote(self.name)} is of another type than before"
        if after.shape != before.shape:
            # sizes may follow from the values (detections found, tokens made), so this is a difference, no fault
            self.seen, self.max_abs, self.moved = True, math.inf, math.inf
            return None
        self.seen = True
        problem = None
        if not _finite(after) and _finite(before):
            problem = f"output {quote(self.name)} holds NaN or infinities where the original's does not"
        with np.errstate(invalid="ignore", over="ignore"):
            a, b = before.astype(np.float64), after.astype(np.float64)
            gap = np.where(a == b, 0.0, np.abs(a - b))
            gap[np.isnan(a) & np.isnan(b)] = 0.0
            self.max_abs = max(self.max_abs, float(np.nan_to_num(gap, nan=math.inf).max(initial=0.0)))
            self.moved += float(np.nan_to_num(np.square(gap), nan=math.inf).sum())
            self.total += float(np.nan_to_num(np.square(a)).sum())
        classes = _classes(before)
        if classes is not None:
            self.rows += len(classes)
            self.same += int((classes == _classes(after)).sum())
        return problem

    def result(self) -> Difference:
        relative = math.sqrt(self.moved / self.total) if self.total else (None if self.moved else 0.0)
        return Difference(self.name, self.max_abs, relative, self.same / self.rows if self.rows else None)


def _classes(array: NDArray[Any]) -> NDArray[np.intp] | None:
    """The largest entry of each row, if the array looks like class scores: floats, a row per sample, 2 or more."""
    shape = tuple(d for i, d in enumerate(array.shape) if i < 2 or d != 1)
    if array.dtype.kind != "f" or len(shape) != 2 or shape[1] < 2 or not shape[0]:
        return None
    return np.asarray(array.reshape(shape).argmax(axis=1))


def _finite(value: Any) -> bool:
    return not isinstance(value, np.ndarray) or value.dtype.kind != "f" or bool(np.isfinite(value).all())


def declared(name: str, kind: str, shape: Sequence[Any]) -> Input:
    """An input as onnxruntime declares it; sizes that say nothing become None."""
    dims = tuple(d if isinstance(d, str) or (isinstance(d, int) and d > 0) else None for d in shape)
    return Input(name, kind, tuple(None if isinstance(d, str) and d in ("", "?", "None") else d for d in dims))
