"""The scope `row`: a weight taken a few of its rows at a time, however they lie in the file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_core import Rows, select, select_stream
from emp_onnx.figures import Rule
from emp_onnx.weights.kept import ByRow, Scores
from emp_onnx.weights.layout import Layout

__all__ = ["RowFigures", "by_row"]

BLOCK = 1 << 21  # scores taken together
NEAR = 1 << 12  # scores from one strip to the next


@dataclass
class RowFigures:
    """The figures of all rows, one number each."""

    n_eff: list[float] = field(default_factory=list)
    k: int = 0
    mass: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    l1: list[float] = field(default_factory=list)
    nonzero: int = 0

    def weighted(self, masses: list[float]) -> float:
        """The mean of masses, each row by its share of Σ|w|."""
        total = math.fsum(self.l1)
        if not total:
            return 1.0
        return min(1.0, math.fsum(m * s for m, s in zip(masses, self.l1, strict=True)) / total)


def by_row(scores: Scores, layout: Layout, rule: Rule, threads: int | None) -> tuple[ByRow, RowFigures]:
    """What is kept of every row, and the figures."""
    view, axes = layout.view, layout.axes
    outer = tuple(d if i in axes else 1 for i, d in enumerate(view))
    dtype = scores.dtype if scores.dtype in (np.float32, np.float64) else np.dtype(np.float32)
    kept = ByRow(view, axes, np.empty(outer, dtype), np.empty(outer, np.int64))
    found = RowFigures()
    inner = math.prod(d for i, d in enumerate(view) if i not in axes)
    for rows in _blocks([view[i] for i in axes], max(1, BLOCK // max(inner, 1))):
        box = [slice(0, d) for d in view]
        for axis, some in zip(axes, rows, strict=True):
            box[axis] = some
        here = tuple(s if i in axes else slice(None) for i, s in enumerate(box))
        if inner > 8 * BLOCK:
            _one(_Row(scores, view, box, inner), rule, threads, kept, here, found)
        else:
            _several(read(scores, view, box), axes, rule, threads, kept, here, found)
    return kept, found


def _blocks(sizes: list[int], most: int) -> Iterator[list[slice]]:
    """Rectangles of at most so many rows, in the order of the rows."""
    step = [1] * len(sizes)
    for i in reversed(range(len(sizes))):
        step[i] = max(1, min(sizes[i], most))
        most //= step[i]
    for index in np.ndindex(*(-(-size // s) for size, s in zip(sizes, step, strict=True))):
        yield [slice(i * s, min((i + 1) * s, d)) for i, s, d in zip(index, step, sizes, strict=True)]


def _several(
    block: NDArray[Any],
    axes: tuple[int, ...],
    rule: Rule,
    threads: int | None,
    kept: ByRow,
    here: Any,
    found: RowFigures,
) -> None:
    picked = select(block, scope=Rows(axis=axes), threads=threads, **rule.keeps())
    others = tuple(i for i in range(block.ndim) if i not in axes)
    size, mask = np.abs(block).astype(kept.threshold.dtype, copy=False), np.asarray(picked.mask)
    threshold = np.min(size, axis=others, where=mask, initial=np.inf, keepdims=True)
    same = size == threshold
    partly = (same & ~mask).any(axis=others, keepdims=True)
    kept.threshold[here] = threshold
    kept.last[here] = -1
    if partly.any():
        place = ByRow(block.shape, axes, threshold, kept.last)._places(tuple(slice(0, d) for d in block.shape))
        last = np.max(np.where(same & mask, place, -1), axis=others, keepdims=True)
        kept.last[here] = np.where(partly, last, -1)
    found.n_eff += np.asarray(picked.n_eff, np.float64).ravel().tolist()
    found.k += int(np.sum(picked.k))
    found.nonzero += int(np.count_nonzero(mask & (size > 0)))
    found.mass += np.asarray(picked.mass).ravel().tolist()
    found.lower += np.asarray(picked.mass_lower).ravel().tolist()
    found.upper += np.asarray(picked.mass_upper).ravel().tolist()
    found.l1 += np.asarray(size.sum(axis=others, dtype=np.float64)).ravel().tolist()


def _one(row: _Row, rule: Rule, threads: int | None, kept: ByRow, here: Any, found: RowFigures) -> None:
    """A row too long for memory."""
    cut = select_stream([row], threads=threads, **rule.keeps())
    kept.threshold[here] = cut.threshold
    kept.last[here] = cut.last if cut.last < row.size else -1
    found.n_eff.append(cut.n_eff)
    found.k += cut.k
    found.nonzero += cut.nonzero
    found.mass.append(cut.mass)
    found.lower.append(cut.mass_lower)
    found.upper.append(cut.mass_upper)
    found.l1.append(cut.l1)


class _Row:
    """One row as flat scores."""

    def __init__(self, scores: Scores, view: tuple[int, ...], box: list[slice], size: int) -> None:
        self.scores, self.view, self.box, self.size, self.dtype = scores, view, box, size, scores.dtype
        self.inner = [i for i, s in enumerate(box) if s.stop - s.start > 1]

    def __getitem__(self, stretch: slice, /) -> NDArray[Any]:
        from emp_onnx.weights.kept import boxes

        start, stop, _ = stretch.indices(self.size)
        out = [np.empty(0, self.dtype)]
        for part in boxes(tuple(self.view[i] for i in self.inner), start, stop):
            box = list(self.box)
            for axis, some in zip(self.inner, part, strict=True):
                box[axis] = some
            out.append(read(self.scores, self.view, box).reshape(-1))
        return np.concatenate(out)


def read(scores: Scores, view: tuple[int, ...], box: list[slice]) -> NDArray[Any]:
    """A rectangle of the scores, read row by row of the file where it is not in one piece."""
    whole = len(view)
    while whole > 1 and (box[whole - 1].start, box[whole - 1].stop) == (0, view[whole - 1]):
        whole -= 1
    # everything from axis `whole` on is in one piece, and so is a range along the axis before
    lead, tail = view[: whole - 1], math.prod(view[whole:])
    along = box[whole - 1]
    shape = tuple(s.stop - s.start for s in box)
    out = np.empty(shape, scores.dtype)
    flat = out.reshape(-1, (along.stop - along.start) * tail)
    step = view[whole - 1] * tail
    if (
        0 < step <= NEAR
        and len(flat) > 1
        and all((s.start, s.stop) == (0, d) for s, d in zip(box[1 : whole - 1], lead[1:], strict=True))
    ):
        # strips so near each other that to read what lies between them takes less time than to read each alone
        first, many = box[0].start * math.prod(lead[1:]), max(1, BLOCK // 4 // step)
        for i in range(0, len(flat), many):
            j = min(i + many, len(flat))
            block = scores[(first + i) * step : (first + j) * step].reshape(j - i, step)
            flat[i:j] = block[:, along.start * tail : along.stop * tail]
        return out
    for i, index in enumerate(np.ndindex(*(s.stop - s.start for s in box[: whole - 1]))):
        row = 0
        for size, s, j in zip(lead, box, index, strict=False):
            row = row * size + s.start + j
        start = row * step + along.start * tail
        flat[i] = scores[start : start + flat.shape[1]]
    return out
