"""Running a program level by level over feeds: only what later levels need is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.chunks import Chunk
from emp_onnx.calibration.program import Program
from emp_onnx.calibration.sessions import open_session
from emp_onnx.calibration.values import ROOM, Values, holds
from emp_onnx.errors import ModelError, quote
from emp_onnx.runtime.feeds import Feed
from emp_onnx.runtime.ort import first_line

__all__ = ["Kept", "Runner"]

Array = NDArray[Any]


class Kept:
    """Sessions of chunks whose tensors are as stored, for whoever runs them next."""

    def __init__(self) -> None:
        self._at: dict[int, tuple[Chunk, Any]] = {}

    def get(self, chunk: Chunk) -> Any:
        """A chunk's session, or None."""
        return self._at.get(id(chunk), (None, None))[1]

    def put(self, chunk: Chunk, session: Any) -> None:
        """Keep a chunk's session."""
        self._at[id(chunk)] = chunk, session

    def drop(self, chunks: Iterable[Chunk]) -> None:
        """Forget those of some chunks."""
        for chunk in chunks:
            self._at.pop(id(chunk), None)


class Runner:
    """One network, run level by level: the model's own weights, or others in their place.

    Args:
        program, cut: the program and its chunks (see `chunks`).
        read: gives the values of a tensor by its key.
        threads: for onnxruntime.
        room: bytes of activations in memory.
        kept: sessions of chunks without `changed` tensors are taken from here, and left here.
    """

    def __init__(
        self,
        program: Program,
        cut: Sequence[Sequence[Chunk]],
        read: Any,
        *,
        threads: int | None = None,
        room: int = ROOM,
        kept: Kept | None = None,
        changed: Iterable[str] = (),
    ) -> None:
        self.program, self.cut, self.read, self.threads = program, cut, read, threads
        self.kept, self.changed = kept, frozenset(changed)
        self.values = Values(room)
        self.feeds = 0

    def start(self, feeds: Iterable[Feed]) -> None:
        """Take the feeds."""
        for i, feed in enumerate(feeds):
            for name, value in feed.items():
                self.values.put(name, i, np.asarray(value), given=True)
            self.feeds = i + 1

    def level(self, level: int, wanted: Iterable[str] = ()) -> None:
        """Run one level, on all feeds, and forget what no later level and no one else wants."""
        for chunk in self.cut[level]:
            self._chunk(chunk)
        later = {n for found in self.cut[level + 1 :] for c in found for n in (*c.reads, *(g for g, _ in c.guard))}
        self.values.drop(later | set(wanted) | set(self.program.outputs))

    def _chunk(self, chunk: Chunk) -> None:
        if not chunk.gives:
            return
        session: Any = None
        for i in range(self.feeds):
            if not all(holds(self.values.get(name, i), wanted) for name, wanted in chunk.guard):
                continue
            feed = {name: self.values.get(name, i) for name in chunk.reads}
            if session is None:
                session = self._session(chunk, feed)
            try:
                out = session.run(chunk.gives, {n: v for n, v in feed.items() if v is not None})
            except Exception as error:  # onnxruntime's own errors have no common base
                what = f"onnxruntime cannot run a part of the model on feed {i}"
                raise ModelError(f"{what}: {first_line(error)}") from error
            for name, value in zip(chunk.gives, out, strict=True):
                if isinstance(value, np.ndarray):
                    self.values.put(name, i, value)
                elif any(name in other.reads for part in self.cut for other in part):
                    raise ModelError(f"value {quote(name)} is not a tensor, which calibration does not support")

    def _session(self, chunk: Chunk, feed: Mapping[str, Array | None]) -> Any:
        same = self.kept is not None and not chunk.keys & self.changed
        found = self.kept.get(chunk) if self.kept is not None and same else None
        if found is None:
            reads = {n: v for n, v in feed.items() if v is not None}
            found = open_session(self.program, chunk.steps, reads, chunk.gives, self.read, self.threads)
            if self.kept is not None and same:
                self.kept.put(chunk, found)
        return found
