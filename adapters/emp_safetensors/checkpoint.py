"""The verb `load`: a checkpoint as its tensors, which are read when they are looked at, a piece at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_core.direct import DirectReader
from emp_safetensors.errors import CheckpointError, quote
from emp_safetensors.header import DTYPES, Header, Place, open_plain, read_header

__all__ = ["PIECE", "Bytes", "Checkpoint", "File", "Stored", "load"]

INDEX = "model.safetensors.index.json"
PIECE = 1 << 17  # elements read at once: what fits a cache
LARGEST_INDEX = 1 << 28


class Bytes:
    """The bytes of an open file by position; with `direct`, long stretches from the disk itself."""

    def __init__(self, path: Path, handle: int, *, direct: bool = False) -> None:
        self._handle, self._direct = handle, DirectReader(path) if direct else None

    def into(self, at: int, buffer: Any, /) -> bool:
        """Fill a writable buffer from a place of the file on; False if the file is too short."""
        view = memoryview(buffer).cast("B")
        while view:
            done = self._direct.into(at, view) if self._direct is not None else 0
            done = done or os.preadv(self._handle, [view], at)
            if not done:
                return False
            view, at = view[done:], at + done
        return True


class File:
    """One safetensors file, open as long as this lives. It is read, not mapped: a map counts as resident memory, and a
    file that becomes shorter under one kills the process."""

    def __init__(self, path: Path) -> None:
        self.path, self._handle = path, -1
        self._handle = open_plain(path)
        self._bytes = Bytes(path, self._handle)
        self.header: Header = read_header(self._handle, path)

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def into(self, at: int, buffer: Any, /) -> None:
        """Fill a writable buffer from a place of the file on."""
        if not self._bytes.into(at, buffer):
            raise CheckpointError(f"checkpoint {quote(self.path)} became shorter while it was read")


@dataclass(frozen=True)
class Stored:
    """A tensor in its file. Slicing gives flat elements as they are stored (float64, float32, float16; bfloat16 as
    bits under that name), so that `emp_core.select_stream` takes it as it is."""

    file: File = field(repr=False)
    place: Place

    @property
    def name(self) -> str:
        """Its name."""
        return self.place.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.place.shape

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.place.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the elements."""
        held = DTYPES[self.place.dtype][1]
        if held is None:
            raise CheckpointError(f"tensor {quote(self.name)} holds {self.place.dtype}, which is not read here")
        return held

    def __getitem__(self, stretch: slice, /) -> NDArray[Any]:
        start, stop, _ = stretch.indices(self.size)
        out = np.empty(max(stop - start, 0), self.dtype)
        self.file.into(self.place.start + start * out.itemsize, out.view(np.uint8))
        return out

    def pieces(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """All elements as stored, with the index of the first of each piece."""
        for start in range(0, self.size, PIECE):
            yield start, self[start : start + PIECE]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as loaded; nothing of it is ever changed.

    Attributes:
        path: the file, or the folder.
        files: by name, open.
        tensors: by name, in the order of files and bytes.
        index: of a folder, the name and the content of its index file; None for a single file.
    """

    path: Path
    files: dict[str, File] = field(repr=False)
    tensors: dict[str, Stored] = field(repr=False)
    index: tuple[str, bytes] | None = field(default=None, repr=False)

    def metadata(self, key: str) -> dict[str, str]:
        """What each file has under this key, by file, where it has something."""
        return {name: f.header.metadata[key] for name, f in self.files.items() if key in f.header.metadata}


def load(path: str | os.PathLike[str], /) -> Checkpoint:
    """Open a safetensors file, a folder of shards, or its index file. Headers are checked; numbers are read later.

    Raises:
        CheckpointError: nothing there, or damaged, or a hostile claim; the message says which.
    """
    place = Path(path)
    if place.name.endswith(".index.json"):
        return _sharded(place.parent, place.name)
    if place.is_dir():
        if (place / INDEX).is_file():
            return _sharded(place, INDEX)
        found = sorted(f.name for f in place.glob("*.safetensors"))
        others = sorted(f.name for f in place.glob("*.safetensors.index.json"))
        if len(others) == 1:
            return _sharded(place, others[0])
        if len(found) != 1 or others:
            raise CheckpointError(
                f"checkpoint must be a folder with an index or with one safetensors file, got {quote(place)} with "
                f"{len(found)} files and {len(others)} indices"
            )
        file = File(place / found[0])
        return Checkpoint(place, {found[0]: file}, {p.name: Stored(file, p) for p in file.header.places})
    file = File(place)
    return Checkpoint(place, {place.name: file}, {p.name: Stored(file, p) for p in file.header.places})


def _sharded(folder: Path, name: str) -> Checkpoint:
    where = f"index {quote(folder / name)}"
    try:
        with open(folder / name, "rb") as stream:
            text = stream.read(LARGEST_INDEX)
        mapped = json.loads(text)["weight_map"]
        if not isinstance(mapped, dict) or not all(isinstance(f, str) for f in mapped.values()):
            raise ValueError("weight_map must hold names of files")
    except OSError as error:
        raise CheckpointError(f"{where} could not be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{where} must be JSON with a weight_map, got something else: {error}") from error
    files = dict[str, File]()
    for shard in dict.fromkeys(mapped.values()):
        if shard in ("", ".", "..") or Path(shard).name != shard or "\0" in shard or "\\" in shard:
            raise CheckpointError(f"{where} must name files beside it, got {quote(shard)}")
        files[shard] = File(folder / shard)
    tensors = dict[str, Stored]()
    for shard, file in files.items():
        for place in file.header.places:
            if mapped.get(place.name) != shard or place.name in tensors:
                raise CheckpointError(f"{where} must map {quote(place.name)} to {quote(shard)}, which holds it")
            tensors[place.name] = Stored(file, place)
    if missing := sorted(set(mapped) - set(tensors)):
        raise CheckpointError(
            f"{where} maps {quote(missing[0])} to {quote(mapped[missing[0]])}, which does not hold it"
        )
    return Checkpoint(folder, files, tensors, (name, text))
