"""What zero means for a weight: 0 for floats, the zero point for quantised ones; and how magnitudes are measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.weights.boxes import boxes

__all__ = ["FLOAT", "Zero"]

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
        quantised: whether it is a quantised weight.
        groups: where zero point or scale have one number per block along `axis`: the block of each index there, as
            an array or anything that gives slices of one.
        axis: that axis.
        table: what each code stands for, where codes are no numbers; the zero point is then the code of 0.
    """

    point: Values = field(default_factory=lambda: np.zeros((), np.int64))
    scale: Values | None = None
    shape: tuple[int, ...] = ()
    back: tuple[tuple[str, tuple[int, ...]], ...] = ()
    quantised: bool = False
    groups: Any = None
    axis: int = -1
    table: Values | None = None

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
        for one, two in ((self.groups, other.groups), (self.table, other.table)):
            if one is None or two is None:
                if one is not two:
                    return False
            elif not np.array_equal(one[:], two[:]):
                return False
        whole = all(a.size == b.size == 1 for a, b in pairs) or (self.shape, self.back) == (other.shape, other.back)
        return whole and all(a.shape == b.shape or a.size == b.size == 1 for a, b in pairs) and all(
            np.array_equal(a.reshape(-1), b.reshape(-1)) for a, b in pairs
        )  # fmt: skip

    def scores(self, values: Values, start: int = 0) -> Values:
        """The scores of `values`: the whole weight in its stored shape, or a flat piece of it beginning at `start`."""
        if not self.quantised:
            return values if values.dtype in PLAIN else values.astype(np.float32)
        if self.table is not None:
            moved = self.table[values]
        else:
            moved = values.astype(np.float64) - self._over(self.point, values, start).astype(np.float64)
        if self.scale is not None:
            moved *= self._over(self.scale, values, start).astype(np.float64)
        return moved

    def laid(self, values: Values) -> tuple[Values, Values]:
        """Scale and zero point of each element of a whole weight, in float64."""
        scale = np.ones(()) if self.scale is None else self._over(self.scale, values, 0)
        point = self._over(self.point, values, 0)
        return tuple(np.broadcast_to(a, values.shape).astype(np.float64) for a in (scale, point))  # type: ignore[return-value]

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
        box = tuple(slice(0, size) for size in self.shape)
        full: Values = np.broadcast_to(self._box(array, box), self.shape)
        for kind, numbers in reversed(self.back):
            full = full.transpose(np.argsort(numbers)) if kind == "transpose" else full.reshape(numbers)
        return full

    def _over(self, array: Values, values: Values, start: int) -> Values:
        """`array` laid over the elements of `values`."""
        if array.size == 1:
            return array.reshape(())
        if self.groups is not None and not self.back and values.ndim == 1:
            parts = [self._box(array, box).reshape(-1) for box in boxes(self.shape, start, start + values.size)]
            return parts[0] if len(parts) == 1 else np.concatenate([array.reshape(-1)[:0], *parts])
        full = self._points if array is self.point else self._scales
        if values.ndim == 1:
            piece: Values = full.flat[start : start + values.size]
            return piece
        return full

    def _box(self, array: Values, box: tuple[slice, ...]) -> Values:
        """`array` laid over a rectangle of the shape."""
        if self.groups is None:
            return array
        axis = self.axis % len(self.shape)
        for i, part in enumerate(box):
            if i == axis and array.shape[i] != 1:
                array = array.take(self.groups[part], axis=i)
            elif array.shape[i] != 1:
                array = array[(slice(None),) * i + (part,)]
        return np.broadcast_to(array, tuple(part.stop - part.start for part in box))


FLOAT = Zero()  # of every weight that is not quantised
