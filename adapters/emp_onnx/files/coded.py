"""Weights that an operation packs several to a byte: their codes in the order of the weight, read and written in place.

The bytes are `rows` rows of `stride` codes each, of which the first `width` are the weight; the others fill up the last
block and stay as they are. A code of 2 or 4 bits begins at the lowest bits of its byte, or (`high`) at the highest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.files.storage import PIECE, Stored, pieces_of

__all__ = ["CodeLayout", "Coded", "codes_of"]

Codes = NDArray[np.uint8]


@dataclass(frozen=True)
class CodeLayout:
    """How codes lie in bytes, and the shape of the weight that they make."""

    bits: int
    dtype: str
    shape: tuple[int, ...]
    rows: int
    width: int
    stride: int
    high: bool = False

    @property
    def nbytes(self) -> int:
        """All bytes together."""
        return -(-self.rows * self.stride * self.bits // 8)


def codes_of(raw: Codes, bits: int, high: bool = False) -> Codes:
    """The codes in some bytes, one after the other.

    >>> codes_of(np.array([0x21, 0x43], np.uint8), 4).tolist()
    [1, 2, 3, 4]
    """
    if bits == 8:
        return raw
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((raw[:, None] >> (shifts[::-1] if high else shifts)) & np.uint8(2**bits - 1)).reshape(-1)


def bytes_of(codes: Codes, bits: int, high: bool = False) -> Codes:
    """The bytes of whole bytes' worth of codes."""
    if bits == 8:
        return codes
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = codes.reshape(-1, 8 // bits) << (shifts[::-1] if high else shifts)
    out: Codes = np.bitwise_or.reduce(parts, axis=1)
    return out


class Coded(Stored):
    """The codes of a packed weight, as `Stored` has the numbers of a plain one."""

    def __init__(self, under: Stored, codes: CodeLayout) -> None:
        tensor = under.tensor._replace(shape=codes.shape, dtype=codes.dtype)
        super().__init__(tensor, np.dtype(np.uint8), under.source, under.runs, under.shared)
        self.under, self.codes = under, codes
        if under.decoded is not None:
            self.decoded = self._codes(0, codes.rows * codes.stride).reshape(codes.rows, codes.stride)
            self.decoded = self.decoded[:, : codes.width].reshape(-1)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Codes `start` to `stop`, flat."""
        if self.decoded is not None:
            return self.decoded[start:stop].copy()
        p, out, done = self.codes, np.empty(stop - start, np.uint8), 0
        if p.width == p.stride:
            return self._codes(start, stop)
        while done < out.size:
            row, column = divmod(start + done, p.width)
            rows = min((out.size - done) // p.width, max(1, PIECE // p.stride)) if not column else 0
            if rows:
                size = rows * p.width
                whole = self._codes(row * p.stride, (row + rows) * p.stride).reshape(rows, p.stride)
                out[done : done + size] = whole[:, : p.width].reshape(-1)
            else:
                size = min(p.width - column, out.size - done)
                out[done : done + size] = self._codes(row * p.stride + column, row * p.stride + column + size)
            done += size
        return out

    def write(self, start: int, new: NDArray[Any], put: Callable[[int, Any], None]) -> None:
        """Call `put` so that the codes from `start` on become `new`; what is between rows stays.

        A piece begins and ends where `pieces` says, so that no byte is written twice.
        """
        p, stop = self.codes, start + new.size
        row, column = divmod(start, p.width)
        first = row * p.stride + column
        # the last piece of a row takes with it what fills the row up, or the last byte
        end = stop // p.width * p.stride if stop % p.width == 0 else first + new.size
        each = 8 // p.bits
        assert first % each == 0
        codes = self._codes(first, -(-end // each) * each)
        if p.width == p.stride or column or stop < (row + 1) * p.width:
            codes[: new.size] = new
        else:
            codes.reshape(-1, p.stride)[:, : p.width] = new.reshape(-1, p.width)
        self.under.write(first // each, bytes_of(codes, p.bits, p.high), put)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Stretches to read and write, that share no byte."""
        p, size = self.codes, self.tensor.size
        if p.width == p.stride:
            yield from pieces_of(size)
        elif p.stride > PIECE:
            for row in range(p.rows):
                yield from ((row * p.width + i, row * p.width + j) for i, j in pieces_of(p.width))
        else:
            yield from pieces_of(size, PIECE // p.stride * p.width)

    def fill(self) -> Iterator[Codes]:
        """The codes between rows, and after the last one, which are no part of the weight."""
        p = self.codes
        for row in range(p.rows if p.width < p.stride else 0):
            yield self._codes(row * p.stride + p.width, (row + 1) * p.stride)
        yield self._codes(p.rows * p.stride, self.under.tensor.size * (8 // p.bits))

    def numbers(self, new: NDArray[Any]) -> list[int]:
        """What a typed field holds for these codes."""
        p, each = self.codes, 8 // self.codes.bits
        codes = self._codes(0, self.under.tensor.size * each)
        codes[: p.rows * p.stride].reshape(p.rows, p.stride)[:, : p.width] = new.reshape(p.rows, p.width)
        return self.under.numbers(bytes_of(codes, p.bits, p.high))

    def _codes(self, first: int, last: int) -> Codes:
        """The codes at places `first` to `last`, those between rows included."""
        each = 8 // self.codes.bits
        raw = self.under.read(first // each, -(-last // each)).view(np.uint8)
        ahead = first % each
        return codes_of(raw, self.codes.bits, self.codes.high)[ahead : ahead + last - first]
