"""The fields of a graph that hold a tensor's parts: headers at once, numbers as they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emp_onnx.files import emit
from emp_onnx.files.wire import LENGTH, Blob, Piece, varint
from emp_onnx.packing.places import Chosen
from emp_onnx.packing.sidecars import Write

__all__ = ["initializers", "sparse"]

Head = tuple[str, str, Sequence[int]]  # name, type, shape
Sidecar = tuple[str, Mapping[str, tuple[int, int]]]  # what it is called, and where in it the parts are


def initializers(item: Chosen, heads: Sequence[Head], write: Write, sidecar: Sidecar | None) -> list[Piece]:
    """Fields of a graph with these tensors, whose numbers come from one blob, or are in a sidecar."""
    if sidecar:
        name, taken = sidecar
        bodies = [
            emit.tensor(*head) + emit.external_entries(name, *taken[f"{item.tensor.key}\0{i}"])
            for i, head in enumerate(heads)
        ]
        return [emit.field(5, body) for body in bodies]
    starts, fixed, at = [], list[tuple[int, bytes]](), 0
    for head, size in zip(heads, item.form.parts, strict=True):
        start = emit.tensor(*head) + varint(9 << 3 | LENGTH) + varint(size)
        start = varint(5 << 3 | LENGTH) + varint(len(start) + size) + start
        fixed.append((at, start))
        starts.append(at + len(start))
        at += len(start) + size

    def all_of(put: Any) -> None:
        for where, data in fixed:
            put(where, data)
        write(item, starts, put)

    return [Blob(at, all_of)]


def sparse(item: Chosen, write: Write) -> list[Piece]:
    """A field of a graph with a sparse tensor: values, then indices, then sizes."""
    form, dtype = item.form, f"int{item.form.width}"
    parts = [(1, item.tensor.name, item.tensor.dtype, form.parts[1]), (2, "", dtype, form.parts[0])]
    body: list[tuple[bytes, int]] = []
    for number, name, kind, size in parts:
        inner = emit.tensor(name, kind, (form.stored,)) + varint(9 << 3 | LENGTH) + varint(size)
        body.append((varint(number << 3 | LENGTH) + varint(len(inner) + size) + inner, size))
    tail = b"".join(emit.number(3, size) for size in item.tensor.shape)
    length = sum(len(head) + size for head, size in body) + len(tail)
    top = varint(15 << 3 | LENGTH) + varint(length)
    values_at = len(top) + len(body[0][0])
    indices_at = values_at + body[0][1] + len(body[1][0])

    def all_of(put: Any) -> None:
        put(0, top + body[0][0])
        put(values_at + body[0][1], body[1][0])
        put(indices_at + body[1][1], tail)
        write(item, [indices_at, values_at], put)

    return [Blob(len(top) + length, all_of)]
