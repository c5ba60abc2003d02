"""New values of tensors, made from the old ones as these are read or written: a piece at a time, or many short ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Given", "Patch", "Values", "patched_each"]

Values = NDArray[Any]


class Patch(Protocol):
    """New values of a tensor, made from its old ones a piece at a time."""

    def __call__(self, start: int, old: Values, /) -> Values:
        """The new values for the flat numbers `old`, of which the first has the index `start`."""
        ...


@runtime_checkable
class _Together(Protocol):
    """A kind of patch of which many are made faster together than one by one."""

    @staticmethod
    def each(patches: Sequence[Any], values: Sequence[Values], /) -> list[Values]:
        """What each patch makes of all values of its tensor."""
        ...


class Given:
    """All new values at once."""

    def __init__(self, values: Values) -> None:
        self.values = np.ascontiguousarray(values).reshape(-1)

    def __call__(self, start: int, old: Values, /) -> Values:
        """The new values for the flat numbers `old`, of which the first has the index `start`."""
        return self.values[start : start + old.size]


def patched_each(patches: Sequence[Patch], values: Sequence[Values], /) -> list[Values]:
    """What each patch makes of all values of its tensor; those of a kind that has a way for many together."""
    out, kinds = list(values), dict[type[_Together], list[int]]()
    for i, (patch, old) in enumerate(zip(patches, values, strict=True)):
        if isinstance(patch, _Together):
            kinds.setdefault(type(patch), []).append(i)
        else:
            out[i] = patch(0, old)
    for kind, which in kinds.items():
        made = kind.each([patches[i] for i in which], [values[i] for i in which])
        for i, new in zip(which, made, strict=True):
            out[i] = new
    return out
