"""The numbers of a tensor, wherever they are kept: read and encoded piece by piece, in the type they are stored in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.errors import ModelError, quote
from emp_onnx.files.graph import Run, Tensor
from emp_onnx.files.source import Source
from emp_onnx.files.wire import VARINT, Wire

__all__ = ["PIECE", "Stored", "numpy_dtype", "pieces_of", "stored"]

PIECE = 1 << 17  # numbers looked at together
BITS = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}  # types of which a byte holds several
PLAIN = {
    "float32": "<f4", "float64": "<f8", "float16": "<f2", "int8": "|i1", "uint8": "|u1", "int16": "<i2", "uint16":
    "<u2", "int32": "<i4", "uint32": "<u4", "int64": "<i8", "uint64": "<u8", "bool": "|b1", "complex64": "<c8",
    "complex128": "<c16",
}  # fmt: skip
ML = {
    "bfloat16": "bfloat16", "float8e4m3fn": "float8_e4m3fn", "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2", "float8e5m2fnuz": "float8_e5m2fnuz", "float8e8m0": "float8_e8m0fnu",
    "int4": "int4", "uint4": "uint4", "int2": "int2", "uint2": "uint2", "float4e2m1": "float4_e2m1fn",
}  # fmt: skip


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy type of an ONNX one.

    Raises:
        ModelError: there is none (texts, numbers of 4 bits, types unknown here).
    """
    if name in PLAIN:
        return np.dtype(PLAIN[name])
    if name in ML:
        try:
            import ml_dtypes
        except ImportError as error:
            raise ModelError(f"{name} weights need the package ml_dtypes, which comes with onnx") from error
        if hasattr(ml_dtypes, ML[name]):
            found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, ML[name]))
            return found
    raise ModelError(f"a tensor of {name} has no values that can be read here")


def pieces_of(size: int, most: int = PIECE) -> Iterator[tuple[int, int]]:
    """[0, size) in pieces."""
    for start in range(0, size, most):
        yield start, min(start + most, size)


