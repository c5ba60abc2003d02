"""Attributes of nodes, read by position: plain values as they are, graphs and tensors as the places where they lie."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from emp_onnx.files.headers import signed
from emp_onnx.files.wire import FIXED32, LENGTH, VARINT, Wire, WireError

__all__ = ["Attribute", "read_attribute"]


@dataclass
class Attribute:
    """What an attribute holds; `kind` is its type in `onnx.proto`, `borrowed` that a function's caller gives it."""

    name: str = ""
    kind: int = 0
    number: int = 0
    real: float = 0.0
    text: str = ""
    borrowed: bool = False
    numbers: list[int] = field(default_factory=list)
    tensors: list[tuple[int, int]] = field(default_factory=list)
    graphs: list[tuple[int, int]] = field(default_factory=list)
    sparse: list[tuple[int, int]] = field(default_factory=list)


def read_attribute(wire: Wire, start: int, stop: int) -> Attribute:
    """One attribute of a node."""
    found = Attribute()
    single = 0
    for number, kind, at, _, end in wire.fields(start, stop):
        if kind == VARINT:
            if number == 20:
                found.kind = at
            elif number == 3:
                found.number = signed(at)
            elif number == 8:
                found.numbers.append(signed(at))
        elif kind == FIXED32 and number == 2:
            found.real = float(struct.unpack("<f", wire.data(at, end))[0])
        elif kind == LENGTH:
            if number == 1:
                found.name = wire.text(at, end)
            elif number == 4:
                found.text = wire.data(at, end).decode("utf-8", "replace") if end - at < 4096 else ""
            elif number == 21:
                found.borrowed = end > at
            elif number == 5 or number == 10:
                found.tensors.append((at, end))
                single += number == 5
            elif number == 6 or number == 11:
                found.graphs.append((at, end))
                single += 16 * (number == 6)
            elif number == 22 or number == 23:
                found.sparse.append((at, end))
            elif number == 8:
                found.numbers += map(signed, wire.numbers(at, end))
    if single & 15 > 1 or single > 31:
        raise WireError("an attribute is written in two pieces")
    return found
