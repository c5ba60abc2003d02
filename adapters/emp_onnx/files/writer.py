"""Saving: the loaded file is copied by the kernel, and the few bytes that differ are written into the copy.

What may differ: values that a patch changes, in place; the metadata entries that were replaced; and, where weights
are in sidecar files, the names of these (a saved model gets sidecars of its own). When a text gets another length,
so do the messages around it; all else is copied as it stands, also what no version of onnx knows.
"""

from __future__ import annotations

import hashlib
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from emp_core.checksum import Checksum, checksum
from emp_core.direct import LARGE, DirectWriter
from emp_onnx.errors import ModelError, OutputError, UsageError, quote
from emp_onnx.files.model_io import Model, load
from emp_onnx.files.short import SHORT, batches, read_each
from emp_onnx.files.source import FileSource, Source
from emp_onnx.files.sparse import Sparse
from emp_onnx.files.storage import Stored, pieces_of
from emp_onnx.files.typed import respelled
from emp_onnx.files.whole import check_target, copy_part, put, same_file, staged, sync_folder
from emp_onnx.files.wire import Blob, Edit, Field, Piece, Wire, length_of, varint
from emp_onnx.weights.kept import patched_each

__all__ = ["save", "to_bytes"]

Put = Callable[[int, Any], None]
SMALL = 1 << 23  # bytes of a file that is made in memory: a graph of many nodes has thousands of short weights
CLOSE = 2**31 - 2**28  # bytes from which what comes last is measured before it is known


def save(
    model: Model, path: str | os.PathLike[str], /, *, check: Callable[[Path], None] | None = None
) -> tuple[Path, ...]:
    """See `emp_onnx.save`."""
    target = check_target(Path(path))
    sources = model.sidecars()
    for source in sources.values():
        if same_file(source, target):
            raise UsageError(f"output must not be a file that the input needs, got {quote(path)}")
    if sources and Path(path).is_symlink():
        raise OutputError(f"output must not be a symbolic link when a model has sidecar files, got {quote(path)}")
    refuse_overlaps(model)
    made, names, hashes = list[Path](), dict[str, str](), dict[str, str]()
    old = _own_sidecars(target)
    try:
        for location in sources:
            file, new = _copy_sidecar(model, location, target, hashes)
            names[location] = file.name
            made += [file] if new else []
        if sources:
            sync_folder(target.parent)
        layout = _layout(model, names, hashes)
        if layout.most >= 2**31:
            raise ModelError(f"model {quote(path)} cannot be written as one file: it would be larger than 2 GiB")
        with staged(target, model.path) as stage:
            with open(stage.path, "rb+") as out:
                _write(model, "", model.source, layout.pieces, stage.path, out.fileno(), hashes)
                put(out.fileno(), layout.length, _tail(model, hashes))
            if check:
                check(stage.path)
    except BaseException:
        for file in made:
            with suppress(OSError):
                file.unlink()
        raise
    used = {target.with_name(name) for name in names.values()}
    elsewhere = set() if model.path and same_file(model.path, target) else set(sources.values())
    for file in old - used - elsewhere:
        with suppress(OSError):
            file.unlink()
    return (target, *sorted(used))


def to_bytes(model: Model) -> bytes:
    """The whole model in memory."""
    hashes: dict[str, str] = {}
    layout = _layout(model, {}, hashes)
    if layout.most >= 2**31:
        raise ModelError(f"model {model.origin} cannot be written as one file: it would be larger than 2 GiB")
    return bytes(_made(model, "", model.source, layout.pieces, hashes) + _tail(model, hashes))


def _made(model: Model, location: str, source: Source, pieces: Sequence[Piece], hashes: dict[str, str]) -> bytearray:
    """A file's contents in memory: the model's own, or the sidecar of this location."""
    out, at = bytearray(sum(map(length_of, pieces))), 0

    def into(at: int, data: Any) -> None:
        out[at : at + len(data)] = data

    for piece in pieces:
        if isinstance(piece, Blob):
            piece.write(_shifted(into, at))
        else:
            into(at, piece if isinstance(piece, bytes) else source.read(piece[0], piece[1] - piece[0]))
        at += length_of(piece)
    _patch(model, location, _moved(pieces, into), hashes)
    return out


def _write(
    model: Model, location: str, source: Source, pieces: Sequence[Piece], path: Path, handle: int,
    hashes: dict[str, str],
) -> None:  # fmt: skip
    """Fill a file: the model's own, or the sidecar of this location."""
    size = sum(map(length_of, pieces))
    if size <= SMALL:
        put(handle, 0, _made(model, location, source, pieces, hashes))
        return
    os.ftruncate(handle, size)
    at, written = 0, _places(model, location)
    for piece in pieces:
        if isinstance(piece, Blob):
            piece.write(_shifted(lambda where, data: put(handle, where, data), at))
        elif isinstance(piece, bytes):
            put(handle, at, piece)
        else:
            for start, stop in _gaps(written, *piece):
                copy_part(source, start, stop, handle, at + start - piece[0])
        at += length_of(piece)
    with _filler(path, handle, size) as fill:
        _patch(model, location, _moved(pieces, fill), hashes)


