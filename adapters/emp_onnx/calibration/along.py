"""Along which axis of an answer the scores of classes lie, and whether it holds any.

Scores of classes mostly lie along the last axis, and an array alone does not say more. But a convolution puts its
channels first, so a network that names the class of every pixel says it along the second axis; and a network that
paints says no class at all. So the way is followed back from an answer to the operation that made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.program import Program

__all__ = ["Channels", "Made", "channels", "class_axis", "laid", "makers", "scores_along"]

Array = NDArray[Any]
Channels = frozenset[tuple[int, int, int]]  # of inputs: how many axes one has, the number of an axis, how long it is
CHANNELS = frozenset({
    "Conv", "ConvTranspose", "QLinearConv", "ConvInteger", "BatchNormalization", "InstanceNormalization",
    "GroupNormalization", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "MaxUnpool",
    "MaxRoiPool", "LRN", "Resize", "Upsample", "DepthToSpace", "SpaceToDepth",
})  # fmt: skip
PRODUCTS = frozenset({
    "MatMul", "Gemm", "QLinearMatMul", "QGemm", "MatMulInteger", "LayerNormalization",
})  # fmt: skip
SAME = frozenset({
    "Identity", "Cast", "CastLike", "Dropout", "QuantizeLinear", "DequantizeLinear", "Add", "Sub", "Mul", "Div",
    "Neg", "Clip", "Pow", "Sqrt", "Exp", "Log", "Abs", "Max", "Min", "Sum", "Mean", "Where", "Relu", "LeakyRelu",
    "PRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "HardSwish", "HardSigmoid", "ThresholdedRelu", "Sigmoid",
    "Softplus", "Softsign", "Tanh", "Erf", "Pad",
})  # fmt: skip
SHAPED = frozenset({
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Concat",
})  # fmt: skip
SURE = 0.5  # how sure, beyond chance and on average, what is along an axis must be to be scores of classes


class Made(NamedTuple):
    """What made a value: the operation, its first input that is no constant, and the attributes `axis` and `perm`."""

    op: str
    source: str
    axis: int | None = None
    perm: Sequence[int] | None = None


Makers = Callable[[str], Made | None]


def makers(program: Program) -> Makers:
    """What made a value of a program, None where nothing did."""

    def made(name: str) -> Made | None:
        for step in program.makers.get(name, ()):
            source = next((n for n in step.inputs if n and n not in program.fixed), "")
            axis, perm = (step.node.attributes.get(word) for word in ("axis", "perm"))
            return Made(
                step.node.op, source, axis if isinstance(axis, int) else None, perm if isinstance(perm, tuple) else None
            )
        return None

    return made


def class_axis(made: Makers, name: str, rank: int, version: int) -> int | None:
    """The axis of a value of so many axes that scores of classes would lie along, None where nothing says so.

    Channels of convolutions, the columns of a product, what a Softmax goes along (in this version of the operator set);
    through what works on every number by itself, and through a Transpose.
    """
    seen = set[str]()
    turns: list[Sequence[int]] = []
    while name not in seen:
        seen.add(name)
        maker = made(name)
        if maker is None:
            return None
        if maker.op == "Transpose":
            perm = maker.perm or range(rank)[::-1]
            if len(perm) != rank:  # before a change of shape
                return _turned(_reshaped(class_axis(made, name, len(perm), version), len(perm), rank), turns)
            turns.append(perm)
        elif maker.op not in SAME:
            return _turned(_own(made, maker, rank, version), turns)
        name = maker.source
    return None


def _own(made: Makers, maker: Made, rank: int, version: int) -> int | None:
    """The axis that an operation itself gives to classes."""
    if maker.op in CHANNELS:
        return 1
    if maker.op in PRODUCTS:
        return rank - 1
    if maker.op in ("Softmax", "LogSoftmax"):
        usual = -1 if version >= 13 else 1
        return (usual if maker.axis is None else maker.axis) % rank
    if maker.op in SHAPED:  # mostly channels stay second, and columns last
        found = class_axis(made, maker.source, rank, version)
        return None if maker.op == "Concat" and found == (maker.axis or 0) % rank else found
    return None


def _reshaped(axis: int | None, before: int, rank: int) -> int | None:
    """Where an axis of so many comes to lie among `rank`: mostly channels stay second, and columns last."""
    if axis == before - 1:
        return rank - 1
    return axis if axis == 1 < rank else None


def _turned(axis: int | None, turns: Sequence[Sequence[int]]) -> int | None:
    for perm in reversed(turns):
        if axis not in perm:
            return None
        axis = perm.index(axis)
    return axis


def channels(feed: Mapping[str, Any]) -> Channels:
    """What a feed's inputs look like, axis by axis."""
    shapes = [np.shape(value) for value in feed.values()]
    return frozenset((len(shape), i, size) for shape in shapes for i, size in enumerate(shape))


