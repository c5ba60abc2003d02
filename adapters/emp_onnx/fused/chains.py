"""Which convolutions are worth a kernel, where others stand around them.

onnxruntime lays images out in blocks of channels, and runs one convolution after the other so, with activations and
sums in between fused into them. A convolution with a kernel of its own wants plain images: between it and a dense
neighbour every image is laid out again, and what was fused is done apart. So convolutions between which nothing but
such operations stands are decided together: all that can have kernels, or those that would gain alone, or none,
whichever is cheapest by the estimate below; and none where none would gain alone.

The unit is one multiplication of a dense convolution; how many positions an image has is counted relative to the
model's input, which is all that strides say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from emp_onnx.fused.graph import STANDARD, value_of

__all__ = ["Candidate", "worth"]

# How much faster a convolution is with a kernel, by density; measured (docs/kernels.md, the slower rows; then those
# of weights that do not fit the second-level cache, for which dense kernels wait).
_DENSITY = (0.05, 0.1, 0.2, 0.4, 0.5, 0.6, 0.7, 1.0)
_SPEED = (4.0, 3.0, 2.2, 1.45, 1.2, 1.03, 0.9, 0.6)
_SPEED_LARGE = (6.0, 4.3, 2.8, 1.7, 1.42, 1.22, 1.05, 0.7)
_MOVED = 40.0  # to lay one element of an image out again
_APART = 8.0  # an element that a convolution with a kernel reads and makes, padded and gathered
_GAIN = 0.95  # of the dense time: below it kernels are taken
# What onnxruntime keeps in its blocked layout, or fuses.
_THROUGH = frozenset([
    "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Elu", "GlobalAveragePool", "GlobalMaxPool",
    "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "MaxPool", "Mul", "PRelu", "Relu", "Resize", "Sigmoid",
    "Softplus", "Sub", "Sum", "Swish", "Tanh", "Upsample",
])  # fmt: skip
_POOLS = frozenset(["MaxPool", "AveragePool", "Conv"])


@dataclass(frozen=True)
class Candidate:
    """A convolution that can have a kernel.

    Attributes:
        density: of its weight.
        alone: whether it would gain by itself.
        large: whether its weight, dense, is larger than the second-level cache.
    """

    density: float
    alone: bool
    large: bool = False


@dataclass(frozen=True)
class _Conv:
    place: int
    products: float
    made: float  # elements
    moved: float  # those that it reads and makes, where onnxruntime has them in its blocks: of images of two axes
    candidate: Candidate | None

    def dense(self) -> float:
        return self.products

    def fused(self) -> float:
        assert self.candidate is not None
        speeds = _SPEED_LARGE if self.candidate.large else _SPEED
        return self.products / float(np.interp(self.candidate.density, _DENSITY, speeds)) + _APART * self.made


def worth(
    nodes: Sequence[onnx.NodeProto], weights: Mapping[str, Sequence[int]], candidates: Mapping[int, Candidate]
) -> set[int]:
    """The candidates to fuse.

    Args:
        nodes: of a graph, in its order.
        weights: the shapes of weights, by name, packed or not.
        candidates: by the place of their node.

    Returns:
        Places of nodes.

    Example:
        >>> from onnx import helper
        >>> first, second = (helper.make_node("Conv", [x, w], [y]) for x, w, y in (("x", "v", "a"), ("a", "w", "b")))
        >>> weights = {"v": (64, 64, 3, 3), "w": (64, 64, 3, 3)}
        >>> worth([first, second], weights, {0: Candidate(0.2, True)})  # its neighbour stays dense
        {0}
        >>> worth([first, second], weights, {0: Candidate(0.45, True)})
        set()
        >>> sorted(worth([first, second], weights, {0: Candidate(0.45, True), 1: Candidate(0.45, True)}))
        [0, 1]
    """
    chosen: set[int] = set()
    for chain in _chains(nodes, weights, candidates):
        chosen |= _cheapest(chain)
    return chosen


def _cheapest(chain: list[_Conv]) -> set[int]:
    dense = sum(conv.dense() for conv in chain)
    best, taken = _GAIN * dense, set[int]()
    if not any(conv.candidate is not None and conv.candidate.alone for conv in chain):
        return taken
    for least in (False, True):  # every candidate; those that gain alone
        inside = [c for c in chain if c.candidate is not None and (c.candidate.alone or not least)]
        places = {conv.place for conv in inside}
        outside = [conv for conv in chain if conv.place not in places]
        border = min(sum(conv.moved for conv in part) for part in (inside, outside))
        cost = sum(c.fused() for c in inside) + sum(c.dense() for c in outside) + _MOVED * border
        if inside and cost < best:
            best, taken = cost, places
    return taken


def _chains(
    nodes: Sequence[onnx.NodeProto], weights: Mapping[str, Sequence[int]], candidates: Mapping[int, Candidate]
) -> list[list[_Conv]]:
    """Convolutions that are linked by what onnxruntime keeps in its layout."""
    link: dict[str, str] = {}  # a value, and another one of the same chain

    def root(name: str) -> str:
        while (up := link.setdefault(name, name)) != name:
            link[name] = name = link[up]
        return name

    positions: dict[str, float] = {}
    found: list[_Conv] = []
    for place, node in enumerate(nodes):
        shape = weights.get(node.input[1], ()) if _is_conv(node) else ()
        before = max((positions.get(name, 1.0) for name in node.input if name), default=1.0)
        after = before / _shrunk(node)
        positions.update(dict.fromkeys(node.output, after))
        if len(shape) > 2:
            made, read = shape[0] * after, shape[1] * value_of(node, "group", 1) * before
            moved = made + read if len(shape) == 4 else 0.0
            found.append(_Conv(place, float(np.prod(shape)) * after, made, moved, candidates.get(place)))
        if len(shape) > 2 or (node.op_type in _THROUGH and node.domain in (*STANDARD, "com.microsoft")):
            for name in (*node.input[: 1 if shape else None], *node.output):
                if name and name not in weights:
                    link[root(name)] = root(node.output[0])
    chains: dict[str, list[_Conv]] = {}
    for conv in found:
        chains.setdefault(root(nodes[conv.place].output[0]), []).append(conv)
    return list(chains.values())


def _is_conv(node: onnx.NodeProto) -> bool:
    return node.op_type == "Conv" and node.domain in STANDARD and len(node.input) > 1


def _shrunk(node: onnx.NodeProto) -> float:
    """How many times fewer positions come out of a node."""
    if node.op_type.startswith("Global"):
        return 1e4
    strides = value_of(node, "strides", [1]) if node.op_type in _POOLS else [1]
    return float(np.prod([max(1, int(step)) for step in strides]))
