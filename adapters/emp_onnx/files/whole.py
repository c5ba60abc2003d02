"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emp_onnx.errors import ModelError, OutputError, quote
from emp_onnx.files.source import FileSource, Source
from emp_onnx.interrupt import check

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None  # type: ignore[assignment]

__all__ = ["Stage", "check_target", "copy_part", "put", "same_file", "staged", "sweep", "sync_folder", "write_whole"]


def same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two paths mean one file: by links of either kind, by spelling, or by a name not yet created."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def check_target(path: Path, what: str = "output") -> Path:
    """The real place behind `path`, checked to be one where a file can appear.

    Raises:
        OutputError: the folder does not exist, or something that is not a plain file is in the way.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise OutputError(f"{what} must be a file name, got the directory {quote(path)}")
    if target.exists() and not target.is_file():
        raise OutputError(f"{what} must be a plain file, got {quote(path)}, which is something else")
    if not target.parent.is_dir():
        raise OutputError(f"{what} must be in a directory that exists, got {quote(path)}")
    return target


@dataclass
class Stage:
    """A temporary file and the place it will take; the place may be changed, within its directory, until then."""

    path: Path
    target: Path


@contextmanager
def staged(target: Path, like: Path | None = None) -> Iterator[Stage]:
    """A new empty file beside `target`, which takes its place when the block ends without an error.

    The order is: contents to the disk, rename, directory to the disk. Whatever is raised inside the block, also an
    interrupt, removes the temporary file and leaves `target` as it was. The file may be read by those who may read
    the old one; where there is none, by those who may read the file `like`.

    Raises:
        OutputError: the file system refused (no space, no permission); the message says what it said.
        ModelError: another file that the block needs is gone, or cannot be read any more.
    """
    sweep(target)
    stage, held = Stage(target, target), -1
    try:
        held = _begun(stage)
        _same_mode(stage.path, target, like)
        yield stage
        with open(stage.path, "rb+") as file:
            os.fsync(file.fileno())
        check()
        os.replace(stage.path, stage.target)
    except OSError as error:
        why, kept = error.strerror or error, "what was there is as it was" if target.exists() else "nothing was written"
        if error.filename not in (None, *map(str, (stage.path, target, target.parent))):
            raise ModelError(f"the file {quote(error.filename)} could not be read: {why}; {kept}") from error
        raise OutputError(f"output {quote(target)} could not be written: {why}; {kept}") from error
    finally:
        if stage.path != target:
            with suppress(OSError):
                os.unlink(stage.path)
        if held >= 0:
            os.close(held)
    sync_folder(target.parent)


def _same_mode(temporary: Path, target: Path, like: Path | None) -> None:
    """As the old file's; else no wider than that of `like`, within what this user gives to new files."""
    with suppress(OSError):
        if target.exists():
            os.chmod(temporary, target.stat().st_mode & 0o777)
        elif like is not None:
            os.chmod(temporary, temporary.stat().st_mode & (like.stat().st_mode | 0o200) & 0o777)


def sweep(target: Path) -> None:
    """Remove what killed processes of this machine left half-written beside `target`.

    Whoever writes a temporary file holds a lock on it, which ends with the process: a file that can be locked belongs
    to nobody. Others are left alone, and so are those of other machines, whose locks may not be seen here.
    """
    if fcntl is None:
        return
    pattern = re.compile(re.escape(_prefix(target)) + r"[0-9a-f]{12}\.emp\.part")
    with suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    handle = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
                    try:
                        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        os.unlink(entry.path)
                    finally:
                        os.close(handle)


def _prefix(target: Path) -> str:
    machine = hashlib.sha256(platform.node().encode("utf-8", "replace")).hexdigest()[:6]
    return f".{target.name[:80]}.{machine}-"


def _begun(stage: Stage) -> int:
    """Begin a new empty file beside the target; returns a handle that holds its lock.

    The stage knows the name before there is such a file, so that an interrupt at any moment leaves none behind.
    """
    while True:
        stage.path = stage.target.with_name(f"{_prefix(stage.target)}{secrets.token_hex(6)}.emp.part")
        # 0o666 through the process's own mask: the mode any new file of this user would get
        held = os.open(stage.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o666)
        try:
            if fcntl is not None:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:  # another process is just sweeping, and takes it for abandoned
                    os.close(held)
                    continue
                except OSError:  # a file system without locks: then nobody can sweep there either
                    pass
            if os.path.exists(stage.path):  # it was not swept before it was locked
                return held
            os.close(held)
        except BaseException:
            with suppress(OSError):
                os.close(held)
            raise


def put(handle: int, at: int, data: Any) -> None:
    """Write all of `data` at a place of an open file."""
    view = memoryview(data).cast("B")
    while view:
        done = os.pwrite(handle, view, at)
        view, at = view[done:], at + done


def copy_part(source: Source, start: int, stop: int, handle: int, at: int) -> None:
    """Copy bytes `start` to `stop` into an open file, which must read as zeros there; what is a hole stays one.

    The kernel copies, or shares the blocks where the file system can do that.
    """
    if not isinstance(source, FileSource):
        put(handle, at, source.read(start, stop - start))
        return
    for begin, end in _extents(source.handle, start, stop):
        done, to = begin, at + begin - start
        while done < end:
            try:
                count = os.copy_file_range(source.handle, handle, end - done, done, to)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
                    raise
                count = 0
            except AttributeError:  # not on this system
                count = 0
            if not count:
                room = np.empty(min(1 << 20, end - done), np.uint8)
                source.into(done, room.data)
                put(handle, to, room.data)
                count = room.size
            done, to = done + count, to + count


def _extents(handle: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are no holes, as far as the system tells."""
    if not hasattr(os, "SEEK_DATA"):
        yield start, stop
        return
    at = start
    while at < stop:
        try:
            begin = os.lseek(handle, at, os.SEEK_DATA)
            end = min(os.lseek(handle, begin, os.SEEK_HOLE), stop)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            yield at, stop
            return
        if begin < end:
            yield begin, end
        at = max(end, begin)


def sync_folder(folder: Path) -> None:
    """Bring a directory's names to the disk, where the system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_whole(path: str | os.PathLike[str], data: bytes, what: str = "output") -> None:
    """Write `data` to `path`, complete or not at all.

    Raises:
        OutputError: the place cannot take a file.
    """
    with staged(check_target(Path(path), what)) as stage:
        stage.path.write_bytes(data)
