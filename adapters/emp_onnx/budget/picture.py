"""A small picture of curves, as PNG, without any package for it: a frame, a grid of tenths, and lines."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Line", "draw"]

WIDTH, HEIGHT, EDGE = 640, 480, 24


@dataclass(frozen=True)
class Line:
    """Points with both coordinates from 0 to 1 (what lies outside is drawn at the edge), and a colour."""

    points: Sequence[tuple[float, float]]
    colour: tuple[int, int, int]


def draw(lines: Sequence[Line]) -> bytes:
    """The picture as the bytes of a PNG file: x to the right, y upwards, both from 0 to 1."""
    image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    for i in range(11):
        shade = 0 if i in (0, 10) else 220
        x, y = _place(i / 10, i / 10)
        image[EDGE : HEIGHT - EDGE + 1, x] = shade
        image[y, EDGE : WIDTH - EDGE + 1] = shade
    for line in lines:
        places = [_place(x, y) for x, y in line.points]
        for (x0, y0), (x1, y1) in pairwise(places):
            many = max(abs(x1 - x0), abs(y1 - y0), 1) + 1
            xs, ys = np.linspace(x0, x1, many).round().astype(int), np.linspace(y0, y1, many).round().astype(int)
            for shift in (0, 1):
                image[ys + shift, xs] = line.colour
        for x, y in places:
            image[y - 3 : y + 4, x - 3 : x + 4] = line.colour
    return _png(image)


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
