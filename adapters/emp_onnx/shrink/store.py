"""A model as a protobuf in memory, and back to files: complete or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from emp_onnx.errors import MissingExtraError, ModelError, UsageError, quote
from emp_onnx.files.model_io import Model, load
from emp_onnx.files.whole import check_target, staged, write_whole

__all__ = ["read", "write"]

LARGEST = 2**31 - 1


def read(path: str | os.PathLike[str]) -> tuple[Any, Model]:
    """The protobuf with all values in it, and the model as the other verbs read it, which has checked it.

    Raises:
        ModelError: it cannot be read, or holds 2 GiB or more.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx") from error
    model = load(path)
    size = Path(path).stat().st_size + sum(file.stat().st_size for file in model.sidecars().values())
    if size > LARGEST:
        raise ModelError(f"model must be smaller than 2 GiB to be shrunk, got {model.origin} with {size:,} bytes")
    for tensor in model.tensors.values():
        model.stored(tensor.key)
    try:
        proto = onnx.load_model_from_string(Path(path).read_bytes())
        onnx.external_data_helper.load_external_data_for_model(proto, str(Path(path).resolve().parent))
    except Exception as error:  # protobuf's and onnx's own errors have no common base
        raise ModelError(f"model {quote(path)} could not be read: {str(error).splitlines()[0][:200]}") from error
    return proto, model


def write(proto: Any, target: Path, source: Model) -> tuple[Path, ...]:
    """Put the model in place; with a sidecar of its own, named after its contents, where the source has sidecars."""
    import onnx

    target = check_target(target, "out")
    files: tuple[Path, ...] = ()
    if source.sidecars():
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        chunks, at, places = [], 0, []
        outside = {t.name for t in source.tensors.values() if t.storage == "external"}
        for tensor in copy.graph.initializer:
            if tensor.name in outside:
                pad = -at % 4096
                chunks += [b"\0" * pad, tensor.raw_data]
                places.append((tensor, at + pad, len(tensor.raw_data)))
                at += pad + len(tensor.raw_data)
        data = b"".join(chunks)
        sidecar = target.with_name(f"{target.name}.{hashlib.sha256(data).hexdigest()[:12]}.data")
        if any(sidecar.resolve() == file.resolve() for file in source.sidecars().values()):
            raise UsageError(f"out must not be a file of the model, got {quote(sidecar)}")
        write_whole(sidecar, data, "out")
        for tensor, start, length in places:
            onnx.external_data_helper.set_external_data(tensor, sidecar.name, start, length)
            tensor.ClearField("raw_data")
        proto, files = copy, (sidecar,)
    try:
        with staged(target) as stage:
            stage.path.write_bytes(proto.SerializeToString(deterministic=True))
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
    return (target, *files)
