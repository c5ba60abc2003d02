"""A file that was written of a model, against the model: the same bytes outside what was to change say the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from emp_onnx.files.coded import Coded
from emp_onnx.files.model_io import Model, load
from emp_onnx.files.reader import added
from emp_onnx.files.source import FileSource
from emp_onnx.files.storage import nbytes
from emp_onnx.files.stretches import Ahead, Stretch
from emp_onnx.files.wire import WireError

__all__ = ["load_again", "same_outside"]

SMALL = 1 << 23  # bytes of a file that is compared in memory
SAME = "same outside"  # in the cache of a model: the model, and the tensors apart from which it is the same


def load_again(path: Path, original: Model, keys: frozenset[str]) -> Model:
    """Load a file that `save` wrote of a model: what it is made of need not be read anew where its bytes are the same.

    That is so where the file is the original's, byte for byte, but for the numbers of these tensors, and holds nothing
    after that but entries of metadata: what was read once reads the same again. Else it is read like any other.
    """
    source, size = FileSource(path), original.source.size
    gaps = _gaps(original, keys, "") if size <= SMALL and not original.patches else None
    held = not isinstance(original.source, FileSource) or original.source.unchanged
    if gaps is None or not held or not size <= source.size <= 2 * SMALL:
        return load(path)
    before, after = original.source.read(0, size), source.read(0, size)
    if any(before[a:b] != after[a:b] for a, b in gaps):
        return load(path)
    try:
        metadata = added(source, size)
    except WireError:
        return load(path)
    contents = replace(original.contents, metadata=[*original.contents.metadata, *metadata])
    written = Model(source, path, contents=contents)
    written.cache[SAME] = original, keys
    return written


def same_outside(one: Model, other: Model, keys: frozenset[str], entry: str) -> bool:
    """Whether all bytes of two files but the numbers of these tensors and one metadata entry are certainly the same.

    False means that they differ, or that a closer look is needed: numbers scattered over a file, or sidecars.
    """
    if one.patches or other.patches:
        return False
    if one.cache.get(SAME) == (other, keys):  # found when it was loaded; what comes after is metadata
        return [key for key, _, _ in one.contents.metadata[len(other.contents.metadata) :]] == [entry]
    found = [_gaps(model, keys, entry) for model in (one, other)]
    if found[0] is None or found[1] is None or len(found[0]) != len(found[1]):
        return False
    sources = [Ahead(one.source), Ahead(other.source)]
    return all(Stretch(sources[0], *a) == Stretch(sources[1], *b) for a, b in zip(found[0], found[1], strict=True))


def _gaps(model: Model, keys: frozenset[str], entry: str) -> list[tuple[int, int]] | None:
    """What lies between the numbers of these tensors and the metadata entries of this name; None if they are scattered,
    or in sidecar files."""
    if any(tensor.storage == "external" for tensor in model.tensors.values()):
        return None
    spans = [field[3:] for name, _, field in model.contents.metadata if entry and name == entry]
    for key in keys:
        # of packed weights what fills up blocks is to be compared too
        where = model.stored(key) if key in model.tensors else None
        if where is None or where.decoded is not None or isinstance(where, Coded):
            return None
        size, place = nbytes(where.dtype, where.tensor.size), where.place
        mine = [(place, place + size)] if place >= 0 else list(where.spans())
        if sum(b - a for a, b in mine) != size:
            return None
        spans += mine
    return list(_between(sorted(spans), model.source.size))


def _between(spans: Sequence[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """What lies between the spans, where that is anything."""
    at = 0
    for start, stop in (*spans, (size, size)):
        if start > at:
            yield at, start
        at = max(at, stop)
