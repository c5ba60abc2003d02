"""Which stored numbers a fixed value is made from: those of a weight, or of a bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.maps import Bias
from emp_onnx.calibration.program import Program, Step
from emp_onnx.calibration.sessions import open_session
from emp_onnx.files.model_io import Model
from emp_onnx.weights.find import Weight

__all__ = ["Finder", "able"]

Array = NDArray[Any]
Index = NDArray[np.int64]
FLOATS = ("float32", "float64", "float16")
GRIDS = ("int8", "uint8")
MARK = 1 << 40  # added to indices, so that they are not taken for sizes


@dataclass
class Finder:
    """Looks up what a program's fixed values are made from; `whole` is the model's own program."""

    program: Program
    model: Model
    weights: Mapping[str, Weight]
    whole: Program
    cache: dict[str, tuple[str, Index] | None] = field(default_factory=dict)

    def weight(self, name: str) -> tuple[str, Index] | None:
        """The weight behind a fixed value, and the index map; None if it is none, or several."""
        if name not in self.cache:
            self.cache[name] = self._weight(name)
        return self.cache[name]

    def _weight(self, name: str) -> tuple[str, Index] | None:
        if not name or name not in self.program.fixed:
            return None
        keys = self.program.sources(name) & self.weights.keys()
        if len(keys) != 1:
            return None
        key = next(iter(keys))
        index = self.index(name, key)
        return None if index is None or (index < 0).any() else (key, index)

    def index(self, name: str, key: str) -> Index | None:
        """Where each element of a fixed value lies in the tensor `key`; −1 for what comes from elsewhere."""
        program = self.program
        if name in program.constants:
            tensor = program.constants[name]
            return np.arange(tensor.size).reshape(tensor.shape) if tensor.key == key else None
        steps = program.closure([name])
        moves = {
            "Identity",
            "Transpose",
            "Reshape",
            "Flatten",
            "Squeeze",
            "Unsqueeze",
            "Slice",
            "Split",
            "Concat",
            "Cast",
            "DequantizeLinear",
        }
        at: dict[str, Array] = {}
        for step in steps:
            for value in step.inputs:
                if value in program.constants:
                    at[value] = self._marked(value, key)
        for step in steps:
            touched = any(
                at.get(v) is not None and at[v].dtype == np.int64 and (at[v] >= MARK).any() for v in step.inputs if v
            )
            if touched and (step.node.op not in moves or step.node.domain not in ("", "com.microsoft")):
                return None
            if touched and step.node.op == "DequantizeLinear":
                first = at.get(step.inputs[0])
                if first is None or first.dtype != np.int64 or not (first >= MARK).all():
                    return None
                at[step.outputs[0]] = first
                continue
            if touched and step.node.op == "Cast":
                at[step.outputs[0]] = at[step.inputs[0]]
                continue
            reads = {v: at[v] for v in step.inputs if v}
            if touched:
                reads = {
                    v: np.full(a.shape, MARK - 1) if i and a.dtype.kind == "f" else a
                    for i, (v, a) in enumerate(reads.items())
                } if step.node.op != "Concat" else {
                    v: a if a.dtype == np.int64 else np.full(a.shape, MARK - 1) for v, a in reads.items()
                }  # fmt: skip
            gives = [v for v in step.outputs if v]
            bare = Program([step], {}, (), (), program.functions, program.opsets, program.ir_version)
            out = open_session(bare, [step], reads, gives, None, 1).run(gives, reads)
            at.update(zip(gives, out, strict=True))
        found = at.get(name)
        if found is None or found.dtype != np.int64:
            return None
        return np.where(found >= MARK, found - MARK, -1)

    def _marked(self, value: str, key: str) -> Array:
        tensor = self.program.constants[value]
        if tensor.key == key:
            return MARK + np.arange(tensor.size, dtype=np.int64).reshape(tensor.shape)
        return self.model.values(tensor.key)

    def alone(self, name: str) -> Bias | None:
        """A constant float vector, whatever it passes through: a bias that may change where no other step reads it."""
        return next((hit for hit in self.parts(name) if (hit.index >= 0).all()), None) or self.dequantised(name)

    def dequantised(self, name: str) -> Bias | None:
        """The same behind DequantizeLinear, where whole numbers stand for it."""
        if not name or name not in self.program.fixed:
            return None
        for key in sorted(self.program.sources(name) - self.weights.keys()):
            if self.model.tensors[key].dtype == "int32" and (readers := readers_of(self.whole, key)):
                index = self.index(name, key)
                if index is not None and (index >= 0).all():
                    unit = self._of(name, key, 1) - self._of(name, key, 0)
                    return Bias(key, index, readers=readers, unit=unit.astype(np.float64)) if unit.all() else None
        return None

    def _of(self, name: str, key: str, number: int) -> Array:
        """A fixed value where all numbers of a tensor are this one."""

        def read(other: str) -> Array:
            values = self.model.values(other)
            return np.full_like(values, number) if other == key else values

        return np.asarray(open_session(self.program, [], {}, [name], read, 1).run([name], {})[0])

    def parts(self, name: str) -> list[Bias]:
        """The same where it is put together from several: each with −1 for what comes from the others."""
        if not name or name not in self.program.fixed:
            return []
        found = []
        for key in sorted(self.program.sources(name) - self.weights.keys()):
            if self.model.tensors[key].dtype in FLOATS and (readers := readers_of(self.whole, key)):
                index = self.index(name, key)
                if index is not None:
                    found.append(Bias(key, index, readers=readers))
        return found


def readers_of(program: Program, key: str) -> int:
    """At how many steps all that is made from a tensor ends, in bodies too; 0 if the model gives it as an output."""
    ends: dict[int, Step] = {}
    todo = [value for value, tensor in program.constants.items() if tensor.key == key]
    seen = set(todo)
    while todo:
        value = todo.pop()
        if value in program.outputs:
            return 0
        for step, _ in program.readers.get(value, ()):
            made = {out for out in step.outputs if out}
            if not made <= program.fixed:
                ends[id(step)] = step
            todo += made & program.fixed - seen
            seen |= made
    inside = [1 if step.body is None else readers_of(step.body.program, key) for step in ends.values()]
    return sum(inside) if all(inside) else 0


def able(weight: Weight, /) -> bool:
    """Whether a weight's numbers are floats, or are on a grid whose scale is known."""
    zero = weight.zero
    whole = weight.dtype in GRIDS and zero.quantised and zero.scale is not None and zero.table is None
    return weight.dtype in FLOATS or whole
