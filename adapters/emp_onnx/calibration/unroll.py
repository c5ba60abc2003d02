"""The rows that a convolution multiplies with its kernel: one per output position, without making all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Window", "positions", "stuffed", "unroll"]

Array = NDArray[Any]
SMALL = 1 << 20  # numbers that are looked up one by one sooner than they are cut out tap by tap


@dataclass(frozen=True)
class Window:
    """How a kernel moves over its input; one entry per spatial axis (`pads`: before and after)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    def sizes(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """The output's spatial sizes."""
        found = []
        for size, k, s, d, (before, after) in zip(
            spatial, self.kernel, self.strides, self.dilations, self.pads, strict=True
        ):
            found.append(max(0, (size + before + after - d * (k - 1) - 1) // s + 1))
        return tuple(found)


@lru_cache(16)
def positions(count: int, limit: int, seed: int) -> NDArray[np.intp] | None:
    """At most `limit` of `count` positions, spread at random and in order; None for all of them."""
    if count <= limit:
        return None
    rng = np.random.default_rng((seed, count, limit))
    return np.sort(rng.choice(count, limit, replace=False))


def unroll(x: Array, window: Window, groups: int, some: NDArray[np.intp] | None) -> Array:
    """The rows at some output positions.

    Args:
        x: (batch, channels, …).
        window: the kernel's way.
        groups: of channels.
        some: flat positions in (batch, …output sizes), or None for all.

    Returns:
        (groups, positions, channels / groups · kernel), in the order in which a kernel (channels, …) lies.
    """
    batch, channels = x.shape[:2]
    out = window.sizes(x.shape[2:])
    if any(b or a for b, a in window.pads):
        x = _padded(x, window.pads)
    many = batch * math.prod(out) if some is None else some.size
    taps = math.prod(window.kernel)
    if some is not None or channels * taps * many < SMALL:
        flat = (x[0] if batch == 1 else np.moveaxis(x, 1, 0)).reshape(channels, -1)
        place, *at = np.unravel_index(np.arange(many) if some is None else some, (batch, *out))
        for size, s, where in zip(x.shape[2:], window.strides, at, strict=True):
            place = place * size + where * s
        rows = flat.take((_offsets(window, x.shape[2:])[:, None] + place).reshape(-1), 1)
    else:
        rows = np.empty((channels, taps, many), x.dtype)
        for tap, offset in enumerate(np.ndindex(*window.kernel)):
            cut = tuple(
                slice(o * d, o * d + (n - 1) * s + 1, s) if n else slice(0, 0)
                for o, d, s, n in zip(offset, window.dilations, window.strides, out, strict=True)
            )
            rows[:, tap] = np.moveaxis(x[(slice(None), slice(None), *cut)], 1, 0).reshape(channels, -1)
    return rows.reshape(groups, channels // groups * taps, many).transpose(0, 2, 1)


@lru_cache(64)
def _offsets(window: Window, spatial: tuple[int, ...]) -> NDArray[np.intp]:
    """How far each tap lies from the first one in an input laid flat."""
    found = np.zeros(1, np.intp)
    for size, k, d in zip(spatial, window.kernel, window.dilations, strict=True):
        found = (found[:, None] * size + np.arange(k) * d).reshape(-1)
    return found


def _padded(x: Array, pads: Sequence[tuple[int, int]]) -> Array:
    sizes = [size + before + after for size, (before, after) in zip(x.shape[2:], pads, strict=True)]
    out = np.zeros((*x.shape[:2], *sizes), x.dtype)
    inner = (slice(before, before + size) for size, (before, _) in zip(x.shape[2:], pads, strict=True))
    out[(slice(None), slice(None), *inner)] = x
    return out


def stuffed(x: Array, strides: Sequence[int]) -> Array:
    """The input of a transposed convolution with zeros between its numbers, so that a plain one can follow."""
    if all(s == 1 for s in strides):
        return x
    sizes = [(n - 1) * s + 1 if n else 0 for n, s in zip(x.shape[2:], strides, strict=True)]
    out = np.zeros((*x.shape[:2], *sizes), x.dtype)
    out[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = x
    return out
