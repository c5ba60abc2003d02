"""From what a change of a step's outputs does to what a change of its inputs does: adjoints, by operation.

Most operations need no rule of their own. What works on every number by itself has its slopes measured, by running it
a little above and a little below; what only moves numbers is run on their places. Both are then right for whatever
attributes and opset a step has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.along import SAME
from emp_onnx.calibration.program import Step

__all__ = ["ADJOINTS", "Adjoint", "Call", "UnableError", "summed"]

Array = NDArray[Any]
Pulls = Iterator[tuple[str, Array]]
STEP, LEAST = 2.0**-9, 2.0**-14  # how far from a number its slope is measured, by its size and that of its neighbours
PLACES = 1 << 24  # numbers that float32 can tell apart by their places
MOVES = (
    "Identity", "Dropout", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Pad",
    "Expand", "Tile", "Gather", "GatherElements", "GatherND", "DepthToSpace", "SpaceToDepth",
)  # fmt: skip
ALIKE = SAME - {"Identity", "Cast", "CastLike", "Dropout", "QuantizeLinear", "DequantizeLinear", "Pad"}


class UnableError(Exception):
    """A step whose adjoint is not known for these inputs after all."""


@dataclass
class Call:
    """A step that was run, and what changes of its outputs do.

    Attributes:
        step: the step.
        inputs, outputs: their values, None where there are none.
        pulls: of each output, the gradient of what the answers say with respect to it; None where it does nothing.
        free: names of the inputs whose gradients are asked for.
        run: the step on these inputs, with some of them changed, by name.
        memo: what was found of these inputs before, by name, for as long as they are the same.
        other: an operation of opset 13 on arrays, with attributes.
        version: of the operator set.
    """

    step: Step
    inputs: tuple[Array | None, ...]
    outputs: tuple[Array | None, ...]
    pulls: tuple[Array | None, ...]
    free: frozenset[str]
    run: Callable[[Mapping[str, Array]], list[Array]]
    memo: dict[str, Array]
    other: Callable[..., list[Array]]
    version: int

    def asked(self, slot: int) -> bool:
        """Whether the gradient of an input is asked for."""
        return slot < len(self.step.inputs) and self.step.inputs[slot] in self.free

    def input(self, slot: int) -> Array:
        """An input that has to be there.

        Raises:
            UnableError: it is not.
        """
        value = self.inputs[slot] if slot < len(self.inputs) else None
        if value is None:
            raise UnableError
        return value

    @property
    def pull(self) -> Array:
        """That of the first output, when no other has one.

        Raises:
            UnableError: another has one, or this has none.
        """
        first, *others = self.pulls
        if first is None or any(other is not None for other in others):
            raise UnableError
        return first

    def real(self, name: str, usual: float) -> float:
        """An attribute that is a number."""
        found = self.step.node.attributes.get(name, usual)
        return float(found) if isinstance(found, int | float) else usual

    def axis(self, usual: int, rank: int) -> int:
        """The attribute `axis`."""
        axis = self.step.node.attributes.get("axis")
        return (axis if isinstance(axis, int) else usual) % rank


@dataclass(frozen=True)
class Adjoint:
    """How gradients pass a step, and through which of its inputs (all of them, if None)."""

    pulls: Callable[[Call], Pulls]
    slots: frozenset[int] | None = None
    product: bool = False

    def through(self, slot: int) -> bool:
        """Whether it knows the gradient of an input."""
        return self.slots is None or slot in self.slots


def summed(pull: Array, shape: Sequence[int]) -> Array:
    """A gradient with respect to something of this shape that was broadcast.

    >>> summed(np.ones((2, 3, 4)), (3, 1)).ravel().tolist()
    [8.0, 8.0, 8.0]
    """
    more = pull.ndim - len(shape)
    axes = (*range(more), *(more + i for i, size in enumerate(shape) if size == 1 < pull.shape[more + i]))
    found: Array = pull.sum(axes, dtype=np.float64).astype(pull.dtype) if axes else pull
    return found.reshape(shape)


def _slopes(call: Call) -> Pulls:
    for name in call.free:
        x = next(x for n, x in zip(call.step.inputs, call.inputs, strict=True) if n == name and x is not None)
        if name not in call.memo:
            call.memo[name] = _slope(call, name, x)
        yield name, summed(call.memo[name] * call.pull, x.shape)


def _slope(call: Call, name: str, x: Array) -> Array:
    size = np.abs(np.where(np.isfinite(x), x, 0))
    mean = math.sqrt(float(np.mean(np.square(size, dtype=np.float64))) + 1e-30)
    away = (STEP * size + LEAST * mean).astype(x.dtype)
    above, below = x + away, x - away
    with np.errstate(all="ignore"):
        found: Array = (call.run({name: above})[0] - call.run({name: below})[0]) / (above - below)
    found[~np.isfinite(found)] = 0  # what is masked with −∞ does nothing
    return found


def _added(call: Call) -> Pulls:
    for slot, name in enumerate(call.step.inputs):
        if call.asked(slot):
            less = call.step.node.op == "Sub" and slot == 1
            yield name, summed(-call.pull if less else call.pull, call.input(slot).shape)


def _moved(call: Call) -> Pulls:
    """A step that moves numbers is run on their places, counted from 1; 0 is what comes from elsewhere."""
    data = range(len(call.inputs)) if call.step.node.op == "Concat" else (0,)
    marks, starts, count = dict[str, Array](), dict[str, int](), 1
    for slot, (name, x) in enumerate(zip(call.step.inputs, call.inputs, strict=True)):
        if x is None or name in marks:
            continue
        if slot in data and name in call.free:
            starts[name] = count
            marks[name] = np.arange(count, count + x.size, dtype=x.dtype).reshape(x.shape)
            count += x.size
        elif x.dtype.kind == "f" and (slot in data or call.step.node.op == "Pad"):
            marks[name] = np.zeros_like(x)
    if count > PLACES:
        raise UnableError
    found = np.zeros(count)
    pulls = (pull for name, pull in zip(call.step.outputs, call.pulls, strict=True) if name)
    for places, pull in zip(call.run(marks), pulls, strict=True):
        if pull is not None:
            found += np.bincount(places.reshape(-1).astype(np.int64), pull.reshape(-1), count)
    for name, start in starts.items():
        shape = marks[name].shape
        yield name, found[start : start + math.prod(shape)].reshape(shape).astype(np.float32)


def _spread(call: Call) -> Pulls:
    """Means and sums over axes."""
    x, op = call.input(0), call.step.node.op
    if op == "GlobalAveragePool":
        axes = tuple(range(2, x.ndim))
    else:
        given = call.step.node.numbers("axes")
        if len(call.inputs) > 1 and call.inputs[1] is not None:
            given = tuple(int(axis) for axis in call.inputs[1].reshape(-1))
        whole = not given and call.step.node.number("noop_with_empty_axes", 0) == 0
        axes = tuple(range(x.ndim)) if whole else tuple(axis % x.ndim for axis in given or ())
    kept = tuple(1 if i in axes else size for i, size in enumerate(x.shape))
    share = 1 if op == "ReduceSum" else math.prod(x.shape[i] for i in axes)
    yield call.step.inputs[0], np.broadcast_to(call.pull.reshape(kept) / np.float32(share), x.shape)


def _matmul(call: Call) -> Pulls:
    a, b, pull = call.input(0), call.input(1), call.pull
    if a.ndim < 2 or b.ndim < 2:
        raise UnableError
    if call.asked(0):
        yield call.step.inputs[0], summed(pull @ b.swapaxes(-1, -2), a.shape)
    if call.asked(1):
        yield call.step.inputs[1], summed(a.swapaxes(-1, -2) @ pull, b.shape)


def _gemm(call: Call) -> Pulls:
    node, pull = call.step.node, call.pull
    alpha, beta = call.real("alpha", 1.0), call.real("beta", 1.0)
    a, b = (x.T if node.number(word, 0) else x for x, word in ((call.input(0), "transA"), (call.input(1), "transB")))
    for slot, found, word in ((0, alpha * (pull @ b.T), "transA"), (1, alpha * (a.T @ pull), "transB")):
        if call.asked(slot):
            yield call.step.inputs[slot], found.T if node.number(word, 0) else found
    if call.asked(2):
        yield call.step.inputs[2], summed(beta * pull, call.input(2).shape)


def _softmax(call: Call) -> Pulls:
    y = call.outputs[0]
    if y is None:
        raise UnableError
    pull, shape = call.pull, y.shape
    if call.version >= 13:
        axis: int = call.axis(-1, y.ndim)
    else:  # over all that follows the axis
        at, axis = call.axis(1, y.ndim), -1
        y, pull = (x.reshape(math.prod(shape[:at]), -1) for x in (y, pull))
    if call.step.node.op == "LogSoftmax":
        found = pull - np.exp(y) * pull.sum(axis, keepdims=True)
    else:
        found = y * (pull - (y * pull).sum(axis, keepdims=True))
    yield call.step.inputs[0], found.reshape(shape)


def _layer_norm(call: Call) -> Pulls:
    x, scale = call.input(0), call.input(1)
    axes = tuple(range(call.axis(-1, x.ndim), x.ndim))
    deviation = np.sqrt(x.var(axes, keepdims=True) + call.real("epsilon", 1e-5))
    normal, pull = (x - x.mean(axes, keepdims=True)) / deviation, call.pull * scale
    along = normal * (normal * pull).mean(axes, keepdims=True)
    yield call.step.inputs[0], (pull - pull.mean(axes, keepdims=True) - along) / deviation


FIRST = frozenset({0})
ADJOINTS: dict[str, Adjoint] = {
    **{op: Adjoint(_slopes) for op in (*ALIKE, "BatchNormalization")},
    **{op: Adjoint(_added) for op in ("Add", "Sub", "Sum")},
    **{op: Adjoint(_moved, None if op == "Concat" else FIRST) for op in MOVES},
    **{op: Adjoint(_spread, FIRST) for op in ("ReduceMean", "ReduceSum", "GlobalAveragePool")},
    "BatchNormalization": Adjoint(_slopes, FIRST),
    "MatMul": Adjoint(_matmul, product=True), "Gemm": Adjoint(_gemm, product=True),
    "Softmax": Adjoint(_softmax), "LogSoftmax": Adjoint(_softmax), "LayerNormalization": Adjoint(_layer_norm, FIRST),
}  # fmt: skip
