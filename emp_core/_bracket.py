"""Two values between which the threshold of a selection probably lies, as a random sample of the pool sees it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._chunks import Part
from ._exact import CHUNK
from ._stream import ROOM, Stream

SAMPLE = 1 << 16  # scores looked at to bracket the threshold, at most; of a pool of 2**22 half as many
RUN = 16  # neighbours in a sample: one line of cache


def bracket(stream: Stream, *, share: float | None = None, beta: float = 1.0) -> tuple[float, float]:
    """The two values for the threshold that keeps ``share`` of a pool, or what the rule will keep."""
    return bracket_of(sample(stream), share=share, beta=beta)


def sample(stream: Stream) -> NDArray[Any]:
    """Magnitudes at some random places, the same each time, as runs of neighbours (runs, RUN); −1 outside the pool.

    Empty for a pool that needs no bracket.
    """
    taken = [np.empty((0, RUN), stream.dtype)]
    runs = [part.size // RUN if stream.length > 4 * CHUNK else 0 for part in stream.parts]
    last = np.cumsum([0, *runs])
    wanted = min(max(stream.length >> 7, SAMPLE // 4), SAMPLE) * max(1, stream.length >> 28)
    # the bracket holds some 3.5/√sample of the scores: about half of what there is room for
    wanted = max(wanted, min((6 * stream.length // ROOM) ** 2, 8 * SAMPLE)) // RUN if last[-1] else 0
    pick = np.sort(np.random.default_rng(stream.length).integers(0, max(last[-1], 1), wanted))
    edges = np.searchsorted(pick, last)
    for i in np.flatnonzero(np.diff(edges)).tolist():
        mine, where = pick[edges[i] : edges[i + 1]] - last[i], stream.where[i]
        for start in range(0, mine.size, CHUNK // RUN):
            some = mine[start : start + CHUNK // RUN]
            few = _runs(stream.parts[i], runs[i], some)
            inside = None if where is None else where[: runs[i] * RUN].reshape(runs[i], RUN)[some].reshape(-1)
            part = Stream([few], [inside], [stream.names[i]], 1, stream.dtype)
            taken.append(part.magnitudes().reshape(-1, RUN))
    return np.concatenate(taken)


def _runs(part: Part, runs: int, some: NDArray[np.intp]) -> NDArray[Any]:
    """Some runs of neighbours, one after the other."""
    if isinstance(part, np.ndarray):
        few: NDArray[Any] = part[: runs * RUN].reshape(runs, RUN)[some].reshape(-1)
        return few
    each, found = CHUNK // RUN, [part[:0]]
    for first in range(0, runs, each):
        here = some[np.searchsorted(some, first) : np.searchsorted(some, first + each)]  # sorted
        if here.size > 8:  # more would be read one by one than all at once
            chunk = part[first * RUN : min(first + each, runs) * RUN].reshape(-1, RUN)
            found.append(chunk[here - first].reshape(-1))
        else:
            found += [part[i * RUN : (i + 1) * RUN] for i in here.tolist()]
    return np.concatenate(found)


def bracket_of(runs: NDArray[Any], *, share: float | None = None, beta: float = 1.0) -> tuple[float, float]:
    """Two values that very probably hold the threshold between them; were they wrong, only time is lost.

    The threshold keeps ``share`` of the scores, or what the rule will keep, as the sample sees it. Neighbouring scores
    may be alike, so the error is estimated from run to run.
    """
    inside = runs >= 0
    ordered = np.sort(runs[inside])
    if ordered.size < 64 * RUN:
        return 0.0, math.inf
    a = np.maximum(runs, 0, dtype=np.float64)
    influence = np.zeros(len(runs))
    if share is None:
        with np.errstate(all="ignore"):
            total, squares = float(a.sum()), float(np.einsum("ij,ij->", a, a))
            rule = beta * total * total / squares / ordered.size if squares else 1.0
            if not math.isfinite(rule):
                return 0.0, math.inf
            scale = rule * ordered.size
            influence = (
                scale * (2 * a.sum(axis=1) / total - np.einsum("ij,ij->i", a, a) / squares) if squares else influence
            )
        share = min(rule, 1.0)
    place = ordered.size * (1 - share)
    middle = ordered[min(int(place), ordered.size - 1)]
    above = np.count_nonzero(runs > middle, axis=1) - share * np.count_nonzero(inside, axis=1)
    spread = 3.5 * float(np.std(influence - above)) * len(runs) ** 0.5 + 8
    low, high = math.floor(place - spread), math.ceil(place + spread)
    return (
        float(ordered[low]) if 0 <= low < ordered.size else 0.0,
        float(ordered[high]) if 0 <= high < ordered.size else math.inf,
    )
