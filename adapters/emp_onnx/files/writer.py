"""Saving: the loaded file is copied by the kernel, and the few bytes that differ are written into the copy.

What may differ: values that a patch changes, in place; the metadata entries that were replaced; and, where weights
are in sidecar files, the names of these (a saved model gets sidecars of its own). When a text gets another length,
so do the messages around it; all else is copied as it stands, also what no version of onnx knows.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from emp_onnx.errors import ModelError, OutputError, UsageError, quote
from emp_onnx.files.filling import fill_file, made_of
from emp_onnx.files.layout import layout_of, patched_keys, refuse_overlaps, spans_of, tail_of
from emp_onnx.files.model_io import Model, load
from emp_onnx.files.source import FileSource, Source
from emp_onnx.files.whole import check_target, put, same_file, staged, sync_folder
from emp_onnx.files.wire import Piece

__all__ = ["drop_sidecars", "feed", "own_sidecars", "save", "to_bytes"]


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
    old = own_sidecars(target)
    try:
        for location in sources:
            file, new = _copy_sidecar(model, location, target, hashes)
            names[location] = file.name
            made += [file] if new else []
        if sources:
            sync_folder(target.parent)
        layout = layout_of(model, names, hashes)
        if layout.most >= 2**31:
            raise ModelError(f"model {quote(path)} cannot be written as one file: it would be larger than 2 GiB")
        with staged(target, model.path) as stage:
            with open(stage.path, "rb+") as out:
                fill_file(model, "", model.source, layout.pieces, stage.path, out.fileno(), hashes)
                put(out.fileno(), layout.length, tail_of(model, hashes))
            if check:
                check(stage.path)
    except BaseException:
        for file in made:
            with suppress(OSError):
                file.unlink()
        raise
    used = {target.with_name(name) for name in names.values()}
    drop_sidecars(old - used, model, target)
    return (target, *sorted(used))


def to_bytes(model: Model) -> bytes:
    """The whole model in memory."""
    hashes: dict[str, str] = {}
    layout = layout_of(model, {}, hashes)
    if layout.most >= 2**31:
        raise ModelError(f"model {model.origin} cannot be written as one file: it would be larger than 2 GiB")
    return bytes(made_of(model, "", model.source, layout.pieces, hashes) + tail_of(model, hashes))


def _copy_sidecar(model: Model, location: str, target: Path, hashes: dict[str, str]) -> tuple[Path, bool]:
    """Copy a sidecar with its pruned weights, under a name with a hash of its contents; and whether it is new."""
    source = model.beside.file(location)
    pieces = model.sheet.sidecars.get(location) if model.sheet else None
    with staged(target.with_name(f"{target.name}.data"), source.path) as stage:
        with open(stage.path, "rb+") as out:
            whole: list[Piece] = [(0, source.size)]
            fill_file(model, location, source, whole if pieces is None else pieces, stage.path, out.fileno(), hashes)
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
    spans = sorted((span, hashes[key]) for key in patched_keys(model) for span in spans_of(model, key, location))
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


def drop_sidecars(old: set[Path], model: Model, target: Path) -> None:
    """Remove sidecars that nothing needs any more: not `model`, if that is another file, and no model beside it."""
    elsewhere = set() if model.path and same_file(model.path, target) else set(model.sidecars().values())
    for file in old - elsewhere:
        with suppress(OSError):
            if not _named_by_others(file, target):
                file.unlink()


def _named_by_others(file: Path, target: Path) -> bool:
    """Whether a model beside `target` holds the name of this file, as one does that `emp fuse` wrote."""
    for other in target.parent.glob("*.onnx"):
        if not same_file(other, target) and other.stat().st_size:
            with open(other, "rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as content:
                if content.find(file.name.encode()) >= 0:
                    return True
    return False


def own_sidecars(target: Path) -> set[Path]:
    """Sidecar files that an earlier `save` to the same place made and that the model there now refers to."""
    pattern = re.compile(re.escape(target.name) + r"\.[0-9a-f]{12}\.data")
    try:
        if not any(pattern.fullmatch(name) for name in os.listdir(target.parent)):
            return set()
        old = load(target)
        return {file for location, file in old.sidecars().items() if pattern.fullmatch(location)}
    except (ModelError, OSError):
        return set()
