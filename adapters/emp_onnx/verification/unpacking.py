"""The local functions that unpack weights: onnxruntime does what they say, so they must say what `emp pack` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from emp_onnx.errors import quote
from emp_onnx.files.functions import FUNCTIONS, function_bytes
from emp_onnx.files.model_io import Model
from emp_onnx.files.reader import DOMAIN
from emp_onnx.files.source import Memory
from emp_onnx.files.wire import LENGTH, VARINT, Wire, WireError
from emp_onnx.verification.outcome import Check, check

__all__ = ["unpacking"]

# messages in messages, by the field that holds them
_INSIDE = {
    ("function", 7): "node", ("function", 9): "opset", ("node", 5): "attribute", ("attribute", 5): "tensor",
}  # fmt: skip
OWN = "packed weights are unpacked by the functions of emp pack"


def unpacking(model: Model, /) -> Iterator[Check]:
    """Whether the functions that unpack are the project's own; nothing where no weight is packed."""
    found = {name: item for (domain, name), item in model.contents.calls.items() if domain == DOMAIN}
    if found:
        opset = next((version for domain, (version, _) in model.contents.imports.items() if not domain), 0)
        stored = {name: model.source.read(item[2], item[4] - item[2]) for name, item in found.items()}
        wrong = [name for name, body in stored.items() if not _own(name, opset, body)]
        yield check(OWN, (f"function {quote(name)} is not what emp pack writes" for name in wrong))


def _own(name: str, opset: int, stored: bytes) -> bool:
    """Whether a function is ours, in whatever order another tool has put its fields."""
    if name not in FUNCTIONS:
        return False
    ours = function_bytes(name, opset)
    try:
        return stored == ours or _in_order(stored) == _in_order(ours)
    except WireError:
        return False


def _in_order(function: bytes) -> Any:
    """A function's fields, and those of what is in it, by their numbers; repeated ones stay in their order."""
    wire = Wire(Memory(function))

    def fields(start: int, stop: int, kind: str) -> list[tuple[int, Any]]:
        found = []
        for number, how, at, _, end in wire.fields(start, stop):
            inner = _INSIDE.get((kind, number))
            value: Any = at if how == VARINT else wire.source.read(at, end - at)
            found.append((number, fields(at, end, inner) if inner and how == LENGTH else value))
        return sorted(found, key=lambda item: item[0])

    return fields(0, len(function), "function")
