"""A small picture of curves, as PNG, without any package for it: a frame, a grid of tenths, lines and their names."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Line", "draw"]

WIDTH, HEIGHT, EDGE = 640, 480, 48
DOT = 2  # across and down, of a letter
LETTERS = {  # three dots by five: a digit of three bits for each row
    "0": "75557", "1": "26227", "2": "71747", "4": "55711", "6": "74757", "8": "75757", ".": "00002",
    "A": "25755", "C": "74447", "E": "74647", "G": "74557", "I": "72227", "M": "57755", "N": "65555",
    "O": "75557", "P": "75744", "R": "65655", "S": "74717", "T": "72222", "Y": "55222",
}  # fmt: skip
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Line:
    """Points with both coordinates from 0 to 1 (what lies outside is drawn at the edge), a colour, and a name of the
    letters that there are."""

    points: Sequence[tuple[float, float]]
    colour: Colour
    name: str = ""


def draw(lines: Sequence[Line], across: str = "") -> bytes:
    """The picture as the bytes of a PNG file: x (called `across`) to the right, y upwards, both from 0 to 1."""
    image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    for i in range(11):
        shade = 0 if i in (0, 10) else 220
        x, y = _place(i / 10, i / 10)
        image[EDGE : HEIGHT - EDGE + 1, x] = shade
        image[y, EDGE : WIDTH - EDGE + 1] = shade
    for i in range(0, 11, 2):
        x, y = _place(i / 10, i / 10)
        _write(image, x - 4 * DOT, HEIGHT - EDGE + 10, f"{i / 10:.1f}", (90, 90, 90))
        _write(image, 10, y - 2 * DOT, f"{i / 10:.1f}", (90, 90, 90))
    _write(image, WIDTH - EDGE - 4 * DOT * len(across), HEIGHT - 16, across, (0, 0, 0))
    for i, line in enumerate(lines):
        _write(image, EDGE + 140 * i, 16, line.name, line.colour)
        places = [_place(x, y) for x, y in line.points]
        for (x0, y0), (x1, y1) in pairwise(places):
            many = max(abs(x1 - x0), abs(y1 - y0), 1) + 1
            xs, ys = np.linspace(x0, x1, many).round().astype(int), np.linspace(y0, y1, many).round().astype(int)
            for shift in (0, 1):
                image[ys + shift, xs] = line.colour
        for x, y in places:
            image[y - 3 : y + 4, x - 3 : x + 4] = line.colour
    return _png(image)


def _write(image: NDArray[np.uint8], x: int, y: int, words: str, colour: Colour) -> None:
    """Words with their upper left corner at a place."""
    for letter in words:
        for down, row in enumerate(LETTERS[letter]):
            for right in range(3):
                if int(row) >> (2 - right) & 1:
                    a, b = y + DOT * down, x + DOT * right
                    image[a : a + DOT, b : b + DOT] = colour
        x += 4 * DOT


def _place(x: float, y: float) -> tuple[int, int]:
    across, up = (min(max(v, 0.0), 1.0) for v in (x, y))
    return EDGE + round(across * (WIDTH - 2 * EDGE)), HEIGHT - EDGE - round(up * (HEIGHT - 2 * EDGE))


def _png(image: NDArray[np.uint8]) -> bytes:
    def block(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = np.concatenate([np.zeros((len(image), 1), np.uint8), image.reshape(len(image), -1)], axis=1)
    head = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + block(b"IHDR", head)
        + block(b"IDAT", zlib.compress(rows.tobytes()))
        + block(b"IEND", b"")
    )
