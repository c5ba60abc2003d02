"""Parts of files, equal when their bytes are, compared without holding them."""

from __future__ import annotations

from dataclasses import dataclass

from emp_onnx.files.source import Source

__all__ = ["Ahead", "Stretch"]

BLOCK = 1 << 18


class Ahead:
    """A source of which short parts are read in order: what follows them is read with them."""

    def __init__(self, source: Source) -> None:
        self.source, self.size = source, source.size
        self._at, self._held = 0, b""

    def read(self, at: int, count: int, /) -> bytes:
        """`count` bytes from `at` on."""
        if count > BLOCK:
            return self.source.read(at, count)
        if not self._at <= at <= at + count <= self._at + len(self._held):
            self._at, self._held = at, self.source.read(at, min(BLOCK, self.size - at))
        return self._held[at - self._at : at - self._at + count]


@dataclass(frozen=True, eq=False)
class Stretch:
    """A part of a file; two are equal when their bytes are."""

    source: Source | Ahead
    start: int
    stop: int

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stretch):
            return NotImplemented
        size = self.stop - self.start
        if size != other.stop - other.start:
            return False
        for at in range(0, size, BLOCK):
            count = min(BLOCK, size - at)
            if self.source.read(self.start + at, count) != other.source.read(other.start + at, count):
                return False
        return True

    __hash__ = None  # type: ignore[assignment]
