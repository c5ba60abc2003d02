"""Numbers that a tensor's message holds as varints: those that changed are written anew, in the form they had.

Such numbers have no fixed places: a zero takes one byte, a negative one ten. So the message is spelled again, packed
where it was packed and one by one where it was that; a number that stays keeps its bytes, however it was written.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.files.source import Source
from emp_onnx.files.storage import Stored
from emp_onnx.files.wire import LENGTH, VARINT, Edit, Wire, varint

__all__ = ["respelled"]

INTEGERS = {"int64": 7, "uint32": 11, "uint64": 11}  # all others are in field 5


def respelled(source: Source, where: Stored, new: NDArray[Any]) -> list[Edit]:
    """The change to a tensor's message that gives it these numbers: none, or the message anew."""
    place = where.tensor.place
    assert place is not None
    assert where.decoded is not None
    old, now = where.numbers(where.decoded), where.numbers(new)
    if old == now:
        return []
    wanted, wire, out, i = INTEGERS.get(where.tensor.dtype, 5), Wire(source), bytearray(), 0
    for number, kind, at, tag, end in wire.fields(*place.message):
        if number == wanted and kind == VARINT:
            out += wire.data(tag, end) if old[i] == now[i] else varint(number << 3) + varint(now[i])
            i += 1
        elif number == wanted and kind == LENGTH:
            data = wire.data(at, end)
            count = int(np.count_nonzero(np.frombuffer(data, np.uint8) < 128))
            packed = _packed(data, old[i : i + count], now[i : i + count])
            out += varint(number << 3 | LENGTH) + varint(len(packed)) + packed
            i += count
        else:
            out += wire.data(tag, end)
    return [Edit(*place.message, bytes(out))]


def _packed(data: bytes, old: list[int], now: list[int]) -> bytes:
    """Packed varints, with those that changed in the place of what they were."""
    ends = (np.flatnonzero(np.frombuffer(data, np.uint8) < 128) + 1).tolist()
    out, done = bytearray(), 0
    for i, (before, after) in enumerate(zip(old, now, strict=True)):
        if before != after:
            start = ends[i - 1] if i else 0
            out += data[done:start] + varint(after)
            done = ends[i]
    return bytes(out + data[done:])
