"""A model as a protobuf in memory, and back to files: complete or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emp_onnx.errors import MissingExtraError, ModelError, UsageError, quote
from emp_onnx.files.model_io import Model, load
from emp_onnx.files.whole import check_target, staged, write_whole
from emp_onnx.files.writer import drop_sidecars, own_sidecars
from emp_onnx.runtime.ort import first_line

__all__ = ["digest", "read", "write"]

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
        raise ModelError(f"model {quote(path)} could not be read: {first_line(error)}") from error
    return proto, model


def write(
    proto: Any, target: Path, source: Model, *, check: Callable[[Path], None] = lambda _: None
) -> tuple[Path, ...]:
    """Put the model in place; with a sidecar of its own, named after its contents, where the source has sidecars.

    `check` sees the file before it takes its place. Sidecars of a model that is replaced go; whatever is raised, what
    was there before stays as it was.
    """
    import onnx

    target = check_target(target, "out")
    old = own_sidecars(target)
    files: tuple[Path, ...] = ()
    new = False
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
        for tensor, start, length in places:
            onnx.external_data_helper.set_external_data(tensor, sidecar.name, start, length)
            tensor.ClearField("raw_data")
        proto, files, new = copy, (sidecar,), not sidecar.exists()
    try:
        for file in files:
            write_whole(file, data, "out")
        with staged(target, source.path) as stage:
            stage.path.write_bytes(proto.SerializeToString(deterministic=True))
            check(stage.path)
    except BaseException:
        if new:
            for file in files:
                file.unlink(missing_ok=True)
        raise
    drop_sidecars(old - set(files), source, target)
    return (target, *files)


def digest(proto: Any) -> str:
    """A hash of all that a model says, wherever its values were kept before they were read."""
    for tensor in proto.graph.initializer:
        tensor.ClearField("data_location")  # the default, which reading values from a sidecar spells out
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
