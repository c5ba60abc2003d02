"""Feeds varied more strongly than moved ones: what a fit in sequence from few feeds lacks.

A fit of one layer after the other sums up the errors of all before it, so it takes more feeds than a fit of each layer
by itself, and more different ones. Each of these is one of the given feeds, drawn out or together along every axis
that convolutions slide over, shifted, and slanted; mirrored every second time; then mixed with another feed, or
partly covered by a piece of one; and with every channel louder or softer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from emp_onnx.runtime.feeds import Feed

__all__ = ["varied"]

REACH = 8  # a shift is at most so small a part of an axis
SCALE, SLANT = 1.33, 0.25  # drawn out by at most this; slanted by so many places for one
COVERED, MIXED = 0.3, 0.2  # shares of feeds that are
LEAST = 0.6  # of the first of two feeds that are mixed
PIECE = (4, 2)  # a piece is at least, and at most, such a part of every axis
LOUD, OFFSET = 1.25, 0.1  # of a channel: times as loud at most; added, in parts of the spread of the feed


def varied(feeds: Sequence[Feed], count: int, *, seed: int = 0) -> list[Feed]:
    """So many feeds, of the shapes and types of those given, each of which has one input (1, channels, places…).

    >>> out = varied([{"x": np.zeros((1, 2, 8, 8), np.float32)}] * 2, 3)
    >>> len(out), out[0]["x"].shape, out[0]["x"].dtype.name
    (3, (1, 2, 8, 8), 'float32')
    """
    rng = np.random.default_rng(seed)
    (name,) = feeds[0]
    values = [np.asarray(feed[name]) for feed in feeds]
    picked = rng.integers(0, len(values), (count, 2))
    return [{name: _varied(values[i], values[j], rng)} for i, j in picked]


def _varied(one: NDArray[np.floating], other: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.floating]:
    value = _drawn(one, rng)
    value = value[..., ::-1] if rng.uniform() < 0.5 else value
    chance = rng.uniform()
    if chance < COVERED:
        where = (slice(None), slice(None), *(_piece(size, rng) for size in one.shape[2:]))
        value = value.copy()
        value[where] = other[where]
    elif chance < COVERED + MIXED:
        share = rng.uniform(LEAST, 1.0)
        value = share * value + (1 - share) * other
    channels = (1, one.shape[1], *[1] * (one.ndim - 2))
    loud = LOUD ** rng.uniform(-1, 1, channels)
    added = OFFSET * float(one.std()) * rng.standard_normal(channels)
    return np.ascontiguousarray((value * loud + added).astype(one.dtype))


def _drawn(value: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.floating]:
    """Drawn out and shifted along every axis from the third on, the last one also slanted; edges repeated."""
    for axis in range(2, value.ndim):
        size = value.shape[axis]
        middle = (size - 1) / 2
        at = (np.arange(size) - middle) * SCALE ** rng.uniform(-1, 1) + middle + rng.uniform(-size, size) / REACH
        places = at.reshape(-1, *[1] * (value.ndim - 1 - axis))
        if axis == value.ndim - 1 and axis > 2:
            rows = value.shape[axis - 1]
            places = at + rng.uniform(-SLANT, SLANT) * (np.arange(rows)[:, None] - (rows - 1) / 2)
        places = np.clip(places, 0, size - 1)
        places = np.broadcast_to(places, value.shape)
        low = np.floor(places).astype(np.intp)
        share = places - low
        high = np.minimum(low + 1, size - 1)
        value = np.take_along_axis(value, low, axis) * (1 - share) + np.take_along_axis(value, high, axis) * share
    return value


def _piece(size: int, rng: np.random.Generator) -> slice:
    least, most = max(size // PIECE[0], 1), max(size // PIECE[1], 1)
    length = int(rng.integers(least, most + 1))
    begin = int(rng.integers(0, size - length + 1))
    return slice(begin, begin + length)
