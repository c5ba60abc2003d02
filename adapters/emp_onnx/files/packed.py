"""A packed tensor read like any other: any stretch of it, dense, without the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.errors import ModelError, quote
from emp_onnx.files.functions import EARLY, GROUP, cut_in, cuts
from emp_onnx.files.gaps import GapDecoder, join
from emp_onnx.files.graph import Recipe, Tensor
from emp_onnx.files.storage import Stored

__all__ = ["PackedStored", "unpacking"]

KNOWN = {
    "UnpackMask", "UnpackMask4", "UnpackParts4", "UnpackParts8", "UnpackBlocks", "UnpackGaps4", "UnpackGaps6",
    "UnpackGaps8", EARLY,
}  # fmt: skip
CHUNK = 1 << 16  # bits or codes between two places that are known without counting
COUNT = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)
Values = NDArray[Any]


@dataclass
class _Joined(Stored):
    """Parts read as one: a fill, and then what all of them hold behind theirs; or, of masks, just all of them.

    Attributes:
        parts: these.
        fills: how many numbers each begins with that are the same in all: 1, or 0.
    """

    parts: tuple[Stored, ...] = ()
    fills: int = 0

    def read(self, start: int, stop: int) -> Values:
        """Numbers `start` to `stop`, in memory of their own."""
        found, done = [np.empty(0, self.dtype)], self.fills
        if start < self.fills < stop + 1:
            found.append(self.parts[0].read(start, self.fills))
        for part in self.parts:
            many = part.tensor.size - self.fills
            first, last = max(start - done, 0), min(stop - done, many)
            if last > first:
                found.append(part.read(self.fills + first, self.fills + last))
            done += many
        return np.concatenate(found)

    @classmethod
    def of(cls, parts: tuple[Stored, ...], fills: int) -> _Joined:
        """These parts as one."""
        size = fills + sum(part.tensor.size - fills for part in parts)
        first = parts[0]
        return cls(first.tensor._replace(shape=(size,)), first.dtype, first.source, (), "", None, parts, fills)


@dataclass
class PackedStored(Stored):
    """The dense numbers of a packed tensor.

    Attributes:
        values: the fill, and then what is stored.
        where: the mask, or the codes.
    """

    values: Stored | None = None
    where: tuple[Stored, ...] = ()
    _index: list[tuple[int, int]] = field(
        default_factory=list
    )  # how many are stored before each chunk; where it begins

    @property
    def fill(self) -> Values:
        """What stands where nothing is stored: one number."""
        assert self.values is not None
        return self.values.read(0, 1)

    def spans(self, *, dense: bool = False) -> Iterator[tuple[int, int]]:
        """Nowhere in the file are these numbers as they are."""
        return iter(())

    def write(self, start: int, new: Values, put: Callable[[int, Any], None]) -> None:
        """Not here: packed tensors are packed anew."""
        raise ModelError(f"tensor {quote(self.tensor.name)} is packed, so its numbers have no places of their own")

    def read(self, start: int, stop: int) -> Values:
        """Numbers `start` to `stop`, flat, in memory of their own."""
        assert self.values is not None
        recipe = self.tensor.recipe
        assert recipe is not None
        if recipe.function == "UnpackBlocks":
            return self._blocks(start, stop)
        out = np.empty(stop - start, self.dtype)
        out[:] = self.fill[0]
        if recipe.function.startswith("UnpackGaps"):
            chunk = max(i for i, (_, end) in enumerate(self._index) if end < start) if start else 0
            rank, end = self._index[chunk]
            for places, _, _ in self._gaps().places(chunk * CHUNK, end, stop):
                first, last = np.searchsorted(places, (start, stop))
                if last > first:
                    out[places[first:last] - start] = self.values.read(1 + rank + int(first), 1 + rank + int(last))
                rank += places.size
            return out
        bits, rank = self._bits(start, stop)
        out[bits] = self.values.read(1 + rank, 1 + rank + int(np.count_nonzero(bits)))
        return out

    def _bits(self, start: int, stop: int) -> tuple[NDArray[np.bool_], int]:
        """Bits of the mask, and how many are set before them."""
        chunk = start // CHUNK
        raw = self.where[0].read(chunk * CHUNK // 8, -(-stop // 8))
        bits = np.unpackbits(raw, count=stop - chunk * CHUNK, bitorder="little").view(np.bool_)
        skip = start - chunk * CHUNK
        return bits[skip:], self._index[chunk][0] + int(np.count_nonzero(bits[:skip]))

    def _blocks(self, start: int, stop: int) -> Values:
        assert self.values is not None
        width = self.values.tensor.shape[1]
        first, last = start // width, -(-stop // width)
        bits, rank = self._bits(first, last)
        out = np.empty((last - first, width), self.dtype)
        out[:] = self.values.read(0, width)
        many = int(np.count_nonzero(bits))
        out[bits] = self.values.read((1 + rank) * width, (1 + rank + many) * width).reshape(many, width)
        return out.reshape(-1)[start - first * width : stop - first * width].copy()

    def _gaps(self) -> GapDecoder:
        recipe = self.tensor.recipe
        assert recipe is not None
        width = int(recipe.function[-1])
        each = (8 // 4, 8 // 2) if width == 6 else (8 // width,)

        def read(start: int, stop: int) -> NDArray[np.uint8]:
            planes = [
                s.read(start // per, -(-stop // per)) for s, per in zip(self.where, each, strict=True)
            ]  # fmt: skip
            return join(tuple(planes), width)[: stop - start]

        return GapDecoder(read, recipe.count, width)

    def checked(self) -> PackedStored:
        """This, once it is known that all its parts agree.

        Raises:
            ModelError: they do not.
        """
        recipe, size, rank = self.tensor.recipe, math.prod(self.tensor.shape), 0
        assert recipe is not None
        assert self.values is not None
        blocks = recipe.function == "UnpackBlocks"
        shape = self.values.tensor.shape
        if len(shape) != (2 if blocks else 1) or not shape[0] or (blocks and (not shape[1] or size % shape[1])):
            raise ModelError(self._wrong(f"values of the shape {shape} cannot be its own"))
        if recipe.function.startswith("UnpackGaps"):
            self._check_codes(recipe, size)
            rank = self._index[-1][0]
        else:
            bits = size // shape[1] if blocks else size
            groups = -(-bits // (8 * GROUP))
            early = recipe.function == EARLY
            many = groups * GROUP if early else -(-bits // 8)
            if self.where[0].tensor.shape != (many,) or (early and self.where[1].tensor.shape != (groups,)):
                raise ModelError(self._wrong(f"its mask must have {many} bytes"))
            for start in range(0, many, CHUNK // 8):
                self._index.append((rank, -1))
                raw = self.where[0].read(start, min(start + CHUNK // 8, many))
                found = COUNT[raw]
                if early:
                    each = found.reshape(-1, GROUP).sum(axis=1, dtype=np.int64)
                    said = self.where[1].read(start // GROUP, start // GROUP + each.size)
                    if not np.array_equal(said, rank + np.cumsum(each) - each):
                        raise ModelError(self._wrong("its starts are not those of its mask"))
                rank += int(found.sum(dtype=np.int64))
            self._index = self._index or [(0, -1)]
            if isinstance(self.values, _Joined) and isinstance(self.where[0], _Joined):
                self._check_parts(self.where[0].parts, self.values.parts)
            last = self.where[0].read(bits // 8, many)
            if bits < 8 * many and (int(last[0]) >> bits % 8 or last[1:].any()):
                raise ModelError(self._wrong("its mask has bits beyond its end"))
        again = self.where[2].tensor.size if recipe.function == EARLY else 0
        if again and tuple(self.where[2].read(0, again)) != self.tensor.shape:
            raise ModelError(self._wrong("its size is given twice, and differently"))
        if rank != shape[0] - 1:
            raise ModelError(self._wrong(f"it stores {shape[0] - 1} values, and places for {rank}"))
        return self

    def _check_parts(self, masks: tuple[Stored, ...], parts: tuple[Stored, ...]) -> None:
        if len({part.read(0, 1).tobytes() for part in parts}) > 1:
            raise ModelError(self._wrong("its parts have different fills"))
        for mask, part, (first, last) in zip(masks, parts, pairwise(cuts(self.tensor.shape, len(parts))), strict=True):
            if first % 8 or 8 * mask.tensor.size != last - first:
                raise ModelError(self._wrong(f"a mask of it must have {(last - first) / 8:g} bytes"))
            pieces = ((at, min(at + CHUNK // 8, mask.tensor.size)) for at in range(0, mask.tensor.size, CHUNK // 8))
            many, stored = sum(int(COUNT[mask.read(*p)].sum(dtype=np.int64)) for p in pieces), part.tensor.size - 1
            if many != stored:
                raise ModelError(self._wrong(f"a part of it stores {stored} values, and places for {many}"))

    def _check_codes(self, recipe: Recipe, size: int) -> None:
        width = int(recipe.function[-1])
        each = (2, 4) if width == 6 else (8 // width,)
        have = tuple(s.tensor.shape for s in self.where)
        if recipe.count < 0 or have != tuple((-(-recipe.count // per),) for per in each):
            raise ModelError(self._wrong(f"its {recipe.count} codes cannot be in {have}"))
        rank, end, decoder = 0, -1, self._gaps()
        for at in range(0, recipe.count, CHUNK):
            self._index.append((rank, end))
            for places, _, last in GapDecoder(decoder.read, min(at + CHUNK, recipe.count), width).places(
                at, end, size + 1
            ):
                rank, end = rank + places.size, last
        self._index.append((rank, end))
        if end >= size:
            raise ModelError(self._wrong("its codes lead beyond its end"))

    def _wrong(self, why: str) -> str:
        return f"packed tensor {quote(self.tensor.name)} of shape {self.tensor.shape} is damaged: {why}"


def unpacking(tensor: Tensor, part: Callable[[str], Stored]) -> PackedStored:
    """The dense numbers of a packed tensor, whose parts are found by their keys.

    Raises:
        ModelError: its parts do not fit each other.
    """
    recipe = tensor.recipe
    assert recipe is not None
    several, where = tuple(part(key) for key in recipe.values), tuple(part(key) for key in recipe.where)
    values = several[0]
    if cut_in(recipe.function):
        one = all(s.dtype == values.dtype for s in several) and all(s.dtype == np.uint8 for s in where)
        if not one or any(len(s.tensor.shape) != 1 or not s.tensor.size for s in (*where, *several)):
            raise ModelError(f"packed tensor {quote(tensor.name)} must have parts of one type, each with a fill")
        values, where = _Joined.of(several, 1), (_Joined.of(where, 0),)
    types = [np.uint8, np.int32, np.int64] if recipe.function == EARLY else [np.uint8, np.uint8]
    fits = all(s.dtype == dtype and len(s.tensor.shape) == 1 for s, dtype in zip(where, types, strict=False))
    if any(size < 0 for size in tensor.shape) or not fits:
        raise ModelError(f"packed tensor {quote(tensor.name)} must have sizes ≥ 0 and parts of bytes")
    if recipe.function not in KNOWN:
        raise ModelError(f"packed tensor {quote(tensor.name)} is unpacked by {quote(recipe.function)}, not known here")
    return PackedStored(tensor, values.dtype, values.source, (), "", None, values, where).checked()
