"""Short tensors, many at a time: those that lie close together in a file are read together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from emp_onnx.files.storage import Stored

__all__ = ["SHORT", "batches", "read_each"]

SHORT = 1 << 12  # elements of a tensor that is taken together with others
TOGETHER = 1 << 20  # elements taken together, at most
BLOCK = 1 << 20  # bytes read at once, at most
APART = 1 << 12  # bytes between two tensors that are read together, at most


T = TypeVar("T")


def batches(items: Sequence[T], size: Callable[[T], int], most: int = TOGETHER, /) -> Iterator[Sequence[T]]:
    """The items in order, in rows of which each has so many elements at most, or is one item.

    Example:
        >>> list(batches("abbccc", {"a": 1, "b": 2, "c": 3}.__getitem__, 5))
        ['abb', 'c', 'c', 'c']
    """
    first = held = 0
    for i, item in enumerate(items):
        more = size(item)
        if held + more > most and i > first:
            yield items[first:i]
            first, held = i, 0
        held += more
    if first < len(items):
        yield items[first:]


def read_each(tensors: Sequence[Stored], /) -> list[NDArray[Any]]:
    """All numbers of each of these tensors, flat; not to be written to, since some are views of what was read.

    Raises:
        ModelError: a file cannot be read, or became shorter.
    """
    out: list[NDArray[Any]] = [np.empty(0)] * len(tensors)
    placed: list[tuple[int, int, int, int]] = []
    for i, where in enumerate(tensors):
        start = where.place
        if start < 0 or type(where) is not Stored:
            out[i] = where.read(0, where.tensor.size)
        else:
            placed.append((id(where.source), start, start + where.runs[0].many * where.runs[0].width, i))
    placed.sort()
    first = 0
    while first < len(placed):
        source, begin, end, _ = placed[first]
        last = first + 1
        while last < len(placed):
            other, start, stop, _ = placed[last]
            if other != source or start - end > APART or stop - begin > BLOCK:
                break
            end, last = max(end, stop), last + 1
        block = tensors[placed[first][3]].source.read(begin, end - begin)
        for _, start, stop, i in placed[first:last]:
            dtype = tensors[i].dtype
            out[i] = np.frombuffer(block, dtype, (stop - start) // dtype.itemsize, start - begin)
        first = last
    return out
