"""More feeds of images and signals: the ones given, moved.

The dense network says what each layer should make of any input, so every input of the kind that a model is used on can
be learnt from. Where convolutions slide over it, what is shifted by a little, or mirrored, mostly is of that kind;
whether it is, feeds that are kept back have to show.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.runtime.feeds import Feed

__all__ = ["Moved", "moved", "slid"]

REACH = 8  # a shift is at most so small a part of an axis
SLIDING = ("Conv", "MaxPool", "AveragePool")
Readers = Callable[[str], Iterable[tuple[str, int, str]]]


@dataclass(frozen=True)
class Moved(Mapping[str, NDArray[Any]]):
    """A moved copy of a feed, always the same one, that is made each time it is asked for: all of them at once would
    take as much memory as the feeds.

    >>> one = Moved({"x": np.arange(16.0).reshape(1, 1, 16)}, 1)
    >>> list(one), bool((one["x"] == one["x"]).all())
    (['x'], True)
    """

    feed: Feed
    seed: int

    def __getitem__(self, name: str) -> NDArray[Any]:
        return moved({name: self.feed[name]}, np.random.default_rng(self.seed))[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.feed)

    def __len__(self) -> int:
        return len(self.feed)


def moved(feed: Feed, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """A feed shifted along every axis from the third on, edges repeated; every second one mirrored along the last.

    >>> out = moved({"x": np.arange(16.0).reshape(1, 1, 16)}, np.random.default_rng(1))
    >>> out["x"].shape
    (1, 1, 16)
    """
    out = {}
    for name, a in feed.items():
        a = np.asarray(a)
        for axis in range(2, a.ndim):
            size = a.shape[axis]
            shift = int(rng.integers(-(size // REACH), size // REACH + 1))
            a = np.take(a, np.clip(np.arange(size) + shift, 0, size - 1), axis)
        out[name] = np.ascontiguousarray(a[..., ::-1] if a.ndim > 2 and rng.uniform() < 0.5 else a)
    return out


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
