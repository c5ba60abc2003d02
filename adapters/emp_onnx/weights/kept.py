"""What is kept of a weight, as a rule that makes the mask of any piece of it: no mask of a whole weight is ever
made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from emp_core import Cut
from emp_onnx.files.model_io import Model
from emp_onnx.files.patch import Values
from emp_onnx.weights.boxes import boxes
from emp_onnx.weights.find import Weight

__all__ = [
    "ByRow",
    "Kept",
    "Mask",
    "Pruned",
    "Scores",
    "Together",
    "Whole",
    "boxes",
    "mask_of",
    "plain",
]

Mask = NDArray[np.bool_]


class Kept(Protocol):
    """What is kept of one weight."""

    def mask(self, scores: Values, start: int, /) -> Mask:
        """The mask of the flat scores from index `start` on; True = kept."""
        ...


class Scores:
    """The scores of a weight, flat, read when they are looked at."""

    def __init__(self, model: Model, weight: Weight) -> None:
        self.model, self.weight = model, weight
        self.size = math.prod(weight.shape)
        self.dtype = weight.zero.scores(np.empty(0, model.stored(weight.name).dtype)).dtype

    def __getitem__(self, stretch: slice, /) -> Values:
        start, stop, _ = stretch.indices(self.size)
        return self.weight.zero.scores(self.model.piece(self.weight.name, start, stop), start)


@dataclass(frozen=True)
class Whole:
    """One pool over the whole weight, or over several of which this one begins at `base`."""

    cut: Cut
    base: int = 0

    def mask(self, scores: Values, start: int, /) -> Mask:
        """The mask of a flat piece."""
        return self.cut.mask(scores, self.base + start)


@dataclass(frozen=True)
class ByRow:
    """A pool for each index along `axes` of `view`: a threshold, and the place in the pool of the last tie that
    stays."""

    view: tuple[int, ...]
    axes: tuple[int, ...]
    threshold: NDArray[Any]
    last: NDArray[np.int64]

    def mask(self, scores: Values, start: int, /) -> Mask:
        """The mask of a flat piece."""
        out, done = np.empty(scores.size, bool), 0
        for box in boxes(self.view, start, start + scores.size):
            shape = tuple(s.stop - s.start for s in box)
            size = math.prod(shape)
            some = np.abs(scores[done : done + size].reshape(shape))
            rows = tuple(s if d in self.axes else slice(None) for d, s in enumerate(box))
            threshold, last = self.threshold[rows], self.last[rows]
            keep = some >= threshold
            if (last >= 0).any():
                place = self._places(box)
                keep &= ~((some == threshold) & (last >= 0) & (place > last))
            out[done : done + size] = keep.reshape(-1)
            done += size
        return out

    def _places(self, box: tuple[slice, ...]) -> NDArray[np.int64]:
        """The place of each element of a box within its pool."""
        place, step = np.zeros((1,) * len(box), np.int64), 1
        for d in reversed(range(len(box))):
            if d not in self.axes:
                index = np.arange(box[d].start, box[d].stop) * step
                place = place + index.reshape([-1 if i == d else 1 for i in range(len(box))])
                step *= self.view[d]
        return place


@dataclass(frozen=True)
class Pruned:
    """The patch that prunes a weight."""

    weight: Weight
    kept: Kept

    def __call__(self, start: int, old: Values, /) -> Values:
        """The new values of a flat piece; the piece itself where all of it is kept."""
        zero = self.weight.zero
        keep = self.kept.mask(zero.scores(old, start), start)
        if keep.all():
            return old
        if zero.quantised:
            return zero.filled(old, keep, start)
        bits = old.view(f"u{old.dtype.itemsize}")
        new: Values = np.multiply(bits, keep, dtype=bits.dtype).view(old.dtype)
        return new

    @staticmethod
    def each(patches: Sequence[Pruned], values: Sequence[Values], /) -> list[Values]:
        """What each makes of all values of its weight; most together."""
        out, groups = list(values), dict[np.dtype[Any], list[int]]()
        for i, (patch, old) in enumerate(zip(patches, values, strict=True)):
            if plain(patch, old.dtype):
                groups.setdefault(old.dtype, []).append(i)
            else:
                out[i] = patch(0, old)
        for which in groups.values():
            group = Together.of([patches[i] for i in which], [values[i] for i in which])
            for i, new in zip(which, group.parts(), strict=True):
                out[i] = new
        return out


@dataclass(frozen=True)
class Together:
    """Whole weights of plain floats of one type, one after the other, and what is kept of them.

    Attributes:
        before: their values as they were.
        keep: the mask.
        edges: where each begins, and the end.
    """

    before: Values
    keep: Mask
    edges: list[int]

    @classmethod
    def of(cls, patches: Sequence[Pruned], values: Sequence[Values]) -> Together:
        """From what prunes each, and all its values. Each must be `plain`."""
        sizes = [some.size for some in values]
        before, edges = np.concatenate(values), [0, *np.cumsum(sizes).tolist()]
        cuts = [patch.kept.cut for patch in patches if isinstance(patch.kept, Whole)]
        least = np.array([cut.threshold for cut in cuts])
        narrow = least.astype(before.dtype)
        narrow = np.where(narrow < least, np.nextafter(narrow, np.array(np.inf, before.dtype)), narrow)
        keep = np.abs(before) >= np.repeat(narrow, sizes)
        for cut, patch, start, stop in zip(cuts, patches, edges, edges[1:], strict=False):
            if cut.last < cut.n:  # some ties go
                keep[start:stop] = patch.kept.mask(before[start:stop], 0)
        return cls(before, keep, edges)

    @property
    def after(self) -> Values:
        """Their new values."""
        bits = self.before.view(f"u{self.before.dtype.itemsize}")
        new: Values = np.multiply(bits, self.keep, dtype=bits.dtype).view(self.before.dtype)
        return new

    def parts(self) -> Iterator[Values]:
        """The new values of each."""
        after = self.after
        return (after[start:stop] for start, stop in pairwise(self.edges))


def plain(patch: object, dtype: np.dtype[Any]) -> bool:
    """Whether a patch can be taken together with others: one pool over a weight of float32 or float64."""
    return (
        isinstance(patch, Pruned) and isinstance(patch.kept, Whole) and not patch.weight.zero.quantised
        and dtype in (np.float32, np.float64)
    )  # fmt: skip


def mask_of(model: Model, weight: Weight, kept: Kept) -> Mask:
    """The whole mask, for weights that are small."""
    scores = Scores(model, weight)
    return kept.mask(scores[0 : scores.size], 0).reshape(weight.shape)
