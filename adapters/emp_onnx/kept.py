"""What is kept of a weight, as a rule that makes the mask of any piece of it: no mask of a whole weight is ever
made."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from emp_core import Cut
from emp_onnx._boxes import boxes
from emp_onnx.model_io import Model, Values
from emp_onnx.storage import pieces_of
from emp_onnx.weights import Weight

__all__ = ["ByRow", "Kept", "Mask", "Pruned", "Scores", "Whole", "boxes", "mask_of", "plain", "tally"]

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
    """The patch that prunes a weight; `digest` is a hash of its old values and of what is kept."""

    weight: Weight
    kept: Kept
    digest: str

    def __call__(self, start: int, old: Values, /) -> Values:
        """The new values of a flat piece; the piece itself where nothing changes."""
        zero = self.weight.zero
        keep = self.kept.mask(zero.scores(old, start), start)
        if keep.all():
            return old
        if zero.quantised:
            new = zero.filled(old, keep, start)
        else:
            bits = old.view(f"u{old.dtype.itemsize}")
            new = np.multiply(bits, keep, dtype=bits.dtype).view(old.dtype)
        return old if np.array_equal(_bits(new), _bits(old)) else new


@dataclass
class Tally:
    """What one look at a weight and its mask found."""

    k: int = 0
    nonzero: int = 0
    kept_l1: float = 0.0
    values: str = ""
    mask: str = ""
    pruned: str = ""


def tally(model: Model, weight: Weight, kept: Kept, *, kept_l1: bool = False) -> Tally:
    """Count and hash a weight, its mask, and what pruning leaves of it, in one pass."""
    found, before, bits, after = Tally(), hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    sums = []
    for start, stop in pieces_of(math.prod(weight.shape)):
        old = model.piece(weight.name, start, stop)
        scores = weight.zero.scores(old, start)
        mask = kept.mask(scores, start)
        nonzero = scores != 0
        nonzero &= mask
        found.k += int(np.count_nonzero(mask))
        found.nonzero += int(np.count_nonzero(nonzero))
        before.update(old.view(np.uint8).data)
        bits.update(np.packbits(mask).data)
        after.update(plain(old, nonzero))
        if kept_l1:
            sums.append(float(np.einsum("i->", np.abs(np.multiply(scores, mask, dtype=np.float64)))))
    found.kept_l1 = math.fsum(sums)
    found.values, found.mask, found.pruned = before.hexdigest(), bits.hexdigest(), after.hexdigest()
    return found


def plain(values: Values, nonzero: Mask) -> Any:
    """The bytes of values in which whatever is zero has the bits 0."""
    bits = values.view(f"u{values.dtype.itemsize}")
    return np.multiply(bits, nonzero, dtype=bits.dtype).data


def mask_of(model: Model, weight: Weight, kept: Kept) -> Mask:
    """The whole mask, for weights that are small."""
    scores = Scores(model, weight)
    return kept.mask(scores[0 : scores.size], 0).reshape(weight.shape)


def _bits(values: Values) -> Values:
    return values.view(np.uint8)
