"""Pieces of ONNX files as bytes: fields, headers of tensors, nodes, attributes and functions, as the wire has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from emp_onnx.files.headers import DTYPES
from emp_onnx.files.wire import LENGTH, VARINT, varint

__all__ = ["CODES", "attribute", "constant", "external_entries", "field", "function", "node", "number", "tensor"]

CODES = {name: code for code, (name, _, _) in DTYPES.items()}
Attribute = int | str | bytes | tuple[int, ...] | NDArray[np.int64]


def field(at: int, data: bytes | str) -> bytes:
    """A field that holds bytes, a text, or a message."""
    body = data.encode() if isinstance(data, str) else data
    return varint(at << 3 | LENGTH) + varint(len(body)) + body


def number(at: int, value: int) -> bytes:
    """A field that holds a whole number."""
    return varint(at << 3 | VARINT) + varint(value & 0xFFFFFFFFFFFFFFFF)


def tensor(name: str, dtype: str, shape: Sequence[int], data: bytes | None = None) -> bytes:
    """The content of a tensor's message: its header, and its numbers unless they follow otherwise."""
    head = b"".join(number(1, size) for size in shape) + number(2, CODES[dtype])
    return head + (field(8, name) if name else b"") + (b"" if data is None else field(9, data))


def external_entries(location: str, offset: int, length: int) -> bytes:
    """The fields that say that a tensor's numbers are in another file, and where."""
    entries = (("location", location), ("offset", str(offset)), ("length", str(length)))
    return b"".join(field(13, field(1, key) + field(2, value)) for key, value in entries) + number(14, 1)


def attribute(name: str, value: Attribute, *, borrowed: bool = False) -> bytes:
    """The content of an attribute's message; `borrowed`: its value, a tensor, is the function's attribute `value`, or,
    where that ends in `…`, whole numbers.
    """
    if borrowed:
        assert isinstance(value, str)
        return field(1, name) + field(21, value.rstrip("…")) + number(20, 7 if value.endswith("…") else 4)
    if isinstance(value, tuple):
        return field(1, name) + b"".join(number(8, item) for item in value) + number(20, 7)
    if isinstance(value, int):
        return field(1, name) + number(3, value) + number(20, 2)
    if isinstance(value, np.ndarray):
        value = tensor("", "int64", value.shape, value.astype("<i8").tobytes())
    if isinstance(value, bytes):
        return field(1, name) + field(5, value) + number(20, 4)
    return field(1, name) + field(4, value) + number(20, 3)


def node(
    op: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Mapping[str, Attribute] | None = None,
    *, domain: str = "", name: str = "", borrowed: Mapping[str, str] | None = None,
) -> bytes:  # fmt: skip
    """The content of a node's message."""
    out = b"".join(field(1, text) for text in inputs) + b"".join(field(2, text) for text in outputs)
    out += (field(3, name) if name else b"") + field(4, op)
    out += b"".join(field(5, attribute(key, value)) for key, value in (attributes or {}).items())
    out += b"".join(field(5, attribute(key, value, borrowed=True)) for key, value in (borrowed or {}).items())
    return out + (field(7, domain) if domain else b"")


def constant(output: str, values: NDArray[np.generic]) -> bytes:
    """A Constant node that holds these values."""
    dtype = {"bool": "bool"}.get(values.dtype.name, values.dtype.name)
    return node("Constant", [], [output], {"value": tensor("", dtype, values.shape, values.tobytes())})


def function(
    name: str, domain: str, inputs: Sequence[str], outputs: Sequence[str], nodes: Sequence[bytes], opset: int,
    *, attributes: Sequence[str] = (), doc: str = "",
) -> bytes:  # fmt: skip
    """The content of a local function's message."""
    out = field(1, name) + b"".join(field(4, text) for text in inputs) + b"".join(field(5, text) for text in outputs)
    out += b"".join(field(6, text) for text in attributes) + b"".join(field(7, body) for body in nodes)
    return out + (field(8, doc) if doc else b"") + field(9, number(2, opset)) + field(10, domain)
