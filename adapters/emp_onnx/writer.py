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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from emp_onnx._files import check_target, copy_part, put, same_file, staged, sync_folder
from emp_onnx.errors import ModelError, OutputError, UsageError, quote
from emp_onnx.model_io import Model, load
from emp_onnx.source import FileSource, Source
from emp_onnx.storage import Stored, pieces_of
from emp_onnx.wire import Blob, Edit, Piece, Wire, length_of, varint

__all__ = ["save", "to_bytes"]

Put = Callable[[int, Any], None]


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
    made, names = list[Path](), dict[str, str]()
    old = _own_sidecars(target)
    try:
        for location in sources:
            file, new = _copy_sidecar(model, location, target)
            names[location] = file.name
            made += [file] if new else []
        if sources:
            sync_folder(target.parent)
        pieces, length = _layout(model, names)
        if length >= 2**31:
            raise ModelError(f"model {quote(path)} cannot be written as one file: it would be larger than 2 GiB")
        with staged(target) as stage:
            with open(stage.path, "rb+") as out:
                _write(model, "", model.source, pieces, out.fileno())
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
    pieces, length = _layout(model, {})
    if length >= 2**31:
        raise ModelError(f"model {model.origin} cannot be written as one file: it would be larger than 2 GiB")
    out = bytearray(length)

    def into(at: int, data: Any) -> None:
        view = memoryview(data).cast("B")
        out[at : at + len(view)] = view

    at = 0
    for piece in pieces:
        if isinstance(piece, Blob):
            piece.write(_shifted(into, at))
        else:
            into(at, piece if isinstance(piece, bytes) else model.source.read(piece[0], piece[1] - piece[0]))
        at += length_of(piece)
    _patch(model, "", _moved(pieces, into))
    return bytes(out)


def _write(model: Model, location: str, source: Source, pieces: Sequence[Piece], handle: int) -> None:
    os.ftruncate(handle, sum(map(length_of, pieces)))
    at = 0
    for piece in pieces:
        if isinstance(piece, Blob):
            piece.write(_shifted(lambda where, data: put(handle, where, data), at))
        elif isinstance(piece, bytes):
            put(handle, at, piece)
        else:
            for start, stop in _gaps(model, location, *piece):
                copy_part(source, start, stop, handle, at + start - piece[0])
        at += length_of(piece)
    _patch(model, location, _moved(pieces, lambda where, data: _fill(handle, where, data)))


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


def _gaps(model: Model, location: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """What lies between the patched tensors of a file: they are written, not copied."""
    at = start
    for first, last in sorted(span for key in _patched(model) for span in _spans(model, key, location, True)):
        if first >= stop or last <= start:
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


def _patch(model: Model, location: str, into: Put) -> None:
    """Write the values of all patched tensors that one file holds; zeros are there already, as holes."""
    for key in _patched(model):
        where, patch = model.stored(key), model.patches[key]
        if where.shared != location or where.decoded is not None:
            continue
        for start, stop in pieces_of(where.tensor.size):
            old = where.read(start, stop)
            if model.watch is not None:
                model.watch(old.nbytes)
            where.write(start, patch(start, old), into)


def _layout(model: Model, names: dict[str, str]) -> tuple[list[Piece], int]:
    """What of the loaded file is copied, and what is written between."""
    edits: list[Edit] = [] if model.sheet is None else model.sheet.edits(names)
    for tensor in model.tensors.values() if model.sheet is None else ():
        if tensor.storage == "external" and tensor.place and tensor.place.location:
            location = dict(tensor.place.external).get("location", "")
            if location in names:
                edits.append(Edit(tensor.place.location[0], tensor.place.location[1], names[location].encode()))
    for key in _patched(model):
        where, patch = model.stored(key), model.patches[key]
        if where.decoded is not None and where.tensor.size:
            runs = where.tensor.place.runs if where.tensor.place else ()
            if len(runs) != 1 or runs[0].many < 0:
                raise ModelError(f"weight {quote(key)} is stored number by number in an old form that is not supported")
            edits.append(Edit(runs[0].at, runs[0].at + runs[0].many, where.encode(patch(0, where.decoded.copy()))))
    tail = b""
    for key, text in model.changes.items():
        fields = [field for name, _, field in model.contents.metadata if name == key]
        entry = b"" if text is None else _entry(key, text)
        if len(fields) == 1:
            edits.append(Edit(fields[0][3], fields[0][4], entry))
            continue
        edits += [Edit(field[3], field[4], b"") for field in fields]
        tail += entry
    pieces, length = Wire(model.source).edited(
        0, model.source.size, sorted(edits, key=lambda edit: (edit.start, edit.stop))
    )
    return [*pieces, tail], length + len(tail)


def _entry(key: str, text: str) -> bytes:
    body = b""
    for tag, data in ((b"\x0a", key.encode()), (b"\x12", text.encode())):
        body += tag + varint(len(data)) + data
    return b"\x72" + varint(len(body)) + body


def _copy_sidecar(model: Model, location: str, target: Path) -> tuple[Path, bool]:
    """Copy a sidecar with its pruned weights, under a name with a hash of its contents; and whether it is new."""
    source = model.sidecar(location)
    sheet = model.sheet.sidecars.get(location) if model.sheet else None
    with staged(target.with_name(f"{target.name}.data")) as stage:
        if sheet is None:
            stage.target = _named(target, _digest(model, location, source))
        with open(stage.path, "rb+") as out:
            _write(model, location, source, [(0, source.size)] if sheet is None else sheet, out.fileno())
        if sheet is not None:
            made, digest = FileSource(stage.path), hashlib.sha256()
            feed(digest, made, 0, made.size)
            stage.target = _named(target, digest.hexdigest())
        name, new = stage.target, not stage.target.exists()
    return name, new


def _named(target: Path, digest: str) -> Path:
    return target.with_name(f"{target.name}.{digest[:12]}.data")


def _digest(model: Model, location: str, source: FileSource) -> str:
    """A hash that two sidecars share only if they are equal: of the bytes that stay, and of what makes the others."""
    spans = sorted(
        (span, model.patches[key].digest) for key in _patched(model) for span in _spans(model, key, location)
    )
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
            if start < end and (key in model.patches or owner in model.patches):
                raise ModelError(
                    f"weight {quote(key)} must have its bytes to itself, got some that {quote(owner)} has too; "
                    "leave it out with exclude to prune the others"
                )
            if stop > end:
                end, owner = stop, key


def _own_sidecars(target: Path) -> set[Path]:
    """Sidecar files that an earlier `save` to the same place made and that the model there now refers to."""
    try:
        old = load(target)
        pattern = re.compile(re.escape(target.name) + r"\.[0-9a-f]{12}\.data")
        return {file for location, file in old.sidecars().items() if pattern.fullmatch(location)}
    except ModelError:
        return set()
