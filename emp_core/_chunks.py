"""Chunks of a pool, short enough to stay in cache, and the scratch space in which one thread takes sums of them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ._errors import ArgumentError
from ._namespace import BFLOAT16, refuse_masked, refuse_unreal

Mask = NDArray[np.bool_]
PIECE = 4096  # scores summed in one go


class Part(Protocol):
    """Flat scores that can be read a stretch at a time: an array, or something that reads a file when it is sliced."""

    @property
    def size(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __getitem__(self, stretch: slice, /) -> NDArray[Any]: ...


def named_parts(parts: Sequence[Part], names: Sequence[str] | None, what: str) -> list[str]:
    """How errors call these parts; an ArgumentError where one cannot be read as flat real numbers."""
    called = [f"{what} {i}" for i in range(len(parts))] if names is None else list(names)
    if len(called) != len(parts):
        raise ArgumentError(f"names must be one for each {what}, {len(parts)}, got {len(called)}")
    for part, name in zip(parts, called, strict=True):
        refuse_unreadable(part, name)
    return called


def refuse_unreadable(part: Any, name: str) -> None:
    """An ArgumentError for what is no flat array of real numbers, and cannot be read like one either."""
    dtype, ndim = getattr(part, "dtype", None), getattr(part, "ndim", 1)
    if not isinstance(dtype, np.dtype) or not isinstance(getattr(part, "size", None), (int, np.integer)):
        raise ArgumentError(
            f"{name} must be a flat NumPy array, or have a size, a dtype and slices as one has, "
            f"got {type(part).__name__}"
        )
    if ndim != 1:
        raise ArgumentError(f"{name} must be flat, with one axis, got {ndim} axes")
    refuse_unreal(dtype, name)
    refuse_masked(part, name)


class Chunk(NamedTuple):
    """``parts[part][start:stop]``; ``order`` counts chunks from the first score of the pool."""

    order: int
    part: int
    start: int
    stop: int


Keep = Callable[[Chunk, NDArray[Any]], Mask]  # makes the mask of a chunk from its magnitudes


class Products(NamedTuple):
    """Sums over pieces: Σs, Σs², and Σs of those above the bracket."""

    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    above: NDArray[np.float64]


NO_PRODUCTS = np.empty(0)
NOTHING = Products(NO_PRODUCTS, NO_PRODUCTS, NO_PRODUCTS)


class Buffers:
    """Scratch space of one thread for chunks of at most ``size`` scores."""

    def __init__(self, dtype: np.dtype[Any], size: int) -> None:
        size = -(-size // PIECE) * PIECE
        self.magnitude = np.empty(size, dtype)
        self.wide = aligned(size)  # magnitudes in float64
        self.chosen = aligned(size)  # 1 for the scores of which a sum is taken, 0 for the others
        self.flag = np.empty(size, bool)
        self.near = np.empty(size, bool)

    def products(self, size: int, above: Mask | None) -> Products:
        """Σs, Σs² and, given a mask, Σs under it, for each PIECE of the first ``size`` scores in ``wide``.

        The last piece is filled up with zeros. The sums of a piece are the same in whatever chunk it came: pieces
        begin at even addresses, and are too short for a BLAS to set its own threads on them.
        """
        wide = self._pieces(size)
        total, squares = np.einsum("ij->i", wide), dots(wide, wide)
        return Products(total, squares, NO_PRODUCTS if above is None else self._under(size, above))

    def shares(self, size: int, keep: Mask) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Σs and Σ of the kept, for each PIECE of the first ``size`` scores in ``wide``."""
        return np.einsum("ij->i", self._pieces(size)), self._under(size, keep)

    def _under(self, size: int, keep: Mask) -> NDArray[np.float64]:
        wide = self._pieces(size)
        np.copyto(self.chosen[:size], keep)
        self.chosen[size : wide.size] = 0
        return dots(wide, self.chosen[: wide.size].reshape(wide.shape))

    def _pieces(self, size: int) -> NDArray[np.float64]:
        end = -(-size // PIECE) * PIECE
        self.wide[size:end] = 0
        return self.wide[:end].reshape(-1, PIECE)


def aligned(size: int) -> NDArray[np.float64]:
    """Room for so many numbers, at an address that all pieces of it keep modulo a line of cache."""
    room = np.empty(size + 8)
    start = -(room.ctypes.data // 8) % 8
    return room[start : start + size]


def dots(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σab of each row. A stack of products of one row and one column is what every NumPy gives to its BLAS as it is;
    measured: 2.5 times as fast as einsum."""
    out: NDArray[np.float64] = np.matmul(a[:, None, :], b[:, :, None]).reshape(-1)
    return out


def total_of(pieces: list[NDArray[np.float64]]) -> float:
    """The correctly rounded sum of all numbers, in whatever order; inf where one is not finite or the sum overflows."""
    numbers = np.concatenate([NO_PRODUCTS, *pieces])
    try:
        return math.fsum(numbers.tolist()) if np.isfinite(numbers).all() else math.inf
    except OverflowError:
        return math.inf


def share_of(totals: list[NDArray[np.float64]], kept: list[NDArray[np.float64]]) -> float | None:
    """Σ of the kept over Σ of all; None where float64 overflowed or vanished."""
    whole = total_of(totals)
    return min(1.0, total_of(kept) / whole) if 2.0**-900 < whole < math.inf else None


def fits_float32(part: Part | NDArray[Any]) -> bool:
    """True when float32 holds every value of this dtype."""
    return part.dtype == BFLOAT16 or part.dtype.itemsize * (1 if part.dtype.kind == "f" else 2) <= 4


def batched(chunks: Sequence[Chunk], most: int) -> Iterator[Chunk]:
    """Neighbours of one part joined, up to ``most`` at a time."""
    start = 0
    while start < len(chunks):
        first = last = chunks[start]
        end = start
        while end < len(chunks) and end - start < most and chunks[end].part == first.part:
            last = chunks[end]
            end += 1
        yield Chunk(first.order, first.part, first.start, last.stop)
        start = end


def processors() -> int:
    """How many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
