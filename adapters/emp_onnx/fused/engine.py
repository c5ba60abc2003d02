"""Sessions of onnxruntime in which packed weights run with the kernels of `emp_kernels`, where these are installed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emp_onnx.errors import MissingExtraError, ModelError, UsageError, quote
from emp_onnx.files.model_io import Model, load
from emp_onnx.files.reader import DOMAIN
from emp_onnx.fused.fuse import Fused, fused_before, fused_model
from emp_onnx.packing.choose import choose
from emp_onnx.packing.rewrite import rewritten
from emp_onnx.runtime.ort import first_line

__all__ = ["KERNELS", "Engine", "open_engine"]

KERNELS = ("auto", "on", "off")
MOST = 1 << 26  # elements of weights that are unpacked here rather than by onnxruntime


@dataclass(frozen=True)
class Engine:
    """A session, and by which path it runs.

    Attributes:
        session: an `onnxruntime.InferenceSession`.
        kernels: the instruction set of the kernels, or "" where onnxruntime unpacks the weights itself.
        fused: what became of each use of a packed weight; empty without kernels.
        note: the path in words.
    """

    session: Any
    kernels: str
    fused: tuple[Fused, ...]
    note: str


def open_engine(
    path: str | os.PathLike[str], /, *, kernels: str = "auto", threads: int | None = None, every: bool = False
) -> Engine:
    """Open a model for running.

    Args:
        path: a model, packed or not.
        kernels: auto, where they are installed and the model has weights for them; on: or fail; off.
        threads: onnxruntime's; all processors if not given.
        every: kernels also where dense ones are expected to be faster.

    Raises:
        UsageError: kernels are asked for and are not there.
        ModelError: onnxruntime cannot load it.

    Example:
        >>> open_engine("missing.onnx")
        Traceback (most recent call last):
            ...
        emp_onnx.errors.ModelError: model must be an ONNX file, got 'missing.onnx', which does not exist
    """
    if kernels not in KERNELS:
        raise UsageError(f"kernels must be one of {', '.join(KERNELS)}, got {kernels!r}")
    if not Path(path).is_file():
        found = "is no file" if Path(path).exists() else "does not exist"
        raise ModelError(f"model must be an ONNX file, got {quote(str(path))}, which {found}")
    if kernels == "off":
        return Engine(_session(str(path), _options(threads)), "", (), "onnxruntime alone")
    why = ""
    try:
        import emp_kernels
    except ImportError:
        why = "the kernels are not installed"
    else:
        try:
            emp_kernels.register(_options(threads))
            isa = emp_kernels.isa()
        except emp_kernels.KernelsError as error:
            why = str(error)
    if why:
        if kernels == "on":
            raise UsageError(f"kernels must be off or auto here: {why}")
        return Engine(_session(str(path), _options(threads)), "", (), f"onnxruntime alone: {why}")
    source = load(path)
    if not every and (fused := fused_before(source)):  # it is opened as it stands: nothing is read twice
        emp_kernels.register(options := _options(threads), only={item.op for item in fused})
        return Engine(_session(str(path), options), isa, tuple(fused), _kernels(isa, fused))
    fused, count = [], 0
    if any(node.domain == DOMAIN for node in source.graph.nodes):
        model, fused = fused_model(path, every=every)
        count = sum(bool(item.op) for item in fused)
    if not count:
        why = "no packed weight in it is faster with kernels" if fused else "it holds no packed weights"
        if kernels == "on":
            raise UsageError(f"kernels must be off or auto for this model: {why}")
        session = _session(_unpacked(source, path), _options(threads))
        return Engine(session, "", tuple(fused), f"onnxruntime alone: {why}")
    emp_kernels.register(options := _options(threads), only={item.op for item in fused if item.op})
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(Path(path).resolve().parent)
    )
    session = _session(model.SerializeToString(), options)
    return Engine(session, isa, tuple(fused), _kernels(isa, fused))


def _unpacked(source: Model, path: str | os.PathLike[str]) -> bytes | str:
    """The model with dense weights, where it is small: a model with local functions is put in line before onnxruntime
    optimises it, which then shares small constants and fuses less. Otherwise its path."""
    packed = frozenset(key for key, tensor in source.tensors.items() if tensor.recipe)
    if not packed or source.sidecars() or sum(tensor.size for tensor in source.tensors.values()) > MOST:
        return str(path)
    return rewritten(source, choose(source, form="dense", keys=packed)[0]).to_bytes()


def _kernels(isa: str, fused: Sequence[Fused]) -> str:
    count = sum(bool(item.op) for item in fused)
    return f"kernels ({isa}) for {count} of {len(fused)} uses of packed weights"


def _options(threads: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    return options


def _session(source: str | bytes, options: Any) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no common base
        raise ModelError(f"onnxruntime cannot load the model: {first_line(error)}") from error
