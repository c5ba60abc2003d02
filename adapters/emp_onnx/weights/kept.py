"""What is kept of a weight, as a rule that makes the mask of any piece of it: no mask of a whole weight is ever
made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from emp_core import Cut
from emp_onnx.files.model_io import Model, Values
from emp_onnx.weights.boxes import boxes
from emp_onnx.weights.find import Weight

__all__ = ["ByRow", "Kept", "Mask", "Pruned", "Scores", "Whole", "boxes", "mask_of"]

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


def mask_of(model: Model, weight: Weight, kept: Kept) -> Mask:
    """The whole mask, for weights that are small."""
    scores = Scores(model, weight)
    return kept.mask(scores[0 : scores.size], 0).reshape(weight.shape)
