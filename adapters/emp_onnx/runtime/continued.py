"""Feeds continued by the model's own outputs, where it is one that reads what it said.

A decoder that says one symbol at a time is given, at each step, all that it said before. Feeds of its first steps show
that: from one to the next an input grows by one entry, which is what the model said on the one before. Then the model
itself tells how it goes on, for as many steps as are wanted: inputs of the kind that it is used on, made of nothing but
the feeds.

A transducer is also given a place that it reads from, one whole number; what it says when it is done with a place is
not added, and the place counts up. So where there is one such input, outputs that the feeds never show added count it
up, until the model does not run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.runtime.feeds import Feed

__all__ = ["continued"]

STEPS = 32  # that are added to a feed
TIMES = 8  # as many feeds as were given are added at most
LEAST = 3  # steps that feeds must show
Array = NDArray[Any]
Key = tuple[int, ...]


@dataclass(frozen=True)
class _Loop:
    """An input that outputs are added to along an axis, and what was seen added; another that counts up after all
    else, if there is one."""

    name: str
    axis: int
    output: str
    added: frozenset[Key]
    counter: str


def continued(runs: Callable[[Feed], Mapping[str, Any]], feeds: Sequence[Feed]) -> list[dict[str, Array]]:
    """Feeds that follow the given ones; none where these do not show how.

    Args:
        runs: runs the model on a feed, and raises where it cannot; outputs by name.
        feeds: in the order in which they came about.
    """
    arrays = [{name: np.asarray(value) for name, value in feed.items()} for feed in feeds]
    steps = [_step(one, other) for one, other in pairwise(arrays)]
    if sum(axis is not None for _, axis in filter(None, steps)) < LEAST:
        return []
    loop = _loop(arrays, steps, runs)
    if loop is None:
        return []
    out: list[dict[str, Array]] = []
    for feed, step in zip(arrays, [*steps, None], strict=True):
        if step is None:
            out += _follow(feed, loop, runs)
        if len(out) >= TIMES * len(feeds):
            break
    return out[: TIMES * len(feeds)]


def _step(one: Mapping[str, Array], other: Mapping[str, Array]) -> tuple[str, int | None] | None:
    """The one input that differs, and the axis along which it grew by one entry, None where it counted up; None where
    the second does not follow the first."""
    names = [name for name in one if not np.array_equal(one[name], other.get(name, np.empty(0)))]
    if len(names) != 1 or one[names[0]].dtype.kind not in "iu" or names[0] not in other:
        return None
    a, b = one[names[0]], other[names[0]]
    if a.shape == b.shape:
        return (names[0], None) if (b - a == 1).all() else None
    grown = [axis for axis, (m, n) in enumerate(zip(a.shape, b.shape, strict=False)) if m != n]
    if a.ndim != b.ndim or len(grown) != 1 or b.shape[grown[0]] != a.shape[grown[0]] + 1:
        return None
    return (names[0], grown[0]) if np.array_equal(np.delete(b, -1, grown[0]), a) else None


def _loop(
    feeds: Sequence[Mapping[str, Array]], steps: Sequence[tuple[str, int | None] | None],
    runs: Callable[[Feed], Mapping[str, Any]],
) -> _Loop | None:  # fmt: skip
    """What the feeds show, if it is the same throughout."""
    grown = {(name, axis) for name, axis in filter(None, steps) if axis is not None}
    counted = {name for name, axis in filter(None, steps) if axis is None}
    if len(grown) != 1:
        return None
    ((name, axis),) = grown
    assert axis is not None
    single = {n for n in feeds[0] if n != name and all(f[n].size == 1 and f[n].dtype.kind in "iu" for f in feeds)}
    if len(single) > 1 or not counted <= single:
        return None
    said = [dict(runs(feed)) if step else {} for feed, step in zip(feeds, steps, strict=False)]
    for output in next(list(s) for s in said if s):
        added: set[Key] = set()
        others: set[Key] = set()
        fits = True
        for feed, after, step, out in zip(feeds, feeds[1:], steps, said, strict=False):
            key = None if step is None else _said(out[output], feed[name], axis)
            if step is None or key is None:
                fits = fits and step is None
            elif step[1] is None:
                others.add(key)
            else:
                added.add(key)
                fits = fits and key == tuple(np.take(after[name], -1, axis).reshape(-1).tolist())
        if fits and not added & others:
            return _Loop(name, axis, output, frozenset(added), next(iter(single), ""))
    return None


def _said(value: Any, given: Array, axis: int) -> Key | None:
    """What an output says, one whole number for each row of an input: itself, or the largest score of the last
    entry."""
    rows = given.size // max(given.shape[axis], 1)
    if not isinstance(value, np.ndarray):
        return None
    if value.dtype.kind == "f" and value.ndim > 1:
        scores = value.reshape(rows, -1, value.shape[-1]) if value.size % (rows * value.shape[-1]) == 0 else None
        return None if scores is None or not scores.size else tuple(scores[:, -1].argmax(-1).tolist())
    return tuple(value.reshape(-1).tolist()) if value.dtype.kind in "iu" and value.size == rows else None


def _follow(
    feed: Mapping[str, Array], loop: _Loop, runs: Callable[[Feed], Mapping[str, Any]]
) -> list[dict[str, Array]]:
    """The steps after one feed, until the model does not run."""
    out: list[dict[str, Array]] = []
    now = dict(feed)
    said = runs(now)
    for _ in range(STEPS):
        key = _said(said[loop.output], now[loop.name], loop.axis)
        if key is None:
            break
        before = now[loop.name]
        if loop.counter and key not in loop.added:
            now = {**now, loop.counter: now[loop.counter] + np.ones_like(now[loop.counter])}
        else:
            more = np.array(key, before.dtype).reshape(np.take(before, [-1], loop.axis).shape)
            now = {**now, loop.name: np.concatenate([before, more], loop.axis)}
        try:
            said = runs(now)
        except Exception:  # onnxruntime's own errors have no common base; there are no more steps
            break
        out.append(now)
    return out
