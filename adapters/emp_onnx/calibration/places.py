"""Where the numbers of a matrix lie in a tensor as stored: by strides where these say it, which costs no memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

__all__ = ["Places"]

Array = NDArray[Any]
Index = NDArray[np.int64]


class Places:
    """Which element of a tensor, laid flat, stands at each place of a matrix.

    Args:
        index: the flat indices, in the shape of the matrix; no index twice.

    >>> places = Places(np.arange(6).reshape(2, 3).T)
    >>> places.of(np.array([1.0, 2, 3, 4, 5, 6])).tolist()
    [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
    """

    def __init__(self, index: Index) -> None:
        self.shape, self.size = index.shape, index.size
        self._start = int(index.flat[0]) if index.size else 0
        self._strides = self._steps(index)
        self._index: Index | None = index if self._strides is None else None

    def _steps(self, index: Index) -> Sequence[int] | None:
        """What each axis adds to the index, if that is all there is to it."""
        if not index.size:
            return None
        steps = []
        for axis, size in enumerate(index.shape):
            one = [0] * index.ndim
            one[axis] = 1
            steps.append(int(index[tuple(one)]) - self._start if size > 1 else 0)
        if min(steps, default=0) < 0:
            return None
        plane: Any = np.zeros((), np.int64)
        for size, step in zip(index.shape[1:], steps[1:], strict=True):
            plane = plane[..., None] + np.arange(size) * step
        for i, layer in enumerate(index):  # one after the other: the whole would take as much memory as the index
            if not np.array_equal(layer, np.broadcast_to(self._start + i * steps[0] + plane, layer.shape)):
                return None
        return steps

    def like(self, other: Places, /) -> bool:
        """Whether they are the same places."""
        if self.shape != other.shape or self._start != other._start:
            return False
        if self._strides is None or other._strides is None:
            return self._strides is other._strides is None and np.array_equal(self._index, other._index)  # type: ignore[arg-type]
        return list(self._strides) == list(other._strides)

    def of(self, flat: Array, /) -> Array:
        """The matrix, from the tensor laid flat; a view of it where that can be."""
        if self._strides is None:
            return np.asarray(flat[self._index])
        flat = np.ascontiguousarray(flat)
        bytes_ = [step * flat.itemsize for step in self._strides]
        return as_strided(flat[self._start :], self.shape, bytes_)

    def put(self, flat: Array, values: Array, /) -> None:
        """Set these elements of a tensor, laid flat and contiguous, to those of a matrix."""
        if self._strides is None:
            flat[self._index] = values
        else:
            self.of(flat)[...] = values