@dataclass
class Stored:
    """Where the numbers of one tensor lie, with every bound checked.

    Attributes:
        tensor: its header.
        dtype: NumPy's name of its type.
        source: the file that holds the numbers.
        runs: where; `width` times `count` bytes together. Empty for numbers that the wire has as varints.
        shared: where the file is another than the model's own: its location, else empty.
        decoded: all numbers, where they are varints.
    """

    tensor: Tensor
    dtype: np.dtype[Any]
    source: Source
    runs: tuple[Run, ...]
    shared: str = ""
    decoded: NDArray[Any] | None = None

    @property
    def place(self) -> int:
        """Where the numbers begin that lie one after the other in one place, each of whole bytes; else -1."""
        runs = self.runs
        return runs[0].at if len(runs) == 1 and runs[0].step == runs[0].width and each_of(self.dtype) == 1 else -1

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Stretches that can be written one by one."""
        return pieces_of(self.tensor.size)

    def spans(self, *, dense: bool = False) -> Iterator[tuple[int, int]]:
        """The stretches of the file that the numbers take; `dense`: only those that hold nothing else."""
        for run in self.runs:
            if run.many and not (dense and run.step != run.width):
                yield run.at, run.at + (run.many - 1) * run.step + run.width

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Numbers `start` to `stop`, flat, in memory of their own."""
        if self.decoded is not None:
            return self.decoded[start:stop].copy()
        if (place := self.place) >= 0:
            out = np.empty(stop - start, self.dtype)
            self.source.into(place + start * self.dtype.itemsize, out.view(np.uint8).data)
            return out
        each = each_of(self.dtype)
        if each > 1:
            room = np.empty(-(-stop // each) - start // each, np.uint8)
            out = room
            first, last = start // each, start // each + room.size
        else:
            out = np.empty(stop - start, self.dtype)
            room = out.view(np.uint8)
            first, last = start * self.dtype.itemsize, stop * self.dtype.itemsize
        done = 0
        for at, size, step, item in self._bytes(first, last):
            if step == item:
                self.source.into(at, room[done : done + size].data)
            else:
                count = size // item
                loose = np.zeros(count * step, np.uint8)
                self.source.into(at, loose[: (count - 1) * step + item].data)
                room[done : done + size] = loose.reshape(count, step)[:, :item].reshape(-1)
            done += size
        if each > 1:
            return unpacked(room, self.dtype)[start % each : start % each + stop - start]
        return out

    def write(self, start: int, new: NDArray[Any], put: Callable[[int, Any], None]) -> None:
        """Call `put(at, bytes)` so that numbers from `start` on become `new`."""
        new = np.ascontiguousarray(new, self.dtype)
        if (place := self.place) >= 0:
            put(place + start * self.dtype.itemsize, new.view(np.uint8).data)
            return
        each, done = each_of(self.dtype), 0
        data = packed(new) if each > 1 else new.view(np.uint8)
        first = start // each if each > 1 else start * self.dtype.itemsize
        assert start % each == 0
        for at, size, step, item in self._bytes(first, first + data.size):
            if step == item:
                put(at, data[done : done + size].data)
            else:
                count = size // item
                loose = np.zeros(count * step, np.uint8)
                self.source.into(at, loose[: (count - 1) * step + item].data)
                loose.reshape(count, step)[:, :item] = data[done : done + size].reshape(count, item)
                put(at, loose[: (count - 1) * step + item].data)
            done += size

    def _bytes(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """Bytes `start` to `stop` of the numbers: where in the file, how many, and their step and width."""
        for run in self.runs:
            size = run.many * run.width
            if start < size and start < stop:
                step, item = run.step, run.width
                end = min(stop, size)
                at = run.at + start if step == item else run.at + start // item * step
                yield at, end - start, step, item
                start = end
            start, stop = start - size, stop - size
            if stop <= 0:
                return
            start = max(start, 0)

    def numbers(self, new: NDArray[Any]) -> list[int]:
        """What a typed field of small integers holds for these numbers, as the wire has it: 64 bits, no sign."""
        new = np.ascontiguousarray(new, self.dtype)
        bits = packed(new) if self.dtype.name in BITS else _bits(new)
        return [value & 0xFFFFFFFFFFFFFFFF for value in bits.tolist()]


def stored(tensor: Tensor, own: Source, sidecar: Callable[[str, str], Source]) -> Stored:
    """Check where the numbers of `tensor` are said to lie.

    Raises:
        ModelError: they do not fit its shape, or its file, or its type cannot be read here.
    """
    place, dtype = tensor.place, numpy_dtype(tensor.dtype)
    if place is None or tensor.storage == "segment":
        raise ModelError(f"tensor {quote(tensor.name)} is stored in segments, which is not supported")
    size = nbytes(dtype, math.prod(tensor.shape))
    if any(d < 0 for d in tensor.shape):
        raise ModelError(f"weight {quote(tensor.name)} must have sizes ≥ 0, got the shape {tensor.shape}")
    if tensor.storage == "external":
        return _external(tensor, dtype, size, sidecar)
    if tensor.storage == "typed" and place.coding == VARINT:
        return _decoded(tensor, dtype, own)
    have = sum(run.many * run.width for run in place.runs)
    if have != size:
        raise ModelError(_misfit(tensor, size, have))
    return Stored(tensor, dtype, own, place.runs)


def _external(tensor: Tensor, dtype: np.dtype[Any], size: int, sidecar: Callable[[str, str], Source]) -> Stored:
    entries = dict(tensor.place.external) if tensor.place else {}
    location = entries.get("location", "")
    source = sidecar(location, tensor.name)
    offset, length = _whole(tensor, entries.get("offset", "0")), _whole(tensor, entries.get("length", str(size)))
    if offset < 0 or not 0 <= length <= source.size - offset or length != size:
        raise ModelError(
            f"tensor {quote(tensor.name)} of shape {tensor.shape} claims {length} bytes at {offset}, which "
            f"{quote(location)} of {source.size} bytes cannot hold for it"
        )
    return Stored(tensor, dtype, source, (Run(offset, size, 1, 1),), location)


def _whole(tensor: Tensor, text: str) -> int:
    if not text.lstrip("-").isascii() or not text.lstrip("-").isdigit() or len(text) > 20:
        raise ModelError(f"tensor {quote(tensor.name)} must have whole numbers as offset and length")
    return int(text)


def _decoded(tensor: Tensor, dtype: np.dtype[Any], own: Source) -> Stored:
    """Numbers that the wire has as varints: read at once, since they have no fixed places."""
    runs: Sequence[Run] = tensor.place.runs if tensor.place else ()
    numbers: list[int] = []
    wire = Wire(own)
    for run in runs:
        if run.many < 0:
            numbers.append(run.at)
        else:
            numbers.extend(wire.numbers(run.at, run.at + run.many))
    count = math.prod(tensor.shape)
    if len(numbers) != (nbytes(dtype, count) if dtype.name in BITS else count):
        raise ModelError(_misfit(tensor, nbytes(dtype, count), nbytes(dtype, len(numbers))))
    wide = np.array(numbers, np.uint64)
    if dtype.name in BITS:
        return Stored(tensor, dtype, own, (), "", unpacked(wide.astype(np.uint8), dtype)[:count])
    kind = np.dtype(f"u{dtype.itemsize}")
    values = wide.astype(kind).view(dtype) if dtype != np.bool_ else wide != 0
    return Stored(tensor, dtype, own, (), "", values)


@cache
def each_of(dtype: np.dtype[Any]) -> int:
    """How many numbers a byte holds, at least one; NumPy takes long to say the name of a type."""
    return 8 // BITS.get(dtype.name, 8)


def nbytes(dtype: np.dtype[Any], count: int) -> int:
    """Bytes that so many numbers take."""
    each = each_of(dtype)
    return -(-count // each) if each > 1 else dtype.itemsize * count


def unpacked(raw: NDArray[np.uint8], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Numbers of fewer than 8 bits from their bytes, the lowest bits first."""
    bits = BITS[dtype.name]
    codes = np.stack([(raw >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], axis=1).reshape(-1)
    if dtype.name.startswith("int"):
        signed = np.where(codes >= 2 ** (bits - 1), codes.astype(np.int16) - 2**bits, codes).astype(np.int8)
        return signed.astype(dtype)
    return codes.view(dtype) if dtype.name.startswith("float") else codes.astype(dtype)


def packed(values: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of numbers; several of fewer than 8 bits share one."""
    bits = BITS.get(values.dtype.name, 8)
    if bits == 8:
        return values.view(np.uint8)
    plain = values.view(np.uint8) if values.dtype.name.startswith("float") else values.astype(np.int8).view(np.uint8)
    codes, each = plain & (2**bits - 1), 8 // bits
    codes = np.concatenate([codes, np.zeros(-codes.size % each, np.uint8)]).reshape(-1, each)
    out = np.zeros(len(codes), np.uint8)
    for i in range(each):
        out |= codes[:, i] << np.uint8(i * bits)
    return out


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    """What is written for numbers: integers as they are, others by their bits."""
    if values.dtype.kind in "iu":
        return values.astype(np.int64) if values.dtype.kind == "i" else values
    return values.view(f"u{values.dtype.itemsize}")


def _misfit(tensor: Tensor, size: int, have: int) -> str:
    return f"weight {quote(tensor.name)} of shape {tensor.shape} must hold {size} bytes, got {have}"
