"""Bytes by position: of a file, which is never held in memory as a whole, or of bytes that are there already."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from emp_core.direct import LARGE, DirectReader
from emp_onnx.errors import ModelError, quote

__all__ = ["FileSource", "Memory", "Source", "keep_freed"]

HOLES = hasattr(os, "SEEK_HOLE") and hasattr(os, "SEEK_DATA")


def keep_freed() -> None:
    """Let the C library keep memory that is freed, as far as it does that: what is given back to the system after
    each piece must be cleared and mapped again for the next one.

    glibc does so after the first large block that it gets back (it raises its own limits to that size, at most 32 MiB);
    this one is never touched. Measured: 30 000 fewer page faults in 400 MB.
    """
    np.empty(1 << 24, np.uint8)


class Source(Protocol):
    """Something that can be read at any place."""

    size: int

    def read(self, at: int, count: int, /) -> bytes:
        """`count` bytes from `at` on."""
        ...

    def into(self, at: int, buffer: Any, /) -> None:
        """Fill a writable buffer of bytes from `at` on."""
        ...


class Memory:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    def read(self, at: int, count: int, /) -> bytes:
        """`count` bytes from `at` on."""
        return self.data[at : at + count]

    def into(self, at: int, buffer: Any, /) -> None:
        """Fill a buffer."""
        view = memoryview(buffer).cast("B")
        view[:] = self.data[at : at + len(view)]


class FileSource:
    """A plain file, open as long as this lives; safe to read from several threads. No bytes are mapped: a file that
    becomes shorter under a map kills the process.

    Raises:
        ModelError: it is no plain file, or cannot be read, or became shorter since it was opened.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._handle = path, -1
        self._direct: DirectReader | None = None
        # not blocking: a named pipe must not wait for a writer
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        self._handle = os.open(path, flags)
        status = os.fstat(self._handle)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(f"{path} is a directory")
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"model must be a plain file, got {quote(path)}, which is something else")
        self.size, self._changed = status.st_size, status.st_mtime_ns
        self._sparse = HOLES and getattr(status, "st_blocks", self.size) * 512 < self.size and self._settled()

    @property
    def unchanged(self) -> bool:
        """Whether nobody has written to the file since it was opened, as far as its time and size tell."""
        status = os.fstat(self._handle)
        return (status.st_size, status.st_mtime_ns) == (self.size, self._changed)

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    @property
    def handle(self) -> int:
        """The open file."""
        return self._handle

    def read_disk(self) -> None:
        """From now on long stretches of a large file come from the disk itself, as far as the system does that."""
        if self.size >= LARGE and self._direct is None:
            self._direct = DirectReader(self.path)

    def read(self, at: int, count: int, /) -> bytes:
        """`count` bytes from `at` on."""
        data = bytearray(count)
        self.into(at, data)
        return bytes(data)

    def into(self, at: int, buffer: Any, /) -> None:
        """Fill a buffer."""
        view = memoryview(buffer).cast("B")
        while view:
            some = view
            try:
                if self._sparse:
                    hole, length = self._stretch(at, len(view))
                    some = view[:length]
                    if hole:
                        np.frombuffer(some, np.uint8).fill(0)
                        view, at = view[length:], at + length
                        continue
                if self._direct is not None and (done := self._direct.into(at, some)):
                    view, at = view[done:], at + done
                    continue
                done = os.preadv(self._handle, [some], at)
            except OSError as error:
                raise ModelError(f"the file {quote(self.path)} could not be read: {error.strerror}") from error
            if not done:
                raise ModelError(f"the file {quote(self.path)} became shorter while it was read")
            view, at = view[done:], at + done

    def _settled(self) -> bool:
        """Have what is still on its way written to the disk: of such bytes file systems have said before that they
        are holes."""
        try:
            os.fsync(self._handle)
        except OSError:
            return False
        return True

    def _stretch(self, at: int, count: int) -> tuple[bool, int]:
        """Whether a hole begins here, that is zeros that take no place on the disk, and how far what begins goes on.

        Read the usual way, a hole fills as much of the system's memory as data do.
        """
        try:
            data = os.lseek(self._handle, at, os.SEEK_DATA)
        except OSError as error:
            end = min(self.size, os.fstat(self._handle).st_size)
            if error.errno != errno.ENXIO or at >= end:
                return False, count
            data = end  # a hole up to there
        if data > at:
            return True, min(data - at, count)
        return False, min(os.lseek(self._handle, at, os.SEEK_HOLE) - at, count)
