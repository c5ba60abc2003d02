"""The outputs of a model for one feed after another, into one `.npz` file; no more than those of one feed are held.

Of one feed, each output is an array by its name. Of several, it is one too, with one more leading axis, where all have
the sizes of the first; where any differs, every output of every feed is by itself, as `0/NAME`, `1/NAME` and so on.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.errors import OutputError, UsageError, quote
from emp_onnx.files.whole import check_target, staged

__all__ = ["Collected"]

CHUNK = 1 << 20


@dataclass(frozen=True)
class _Kept:
    """An array whose bytes wait in a file, and where they begin."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    size: int

    def like(self, other: _Kept) -> bool:
        """Whether both may lie in one array."""
        return (self.dtype, self.shape) == (other.dtype, other.shape)


class Collected:
    """Arrays by name, of one feed after another, until they are saved.

    Bytes wait in a nameless file beside the target: whether sizes differ is known when the last feed was run.

    Args:
        path: of the `.npz` file; an old one there is replaced in the end, and only then.
        what: whose path it is, for messages.

    Raises:
        OutputError: no file can be written there.
    """

    def __init__(self, path: str | os.PathLike[str], /, what: str = "output") -> None:
        self._target, self._what = check_target(Path(path), what), what
        self._feeds: list[dict[str, _Kept]] = []
        with self._writing():
            self._file = tempfile.TemporaryFile(dir=self._target.parent)  # noqa: SIM115  closed by __exit__

    def __enter__(self) -> Collected:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()

    def add(self, outputs: Mapping[str, Any]) -> None:
        """The outputs for the next feed.

        Raises:
            UsageError: one is no array of numbers or texts.
        """
        kept: dict[str, _Kept] = {}
        for name, value in outputs.items():
            array = self._plain(name, value)
            with self._writing():
                kept[name] = _Kept(array.dtype, array.shape, self._file.tell(), array.nbytes)
                self._file.write(array.reshape(-1).view(np.uint8).data if array.nbytes else b"")
        self._feeds.append(kept)

    def save(self) -> None:
        """Write them, complete or not at all."""
        with staged(self._target) as stage, zipfile.ZipFile(stage.path, "w", allowZip64=True) as archive:
            for name, parts in self._entries():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as out:
                    shape = (len(parts), *parts[0].shape) if len(parts) > 1 else parts[0].shape
                    descr = np.lib.format.dtype_to_descr(parts[0].dtype)
                    head = {"descr": descr, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(out, head)
                    for part in parts:
                        self._file.seek(part.start)
                        for at in range(0, part.size, CHUNK):
                            out.write(self._file.read(min(CHUNK, part.size - at)))

    def _entries(self) -> Iterator[tuple[str, list[_Kept]]]:
        """What is written under which name, and from which parts."""
        first = self._feeds[0]
        if all(feed[name].like(kept) for feed in self._feeds for name, kept in first.items()):
            yield from ((name, [feed[name] for feed in self._feeds]) for name in first)
        else:
            yield from ((f"{i}/{name}", [kept]) for i, feed in enumerate(self._feeds) for name, kept in feed.items())

    def _plain(self, name: str, value: Any) -> NDArray[Any]:
        array = np.asarray(value, order="C") if isinstance(value, np.ndarray) else None
        if array is not None and array.dtype.hasobject and all(isinstance(item, str) for item in array.flat):
            array = array.astype(str)
        if array is None or array.dtype.hasobject:
            kind = f"a {type(value).__name__}" if array is None else "an array of objects"
            raise UsageError(f"{self._what} must be for outputs that are plain arrays, got {quote(name)}, {kind}")
        return array

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self._what} {quote(self._target)} could not be written: {error.strerror or error}"
            ) from error
