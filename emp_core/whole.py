"""A file that appears whole or not at all: written beside its place under another name, synced, and renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ._errors import ArgumentError

__all__ = ["whole"]


@contextmanager
def whole(path: str | os.PathLike[str], /) -> Iterator[Path]:
    """Where to write what shall stand at ``path`` in the end; the name ends as that of ``path`` does.

    If the block raises, nothing is left, and what stood at ``path`` stays.

    Raises:
        ArgumentError: the place cannot take a file.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with whole(Path(folder) / "a.txt") as temporary:
        ...         _ = temporary.write_text("all of it")
        ...     (Path(folder) / "a.txt").read_text()
        'all of it'
    """
    target = Path(path)
    temporary = target.with_name(f".{secrets.token_hex(6)}.part{target.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise ArgumentError(f"path must be a place for a file, got {str(path)!r}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            os.unlink(temporary)
