"""Whether mirrored feeds are of the kind that a model is used on: what learns from them too has to say at least
as well what the dense model says on feeds that it has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from emp_onnx.calibration.along import SAME
from emp_onnx.calibration.answers import Answers
from emp_onnx.calibration.mirrored import mirrored, slid
from emp_onnx.calibration.network import Network
from emp_onnx.calibration.once import once
from emp_onnx.calibration.outputs import distance
from emp_onnx.refit.curves import unmeasured
from emp_onnx.refit.sequence import fit
from emp_onnx.runtime.feeds import Feed

__all__ = ["helped", "mirrored_feeds"]

ALIKE = SAME | {"BatchNormalization"}
LEAST = 16  # feeds that are told apart by
KEPT = 0.8  # share of every layer's weights with which that is seen
ENOUGH = 1, 500  # samples for that, for each input of a layer, and how many more
LOTS = 8  # of feeds kept back, whose differences say how sure that is


def mirrored_feeds(network: Network, feeds: Sequence[Feed]) -> list[Feed]:
    """A mirrored copy of each feed, in their order; none where convolutions do not slide over the only input."""
    first = feeds[0] if feeds else {}
    names = [name for name in network.program.inputs if name in first]
    if len(first) != 1 or names != [*first] or any(np.asarray(value).dtype.kind != "f" for value in first.values()):
        return []

    def readers(value: str) -> list[tuple[str, int, str]]:
        found = network.program.readers.get(value, [])
        return [("" if step.node.domain else step.node.op, slot, step.outputs[0]) for step, slot in found]

    return [mirrored(feed) for feed in feeds] if slid(readers, names[0], ALIKE) else []


def helped(network: Network, answers: Answers, copies: Sequence[Feed]) -> bool:
    """Whether a network that learns from mirrored copies of half of its feeds too does no worse on the other half.

    Each layer is solved by itself, in few steps, as quick effort does.

    Args:
        network: with its feeds.
        answers: of the network.
        copies: one of each feed.
    """
    halves = [[i for i in range(len(copies)) if network.half(i) == half] for half in (0, 1)]
    if len(copies) < LEAST or not all(halves):
        return False
    seen, back = [network.feeds[i] for i in halves[0]], [network.feeds[i] for i in halves[1]]
    dense = answers.dense(back)
    errors = []
    for more in ([], [copies[i] for i in halves[0]]):
        part = network.on([*seen, *more])
        layers = unmeasured(part)
        counts = [max(1, round(KEPT * layer.size)) for layer in layers]
        thin = fit(part, layers, counts, known=once(part, ENOUGH), quick=True)
        says = answers(thin.changed, back)
        errors.append([distance(dense[lot::LOTS], says[lot::LOTS]) for lot in range(min(LOTS, len(back)))])
    gaps = np.subtract(errors[1], errors[0])
    return bool(gaps.mean() <= gaps.std() / math.sqrt(len(gaps)))
