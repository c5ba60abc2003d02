"""From a use back to the weight as stored: its shape there, its output units in the stored axes, and its zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.errors import ModelError
from emp_onnx.files.coded import CodeLayout
from emp_onnx.files.graph import Node, Tensor
from emp_onnx.files.model_io import Model
from emp_onnx.weights.blocks import Reason, blocks_of
from emp_onnx.weights.layout import Layout, Slot, separate, transposed, units
from emp_onnx.weights.trace import Frame, Step, Use, Value
from emp_onnx.weights.zero import FLOAT, Zero

__all__ = ["Understood", "understand"]

MOST = 1 << 22  # elements of a shape, scale or zero point that is read
MOST_BLOCKS = 1 << 28  # and of those of blocks, of which there are many
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Understood:
    """What one use says of a weight: its units as stored, its zero, or the code and reason why it is no weight."""

    layout: Layout | None = None
    zero: Zero = FLOAT
    against: tuple[str, str] | None = None
    codes: CodeLayout | None = None


def understand(model: Model, tensor: Tensor, use: Use, slot: Slot) -> Understood:
    """Follow a weight from where it is stored to its use, and its units and zero back."""
    if use.last is None and use.node is not None and not slot.quantised and not slot.packed:  # there is no way
        found = None if use.node.open else units(slot, use.node.op, tensor.shape, use.node.attributes)
        return Understood(against=("rank", found)) if isinstance(found, str) else Understood(found)
    try:
        return _Way(model, tensor).along(use, slot)
    except Reason as error:
        return Understood(against=(error.args[0], error.args[1]))


class _Way:
    def __init__(self, model: Model, tensor: Tensor) -> None:
        self.model, self.tensor = model, tensor
        self.shape: Shape | None = tensor.shape
        self.back: list[tuple[str, Shape]] | None = []  # None: a step on the way is not known
        self.zero: Zero | None = None
        self.fake: Value | None = None  # zero point of a QuantizeLinear on the way
        self.faked = False
        self.cut = False  # a Slice, Split or Concat on the way: sizes are no longer right, axes are

    def along(self, use: Use, slot: Slot) -> Understood:
        assert use.node is not None
        if slot.packed:
            return self._packed(use)
        for step in use.steps:
            self._step(step)
        layout = self._layout(use.node, slot)
        if slot.quantised:
            scale = self._input(use.frame, use.node, slot.scale)
            point = self._input(use.frame, use.node, slot.point)
            along = slot.along
            if along == "units":
                along = "first" if layout is not None and layout.axes == (0,) else "last"
            self._quantised(point, scale, along)
        if self.faked:
            raise Reason("quantised", "it is quantised on its way, and not dequantised again")
        return Understood(self._home(layout), self.zero or FLOAT)

    def _packed(self, use: Use) -> Understood:
        """A use by an operation that packs its weights."""
        assert use.node is not None
        node, frame = use.node, use.frame
        if any(step.node.op != "Identity" for step in use.steps) or self.tensor.storage == "sparse":
            raise Reason("packed", "its codes are moved on their way, so their places are not known")
        found = blocks_of(
            self.tensor, node, use.slot, lambda slot: self._read(self._input(frame, node, slot), MOST_BLOCKS)
        )
        return Understood(found.layout, found.zero, codes=found.codes)

    def _layout(self, node: Node, slot: Slot) -> Layout | None:
        shape = self.shape
        if shape is None or node.open:
            return None
        found = units(slot, node.op, shape, node.attributes)
        if isinstance(found, str):
            if self.cut and len(shape) > 1:
                return None
            raise Reason("rank", found)
        return found

    def _home(self, layout: Layout | None) -> Layout | None:
        """The layout in the stored axes."""
        if self.back is None:
            return None
        shapes = [self.tensor.shape]
        for kind, numbers in self.back:
            now = shapes[-1]
            shapes.append(now if kind == "cut" else tuple(now[i] for i in numbers) if kind == "transpose" else numbers)
        # each entry of `back` is the step itself, and here its inverse is wanted, last first
        for (kind, numbers), before in zip(reversed(self.back), reversed(shapes[:-1]), strict=True):
            if layout is not None and kind == "transpose":
                layout = transposed(layout, before, numbers)
            if layout is not None and kind == "cut" and not all(separate(layout, before, axis) for axis in numbers):
                return None
        return layout

    def _step(self, step: Step) -> None:
        node, shape = step.node, self.shape
        if node.op == "Transpose":
            perm = node.numbers("perm")
            if node.attributes.get("perm", 0) is None or shape is None:
                self._lost()
                return
            perm = tuple(reversed(range(len(shape)))) if perm is None else perm
            if sorted(perm) != list(range(len(shape))):
                raise Reason("rank", f"{node.label} does not fit its {len(shape)} dimensions")
            self._record("transpose", perm, tuple(shape[i] for i in perm))
        elif node.op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
            after = None if shape is None else self._reshaped(step, shape)
            if after is None:
                self._lost()
                return
            if shape is not None and math.prod(after) != math.prod(shape):
                if self.cut:
                    self._lost()
                    return
                raise Reason("rank", f"{node.label} does not fit its shape {shape}")
            self._record("reshape", after, after)
        elif node.op in ("Slice", "Split", "Concat"):
            self._moved(step)
        elif node.op == "DequantizeLinear":
            self._dequantised(step)
        elif node.op == "QuantizeLinear":
            self.faked, self.fake = True, self._input(step.frame, node, 2)

    def _moved(self, step: Step) -> None:
        """Slice, Split and Concat: the axes along which elements moved."""
        node, shape = step.node, self.shape
        self.cut = True
        axes: Shape | None = (node.number("axis"),)
        if node.op == "Slice":
            axes = node.numbers("axes")
            if axes is None and len(node.inputs) > 3:
                found = self._read(self._input(step.frame, node, 3))
                axes = None if found is None else tuple(int(i) for i in found.reshape(-1))
        rank = len(shape) if shape is not None else 0
        if node.open or axes is None or shape is None or not all(-rank <= axis < rank for axis in axes):
            self._lost()
            return
        self._record("cut", tuple(axis % rank for axis in axes), shape)

    def _record(self, kind: str, numbers: Shape, after: Shape) -> None:
        self.shape = after
        if self.back is not None:
            self.back.append((kind, numbers))

    def _lost(self) -> None:
        self.shape = self.back = None

    def _reshaped(self, step: Step, shape: Shape) -> Shape | None:
        node = step.node
        if node.open:
            return None
        if node.op == "Flatten":
            axis = node.number("axis", 1)
            axis += len(shape) if axis < 0 else 0
            return math.prod(shape[:axis]), math.prod(shape[axis:])
        given = node.numbers("shape" if node.op == "Reshape" else "axes")
        if given is None and len(node.inputs) > 1 and node.inputs[1]:
            found = self._read(self._input(step.frame, node, 1))
            if found is None or found.dtype.kind not in "iu" or found.size > 64:
                return None
            given = tuple(int(i) for i in found.reshape(-1))
        if node.op == "Reshape":
            return _target(shape, given, node.number("allowzero"))
        rank = len(shape)
        if node.op == "Squeeze":
            if given is None:
                return tuple(size for size in shape if size != 1)
            gone = {axis % rank for axis in given} if rank else set()
            return tuple(size for axis, size in enumerate(shape) if axis not in gone)
        if given is None:
            return None
        rank += len(given)
        new = {axis % rank for axis in given} if rank else set()
        sizes = iter(shape)
        return tuple(1 if axis in new else next(sizes, 1) for axis in range(rank))

    def _dequantised(self, step: Step) -> None:
        node = step.node
        if node.open:
            raise Reason("quantised", f"the axis of {node.label} is given by the caller of a function")
        scale, point = self._input(step.frame, node, 1), self._input(step.frame, node, 2)
        self._quantised(point, scale, f"{node.number('axis', 1)}", node.number("block_size"))

    def _quantised(self, point: Value | None, scale: Value | None, along: str, block: int = 0) -> None:
        if self.faked:
            if not self._equal(point, self.fake):
                raise Reason("quantised", "it is quantised on its way, and dequantised with another zero point")
            self.faked = False
            return
        if self.zero is not None:
            return
        points = np.zeros((), np.int64)
        if point is not None:
            found = self._read(point)
            if found is None:
                raise Reason("point", "its zero point is computed, so which value means zero is not known")
            points = found.astype(np.float64).astype(np.int64)
        scales = None if scale is None else self._read(scale)
        if scales is not None and (scales.dtype.kind not in "fV" or not np.isfinite(scales.astype(np.float64)).all()):
            raise Reason("point", "its scale holds values that are not finite numbers")
        if scales is not None:
            scales = scales.astype(np.float64)
            if not scales.all():
                raise Reason("point", "its scale holds zeros")
        laid = [None if a is None else self._laid(a, along) for a in (points, scales)]
        assert laid[0] is not None
        shape, back = (), ()  # type: tuple[Shape, tuple[tuple[str, Shape], ...]]
        if any(a is not None and a.size > 1 for a in laid):
            if self.shape is None or self.back is None or self.cut:
                raise Reason("point", "it is cut or reshaped on its way, so its zero points cannot be placed")
            shape, back = self.shape, self._inverse()
        groups, axis = self._blocks(laid, along, block)
        self.zero = Zero(laid[0], laid[1], shape, back, True, groups, axis)

    def _blocks(self, laid: Sequence[NDArray[Any] | None], along: str, block: int) -> tuple[NDArray[Any] | None, int]:
        """The block of every index along the axis that has blocks, and that axis; None where none has."""
        for array in laid:
            if array is None or self.shape is None or array.ndim != len(self.shape):
                continue
            for axis, (have, want) in enumerate(zip(array.shape, self.shape, strict=True)):
                if have not in (1, want):
                    step = block or -(-want // have)
                    if -(-want // step) != have:
                        raise Reason("point", f"blocks of {step} do not divide its {want} elements into {have}")
                    return np.arange(want) // step, axis
        return None, -1

    def _inverse(self) -> tuple[tuple[str, Shape], ...]:
        """The steps so far, in order, each with what undoes it."""
        out, shape = [], self.tensor.shape
        for kind, numbers in self.back or ():
            out.append((kind, numbers) if kind == "transpose" else (kind, shape))
            shape = tuple(shape[i] for i in numbers) if kind == "transpose" else numbers
        return tuple(out)

    def _laid(self, array: NDArray[Any], along: str) -> NDArray[Any]:
        """A scale or zero point in a form that broadcasts to the shape here."""
        if array.size == 1:
            return array.reshape(())
        shape = self.shape
        if shape is None:
            return array
        rank = len(shape)
        if array.ndim == 1:
            axis = {"first": 0, "last": rank - 1, "rows": rank - 2, "directions": 0}.get(along)
            axis = int(along) % rank if axis is None and rank else axis
            if axis is not None and 0 <= axis < rank and shape[axis] == array.size:
                return array.reshape([-1 if i == axis else 1 for i in range(rank)])
        elif along == "directions" and array.ndim == 2 and rank == 3 and array.shape == (shape[0], shape[2]):
            return array[:, None, :]
        elif array.ndim == rank and array.size and all(
            have in (1, want) or (along.lstrip("-").isdigit() and have < want)
            for have, want in zip(array.shape, shape, strict=True)
        ):  # fmt: skip
            return array
        raise Reason("point", f"its scale or zero point of shape {array.shape} does not fit its shape {shape}")

    def _input(self, frame: Frame, node: Node, slot: int | None) -> Value | None:
        if slot is None or slot >= len(node.inputs) or not node.inputs[slot]:
            return None
        return frame.value(node.inputs[slot]) or Value(frame, node.inputs[slot])

    def _read(self, value: Value | None, most: int = MOST) -> NDArray[Any] | None:
        """The contents of a small constant, also behind Identity; None if it is none."""
        for _ in range(16):
            if value is None:
                return None
            tensor, maker = value.tensor, value.maker
            if tensor is not None:
                if tensor.size > most or tensor.storage in ("sparse", "segment"):
                    return None
                try:
                    return self.model.values(tensor.key)
                except ModelError as error:
                    raise Reason("point", str(error)) from error
            if maker is None or maker.domain:
                return None
            if maker.op == "Constant":
                for name in ("value_ints", "value_int"):
                    found = maker.attributes.get(name)
                    if found is not None:
                        return np.array(found, np.int64)
                number = maker.attributes.get("value_float")
                return None if number is None else np.array(number, np.float32)
            if maker.op != "Identity" or not maker.inputs:
                return None
            value = value.frame.value(maker.inputs[0])
        return None

    def _equal(self, one: Value | None, other: Value | None) -> bool:
        if one == other:
            return True
        a, b = (np.zeros((), np.int64) if v is None else self._read(v) for v in (one, other))
        return a is not None and b is not None and bool(np.array_equal(a.astype(np.float64), b.astype(np.float64)))


def _target(shape: Shape, given: Shape | None, allowzero: int) -> Shape | None:
    """The shape that Reshape makes."""
    if given is None:
        return None
    out = [shape[i] if size == 0 and not allowzero and i < len(shape) else size for i, size in enumerate(given)]
    if out.count(-1) == 1:
        rest = -math.prod(out)
        if rest <= 0 or math.prod(shape) % rest:
            return None
        out[out.index(-1)] = math.prod(shape) // rest
    return tuple(out) if all(size >= 0 for size in out) else None
