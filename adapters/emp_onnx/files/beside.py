"""The sidecar files of a model: opened when they are first asked for, and only in the model's own folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from emp_onnx.errors import ModelError, quote
from emp_onnx.files.source import FileSource

__all__ = ["Beside"]


class Beside:
    """Files beside a model, by the location that is written in it; `path` is the model's own, or None."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._open: dict[str, FileSource] = {}
        self._from_disk = False

    def __iter__(self) -> Iterator[FileSource]:
        """Those that are open."""
        return iter(self._open.values())

    def read_disk(self) -> None:
        """From now on long stretches come from the disk itself, as far as the system does that."""
        self._from_disk = True
        for source in self:
            source.read_disk()

    def file(self, location: str, name: str = "") -> FileSource:
        """The file at this location, in which the tensor of this name is kept.

        Raises:
            ModelError: the location leads out of the model's folder, or there is no such file, or the model has no
                path.
        """
        known = self._open.get(location)
        if known is not None:
            return known
        if self.path is None:
            raise ModelError(
                f"tensor {quote(name)} is kept in the file {quote(location)}; load the model from its path"
            )
        folder = Path(os.path.realpath(self.path.parent))
        plain = location and "\0" not in location and len(location) < 4096 and not Path(location).is_absolute()
        real = Path(os.path.realpath(folder / location)) if plain else folder.parent
        if not real.is_relative_to(folder):
            raise ModelError(
                f"tensor {quote(name)} must be kept inside the model's directory, got the location {quote(location)}"
            )
        if not real.is_file():
            raise ModelError(f"tensor {quote(name)} is kept in {quote(location)}, which is not a file beside the model")
        try:
            source = FileSource(real)
        except OSError as error:
            raise ModelError(f"the file {quote(real)} could not be read: {error.strerror}") from error
        if self._from_disk:
            source.read_disk()
        return self._open.setdefault(location, source)
