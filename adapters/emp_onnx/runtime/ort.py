"""onnxruntime itself: how a session is opened and run here, and the loop that does both for another process.

This file imports nothing of the package: the other process runs it by its path, and starts in the time that NumPy and
onnxruntime take. Messages are a header in JSON and the bytes of arrays after it; nothing that is read is ever
executed, so an onnxruntime gone mad can lie, and no more.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import struct
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np

__all__ = ["Other", "facts", "first_line", "open_session", "receive", "run_session", "send", "serve"]

HEAD = struct.Struct("<4sI")
MAGIC, LONGEST = b"emp1", 1 << 28  # bytes of a header


class Other:
    """Stands for a value of a kind that does not travel."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


def open_session(source: str | bytes, threads: int | None, plain: bool = False) -> Any:
    """An `InferenceSession` on the CPU, from a path or from bytes; `plain`: its graph is not optimised, if it runs so.

    Looking for what can be optimised takes longer than all else that is done when a graph of many nodes is loaded.
    """
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.use_deterministic_compute = True
    if threads:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    if plain:
        with suppress(Exception):  # some operations run only when what feeds them was made a constant
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry("session.disable_prepacking", "1")
            # a few runs: planning their memory pays for itself after many, and two such sessions share processors
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            options.enable_mem_pattern = False
            return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def facts(session: Any) -> dict[str, Any]:
    """Its inputs, overridable initializers (name, type, shape), and the names of its outputs."""

    def declared(items: Any) -> list[Any]:
        return [[item.name, item.type, list(item.shape or ())] for item in items]

    return {
        "inputs": declared(session.get_inputs()),
        "overridable": declared(session.get_overridable_initializers()),
        "outputs": [item.name for item in session.get_outputs()],
    }


def run_session(session: Any, feed: Mapping[str, Any], limit: float | None) -> list[Any]:
    """All outputs for one feed; ended after `limit` seconds, as far as onnxruntime lets itself be ended."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    timer = threading.Timer(limit or 0, setattr, (options, "terminate", True))
    try:
        if limit is not None:
            timer.daemon = True
            timer.start()
        found: list[Any] = session.run(None, dict(feed), options)
        return found
    finally:
        timer.cancel()


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def send(stream: BinaryIO, message: dict[str, Any], values: Any = None) -> None:
    """Write one message, and a value with it."""
    parts: list[Any] = []
    header = json.dumps({**message, "value": _described(values, parts)}).encode()
    stream.write(HEAD.pack(MAGIC, len(header)) + header)
    for part in parts:
        stream.write(part)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], Any]:
    """Read one message and its value.

    Raises:
        EOFError: the other side has gone, or sends something else.
    """
    magic, size = HEAD.unpack(_exactly(stream, bytearray(HEAD.size)))
    if magic != MAGIC or size > LONGEST:
        raise EOFError("no message of ours")
    try:
        message: dict[str, Any] = json.loads(_exactly(stream, bytearray(size)))
        return message, _value(message.get("value"), stream)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise EOFError("no message of ours") from error


def _exactly(stream: BinaryIO, buffer: bytearray) -> bytes:
    _fill(stream, memoryview(buffer))
    return bytes(buffer)


def _fill(stream: BinaryIO, view: memoryview) -> None:
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the other side has gone")
        view = view[count:]


def _described(value: Any, parts: list[Any]) -> Any:
    """A value in words, its bytes added to `parts`."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"plain": value}
    if isinstance(value, bytes):
        parts.append(value)
        return {"bytes": len(value)}
    if isinstance(value, Mapping):
        return {"map": [[_described(key, parts), _described(item, parts)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_described(item, parts) for item in value]}
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype.kind in "biufcSU" and array.dtype.itemsize:
            parts.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            return {"array": array.dtype.str, "shape": array.shape}
        if array.dtype.kind in "OSU":
            return {"objects": [_described(item, parts) for item in array.reshape(-1).tolist()], "shape": array.shape}
        return {"other": f"array of {array.dtype}"}
    return {"other": type(value).__name__}


def _value(said: dict[str, Any] | None, stream: BinaryIO) -> Any:
    """The value of a description, its bytes read in the order in which they were written."""
    if said is None or "plain" in said:
        return None if said is None else said["plain"]
    if "bytes" in said:
        return _exactly(stream, bytearray(said["bytes"]))
    if "map" in said:
        return {_value(key, stream): _value(item, stream) for key, item in said["map"]}
    if "list" in said:
        return [_value(item, stream) for item in said["list"]]
    if "array" in said:
        array = np.empty(tuple(said["shape"]), np.dtype(said["array"]))
        if array.dtype.hasobject:
            raise ValueError("objects do not travel")
        if array.size:
            _fill(stream, array.reshape(-1).view(np.uint8).data)
        return array
    if "objects" in said:
        array = np.empty(len(said["objects"]), object)
        for i, item in enumerate(said["objects"]):
            array[i] = _value(item, stream)
        return array.reshape(tuple(said["shape"]))
    return Other(str(said["other"]))


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until the other side has gone; then end at once, whatever is going on."""
    waiting: queue.Queue[tuple[dict[str, Any], Any]] = queue.Queue(1)

    def listen() -> None:
        with suppress(Exception):
            while True:
                waiting.put(receive(requests))
        os._exit(0)

    send(answers, {"here": True})
    threading.Thread(target=listen, daemon=True).start()
    with suppress(Exception):  # before the first request: it takes longer than many a model; who asks is told
        import onnxruntime  # type: ignore[import-untyped, unused-ignore]  # noqa: F401
    sessions: list[Any] = []
    while True:
        request, value = waiting.get()
        answer, result = {"error": ""}, None
        try:
            if request["do"] == "open":
                sessions.append(open_session(value, request["threads"], request["plain"]))
                answer |= facts(sessions[-1]) | {"session": len(sessions) - 1}
            else:
                result = run_session(sessions[request["session"]], value, request["limit"])
        except ImportError as error:
            answer = {"error": "missing", "said": first_line(error)}
        except MemoryError:
            answer = {"error": "failed", "said": "it needs more memory than there is"}
        except UnicodeDecodeError:
            answer = {"error": "text"}
        except Exception as error:  # onnxruntime's own errors have no common base
            answer = {"error": "failed", "said": first_line(error)}
        del value
        send(answers, answer, result)


def _quietly() -> None:
    """A crash in here leaves no core file and opens no window; Ctrl-C is for the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.kernel32.SetErrorMode(0x8003)
    else:
        import resource

        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _quietly()
    # answers have a way of their own: whatever a library prints goes to standard error
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, out)
