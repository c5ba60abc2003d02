"""Sparse tensors: seen as the dense ones that they stand for, and written with fewer entries.

A `SparseTensorProto` holds values, and for each the place in the dense tensor: its flat index, or one index per
dimension. Entries that pruning removes are dropped from both, so the file becomes smaller; order, types and the form of
the indices stay. Where values lie in a sidecar file, whose places are fixed, they become stored zeros instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.errors import ModelError, quote
from emp_onnx.files.graph import Tensor
from emp_onnx.files.source import Source
from emp_onnx.files.storage import BITS, Stored
from emp_onnx.files.wire import LENGTH, Edit, Wire, varint

__all__ = ["Sparse", "fits", "sparse"]

LARGEST, EACH, SMALL = 1 << 33, 1 << 12, 1 << 24  # dense elements at most: in all, for each stored one, and always
INDICES = frozenset({"int8", "int16", "int32", "int64"})  # onnx has 64 bits alone; onnxruntime reads all of these
DATA = frozenset({4, 5, 7, 9, 10, 11})  # fields of a TensorProto that hold numbers

Values = NDArray[Any]


def fits(size: int, count: int) -> bool:
    """Whether a sparse tensor of so many entries is read as one of so many elements.

    >>> fits(1 << 20, 1), fits(1 << 40, 1)
    (True, False)
    """
    return size <= min(LARGEST, SMALL + EACH * count)


def sparse(tensor: Tensor, values: Stored, indices: Stored, own: Source) -> Sparse:
    """The dense view of a sparse tensor.

    Raises:
        ModelError: its entries are not in ascending order, or not within its shape; or it is far larger than they are.
    """
    size, count = math.prod(tensor.shape), values.tensor.size
    if not fits(size, count):
        raise ModelError(f"it stands for {size} elements and stores {count}: so sparse a weight is not pruned further")
    shape = indices.tensor.shape
    if indices.dtype.name not in INDICES or shape not in ((count,), (count, len(tensor.shape))):
        raise ModelError(
            f"its indices must be int64 (or int32, int16, int8) of shape ({count},) or ({count}, {len(tensor.shape)}), "
            f"got {indices.tensor.dtype} of {shape}"
        )
    if values.dtype.name in BITS or len(values.tensor.shape) != 1:
        raise ModelError(f"its values must be one row of whole bytes, got {values.tensor.dtype}")
    made = Sparse(tensor, values, indices, own)
    places = made.places
    if count and (places[0] < 0 or places[-1] >= size or (places[1:] <= places[:-1]).any()):
        raise ModelError(f"its indices must ascend within its shape {tensor.shape}, got others")
    return made


class Sparse(Stored):
    """The elements of a sparse tensor, those not stored being zero."""

    def __init__(self, tensor: Tensor, values: Stored, indices: Stored, own: Source) -> None:
        # without runs nothing is written in place: entries are dropped by an edit of the graph
        runs = values.runs if values.shared else ()
        super().__init__(tensor, values.dtype, values.source, runs, values.shared)
        self.entries, self.indices, self.own = values, indices, own

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """The flat index of every entry."""
        found = self.indices.read(0, self.indices.tensor.size)
        if len(self.indices.tensor.shape) == 2:
            columns = found.reshape(self.indices.tensor.shape)
            if (columns < 0).any() or (columns >= np.array(self.tensor.shape)).any():
                raise ModelError(f"its indices must lie within its shape {self.tensor.shape}, got others")
            steps = [math.prod(self.tensor.shape[axis + 1 :]) for axis in range(len(self.tensor.shape))]
            found = columns @ np.array(steps, np.int64)
        return np.asarray(found, np.int64)

    def read(self, start: int, stop: int) -> Values:
        """Elements `start` to `stop`, flat."""
        out = np.zeros(stop - start, self.dtype)
        first, last = self._entries(start, stop)
        out[self.places[first:last] - start] = self.entries.read(first, last)
        return out

    def write(self, start: int, new: Values, put: Callable[[int, Any], None]) -> None:
        """Write the entries among the elements from `start` on in place."""
        first, last = self._entries(start, start + new.size)
        if first < last:
            self.entries.write(first, new[self.places[first:last] - start], put)

    def edits(self, patch: Callable[[int, Values], Values]) -> list[Edit]:
        """The changes to the model's file that a patch makes: none, or both messages anew.

        Entries that became +0 are gone, but for one if they all did.
        """
        count = self.entries.tensor.size
        keep, new, before = np.ones(count, bool), np.empty(count, self.dtype), np.empty(count, self.dtype)
        for start, stop in self.pieces():
            first, last = self._entries(start, stop)
            if first == last:
                continue
            old = self.read(start, stop)
            after, inside = patch(start, old.copy()), self.places[first:last] - start
            before[first:last], new[first:last] = old[inside], after[inside]
            keep[first:last] = _bits(after[inside]) != 0
            if np.count_nonzero(_bits(after)) != np.count_nonzero(keep[first:last]):
                raise ValueError(f"{self.tensor.key} is sparse and can only lose elements")
        if np.array_equal(_bits(before), _bits(new)):
            return []
        keep[0] |= not keep.any()
        places = self.indices.read(0, self.indices.tensor.size).reshape(count, -1)[keep].reshape(-1)
        kept = int(np.count_nonzero(keep))
        shape = (kept, *self.indices.tensor.shape[1:])
        wire = Wire(self.own)
        return [_rewritten(wire, self.entries, (kept,), new[keep]), _rewritten(wire, self.indices, shape, places)]

    def _entries(self, start: int, stop: int) -> tuple[int, int]:
        first, last = np.searchsorted(self.places, [start, stop])
        return int(first), int(last)


def _rewritten(wire: Wire, where: Stored, shape: tuple[int, ...], new: Values) -> Edit:
    """A tensor's message with another shape and other numbers, kept as it was kept; all other fields as they are."""
    tensor = where.tensor
    if tensor.place is None or where.shared:
        raise ModelError(
            f"tensor {quote(tensor.name)} is sparse with indices in a sidecar file, which is not supported"
        )
    start, stop = tensor.place.message
    out, shaped, filled = bytearray(), False, False
    data = b"".join(map(varint, where.numbers(new))) if where.decoded is not None else new.tobytes()
    for number, kind, _, tag, end in wire.fields(start, stop):
        if number == 1:
            if not shaped and kind == LENGTH:
                sizes = b"".join(map(varint, shape))
                out += b"\x0a" + varint(len(sizes)) + sizes
            elif not shaped:
                out += b"".join(b"\x08" + varint(size) for size in shape)
            shaped = True
        elif number in DATA:
            if not filled:
                out += varint(number << 3 | LENGTH) + varint(len(data)) + data
            filled = True
        else:
            out += wire.data(tag, end)
    return Edit(start, stop, bytes(out))


def _bits(values: Values) -> Values:
    return values.view(f"u{values.dtype.itemsize}")
