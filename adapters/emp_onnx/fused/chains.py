"""Which convolutions are worth a kernel, where others stand around them.

onnxruntime lays images out in blocks of channels, and runs one convolution after the other so, with activations and
sums in between fused into them. A convolution with a kernel of its own wants plain images: between it and a dense
neighbour every image is laid out again, and what was fused is done apart. So convolutions between which nothing but
such operations stands are decided together: all that can have kernels, or those that gain alone, or those that the
estimate below finds faster, or none, whichever is cheapest by the estimate below; and none where none would gain alone.

The unit is one multiplication of a dense convolution, some 13 ps on one core. Sizes of images are followed from the
model's inputs; where those are open, the first image is taken to be as large as those of ImageNet are.
"""

from __future__ import annotations

import math
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
# The same by Winograd's method, which does not care for density, but makes an even number of rows and columns; and what
# is sure of it for large weights, whose images are small, if their size is not known.
_TRANSFORMED, _TRANSFORMED_LARGE = 1.4, 1.12
_MOVED = 40.0  # to lay one element of an image out again
# An element that a kernel makes; with one tap, what it makes, reads, and reads where it lies.
_MADE, _MADE_ALONE, _READ, _READ_IN_PLACE = 8.0, 30.0, 25.0, 2.0
_NODE = 6e5  # to call a kernel
_GAIN = 0.95  # of the dense time: below it kernels are taken
_IMAGE = 224.0 * 224.0  # positions of an input of open size
# What onnxruntime keeps in its blocked layout, or fuses.
_THROUGH = frozenset([
    "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Elu", "GlobalAveragePool", "GlobalMaxPool",
    "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "MaxPool", "Mul", "PRelu", "Relu", "Resize", "Sigmoid",
    "Softplus", "Sub", "Sum", "Swish", "Tanh", "Upsample",
])  # fmt: skip
_POOLS = frozenset(["MaxPool", "AveragePool", "Conv"])
_RESIZED = frozenset(["Resize", "Upsample"])


@dataclass(frozen=True)
class Candidate:
    """A convolution that can have a kernel.

    Attributes:
        density: of its weight.
        alone: whether it would gain by itself.
        large: whether its weight, dense, is larger than the second-level cache.
        transformed: whether Winograd's method can do it, and well.
    """

    density: float
    alone: bool
    large: bool = False
    transformed: bool = False


@dataclass(frozen=True)
class _Conv:
    place: int
    taps: int
    each: float  # products of a position
    made: float  # elements
    read: float
    size: tuple[int, ...]  # of the image that it makes; () where that is not known
    blocked: bool  # whether onnxruntime has what it reads and makes in its blocks: images of two axes
    candidate: Candidate | None
    area: float

    @property
    def moved(self) -> float:
        return self.made + self.read if self.blocked else 0.0

    def dense(self) -> float:
        return self.each * self.area

    def fused(self) -> float:
        """Whichever is cheaper: to skip weights, or to transform them."""
        assert self.candidate is not None
        one, speeds = self.candidate, _SPEED_LARGE if self.candidate.large else _SPEED
        cost = self.dense() / float(np.interp(one.density, _DENSITY, speeds))
        if one.transformed:
            tiles = math.prod(size + size % 2 for size in self.size) if self.size else self.area
            known = bool(self.size) or not one.large
            cost = min(cost, self.each * tiles / (_TRANSFORMED if known else _TRANSFORMED_LARGE))
        if self.taps > 1:
            return cost + _MADE * self.made + _NODE
        in_place = bool(self.size) and math.prod(self.size) % 16 == 0
        return cost + _MADE_ALONE * self.made + (_READ_IN_PLACE if in_place else _READ) * self.read + _NODE


