"""ONNX files in and out: what a model is made of, read by position, and written as a copy with a few bytes changed.

A `Model` shows the other rooms a tree of graphs (nodes, headers of tensors) and the values of tensors; it is never
changed, `replaced` gives a new one. No tensor is read until asked for, and then piece by piece. A saved model is a
copy of the loaded file, byte for byte, but for the values and metadata entries that were replaced: order, alignment,
fields unknown to every version of onnx stay. It gets sidecars of its own, named after the output and the contents,
so the input's are never written to.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emp_core.checksum import Checksum
from emp_onnx.errors import ModelError, quote
from emp_onnx.files.beside import Beside
from emp_onnx.files.coded import Coded, CodeLayout
from emp_onnx.files.graph import Graph, Tensor
from emp_onnx.files.packed import unpacking
from emp_onnx.files.patch import Given, Patch, Values
from emp_onnx.files.reader import DOMAIN, Contents, read
from emp_onnx.files.short import read_each
from emp_onnx.files.source import FileSource, Memory, Source, keep_freed
from emp_onnx.files.sparse import sparse
from emp_onnx.files.storage import Stored, pieces_of, stored
from emp_onnx.files.wire import Edit, Piece

__all__ = ["Model", "Sheet", "load", "save", "unfused"]

Sealed = Callable[[Mapping[str, str]], str]  # a text made from the checksums of all new values, after these


@dataclass(frozen=True)
class Sheet:
    """Another layout of a model's file: what is edited, given the new names of its sidecars, and what these hold.

    `made` are the keys of the tensors that are written by it, patched or not.
    """

    edits: Callable[[Mapping[str, str]], list[Edit]]
    sidecars: Mapping[str, list[Piece]]
    made: frozenset[str]


class Model:
    """An ONNX model, as loaded: graphs to look at, values to read, metadata.

    Attributes:
        path: the file it came from, or None.
        graph: the main graph, with the bodies of control flow hanging from their nodes.
        functions: local functions by (domain, name).
        tensors: every tensor anywhere in the model, by its key.
        beside: the sidecar files.
        cache: what other rooms found out about this model, and will ask for again.
        watch: called with the number of bytes whenever some of a tensor were read, or None.
    """

    def __init__(
        self, source: Any, path: Path | None = None, *, parent: Model | None = None, contents: Contents | None = None
    ) -> None:
        """From bytes, from anything with `SerializeToString` (a protobuf), or for `load` from a source of bytes, of
        which `contents` is what is known already."""
        self.path = path
        self.cache: dict[Any, Any] = {}
        self.watch: Callable[[int], None] | None = parent.watch if parent else None
        self.patches: dict[str, Patch] = dict(parent.patches) if parent else {}
        self.changes: dict[str, str | Sealed | None] = dict(parent.changes) if parent else {}
        self.sheet: Sheet | None = None
        self.source: Source = parent.source if parent else self._opened(source)
        self._contents: Contents = parent._contents if parent else contents or read(self.source, self.origin)
        self.beside: Beside = parent.beside if parent else Beside(path)
        self._stored: dict[str, Stored] = parent._stored if parent else {}
        self.tensors: dict[str, Tensor] = (
            parent.tensors if parent else {tensor.key: tensor for tensor in self._contents.tensors}
        )
        self.graph: Graph = self._contents.graph
        self.functions: dict[tuple[str, str], Graph] = self._contents.functions

    def _opened(self, source: Any) -> Source:
        if hasattr(source, "SerializeToString"):
            source = source.SerializeToString()
        found: Source = Memory(source) if isinstance(source, bytes) else source
        if found.size >= 2**31:
            raise ModelError(
                f"model must be smaller than 2 GiB (larger ones keep weights in sidecar files), got {self.origin}"
            )
        return found

    @property
    def origin(self) -> str:
        """The file's name in quotes, or words for a model that has none."""
        return quote(self.path) if self.path else "a model in memory"

    @property
    def contents(self) -> Contents:
        """What was read."""
        return self._contents

    @property
    def metadata(self) -> dict[str, str]:
        """The model's metadata_props, as a copy."""
        entries = [(key, value) for key, value, _ in self._contents.metadata]
        for key, change in self.changes.items():
            if callable(change):
                entries = [*((k, v) for k, v in entries if k != key), (key, change(self.digests()))]
                continue
            text = change
            if sum(k == key for k, _ in entries) == 1 and text is not None:
                entries = [(k, text if k == key else v) for k, v in entries]
                continue
            entries = [(k, v) for k, v in entries if k != key]
            entries += [] if text is None else [(key, text)]
        return dict(entries)

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of the inputs that a caller must give: those without a value of their own."""
        return tuple(name for name in self.graph.inputs if name not in self.graph.tensors)

    def stored(self, key: str, /) -> Stored:
        """Where the values of a tensor lie.

        Raises:
            ModelError: its bytes do not fit its shape, or its sidecar file is missing, short or out of bounds.
        """
        found = self._stored.get(key)
        if found is None:
            tensor = self.tensors[key]
            if tensor.recipe is not None:
                found = unpacking(tensor, self.stored)
            elif tensor.parts:
                values, indices = (self.stored(part.key) for part in tensor.parts)
                found = sparse(tensor, values, indices, self.source)
            else:
                found = stored(tensor, self.source, self.beside.file)
            self._stored[key] = found
        return found

    def read_codes(self, key: str, codes: CodeLayout, /) -> None:
        """From now on the values of this tensor are the codes that an operation reads in its bytes.

        Raises:
            ModelError: its bytes are not that many; as `stored`.
        """
        where = self.stored(key)
        under = where.under if isinstance(where, Coded) else where
        if under.dtype != np.uint8 or under.tensor.size != codes.nbytes:
            raise ModelError(
                f"tensor {quote(key)} must hold {codes.nbytes} bytes of codes, got {under.tensor.size} "
                f"numbers of {under.tensor.dtype}"
            )
        self._stored[key] = Coded(under, codes)

    def read_codes_like(self, other: Model, keys: Iterable[str], /) -> None:
        """`read_codes` of those of these tensors of which another model does.

        Raises:
            ModelError: as `read_codes`.
        """
        for key in keys:
            where = other.stored(key)
            if isinstance(where, Coded):
                self.read_codes(key, where.codes)

    def piece(self, key: str, start: int, stop: int, /) -> Values:
        """Values `start` to `stop` of a tensor, flat, in the type they are stored in.

        Raises:
            ModelError: as `stored`.
        """
        values = self.stored(key).read(start, stop)
        if self.watch is not None:
            self.watch(values.nbytes)
        patch = self.patches.get(key)
        return values if patch is None else patch(start, values)

    def wholes(self, keys: Sequence[str], /) -> list[Values]:
        """All values of each of these tensors, as `piece` gives them, read together where that saves time: of short
        ones. They are not to be written to.

        Raises:
            ModelError: as `stored`.
        """
        found = read_each([self.stored(key) for key in keys])
        if self.watch is not None:
            self.watch(sum(values.nbytes for values in found))
        if not self.patches:
            return found
        return [
            self.patches[key](0, values) if key in self.patches else values
            for key, values in zip(keys, found, strict=True)
        ]

    def digests(self) -> dict[str, str]:
        """The checksum of the new values of every tensor that has some."""
        found: dict[str, str] | None = self.cache.get("digests")
        if found is None:
            found = {}
            for key in self.patches:
                digest = Checksum()
                for start, stop in pieces_of(self.stored(key).tensor.size):
                    digest.update(self.piece(key, start, stop))
                found[key] = digest.hexdigest()
            self.cache["digests"] = found
        return found

    def values(self, key: str, /) -> Values:
        """All values of a tensor, in its shape and the type they are stored in, read-only.

        Raises:
            ModelError: as `stored`.
        """
        where = self.stored(key)
        tensor = where.tensor
        values = np.empty(tensor.size, where.dtype)
        for start, stop in pieces_of(tensor.size):
            values[start:stop] = self.piece(key, start, stop)
        view = values.reshape(tensor.shape)
        view.flags.writeable = False
        return view

    def replaced(self, values: Mapping[str, Values | Patch], metadata: Mapping[str, str | Sealed | None]) -> Model:
        """A new model that differs in these values and metadata entries, and in nothing else.

        None removes an entry; a text takes the place of the one there was; a `Sealed` one goes to the end.
        """
        new = Model(None, self.path, parent=self)
        if values:  # what was sealed is sealed for the values that there were
            sealed = self.metadata if any(map(callable, self.changes.values())) else {}
            new.changes = {name: sealed[name] if callable(text) else text for name, text in self.changes.items()}
        for key, patch in values.items():
            if isinstance(patch, np.ndarray):
                tensor, dtype = self.stored(key).tensor, self.stored(key).dtype
                if tensor.shape != patch.shape or dtype != patch.dtype:
                    raise ValueError(
                        f"{key} must stay {tensor.dtype} of shape {tensor.shape}, got {patch.dtype} of {patch.shape}"
                    )
                new.patches[key] = Given(patch)
            else:
                new.patches[key] = patch
        for name, text in metadata.items():
            new.changes.pop(name, None)
            new.changes[name] = text
        return new

    def laid_out(self, sheet: Sheet) -> Model:
        """The same model, to be written in another layout; a later change of values needs another."""
        new = Model(None, self.path, parent=self)
        new.sheet = sheet
        return new

    def to_bytes(self) -> bytes:
        """The model as one ONNX file in memory.

        Raises:
            ModelError: it keeps weights in sidecar files, or would be larger than the 2 GB one file can hold.
        """
        from emp_onnx.files.writer import to_bytes

        if any(tensor.storage == "external" for tensor in self.tensors.values()):
            raise ModelError(f"model must hold its weights itself for this, got sidecar files in {self.origin}")
        return to_bytes(self)

    def rest(self, keys: frozenset[str], entry: str, apart: frozenset[str] = frozenset()) -> dict[str, object]:
        """Everything but the values of these tensors and one metadata entry, by place: as hashes, or as parts of files.

        Two models are equal outside those exactly when these are equal; a differing place says where to look. The
        tensors `apart` may be stored in other forms (packed, say, or dense): of those only the values count.
        """
        from emp_onnx.files.rest import rest

        return rest(self, keys, entry, apart)

    def sidecars(self) -> dict[str, Path]:
        """The sidecar files this model needs: the location as written in the model, and the real file.

        Raises:
            ModelError: a location that leads out of the model's directory, or a file that is not there.
        """
        found: dict[str, Path] = {}
        for tensor in self.tensors.values():
            if tensor.storage == "external" and tensor.place:
                location = dict(tensor.place.external).get("location", "")
                if location not in found:
                    found[location] = self.beside.file(location, tensor.name).path
        return found

    def read_disk(self) -> None:
        """From now on long stretches of its files come from the disk itself, as far as the system does that."""
        if isinstance(self.source, FileSource):
            self.source.read_disk()
        self.beside.read_disk()


def load(path: str | os.PathLike[str], /) -> Model:
    """Read an ONNX file; values stay where they are until asked for.

    Raises:
        ModelError: no file there, no permission, or not an ONNX model (the message says which).

    Example:
        >>> load("missing.onnx")
        Traceback (most recent call last):
            ...
        emp_onnx.errors.ModelError: model must be an ONNX file, got 'missing.onnx', which does not exist
    """
    place = Path(path)
    try:
        source = FileSource(place)
    except FileNotFoundError as error:
        raise ModelError(f"model must be an ONNX file, got {quote(path)}, which does not exist") from error
    except IsADirectoryError as error:
        raise ModelError(f"model must be an ONNX file, got the directory {quote(path)}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"model {quote(path)} could not be read: {reason}") from error
    if not source.size:
        raise ModelError(f"model must be an ONNX file, got {quote(path)}, which is empty")
    keep_freed()
    return Model(source, place)


def unfused(model: Model, /) -> Model:
    """The model itself, if its packed weights can still be told from the nodes that use them.

    Raises:
        ModelError: `emp fuse` wrote it.
    """
    for domain, name in model.contents.calls:
        if domain == DOMAIN and not name.startswith(("Unpack", "Stage")):
            raise ModelError(
                f"model must not be what emp fuse wrote, whose weights are parts of nodes such as {name}; "
                f"take the packed file that it was made of, got {quote(model.path or 'a model in memory')}"
            )
    return model


def save(
    model: Model, path: str | os.PathLike[str], /, *, check: Callable[[Path], None] | None = None
) -> tuple[Path, ...]:
    """Write `model` to `path`, complete or not at all; returns the files written, the graph first.

    The graph is written beside `path` under a temporary name, brought to the disk and renamed; sidecar files come
    before it, under names of their own. `check` is called with the temporary file just before the rename: if it raises,
    nothing is left behind and whatever was at `path` stays.

    Raises:
        OutputError: the place cannot take the file; UsageError: it is one of the model's own sidecar files.
        ModelError: the model is larger than the 2 GB that one file can hold.
    """
    from emp_onnx.files.writer import save as write

    return write(model, path, check=check)


if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("emp_onnx needs a little-endian machine: ONNX stores numbers so, and views are taken in place")
