"""How a new file is made of the loaded one: what is copied, what is written between, and what comes last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from emp_core.checksum import Checksum, checksum
from emp_onnx.errors import ModelError, quote
from emp_onnx.files.model_io import Model
from emp_onnx.files.sparse import Sparse
from emp_onnx.files.storage import Stored, pieces_of
from emp_onnx.files.typed import respelled
from emp_onnx.files.wire import Edit, Field, Piece, Wire, varint

__all__ = ["Layout", "layout_of", "patched_keys", "refuse_overlaps", "spans_of", "tail_of"]

CLOSE = 2**31 - 2**28  # bytes from which what comes last is measured before it is known


@dataclass(frozen=True)
class Layout:
    """What of the loaded file is copied, and what is written between; and bytes without and with what comes last."""

    pieces: list[Piece]
    length: int
    most: int


def layout_of(model: Model, names: dict[str, str], hashes: dict[str, str]) -> Layout:
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
    for key in patched_keys(model):
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
    most = length + len(tail_of(model, dict.fromkeys(model.patches, "0" * 64))) if length > CLOSE else length
    return Layout(pieces, length, most)


def tail_of(model: Model, hashes: Mapping[str, str]) -> bytes:
    """Entries of the metadata that have no place in the loaded file: they come last."""
    tail = b""
    for key, change in model.changes.items():
        if callable(change):
            tail += _entry(key, change(hashes))
        elif change is not None and len(_fields(model, key)) != 1:
            tail += _entry(key, change)
    return tail


def patched_keys(model: Model) -> list[str]:
    """The tensors whose new values are written over the old ones."""
    made = model.sheet.made if model.sheet else frozenset()
    return [key for key in model.patches if key not in made]


def spans_of(model: Model, key: str, location: str, dense: bool = False) -> Iterator[tuple[int, int]]:
    """Where the numbers of a tensor lie in the file of this location: nowhere, unless it is in that."""
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


def _fields(model: Model, key: str) -> list[Field]:
    return [field for name, _, field in model.contents.metadata if name == key]


def _entry(key: str, text: str) -> bytes:
    body = b""
    for tag, data in ((b"\x0a", key.encode()), (b"\x12", text.encode())):
        body += tag + varint(len(data)) + data
    return b"\x72" + varint(len(body)) + body
