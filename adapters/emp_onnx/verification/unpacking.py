"""The local functions that unpack weights: onnxruntime does what they say, so they must say what `emp pack` wrote."""

from __future__ import annotations

from collections.abc import Iterator

from emp_onnx.errors import quote
from emp_onnx.files.functions import FUNCTIONS, function_bytes
from emp_onnx.files.model_io import Model
from emp_onnx.files.reader import DOMAIN
from emp_onnx.verification.outcome import Check, check

__all__ = ["unpacking"]

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
    if stored == ours:
        return True
    import onnx

    try:
        return bool(onnx.FunctionProto.FromString(stored) == onnx.FunctionProto.FromString(ours))
    except Exception:  # protobuf's own errors have no common base
        return False
