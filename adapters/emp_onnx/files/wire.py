"""The protobuf wire format, by position: fields, lengths, and edits that keep every other byte.

A message is a row of fields; a field is a tag (number and wire type) and a number, 4 or 8 bytes, or a length and so
many bytes, which may be a message again. Nothing here knows what the fields mean, and nothing is held in memory but
a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from emp_onnx.errors import ModelError
from emp_onnx.files.source import Source

__all__ = [
    "FIXED32", "FIXED64", "LENGTH", "VARINT", "Blob", "Edit", "Field", "Piece", "Wire", "WireError", "length_of",
    "varint",
]  # fmt: skip

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
WINDOW = 1 << 16
HEAD = 20  # a tag and a length, at their longest
DEPTH = 100  # of messages within messages, as protobuf has it
FIELDS = 6_000_000  # in one file: a graph of 300 000 nodes has fewer
TEXT = 1 << 26  # bytes of one text

# number, wire type, value (of a number) or where the content begins, where the tag begins, where the field ends
Field = tuple[int, int, int, int, int]


class WireError(ModelError):
    """These bytes are no protobuf message."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that are made when they are written: `write(put)` calls `put(at, bytes)` for all of them, in any order."""

    length: int
    write: Callable[[Callable[[int, Any], None]], None]


Piece = tuple[int, int] | bytes | Blob  # bytes to copy, to write, or to make


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace what lies from `start` to `stop`: the whole content of a field, or a whole field with its tag.

    With `insert` nothing is replaced: what is given comes before the field that begins at `start`.
    """

    start: int
    stop: int
    data: bytes | tuple[Piece, ...]
    insert: bool = False

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What comes there."""
        return (self.data,) if isinstance(self.data, bytes) else self.data

    @property
    def length(self) -> int:
        """How many bytes that is."""
        return sum(length_of(piece) for piece in self.pieces)


def length_of(piece: Piece) -> int:
    """How many bytes a piece has."""
    if isinstance(piece, tuple):
        return piece[1] - piece[0]
    return piece.length if isinstance(piece, Blob) else len(piece)


class Wire:
    """Fields of messages that lie somewhere in a source."""

    def __init__(self, source: Source) -> None:
        self.source, self.size = source, source.size
        self._buffer, self._base, self._left = b"", 0, FIELDS

    def fields(self, start: int, stop: int) -> Iterator[Field]:
        """The fields of the message from `start` to `stop`.

        Raises:
            WireError: a length leads out of the message, a number does not end, or a wire type does not exist.
        """
        at, end = start, start
        buffer, base = self._window(start, stop)
        here = base + len(buffer)
        while at < stop:
            if here - at < HEAD and here < stop:
                buffer, base = self._window(at, stop)
                here = base + len(buffer)
            self._left -= 1
            if self._left < 0:
                raise ModelError(f"model must have at most {FIELDS} fields, got more")
            try:
                i = at - base
                key = buffer[i]
                i += 1
                if key > 127:
                    key, i = _number(buffer, i - 1)
                kind = key & 7
                if kind == 2:
                    value = buffer[i]
                    i += 1
                    if value > 127:
                        value, i = _number(buffer, i - 1)
                    end = base + i + value
                    value = base + i
                elif kind == 0:
                    value = buffer[i]
                    i += 1
                    if value > 127:
                        value, i = _number(buffer, i - 1)
                    end = base + i
                elif kind == 5 or kind == 1:
                    value = base + i
                    end = value + (4 if kind == 5 else 8)
                else:
                    raise WireError(f"a field has the wire type {kind}")
            except IndexError:
                raise WireError("a number does not end") from None
            if end > stop or not 0 < key >> 3 < 1 << 29:
                raise WireError("a field leads out of its message")
            yield key >> 3, kind, value, at, end
            at = end

    def _window(self, at: int, stop: int) -> tuple[bytes, int]:
        """Bytes around `at`, and where they begin: up to `stop`, or at least some of them."""
        buffer, base = self._buffer, self._base
        have = base + len(buffer)
        if base <= at and (stop <= have or (stop - at > WINDOW and at + HEAD <= have)):
            return buffer, base
        count = min(WINDOW, self.size - at)
        self._buffer, self._base = self.source.read(at, count) if count > 0 else b"", at
        return self._buffer, at

    def held(self, start: int, stop: int) -> bytes | None:
        """The bytes of a short message, of which there may be many; None where it is not short."""
        if stop - start > WINDOW:
            return None
        buffer, base = self._window(start, stop)
        return buffer[start - base : stop - base]

    def counted(self, fields: int) -> None:
        """Note that so many fields were read elsewhere."""
        self._left -= fields
        if self._left < 0:
            raise ModelError(f"model must have at most {FIELDS} fields, got more")

    def data(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`."""
        if self._base <= start and stop <= self._base + len(self._buffer):
            return self._buffer[start - self._base : stop - self._base]
        if stop - start > TEXT:
            raise ModelError(f"model must hold texts of at most {TEXT} bytes, got one of {stop - start}")
        return self.source.read(start, stop - start)

    def text(self, start: int, stop: int) -> str:
        """A text in UTF-8."""
        data = self.data(start, stop)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ModelError(f"model must hold names and texts in UTF-8, got {data[:20]!r}") from error

    def numbers(self, start: int, stop: int) -> Iterator[int]:
        """Packed varints."""
        data, i = self.data(start, stop), 0
        while i < len(data):
            value = data[i]
            i += 1
            if value > 127:
                try:
                    value, i = _number(data, i - 1)
                except IndexError:
                    raise WireError("a number does not end") from None
            yield value

    def edited(self, start: int, stop: int, edits: Sequence[Edit], depth: int = 0) -> tuple[list[Piece], int]:
        """The message with edits inside: what to copy and what to write, in order, and its new length.

        The lengths of all messages around an edit follow.
        """
        if depth > DEPTH:
            raise WireError("messages are nested too deeply")
        pieces: list[Piece] = []
        length, done, waiting = 0, start, list(edits)
        for _, kind, content, tag, end in self.fields(start, stop):
            if not waiting:
                break
            inside = []
            while waiting and waiting[0].insert and waiting[0].start == tag:
                pieces += [(done, tag), *waiting[0].pieces]
                length += tag - done + waiting.pop(0).length
                done = tag
            while waiting and waiting[0].stop <= end and not (waiting[0].insert and waiting[0].start == end):
                inside.append(waiting.pop(0))
            if not inside:
                continue
            if (inside[0].start, inside[0].stop) == (tag, end):
                pieces += [(done, tag), *inside[0].pieces]
                length += tag - done + inside[0].length
                done = end
                continue
            if kind != LENGTH or inside[0].start < content or inside[-1].stop > end:
                raise WireError("an edit does not fit the message")
            if (inside[0].start, inside[0].stop) == (content, end):
                new, size = list(inside[0].pieces), inside[0].length
            else:
                new, size = self.edited(content, end, inside, depth + 1)
            head = tag + _number(self.data(tag, content), 0)[1]
            pieces += [(done, head), varint(size), *new]
            length += head - done + len(varint(size)) + size
            done = end
        if waiting:
            raise WireError("an edit does not fit the message")
        return [*pieces, (done, stop)], length + stop - done


def _number(data: bytes, i: int) -> tuple[int, int]:
    """A varint at `i`, and where it ends."""
    value = shift = 0
    while True:
        byte = data[i]
        i += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, i
        shift += 7
        if shift > 63:
            raise WireError("a number is too long")


def varint(value: int) -> bytes:
    """A number ≥ 0 as the wire has it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
