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
from emp_onnx.shrink.cut import drop_dead
from emp_onnx.shrink.readers import Reader
from emp_onnx.shrink.trace import Runner

__all__ = ["cross_moments", "moments", "segment"]

SAMPLES = 10  # of a reader, over all feeds, for each number in a sample; and never fewer than
LEAST = 4096
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
    return max(4, max(LEAST, SAMPLES * places * reader.channels) // max(feeds, 1))


def _ones(rows: Wide) -> Wide:
    flat = rows.reshape(len(rows), rows.shape[1] * rows.shape[2])
    return np.concatenate([flat, np.ones((len(flat), 1))], 1)


def moments(
    model: Any, readers: Sequence[Reader], feeds: Sequence[Feed], *, threads: int = 1, seed: int = 0
) -> list[Wide]:
    """Σ (x, 1)(x, 1)ᵀ over samples, divided by their number; one matrix per reader."""
    runner = Runner(segment(model, [r.source for r in readers]), plain=False, threads=threads)
    sums: list[Any] = [0.0] * len(readers)
    counts = [0] * len(readers)
    for which, feed in enumerate(feeds):
        out = runner(feed)
        for i, reader in enumerate(readers):
            share = _share(reader, len(feeds))
            rows = _ones(reader.rows(out[reader.source], np.random.default_rng((seed, which, i)), share))
            sums[i] = sums[i] + rows.T @ rows
            counts[i] += len(rows)
    return [np.asarray(s) / max(c, 1) for s, c in zip(sums, counts, strict=True)]


def cross_moments(
    dense: Any, changed: Any, readers: Sequence[Reader], feeds: Sequence[Feed], *, threads: int = 1, seed: int = 0,
    others: Sequence[Reader] | None = None,
) -> list[tuple[Wide, Wide]]:  # fmt: skip
    """For each reader Σ z zᵀ and Σ z (x, 1)ᵀ, divided by the number of samples: z of the changed model, x of the
    dense one. `others` are the same readers in the changed model, where they read other tensors there."""
    others = readers if others is None else others
    one = Runner(segment(dense, [r.source for r in readers]), threads=threads)
    other = Runner(segment(changed, [r.source for r in others]), threads=threads)
    own: list[Any] = [0.0] * len(readers)
    cross: list[Any] = [0.0] * len(readers)
    counts = [0] * len(readers)
    for which, feed in enumerate(feeds):
        a, b = one(feed), other(feed)
        for i, (reader, same) in enumerate(zip(readers, others, strict=True)):
            share = _share(reader, len(feeds))
            x = _ones(reader.rows(a[reader.source], np.random.default_rng((seed, which, i)), share))
            z = _ones(same.rows(b[same.source], np.random.default_rng((seed, which, i)), share))
            own[i] = own[i] + z.T @ z
            cross[i] = cross[i] + z.T @ x
            counts[i] += len(z)
    return [(np.asarray(o) / max(c, 1), np.asarray(k) / max(c, 1)) for o, k, c in zip(own, cross, counts, strict=True)]
