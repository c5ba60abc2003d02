"""Flat stretches of an array as rectangles."""

from __future__ import annotations

import math
from collections.abc import Iterator

__all__ = ["boxes"]


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[slice, ...]]:
    """A flat stretch of an array of this shape as rectangles, in order.

    >>> list(boxes((2, 3), 1, 6))
    [(slice(0, 1, None), slice(1, 3, None)), (slice(1, 2, None), slice(0, 3, None))]
    """
    if start >= stop:
        return
    if len(shape) < 2:
        yield (slice(start, stop),) * len(shape)
        return
    inner = math.prod(shape[1:])
    first, rest = divmod(start, inner)
    if rest:
        end = min(stop, (first + 1) * inner)
        for box in boxes(shape[1:], rest, end - first * inner):
            yield (slice(first, first + 1), *box)
        start, first = end, first + 1
    last, rest = divmod(stop, inner)
    if start < last * inner:
        yield (slice(first, last), *(slice(0, d) for d in shape[1:]))
    if rest and start < stop:
        for box in boxes(shape[1:], 0, rest):
            yield (slice(last, last + 1), *box)