@contextmanager
def _filler(path: Path, handle: int, size: int) -> Iterator[Put]:
    """What writes into a file that reads as zeros; complete at the end of the block."""
    usual = partial(_fill, handle)
    if size < LARGE:
        yield usual
        return
    with DirectWriter(path, usual) as fill:
        yield fill


def _shifted(into: Put, at: int) -> Put:
    """`into`, for places counted from `at` on."""
    return lambda where, data: into(at + where, data)


def _fill(handle: int, at: int, data: Any) -> None:
    """Write into a file that reads as zeros; what is zero stays a hole."""
    if np.frombuffer(data, np.uint8, min(len(data), 4096)).any() or np.frombuffer(data, np.uint8).any():
        put(handle, at, data)


def _moved(pieces: Sequence[Piece], into: Put) -> Put:
    """`into`, for places as they were in the loaded file."""
    starts, ends, shifts, at = [], [], [], 0
    for piece in pieces:
        if isinstance(piece, tuple) and piece[1] > piece[0]:
            starts.append(piece[0])
            ends.append(piece[1])
            shifts.append(at - piece[0])
        at += length_of(piece)
    order = sorted(range(len(starts)), key=starts.__getitem__)
    starts, ends, shifts = ([some[i] for i in order] for some in (starts, ends, shifts))

    def moved(where: int, data: Any) -> None:
        i = bisect_right(starts, where) - 1
        assert i >= 0
        assert where + len(data) <= ends[i]
        into(where + shifts[i], data)

    return moved


def _places(model: Model, location: str) -> list[tuple[int, int]]:
    """Where the patched tensors of a file lie, in order: they are written, not copied."""
    return sorted(span for key in _patched(model) for span in _spans(model, key, location, True))


