"""What the caller gave, checked before anything is read for long."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.errors import UsageError, quote
from emp_onnx.files.model_io import Model
from emp_onnx.files.names import default_out
from emp_onnx.files.whole import check_target, same_file
from emp_onnx.runtime.feeds import Feed, read_feeds
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.search.amounts import SIGNALS

__all__ = ["check", "chosen", "feeds_of", "target_of"]

MOST_FEEDS = 512


def check(given: Mapping[str, Any]) -> None:
    """Options out of their range, or that do not go together, by name."""
    for name in ("max_drop", "max_error"):
        if given[name] is not None and not 0 <= given[name] < 1:
            raise UsageError(f"{name} must be ≥ 0 and < 1, got {given[name]:g}")
    targets = [name for name in ("target_latency", "target_flops", "target_size") if given[name] is not None]
    for name in targets:
        if not 0 < given[name] < 1:
            raise UsageError(f"{name} must be a share > 0 and < 1 of the dense model's, got {given[name]:g}")
    if len(targets) > 1:
        raise UsageError(f"{targets[0]} must come without {targets[1]}, got both")
    asked = [n for n in ("refit", "signal", "scores", "max_drop", "max_error", *targets) if given[n]]
    if given["dead_only"] and asked:
        raise UsageError(f"dead_only must come without {asked[0]}, got both")
    if given["signal"] is not None and given["signal"] not in SIGNALS:
        raise UsageError(f"signal must be one of {', '.join(SIGNALS)}, got {quote(given['signal'])}")
    for name in ("round_to", "min_channels", "threads"):
        if given[name] < 1:
            raise UsageError(f"{name} must be ≥ 1, got {given[name]}")
    if not 0 < given["beta"] < float("inf"):
        raise UsageError(f"beta must be > 0, got {given['beta']}")
    if not given["order"] >= 0:
        raise UsageError(f"order must be ≥ 0, got {given['order']}")


def target_of(source: Model, out: str | os.PathLike[str] | None, in_place: bool) -> Path:
    """Where the result goes."""
    path = source.path or Path()
    if in_place:
        if out is not None and not same_file(out, path):
            raise UsageError("in_place must come without another output")
        return path
    target = default_out(path, "shrunk") if out is None else Path(out)
    if same_file(target, path):
        raise UsageError(f"out must not be the input {quote(path)}; to replace that, ask for it with in_place")
    if any(same_file(target, file) for file in source.sidecars().values()):
        raise UsageError(f"out must not be a file of the model, got {quote(target)}")
    check_target(target, "out")
    return target


def feeds_of(feeds: Iterable[Feed] | str | os.PathLike[str], needed: Sequence[str]) -> list[dict[str, NDArray[Any]]]:
    """Feeds as arrays, not more than are used."""
    found = read_feeds(feeds, needed) if isinstance(feeds, (str, os.PathLike)) else feeds
    out = []
    for feed in found:
        out.append({name: np.asarray(value) for name, value in feed.items()})
        if len(out) == MOST_FEEDS:
            break
    if not out:
        raise UsageError("feeds must hold at least one feed, got none")
    return out


def refuse_unless_defined(feeds: Sequence[Feed], run: Callable[[Feed], Mapping[str, Any]]) -> None:
    """Refuse feeds of which the network makes nothing, or NaN: nothing could be learned from them, or compared."""
    for number, feed in enumerate(feeds):
        outputs = [np.asarray(value) for value in run(feed).values()]
        if any(value.dtype.kind == "f" and np.isnan(value).any() for value in outputs):
            raise UsageError(f"feeds must be such that the model's outputs are numbers, got NaN on feed {number}")
        if not any(value.size for value in outputs):
            raise UsageError(f"feeds must be such that the model makes something of them, got nothing on feed {number}")


def chosen(problem: Problem, include: Sequence[str], exclude: Sequence[str]) -> None:
    """Leave, in place, the groups whose name fits."""

    def named(pattern: str) -> set[int]:
        hits = {
            i
            for i, g in enumerate(problem.groups)
            if any(fnmatchcase(n, pattern) for n in (g.name, *{a[0] for a in g.axes if a[0] in problem.view.constants}))
        }
        if not hits:
            raise UsageError(f"a pattern must match the name of a group or of one of its tensors, got {quote(pattern)}")
        return hits

    wanted = set().union(*map(named, include)) if include else set(range(len(problem.groups)))
    wanted -= set().union(*map(named, exclude))
    if problem.groups and not wanted:
        raise UsageError("include and exclude must leave some group, got none")
    problem.groups = [g for i, g in enumerate(problem.groups) if i in wanted]
