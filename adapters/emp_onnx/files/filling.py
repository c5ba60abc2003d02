"""Filling a file: what stays is copied by the kernel, and new values are written over the old ones' places."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from emp_core.checksum import Checksum, checksum
from emp_core.direct import LARGE, DirectWriter
from emp_onnx.files.layout import patched_keys, spans_of
from emp_onnx.files.model_io import Model
from emp_onnx.files.patch import patched_each
from emp_onnx.files.short import SHORT, batches, read_each
from emp_onnx.files.source import Source
from emp_onnx.files.whole import copy_part, put
from emp_onnx.files.wire import Blob, Piece, length_of

__all__ = ["fill_file", "made_of"]

Put = Callable[[int, Any], None]
SMALL = 1 << 23  # bytes of a file that is made in memory: a graph of many nodes has thousands of short weights


def fill_file(
    model: Model, location: str, source: Source, pieces: Sequence[Piece], path: Path, handle: int,
    hashes: dict[str, str],
) -> None:  # fmt: skip
    """Fill a file: the model's own, or the sidecar of this location."""
    size = sum(map(length_of, pieces))
    if size <= SMALL:
        put(handle, 0, made_of(model, location, source, pieces, hashes))
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


def made_of(model: Model, location: str, source: Source, pieces: Sequence[Piece], hashes: dict[str, str]) -> bytearray:
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
    return sorted(span for key in patched_keys(model) for span in spans_of(model, key, location, True))


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


def _patch(model: Model, location: str, into: Put, hashes: dict[str, str]) -> None:
    """Write the values of all patched tensors that one file holds, and note their checksums on the way.

    Zeros are there already, as holes.
    """
    mine = [
        (key, where) for key in patched_keys(model) if (where := model.stored(key)).shared == location and where.runs
    ]
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