def scores_along(value: Array, axis: int | None, inputs: Channels = frozenset()) -> int | None:
    """The axis that scores of classes do lie along, or None where these are numbers that are no scores.

    The only axis longer than 1, besides the first, and the columns of a product in three axes are taken to be scores.
    Along any other the sum must be 1, or the softmax sure of itself, and of an axis that has but one place every number
    a probability that is mostly sure; there must not be as many channels as an input has: else it is a picture.

    Args:
        value: an answer of the network as it was given.
        axis: from `class_axis`.
        inputs: from `channels`.

    >>> sure = np.stack([np.full((8, 8), 9.0), np.zeros((8, 8))])[None]
    >>> scores_along(sure, 1), scores_along(sure / 99, 1), scores_along(sure, 1, frozenset({(4, 1, 2)}))
    (1, None, None)
    >>> scores_along(np.zeros((3, 10)), None), scores_along(np.zeros((1, 10, 1, 1)), 1)
    (1, 1)
    """
    rank = value.ndim
    longer = [i for i in range(1, rank) if value.shape[i] != 1]
    if rank < 2 or not longer:
        return rank - 1
    axis = axis or None  # samples lie along the first one
    if (len(longer) == 1 and axis in (None, longer[0])) or (rank == 3 and axis == rank - 1):
        return longer[0] if axis is None else axis
    axis = rank - 1 if axis is None else axis
    if value.dtype.kind != "f" or not value.size or (rank, axis, value.shape[axis]) in inputs:
        return None
    return axis if _sure(np.moveaxis(value, axis, -1).astype(np.float64)) else None


def _sure(rows: NDArray[np.float64]) -> bool:
    places = rows.shape[-1]
    if places == 1:
        return bool(((rows >= 0) & (rows <= 1)).all()) and float(np.abs(2 * rows - 1).mean()) >= SURE
    if bool((rows >= 0).all()) and np.allclose(rows.sum(-1), 1, atol=1e-3):
        return True
    with np.errstate(all="ignore"):
        best = 1 / np.exp(rows - rows.max(-1, keepdims=True)).sum(-1)
    return bool((float(best.mean()) - 1 / places) / (1 - 1 / places) >= SURE)


def laid(value: Array, axis: int | None) -> Array:
    """A value with scores of classes along the last axis, one column where there is but one, flat where there are none.

    >>> [laid(np.zeros(shape), axis).shape for shape, axis in (((1, 2, 8, 8), 1), ((1, 1, 8, 8), 1), ((1, 2, 8), None))]
    [(1, 8, 8, 2), (64, 1), (16,)]
    """
    if axis is None or value.ndim < 2:
        return value if axis is not None else value.reshape(-1)
    if value.shape[axis] == 1 and value.ndim > 2:
        return value.reshape(-1, 1)
    return value if axis == value.ndim - 1 else np.ascontiguousarray(np.moveaxis(value, axis, -1))
