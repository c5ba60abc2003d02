"""The values at hand while a program runs: in memory as far as there is room, in files beyond."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ROOM", "Values", "holds"]

Array = NDArray[Any]
SMALL = 1 << 12  # bytes of a value that is not worth counting
ROOM = 1 << 26  # bytes of activations kept in memory by one runner; what is more goes to a temporary file


class Values:
    """The values at hand, one array per feed; beyond `room` bytes they are kept in files, not in memory."""

    def __init__(self, room: int = ROOM) -> None:
        self.room, self.held = room, 0
        self._at: dict[str, dict[int, Array | Path]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0
        self._shapes: dict[Path, tuple[int, ...]] = {}
        self._given = set[str]()

    def __del__(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def put(self, name: str, feed: int, value: Array, *, given: bool = False) -> None:
        """Keep a value; one that was given is in memory anyway."""
        kept: Array | Path = value
        if given:
            self._given.add(name)
        elif value.dtype.kind != "O" and value.nbytes > SMALL:
            if self.held + value.nbytes > self.room:
                kept = self._spill(value)
            else:
                self.held += value.nbytes
        self._at.setdefault(name, {})[feed] = kept

    def get(self, name: str, feed: int) -> Array | None:
        """A value, or None where the feed does not reach it."""
        found = self._at.get(name, {}).get(feed)
        return np.load(found) if isinstance(found, Path) else found

    def shape(self, name: str, feed: int) -> tuple[int, ...] | None:
        """The shape of a value, or None where the feed does not reach it."""
        found = self._at.get(name, {}).get(feed)
        return None if found is None else self._shapes[found] if isinstance(found, Path) else found.shape

    def drop(self, keep: Iterable[str]) -> None:
        """Forget everything else."""
        stay = set(keep)
        for name in [name for name in self._at if name not in stay]:
            for value in self._at.pop(name).values():
                if isinstance(value, Path):
                    value.unlink(missing_ok=True)
                    del self._shapes[value]
                elif name not in self._given and value.dtype.kind != "O" and value.nbytes > SMALL:
                    self.held -= value.nbytes

    def _spill(self, value: Array) -> Path:
        # read back whole when wanted, not mapped: a map counts as memory in use
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="emp-")
        self._files += 1
        path = Path(self._folder.name) / f"{self._files}.npy"
        np.save(path, value)
        self._shapes[path] = value.shape
        return path


def holds(condition: Array | None, wanted: bool) -> bool:
    """Whether a condition is known and is as wanted."""
    return condition is not None and bool(np.asarray(condition).reshape(-1)[0]) == wanted
