"""More feeds of images and signals: the ones given, mirrored along their last axis.

The dense network says what each layer should make of any input, so every input of the kind that a model is used on can
be learnt from. Where convolutions slide over it, a mirrored one mostly is of that kind; whether it is, feeds that are
kept back have to show.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.runtime.feeds import Feed

__all__ = ["mirrored", "slid"]

SLIDING = ("Conv", "MaxPool", "AveragePool")
Readers = Callable[[str], Iterable[tuple[str, int, str]]]


def mirrored(feed: Feed) -> dict[str, NDArray[Any]]:
    """A feed from right to left: a view, for all of them would take as much memory as the feeds.

    >>> mirrored({"x": np.arange(3.0).reshape(1, 1, 3)})["x"]
    array([[[2., 1., 0.]]])
    """
    return {name: np.asarray(value)[..., ::-1] for name, value in feed.items()}


def slid(readers: Readers, name: str, alike: Collection[str]) -> bool:
    """Whether all that reads an input, but for what works on every number by itself, are convolutions and pools.

    Args:
        readers: of a value the operations that read it, as which input they do, and what they make of it.
        name: the input.
        alike: operations that work on every number by itself.

    >>> readers = {"x": [("Relu", 0, "y")], "y": [("Conv", 0, "z")]}
    >>> slid(lambda name: readers.get(name, []), "x", {"Relu"})
    True
    """
    found = False
    for op, slot, out in readers(name):
        if op in alike:
            if not slid(readers, out, alike):
                return False
        elif slot or op not in SLIDING:
            return False
        found = True
    return found
