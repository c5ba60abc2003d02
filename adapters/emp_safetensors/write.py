"""The verb `save`: a copy of the checkpoint in which some tensors are pruned. It appears whole or not at all.

The numbers are written first, then read back: the certificate is made of what the file really holds, and a checksum
says that this is what was meant. It stands in the header, before the numbers; so room is left for it, and it is put
there at the end. What is not pruned is copied byte for byte.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_core import ArgumentError
from emp_core.certificates import KEY, Certificate, Certified, write
from emp_core.checksum import Checksum
from emp_core.direct import LARGE, DirectWriter
from emp_safetensors.checkpoint import PIECE, Bytes, File, Stored
from emp_safetensors.errors import VerifyError, quote
from emp_safetensors.header import DTYPES, Place, dump
from emp_safetensors.plan import Entry, Pruned

__all__ = ["save"]

COPY = 1 << 20  # bytes copied at once
Put = Callable[[int, Any], None]


def save(pruned: Pruned, path: str | os.PathLike[str], /) -> tuple[Path, ...]:
    """Write a pruned checkpoint: a file for a file, a new folder (or an empty one) for a folder.

    Args:
        pruned: from `apply`.
        path: where to.

    Returns:
        The files written.

    Raises:
        ArgumentError: the place cannot take them, or is the input.
        emp_core.VerifyError: what was written reads back otherwise.
    """
    source, target = pruned.checkpoint, Path(path)
    if source.index is not None or source.path.is_dir():
        return _folder(pruned, target)
    if _same(source.path, target):
        raise ArgumentError(f"out must not be the input, got {quote(target)}")
    if target.is_dir() or not target.parent.is_dir():
        raise ArgumentError(f"out must be a file name in a directory that exists, got {quote(target)}")
    (file,) = source.files.values()
    with _refused(target), _beside(target) as temporary:
        _write(pruned, file, temporary)
        os.replace(temporary, target)
        _sync(target.parent)
    return (target,)


def _folder(pruned: Pruned, target: Path) -> tuple[Path, ...]:
    source = pruned.checkpoint
    folder = source.path if source.path.is_dir() else source.path.parent
    if _same(folder, target):
        raise ArgumentError(f"out must not be the input, got {quote(target)}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ArgumentError(f"out must be a new or an empty directory, got {quote(target)}")
    if not target.parent.is_dir():
        raise ArgumentError(f"out must be in a directory that exists, got {quote(target)}")
    building = target.with_name(f".{target.name[:80]}.{secrets.token_hex(6)}.part")
    with _refused(target):
        try:
            building.mkdir()
            for name, file in source.files.items():
                _write(pruned, file, building / name)
            if source.index is not None:
                name, text = source.index
                with open(building / name, "xb") as stream:
                    stream.write(text)
                    os.fsync(stream.fileno())
            _sync(building)
            if target.exists():
                target.rmdir()
            os.replace(building, target)
            _sync(target.parent)
        finally:
            with suppress(OSError):
                for leftover in building.iterdir():
                    leftover.unlink()
                building.rmdir()
    return tuple(target / name for name in (*source.files, *([source.index[0]] if source.index else [])))


def _write(pruned: Pruned, file: File, path: Path) -> None:
    """One file: room for the header, the numbers, then the header."""
    header, entries = file.header, {e.name: e for e in pruned.plan.entries}
    here = [p for p in header.places if p.name in entries]
    worst = {p.name: _certified(entries[p.name], entries[p.name].n, "f" * 64) for p in here}
    others = {key: text for key, text in header.metadata.items() if key != KEY}
    room = len(dump(header, {**others, KEY: _text(pruned, worst)} if here else others))
    left, sums, shift = dict[str, Certified](), dict[str, str](), room - header.data
    size = header.end + shift
    with open(path, "xb+", buffering=0) as stream:
        os.ftruncate(stream.fileno(), size)
        with _filler(path, stream.fileno(), size) as fill:
            for place in header.places:
                if place.name in entries:
                    sums[place.name] = _prune(pruned, Stored(file, place), fill, place.start + shift)
                else:
                    _copy(file, place, fill, shift)
        written = Bytes(path, stream.fileno(), direct=size >= LARGE)
        for place in here:
            zeros = _read_back(written, place, shift, sums[place.name])
            left[place.name] = _certified(entries[place.name], zeros, sums[place.name])
        _put(stream.fileno(), 0, dump(header, {**others, KEY: _text(pruned, left)} if here else others, room))
        os.fsync(stream.fileno())


@contextmanager
def _filler(path: Path, handle: int, size: int) -> Iterator[Put]:
    """What writes into a file that reads as zeros; complete at the end of the block."""
    usual = partial(_put, handle)
    if size < LARGE:
        yield usual
        return
    with DirectWriter(path, usual) as fill:
        yield fill


def _put(handle: int, at: int, data: Any) -> None:
    view = memoryview(data).cast("B")
    while view:
        done = os.pwrite(handle, view, at)
        view, at = view[done:], at + done


def _copy(file: File, place: Place, fill: Put, shift: int) -> None:
    for at in range(place.start, place.stop, COPY):
        buffer = bytearray(min(COPY, place.stop - at))
        file.into(at, buffer)
        fill(at + shift, buffer)


def _prune(pruned: Pruned, tensor: Stored, fill: Put, at: int) -> str:
    """Write one tensor without what is removed; returns the checksum of what was written."""
    kept, digest = pruned.plan.kept[tensor.name], Checksum()
    for start, raw in tensor.pieces():
        bits = raw.view(f"u{raw.dtype.itemsize}")
        out = np.multiply(bits, kept.mask(raw, start), dtype=bits.dtype)
        fill(at + start * out.itemsize, out.data)
        digest.update(out)
    return digest.hexdigest()


def _read_back(written: Bytes, place: Place, shift: int, expected: str) -> int:
    """The zeros of what the file really holds now, after it was compared with what was written."""
    digest, zeros = Checksum(), 0
    held = DTYPES[place.dtype][1]
    assert held is not None
    width = held.itemsize
    for start in range(0, place.size, PIECE):
        bits: NDArray[Any] = np.empty(min(PIECE, place.size - start), f"u{width}")
        if not written.into(place.start + shift + start * width, bits.data):
            raise VerifyError(f"{quote(place.name)} was not written as planned, nothing was kept: it is too short")
        digest.update(bits)
        bits &= (1 << (8 * width - 1)) - 1  # without the sign: a kept −0 is a zero too
        zeros += bits.size - int(np.count_nonzero(bits))
    if digest.hexdigest() != expected:
        raise VerifyError(f"{quote(place.name)} was not written as planned, nothing was kept: it reads back otherwise")
    return zeros


def _certified(e: Entry, zeros: int, left: str) -> Certified:
    return Certified(
        e.n, e.n_eff, e.k, e.mass_lower, e.mass, e.mass_upper, e.shape, e.pools, zeros, e.l1, left, e.dtype
    )


def _text(pruned: Pruned, weights: dict[str, Certified]) -> str:
    return write(Certificate("", pruned.plan.rule, "magnitude", pruned.plan.pool, weights))


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


@contextmanager
def _refused(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArgumentError(f"out {quote(target)} could not be written: {error.strerror or error}") from error


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A name beside the target for what is not finished; nothing is left there."""
    temporary = target.with_name(f".{target.name[:80]}.{secrets.token_hex(6)}.part")
    try:
        yield temporary
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def _sync(folder: Path) -> None:
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