def _gaps(patched: Sequence[tuple[int, int]], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """What lies between the patched tensors in a part of a file."""
    at = start
    for i in range(max(bisect_right(patched, (start, start)) - 1, 0), len(patched)):
        first, last = patched[i]
        if first >= stop:
            break
        if last <= start:
            continue
        if at < first:
            yield at, first
        at = max(at, last)
    if at < stop:
        yield at, stop


def _patched(model: Model) -> list[str]:
    """The tensors whose new values are written over the old ones."""
    made = model.sheet.made if model.sheet else frozenset()
    return [key for key in model.patches if key not in made]


def _patch(model: Model, location: str, into: Put, hashes: dict[str, str]) -> None:
    """Write the values of all patched tensors that one file holds, and note their checksums on the way.

    Zeros are there already, as holes.
    """
    mine = [(key, where) for key in _patched(model) if (where := model.stored(key)).shared == location and where.runs]
    short = [(key, where) for key, where in mine if where.tensor.size <= SHORT]
    for some in batches(short, lambda item: item[1].tensor.size):
        values = read_each([where for _, where in some])
        if model.watch is not None:
            model.watch(sum(old.nbytes for old in values))
        for (key, where), new in zip(some, patched_each([model.patches[key] for key, _ in some], values), strict=True):
            hashes[key] = checksum(new)
            where.write(0, new, into)
    for key, where in mine:
        if where.tensor.size <= SHORT:
            continue
        patch, digest = model.patches[key], Checksum()
        for start, stop in where.pieces():
            old = where.read(start, stop)
            if model.watch is not None:
                model.watch(old.nbytes)
            new = patch(start, old)
            digest.update(new)
            where.write(start, new, into)
        hashes[key] = digest.hexdigest()


@dataclass(frozen=True)
class _Layout:
    """What of the loaded file is copied, and what is written between; and bytes without and with what comes last."""

    pieces: list[Piece]
    length: int
    most: int


def _layout(model: Model, names: dict[str, str], hashes: dict[str, str]) -> _Layout:
    """How the new file is made of the loaded one; numbers that it holds as varints are hashed and encoded here."""
    edits: list[Edit] = [] if model.sheet is None else model.sheet.edits(names)
    for key in model.patches.keys() & (model.sheet.made if model.sheet else ()):
        digest = Checksum()
        for start, stop in pieces_of(model.tensors[key].size):
            digest.update(model.piece(key, start, stop))
        hashes[key] = digest.hexdigest()
    for tensor in model.tensors.values() if model.sheet is None else ():
        if tensor.storage == "external" and tensor.place and tensor.place.location:
            location = dict(tensor.place.external).get("location", "")
            if location in names:
                edits.append(Edit(tensor.place.location[0], tensor.place.location[1], names[location].encode()))
    for key in _patched(model):
        where, patch = model.stored(key), model.patches[key]
        if isinstance(where, Sparse) and not where.runs:
            digest = Checksum()
            for start, stop in where.pieces():
                digest.update(patch(start, where.read(start, stop)))
            hashes[key] = digest.hexdigest()
            edits += where.edits(patch)
        elif where.decoded is not None:
            new = patch(0, where.decoded.copy())
            hashes[key] = checksum(new)
            edits += respelled(model.source, where, new)
    for key, change in model.changes.items():
        fields = _fields(model, key)
        if len(fields) == 1 and not callable(change):
            edits.append(Edit(fields[0][3], fields[0][4], b"" if change is None else _entry(key, change)))
        else:
            edits += [Edit(field[3], field[4], b"") for field in fields]
    pieces, length = Wire(model.source).edited(0, model.source.size, sorted(edits, key=lambda e: (e.start, e.stop)))
    most = length + len(_tail(model, dict.fromkeys(model.patches, "0" * 64))) if length > CLOSE else length
    return _Layout(pieces, length, most)


def _tail(model: Model, hashes: Mapping[str, str]) -> bytes:
    """Entries of the metadata that have no place in the loaded file: they come last."""
    tail = b""
    for key, change in model.changes.items():
        if callable(change):
            tail += _entry(key, change(hashes))
        elif change is not None and len(_fields(model, key)) != 1:
            tail += _entry(key, change)
    return tail


def _fields(model: Model, key: str) -> list[Field]:
    return [field for name, _, field in model.contents.metadata if name == key]


def _entry(key: str, text: str) -> bytes:
    body = b""
    for tag, data in ((b"\x0a", key.encode()), (b"\x12", text.encode())):
        body += tag + varint(len(data)) + data
    return b"\x72" + varint(len(body)) + body


def _copy_sidecar(model: Model, location: str, target: Path, hashes: dict[str, str]) -> tuple[Path, bool]:
    """Copy a sidecar with its pruned weights, under a name with a hash of its contents; and whether it is new."""
    source = model.sidecar(location)
    pieces = model.sheet.sidecars.get(location) if model.sheet else None
    with staged(target.with_name(f"{target.name}.data"), source.path) as stage:
        with open(stage.path, "rb+") as out:
            whole: list[Piece] = [(0, source.size)]
            _write(model, location, source, whole if pieces is None else pieces, stage.path, out.fileno(), hashes)
        if pieces is None:
            digest = _digest(model, location, source, hashes)
        else:
            made, found = FileSource(stage.path), hashlib.sha256()
            feed(found, made, 0, made.size)
            digest = found.hexdigest()
        name = target.with_name(f"{target.name}.{digest[:12]}.data")
        new = not name.exists()
        stage.target = name
    return name, new


def _digest(model: Model, location: str, source: FileSource, hashes: Mapping[str, str]) -> str:
    """A hash that two sidecars share only if they are equal: of the bytes that stay, and of the new values' hashes."""
    spans = sorted((span, hashes[key]) for key in _patched(model) for span in _spans(model, key, location))
    digest, at = hashlib.sha256(str(source.size).encode()), 0
    for (start, stop), made in spans:
        feed(digest, source, at, start)
        digest.update(f"{start} {stop} {made}".encode())
        at = stop
    feed(digest, source, at, source.size)
    return digest.hexdigest()


def feed(digest: Any, source: Source, start: int, stop: int) -> None:
    """Hash a part of a file."""
    room = np.empty(min(1 << 20, max(stop - start, 0)), np.uint8)
    while start < stop:
        part = room[: min(room.size, stop - start)].data
        source.into(start, part)
        digest.update(part)
        start += len(part)


def _spans(model: Model, key: str, location: str, dense: bool = False) -> Iterator[tuple[int, int]]:
    where = model.stored(key)
    return where.spans(dense=dense) if where.shared == location else iter(())


def refuse_overlaps(model: Model) -> None:
    """Raise a ModelError when bytes that are to change belong to another tensor as well."""
    files = {model.stored(key).shared for key in model.patches} - {""}
    changing = {part.key for key in model.patches for part in (model.tensors[key], *model.tensors[key].parts)}
    for location in files:
        spans = []
        for key, tensor in model.tensors.items():
            if tensor.storage == "external" and tensor.place:
                entries = dict(tensor.place.external)
                if entries.get("location", "") == location:
                    where: Stored | None = None
                    with suppress(ModelError):
                        where = model.stored(key)
                    spans += [(*span, key) for span in where.spans()] if where else []
        spans.sort()
        end, owner = 0, ""
        for start, stop, key in spans:
            if start < end and (key in changing or owner in changing):
                raise ModelError(
                    f"weight {quote(key)} must have its bytes to itself, got some that {quote(owner)} has too; "
                    "leave it out with exclude to prune the others"
                )
            if stop > end:
                end, owner = stop, key


def _own_sidecars(target: Path) -> set[Path]:
    """Sidecar files that an earlier `save` to the same place made and that the model there now refers to."""
    pattern = re.compile(re.escape(target.name) + r"\.[0-9a-f]{12}\.data")
    try:
        if not any(pattern.fullmatch(name) for name in os.listdir(target.parent)):
            return set()
        old = load(target)
        return {file for location, file in old.sidecars().items() if pattern.fullmatch(location)}
    except (ModelError, OSError):
        return set()
