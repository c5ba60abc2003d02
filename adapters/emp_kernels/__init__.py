"""Kernels for onnxruntime that compute with packed weights as they are, instead of unpacking them.

`register` adds them to the options of a session. A file that `emp pack` wrote runs without them too: then onnxruntime
unpacks the weights when it loads the model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["KernelsError", "isa", "library", "register"]


class KernelsError(Exception):
    """The kernels cannot be used here; the message says why."""


def library() -> Path:
    """The shared library; programs in C++ give this path to `Ort::SessionOptions::RegisterCustomOpsLibrary`.

    The environment variable EMP_KERNELS_LIBRARY names another one.

    Raises:
        KernelsError: it has not been built or installed.
    """
    named = os.environ.get("EMP_KERNELS_LIBRARY")
    if named:
        if not Path(named).is_file():
            raise KernelsError(f"EMP_KERNELS_LIBRARY must be the path of a shared library, got {named!r}")
        return Path(named)
    here = Path(__file__).resolve().parent
    for name in ("libemp_kernels.so", "libemp_kernels.dylib", "emp_kernels.dll"):
        if (here / name).is_file():
            return here / name
    raise KernelsError("the kernels have not been built: pip install ./adapters/emp_kernels in a clone of the project")


def register(session_options: Any, /, *, only: Iterable[str] = ()) -> None:
    """Make sessions with these options run packed weights with the kernels.

    Args:
        session_options: an `onnxruntime.SessionOptions`.
        only: the operations that a model has, by name, so that its session opens some 55 ms sooner; all if empty.
            Others run without kernels then.

    Raises:
        KernelsError: the library is absent, is for another kind of machine, or needs another onnxruntime.

    Example:
        >>> import onnxruntime
        >>> options = onnxruntime.SessionOptions()
        >>> register(options)  # doctest: +SKIP
        >>> session = onnxruntime.InferenceSession("model.packed.onnx", options)  # doctest: +SKIP
    """
    path = library()
    names = " ".join(sorted(only))
    if names:
        import ctypes

        ctypes.CDLL(str(path)).emp_kernels_only(names.encode())  # for what this thread registers next
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime's own errors have no common base
        text = str(error).strip().splitlines()
        raise KernelsError(
            f"onnxruntime cannot use the kernels: {text[0] if text else type(error).__name__}"
        ) from error


def isa() -> str:
    """The instruction set that the kernels use here: avx512, avx2, neon or portable.

    It is the best one that the processor has. The environment variable EMP_KERNELS_ISA names another one; it is read
    once.

    Raises:
        KernelsError: the library is absent, or is for another kind of machine.
    """
    import ctypes

    try:
        found = ctypes.CDLL(str(library()))
    except OSError as error:
        raise KernelsError(f"the kernels cannot be loaded: {error}") from error
    found.emp_kernels_isa.restype = ctypes.c_char_p
    name: bytes = found.emp_kernels_isa()
    return name.decode()
