"""Second moments of what readers read, from runs of the model: sums in float64, one square matrix per reader.

For a reader with x of shape (channels, places) the moments are of (x, 1), so that means, and with them biases,
follow. Cross moments pair the samples of a changed model with those of the dense one, at the same places.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.axes.trace import Runner
from emp_onnx.shrink.cut import drop_dead
from emp_onnx.shrink.fitting.definite import add_products, mirror
from emp_onnx.shrink.fitting.readers import Reader
from emp_onnx.shrink.fitting.sums import Beside

__all__ = ["ROWS", "cross_moments", "moments", "samples", "segment"]

SAMPLES = 10  # of a reader, over all feeds, for each number in a sample; and never fewer than
LEAST = 4096
ROWS = 4  # samples of a reader from each feed, at least
WAITING = 1 << 22  # bytes of what one reader reads, kept before windows are cut out of them
TOGETHER = 1 << 23  # numbers of samples that wait to be multiplied, where rows are so long that as many are more
Wide = NDArray[np.float64]


def segment(model: Any, outputs: Sequence[str]) -> Any:
    """The part of a model that makes these tensors, as a model."""
    import onnx

    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs))
    inputs = [onnx.ValueInfoProto.FromString(i.SerializeToString()) for i in part.graph.input]
    drop_dead(part.graph)
    left = {i.name for i in part.graph.input}
    part.graph.input.extend(
        i for i in inputs if i.name not in left and i.name not in {t.name for t in model.graph.initializer}
    )
    return part


def _share(reader: Reader, feeds: int) -> int:
    """Samples to draw from each feed."""
    places = prod(reader.op.attributes.get("kernel_shape", ())) if reader.kind == "conv" else 1
    return max(ROWS, max(LEAST, SAMPLES * places * reader.channels) // max(feeds, 1))


class _Sums:
    """Of one reader: Σ z zᵀ and, with x beside z, Σ z xᵀ, added up in few large products.

    What convolutions read is kept for some feeds before windows are cut out of it, for one cut costs as much as many;
    rows wait until there are as many as one has numbers, or as many as memory has room for.
    """

    def __init__(self, readers: Sequence[Reader], share: int, key: tuple[int, int]) -> None:
        self.readers, self.share, self.key = readers, share, key
        self.waiting: list[list[Any]] = []
        self.rows: list[list[Wide]] = []
        self.bytes = self.ready = self.count = self.cuts = 0
        self.sums: list[Wide] = []

    def add(self, *values: Any) -> None:
        """The tensor that each reader reads, of one feed."""
        shapes = [value.shape for value in values]
        if self.waiting and shapes != [value.shape for value in self.waiting[0]]:
            self.flush()
        self.waiting.append(list(values))
        self.bytes += sum(value.nbytes for value in values)
        if self.bytes > WAITING or self.readers[0].kind != "conv":
            self.flush()

    def flush(self) -> None:
        """Cut samples out of what waits."""
        if not self.waiting:
            return
        parts = []
        for reader, values in zip(self.readers, zip(*self.waiting, strict=True), strict=True):
            rng = np.random.default_rng((*self.key, self.cuts))  # the same places of each
            together = values[0] if len(values) == 1 else np.concatenate(values)
            parts.append(_ones(reader.rows(together, rng, self.share * len(values))))
        self.cuts += 1
        self.waiting, self.bytes = [], 0
        self.rows.append(parts)
        self.ready += len(parts[0])
        if self.ready > min(parts[0].shape[1], max(ROWS, TOGETHER // parts[0].shape[1])):
            self.multiply()

    def multiply(self) -> None:
        """Add up the products of what is cut."""
        if not self.rows:
            return
        z, *x = (part[0] if len(part) == 1 else np.concatenate(part) for part in zip(*self.rows, strict=True))
        if not self.sums:
            self.sums = [np.zeros((z.shape[1], other.shape[1])) for other in (z, *x)]
        add_products(self.sums[0], z)
        for s, other in zip(self.sums[1:], x, strict=True):
            s += z.T @ other
        self.count += len(z)
        self.rows, self.ready = [], 0

    def mean(self) -> list[Wide]:
        """The sums over the number of samples."""
        self.flush()
        self.multiply()
        for s in self.sums:
            s /= max(self.count, 1)
        mirror(self.sums[0])
        return self.sums


class _Kept(_Sums):
    """The samples themselves."""

    def multiply(self) -> None:
        """Keep them, in half the memory."""
        self.rows = [[part.astype(np.float32) for part in parts] for parts in self.rows]
        self.ready = 0

    def all(self) -> NDArray[np.float32]:
        """Of one reader, without the ones behind them."""
        self.flush()
        self.multiply()
        return np.concatenate([parts[0][:, :-1] for parts in self.rows])


def _ones(rows: Wide) -> Wide:
    flat = rows.reshape(len(rows), rows.shape[1] * rows.shape[2])
    return np.concatenate([flat, np.ones((len(flat), 1))], 1)


def moments(
    model: Any, readers: Sequence[Reader], feeds: Sequence[Feed], *, threads: int = 1, seed: int = 0
) -> list[Wide]:
    """Σ (x, 1)(x, 1)ᵀ over samples, divided by their number; one matrix per reader."""
    runner = Runner(segment(model, [r.source for r in readers]), plain=False, threads=threads)
    sums = [_Sums([reader], _share(reader, len(feeds)), (seed, i)) for i, reader in enumerate(readers)]
    for feed in feeds:
        out = runner(feed)
        for reader, one in zip(readers, sums, strict=True):
            one.add(out[reader.source])
    return [one.mean()[0] for one in sums]


def samples(
    model: Any, readers: Sequence[Reader], feeds: Sequence[Feed], *, threads: int = 1, seed: int = 0
) -> list[NDArray[np.float32]]:
    """What each reader reads, (samples, features): those of which `moments` takes the sums."""
    runner = Runner(segment(model, [r.source for r in readers]), threads=threads)
    kept = [_Kept([reader], _share(reader, len(feeds)), (seed, i)) for i, reader in enumerate(readers)]
    for feed in feeds:
        out = runner(feed)
        for reader, one in zip(readers, kept, strict=True):
            one.add(out[reader.source])
    return [one.all() for one in kept]


def cross_moments(
    dense: Any, changed: Any, readers: Sequence[Reader], feeds: Sequence[Feed], *, threads: int = 1, seed: int = 0,
    others: Sequence[Reader] | None = None, besides: Sequence[Beside | None] = (),
) -> list[tuple[Wide, Wide, Wide | None]]:  # fmt: skip
    """For each reader Σ z zᵀ and Σ z (x, 1)ᵀ, divided by the number of samples: z of the changed model, x of the
    dense one; and Σ z (d, 1)ᵀ with d what was lost beside its result, None where nothing stands there.

    `others` are the same readers in the changed model, where they read other tensors there.
    """
    others = readers if others is None else others
    besides = list(besides) or [None] * len(readers)
    one = Runner(segment(dense, [*(r.source for r in readers), *(b.dense for b in besides if b)]), threads=threads)
    other = Runner(segment(changed, [*(r.source for r in others), *(b.changed for b in besides if b)]), threads=threads)
    every = list(zip(readers, others, besides, strict=True))
    sums: list[_Sums | None] = [None] * len(every)
    for feed in feeds:
        a, b = one(feed), other(feed)
        for i, (reader, same, by) in enumerate(every):
            lost = by.lost(a, b) if by else None
            added = sums[i]
            if added is None:
                rows = [same, reader] if by is None or lost is None else [same, reader, by.as_rows]
                added = sums[i] = _Sums(rows, _share(reader, len(feeds)), (seed, i))
            values = [b[same.source], a[reader.source], lost][: len(added.readers)]
            if values[-1] is not None:  # shapes may agree on one feed and not on another
                added.add(*values)
    means = [added.mean() for added in sums if added is not None]
    return [(m[0], m[1], m[2] if len(m) > 2 else None) for m in means]