def worth(
    nodes: Sequence[onnx.NodeProto], weights: Mapping[str, Sequence[int]], candidates: Mapping[int, Candidate],
    sizes: Mapping[str, tuple[int, ...]] | None = None,
) -> set[int]:  # fmt: skip
    """The candidates to fuse.

    Args:
        nodes: of a graph, in its order.
        weights: the shapes of weights, by name, packed or not.
        candidates: by the place of their node.
        sizes: of the model's inputs, behind batch and channels, where they are not open.

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
    for chain in _chains(nodes, weights, candidates, sizes or {}):
        chosen |= _cheapest(chain)
    return chosen


def _cheapest(chain: list[_Conv]) -> set[int]:
    dense = sum(conv.dense() for conv in chain)
    best, taken = _GAIN * dense, set[int]()
    if not any(conv.candidate is not None and conv.candidate.alone for conv in chain):
        return taken
    ways = [
        [c for c in chain if c.candidate is not None],
        [c for c in chain if c.candidate is not None and c.candidate.alone],
        [c for c in chain if c.candidate is not None and c.fused() < c.dense()],
    ]
    for inside in ways:
        places = {conv.place for conv in inside}
        outside = [conv for conv in chain if conv.place not in places]
        border = min(sum(conv.moved for conv in part) for part in (inside, outside))
        cost = sum(c.fused() for c in inside) + sum(c.dense() for c in outside) + _MOVED * border
        if inside and cost < best:
            best, taken = cost, places
    return taken


def _chains(
    nodes: Sequence[onnx.NodeProto], weights: Mapping[str, Sequence[int]], candidates: Mapping[int, Candidate],
    sizes: Mapping[str, tuple[int, ...]],
) -> list[list[_Conv]]:  # fmt: skip
    """Convolutions that are linked by what onnxruntime keeps in its layout."""
    link: dict[str, str] = {}  # a value, and another one of the same chain

    def root(name: str) -> str:
        while (up := link.setdefault(name, name)) != name:
            link[name] = name = link[up]
        return name

    known = dict(sizes)
    areas = {name: float(math.prod(size)) for name, size in sizes.items()}
    found: list[_Conv] = []
    for place, node in enumerate(nodes):
        shape = tuple(weights.get(node.input[1], ())) if _is_conv(node) else ()
        before = max((areas.get(name, _IMAGE) for name in node.input if name and name not in weights), default=_IMAGE)
        size = _size(node, shape[2:], next((known[name] for name in node.input if name in known), ()))
        after = float(math.prod(size)) if size else before / _shrunk(node)
        areas.update(dict.fromkeys(node.output, after))
        if size:
            known.update(dict.fromkeys(node.output, size))
        if len(shape) > 2:
            read, taps = shape[1] * value_of(node, "group", 1) * before, math.prod(shape[2:])
            one = candidates.get(place)
            found.append(
                _Conv(place, taps, float(math.prod(shape)), shape[0] * after, read, size, len(shape) == 4, one, after)
            )
        if len(shape) > 2 or (node.op_type in _THROUGH and node.domain in (*STANDARD, "com.microsoft")):
            for name in (*node.input[: 1 if shape else None], *node.output):
                if name and name not in weights:
                    link[root(name)] = root(node.output[0])
    chains: dict[str, list[_Conv]] = {}
    for conv in found:
        chains.setdefault(root(nodes[conv.place].output[0]), []).append(conv)
    return list(chains.values())


def _size(node: onnx.NodeProto, kernel: Sequence[int], size: tuple[int, ...]) -> tuple[int, ...]:
    """Of the images that a node makes of such ones; () where that is not known."""
    if node.op_type in _POOLS:
        kernel = value_of(node, "kernel_shape", kernel)
        written = value_of(node, "auto_pad", b"NOTSET") in (b"NOTSET", b"") and not value_of(node, "ceil_mode", 0)
        if not size or len(kernel) != len(size) or not written:
            return ()
        axes = len(size)
        steps, spread = (value_of(node, name, [1] * axes) for name in ("strides", "dilations"))
        pads = value_of(node, "pads", [0] * 2 * axes)
        if (len(steps), len(spread), len(pads)) != (axes, axes, 2 * axes):
            return ()
        made = tuple(
            (size[i] + pads[i] + pads[i + axes] - spread[i] * (kernel[i] - 1) - 1) // max(1, steps[i]) + 1
            for i in range(axes)
        )
        return made if min(made) > 0 else ()
    return size if node.op_type in _THROUGH - _RESIZED and not node.op_type.startswith("Global") else ()


def _is_conv(node: onnx.NodeProto) -> bool:
    return node.op_type == "Conv" and node.domain in STANDARD and len(node.input) > 1


def _shrunk(node: onnx.NodeProto) -> float:
    """How many times fewer positions come out of a node."""
    if node.op_type.startswith("Global"):
        return 1e4
    strides = value_of(node, "strides", [1]) if node.op_type in _POOLS else [1]
    return float(np.prod([max(1, int(step)) for step in strides]))
