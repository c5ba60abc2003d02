"""What zero means for a weight: 0 for floats, the zero point for quantised ones; and how magnitudes are measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Zero"]

Values = NDArray[Any]
PLAIN = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16))


@dataclass(frozen=True, eq=False)
class Zero:
    """The value that a pruned element gets, and from which magnitudes are measured.

    The score of an element `q` is `scale·(q − point)`, in float64 and exact, so that the elements of channels with
    different scales, and those of different weights, compare as what they stand for. Of floats it is the value itself.

    Attributes:
        point: the zero point: one number, or an array that broadcasts to `shape`.
        scale: likewise; None where it is not known, which counts as 1.
        shape: the shape in which the zero point and the scale lie along their axes.
        back: the way from there to the shape as stored: axes of a transposition to undo, or a shape to return to.
    """

    point: Values = field(default_factory=lambda: np.zeros((), np.int64))
    scale: Values | None = None
    shape: tuple[int, ...] = ()
    back: tuple[tuple[str, tuple[int, ...]], ...] = ()
    quantised: bool = False

    @property
    def words(self) -> str:
        """For people: the zero point, or over which shape it varies; empty for floats."""
        if not self.quantised:
            return ""
        if self.point.size == 1 or (self.point == self.point.flat[0]).all():
            return str(int(self.point.flat[0]))
        return f"{int(self.point.min())} to {int(self.point.max())}"

    def same(self, other: Zero) -> bool:
        """Whether two are the same everywhere."""
        if self.quantised != other.quantised or (self.scale is None) != (other.scale is None):
            return False
        pairs = [(self.point, other.point)]
        if self.scale is not None and other.scale is not None:
            pairs.append((self.scale, other.scale))
        whole = all(a.size == b.size == 1 for a, b in pairs) or (self.shape, self.back) == (other.shape, other.back)
        return whole and all(a.shape == b.shape or a.size == b.size == 1 for a, b in pairs) and all(
            np.array_equal(a.reshape(-1), b.reshape(-1)) for a, b in pairs
        )  # fmt: skip

    def scores(self, values: Values, start: int = 0) -> Values:
        """The scores of `values`: the whole weight in its stored shape, or a flat piece of it beginning at `start`."""
        if not self.quantised:
            return values if values.dtype in PLAIN else values.astype(np.float32)
        moved = values.astype(np.float64) - self._over(self.point, values, start).astype(np.float64)
        if self.scale is not None:
            moved *= self._over(self.scale, values, start).astype(np.float64)
        return moved

    def filled(self, values: Values, mask: NDArray[np.bool_], start: int = 0) -> Values:
        """A copy of `values` in which every element outside `mask` is zero: +0.0, or the zero point."""
        out = values.copy()
        if self.quantised:
            point = np.broadcast_to(self._over(self.point, values, start), values.shape)
            out[~mask] = point[~mask].astype(values.dtype)
        else:
            out[~mask] = np.zeros((), values.dtype)
        return out

    @cached_property
    def _points(self) -> Values:
        low, high = int(self.point.min()), int(self.point.max())
        return self._laid(self.point.astype(np.promote_types(np.min_scalar_type(low), np.min_scalar_type(high))))

    @cached_property
    def _scales(self) -> Values:
        return self._laid(np.ones(()) if self.scale is None else self.scale)

    def _laid(self, array: Values) -> Values:
        """`array` in the stored shape: a view, unless a reshape on the way forbids one."""
        full: Values = np.broadcast_to(_blocks(array, self.shape), self.shape)
        for kind, numbers in reversed(self.back):
            full = full.transpose(np.argsort(numbers)) if kind == "transpose" else full.reshape(numbers)
        return full

    def _over(self, array: Values, values: Values, start: int) -> Values:
        """`array` laid over the elements of `values`."""
        if array.size == 1:
            return array.reshape(())
        full = self._points if array is self.point else self._scales
        if values.ndim == 1:
            piece: Values = full.flat[start : start + values.size]
            return piece
        return full


def _blocks(array: Values, shape: tuple[int, ...]) -> Values:
    """One number per block along an axis becomes one per element."""
    if array.ndim == len(shape):
        for axis, (have, want) in enumerate(zip(array.shape, shape, strict=True)):
            if have not in (1, want):
                array = np.repeat(array, -(-want // have), axis)[(slice(None),) * axis + (slice(0, want),)]
    return array
