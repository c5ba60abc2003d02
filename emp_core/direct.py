"""Long stretches of a file to and from the disk itself, past the system's memory of files.

A large file that is written the usual way first takes as much fresh memory of the system's, page by page, which costs
several times what pruning it does; and when it is read again, what is read is that memory, not the disk. Where the
system and the file system allow it (Linux, most local disks), long stretches go straight; everything else goes the
usual way, also the ends of a stretch that fill no block. The system keeps both ways of one file in agreement.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LARGE", "DirectReader", "DirectWriter"]

LARGE = 1 << 26  # bytes of a file from which this is worth while
BLOCK = 1 << 12  # what begins and ends on a multiple of this is taken by every disk
ROOM = 1 << 21  # bytes gathered for one write
LEAST = 1 << 17  # bytes that are worth a way of their own
FLAG = getattr(os, "O_DIRECT", 0)
REFUSED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)

Put = Callable[[int, Any], None]


class DirectWriter:
    """Writes into a file that reads as zeros, whatever the order; long rows of bytes go to the disk at once.

    Args:
        path: of the file.
        put: writes the usual way.

    What was written is complete after `close`.
    """

    def __init__(self, path: Path, put: Put) -> None:
        self._put, self._handle = put, _opened(path, os.O_RDWR)
        self._room = _aligned(ROOM)
        self._base = self._start = self._stop = 0  # of the room in the file, and what of it is held

    def __call__(self, at: int, data: Any) -> None:
        """Write `data` at a place; what follows it may wait."""
        if self._handle < 0:
            self._put(at, data)
            return
        data = np.frombuffer(data, np.uint8)
        if at != self._stop:
            self.flush()
            self._base, self._start, self._stop = at // BLOCK * BLOCK, at, at
        while data.size:
            used = self._stop - self._base
            some = data[: ROOM - used]
            self._room[used : used + some.size] = some
            self._stop, data = self._stop + some.size, data[some.size :]
            if self._stop - self._base == ROOM:
                self.flush()

    def flush(self) -> None:
        """Write what is held."""
        base, start, stop = self._base, self._start, self._stop
        first, last = -(-start // BLOCK) * BLOCK, stop // BLOCK * BLOCK
        if last - first < LEAST or not self._written(self._room[first - base : last - base], first):
            first = last = stop
        for begin, end in ((start, first), (last, stop)):
            if begin < end:
                self._put(begin, self._room[begin - base : end - base].data)
        self._base = self._start = stop

    def close(self) -> None:
        """Write what is held, and let go of the file."""
        try:
            self.flush()
        finally:
            self._let_go()

    def __enter__(self) -> DirectWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._let_go()

    def _let_go(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _written(self, whole: NDArray[np.uint8], at: int) -> bool:
        """Whole blocks, straight; zeros are there already. False: this file does not take them so."""
        if self._handle < 0:
            return False
        if not whole[:BLOCK].any() and not whole.any():
            return True
        view = whole.data
        while view:
            try:
                done = os.pwrite(self._handle, view, at)
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
                done = 0
            if done % BLOCK or not done:  # the rest goes the usual way
                self._let_go()
                self._put(at + done, view[done:])
                return True
            view, at = view[done:], at + done
        return True


class DirectReader:
    """Reads long stretches from the disk itself; safe to use from several threads.

    Example:
        >>> DirectReader(Path(__file__)).into(0, bytearray(10))  # not worth it: left to the usual way
        0
    """

    def __init__(self, path: Path) -> None:
        self._handle, self._lock = _opened(path, os.O_RDONLY), threading.Lock()
        self._room = _aligned(ROOM // 2)

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def into(self, at: int, buffer: Any, /) -> int:
        """Fill a buffer of bytes from `at` on; how many were read. The rest is left to the usual way."""
        done, view = 0, np.frombuffer(buffer, np.uint8)
        with self._lock:
            while self._handle >= 0 and view.size - done >= LEAST:
                before = (at + done) % BLOCK
                want = min(-(-(before + view.size - done) // BLOCK) * BLOCK, self._room.size)
                try:
                    have = os.preadv(self._handle, [self._room[:want].data], at + done - before)
                except OSError as error:
                    if error.errno not in REFUSED:
                        raise
                    have = 0
                some = self._room[before : min(have, before + view.size - done)]
                if not some.size:
                    break
                view[done : done + some.size] = some
                done += some.size
        return done


def _opened(path: Path, how: int) -> int:
    """A handle for this way, or -1."""
    if not FLAG:
        return -1
    try:
        return os.open(path, how | FLAG | os.O_CLOEXEC)
    except OSError:  # the usual way will say what is wrong, if anything is
        return -1


def _aligned(size: int) -> NDArray[np.uint8]:
    """Room in memory that begins on a block's border."""
    room = np.empty(size + BLOCK, np.uint8)
    start = -room.ctypes.data % BLOCK
    return room[start : start + size]
