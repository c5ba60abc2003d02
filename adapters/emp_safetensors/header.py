"""The header of a safetensors file: read, and checked before anything else is believed.

Eight bytes (a little-endian length), so many bytes of JSON, then the numbers of all tensors without holes. What a
hostile
file could claim is refused here: lengths beyond the file, overlaps, holes, names twice, shapes that overflow.
"""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emp_core.certificates import BFLOAT16
from emp_safetensors.errors import CheckpointError, quote

__all__ = ["DTYPES", "Header", "Place", "dump", "read_header"]

LARGEST = 100_000_000  # bytes of a header, as the reference reader allows
# bits of an element, and the NumPy type of those that are looked at
DTYPES: dict[str, tuple[int, np.dtype[Any] | None]] = {
    "F64": (64, np.dtype("<f8")),
    "F32": (32, np.dtype("<f4")),
    "F16": (16, np.dtype("<f2")),
    "BF16": (16, BFLOAT16),
    "C64": (64, None),
    "F8_E5M2": (8, None),
    "F8_E4M3": (8, None),
    "F8_E8M0": (8, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
    "F4": (4, None),
    "F8_E4M3FNUZ": (8, None),
    "F8_E5M2FNUZ": (8, None),
    "I64": (64, None),
    "U64": (64, None),
    "I32": (32, None),
    "U32": (32, None),
    "I16": (16, None),
    "U16": (16, None),
    "I8": (8, None),
    "U8": (8, None),
    "BOOL": (8, None),
}


@dataclass(frozen=True)
class Place:
    """One tensor of a file: what it is, and the bytes it takes, counted from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file says of itself: tensors in the order of their bytes, metadata, and where the bytes begin."""

    places: tuple[Place, ...]
    metadata: dict[str, str]
    data: int
    end: int


def open_plain(path: Path) -> int:
    """A handle of a plain file; a named pipe must not wait for a writer."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        handle = os.open(path, flags)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {quote(path)} could not be read: {getattr(error, 'strerror', error)}"
        ) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CheckpointError(f"checkpoint must be a plain file, got {quote(path)}, which is something else")
    return handle


def read_header(handle: int, path: Path) -> Header:
    """The header of an open file.

    Raises:
        CheckpointError: it is no safetensors file, or a damaged one; the message says what is wrong.
    """
    where, end = f"checkpoint {quote(path)}", os.fstat(handle).st_size
    first = os.pread(handle, 8, 0)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length < 2 or length > LARGEST or 8 + length > end:
        raise CheckpointError(
            f"{where} must begin with the length of its header, got {length} in a file of {end} bytes"
        )
    text = os.pread(handle, length, 8)
    if text[:1] != b"{":
        raise CheckpointError(f"{where} must hold a header in JSON, got something else")
    try:
        body = json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_never)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} must hold a header in JSON, got something else: {error}") from error
    if not isinstance(body, dict):
        raise CheckpointError(f"{where} must hold a header in JSON, got something else")
    metadata = body.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{where} must hold metadata of names and texts, got something else")
    data = 8 + length
    places = sorted((_place(name, said, data, where) for name, said in body.items()), key=lambda p: (p.start, p.stop))
    at = data
    for place in places:
        if place.start != at:
            raise CheckpointError(
                f"{where} must hold tensors without holes or overlap, got one before {quote(place.name)}"
            )
        at = place.stop
    if at != end:
        raise CheckpointError(f"{where} must end with its last tensor, at {at}, got a file of {end} bytes")
    return Header(tuple(places), metadata, data, end)


def dump(header: Header, metadata: dict[str, str], length: int = 0) -> bytes:
    """A header as bytes, with its length before it, padded with spaces to at least ``length`` and a multiple of 8."""
    body: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for place in header.places:
        offsets = [place.start - header.data, place.stop - header.data]
        body[place.name] = {"dtype": place.dtype, "shape": list(place.shape), "data_offsets": offsets}
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    size = max(len(text), length - 8)
    size += -size % 8
    return size.to_bytes(8, "little") + text.ljust(size)


def _place(name: str, said: Any, data: int, where: str) -> Place:
    called = f"tensor {quote(name)} of {where}"
    try:
        dtype, shape, (start, stop) = said["dtype"], said["shape"], said["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{called} must have a dtype, a shape and two offsets, got something else") from error
    numbers = [*shape, start, stop] if isinstance(shape, list) else [None]
    if any(type(v) is not int or not 0 <= v < 1 << 63 for v in numbers):
        raise CheckpointError(f"{called} must have whole numbers as shape and offsets, got {str(said)[:80]}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{called} must hold one of {', '.join(DTYPES)}, got {quote(dtype)}")
    bits = math.prod(shape) * DTYPES[dtype][0]
    if len(shape) > 64 or bits % 8 or stop - start != bits // 8:
        raise CheckpointError(f"{called} of shape {shape} must take {bits / 8:.0f} bytes, got {stop - start}")
    return Place(name, dtype, tuple(shape), data + start, data + stop)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _never(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")
