"""A product of a product is one: (x·A + a)·B + b = x·(A·B) + (a·B + b).

Between the two may stand reshapes that leave the last axis, and a Concat along it, [x, y]·B = x·B₁ + y·B₂, so that
products of several tensors go into one. It is done where the one holds no more numbers than the several did: it is
then never slower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.shrink.axes.sizes import Entry
from emp_onnx.shrink.axes.trace import Trace
from emp_onnx.shrink.plainer.edit import Edit
from emp_onnx.shrink.plainer.rearranged import keeps_order
from emp_onnx.shrink.view import Op, View

__all__ = ["linear"]

Wide = NDArray[np.float64]


@dataclass
class _Part:
    """What a product comes to: x·matrix + shift, how x is made, and its shape; how many products went into it, and
    the numbers that they held."""

    matrix: Wide
    shift: Wide
    make: Callable[[], str]
    shape: tuple[Entry, ...]
    products: int = 0
    numbers: int = 0
    ops: frozenset[int] = frozenset()


def linear(view: View, traced: Trace) -> Any:
    """A copy of a prepared model in which products of products are one; None if there are none."""
    if traced.fixed:
        return None
    edit = Edit(view, traced)
    touched: set[int] = set()
    for op in reversed(view.ops):
        weight = _weight(op, edit)
        if weight is None or op.index in touched:
            continue
        part = _part(op.inputs[0], weight, op, edit)
        if not part.products or part.matrix.size > part.numbers + weight.size or part.ops & touched:
            continue
        if _write(op, part, edit):
            touched |= part.ops
    return edit.done()


def _weight(op: Op, edit: Edit) -> Wide | None:
    """The constant that an operation multiplies rows with, (channels, outputs)."""
    values = edit.view.constants.get(op.input(1))
    if values is None or values.ndim != 2 or values.dtype != np.float32:
        return None
    if op.type == "MatMul" and len(edit.sizes.of(op.inputs[0])) > 1:
        return values.astype(np.float64)
    plainly = op.attributes.get("alpha", 1.0) == 1.0 and op.attributes.get("beta", 1.0) == 1.0
    if op.type != "Gemm" or op.attributes.get("transA") or not plainly:
        return None
    return (values.T if op.attributes.get("transB") else values).astype(np.float64)


def _part(name: str, matrix: Wide, at: Op, edit: Edit) -> _Part:
    """x·matrix + shift for the x furthest back of which a tensor is made by products, sums and reshapes."""
    none = np.zeros(matrix.shape[1])
    leaf = _Part(matrix, none, lambda: name, edit.sizes.of(name))
    op = edit.view.makers.get(name)
    if op is None or edit.only_reader(name) is None or not leaf.shape or leaf.shape[-1] != len(matrix):
        return leaf
    own = _weight(op, edit)
    if own is not None:
        bias = _vector(op.input(2), own.shape[1], edit) if op.type == "Gemm" else np.zeros(own.shape[1])
        if bias is None:
            return leaf
        part = _part(op.inputs[0], own @ matrix, at, edit)
        return _more(part, bias @ matrix, op, products=1, numbers=own.size)
    if op.type == "Add":
        for one, other in (op.inputs, op.inputs[::-1]):
            values = _vector(one, len(matrix), edit) if one in edit.view.constants else None
            if values is not None and edit.sizes.of(other) == leaf.shape:
                return _more(_part(other, matrix, at, edit), values @ matrix, op)
        return leaf
    if op.type == "Concat" and int(op.attributes["axis"]) % len(leaf.shape) == len(leaf.shape) - 1:
        return _joined(op, matrix, leaf, at, edit)
    if keeps_order(op, edit) and edit.sizes.of(op.inputs[0])[-1:] == leaf.shape[-1:]:
        return _reshaped(op, matrix, leaf, at, edit)
    return leaf


def _vector(name: str, size: int, edit: Edit) -> Wide | None:
    """A constant that is added to the last axis, as one vector; zeros for an absent one."""
    if not name:
        return np.zeros(size)
    values = edit.view.constants.get(name)
    if values is None or values.size not in (1, size) or (values.ndim and values.shape[-1] != values.size):
        return None
    return np.broadcast_to(values.astype(np.float64).reshape(-1), (size,))


def _more(part: _Part, shift: Wide, op: Op, *, products: int = 0, numbers: int = 0) -> _Part:
    return _Part(
        part.matrix, part.shift + shift, part.make, part.shape, part.products + products, part.numbers + numbers,
        part.ops | {op.index},
    )  # fmt: skip


def _joined(op: Op, matrix: Wide, leaf: _Part, at: Op, edit: Edit) -> _Part:
    """Of a Concat: each with its rows."""
    parts, start = [], 0
    for name in op.inputs:
        size = edit.sizes.of(name)[-1]
        if not isinstance(size, int):
            return leaf
        parts.append(_part(name, matrix[start : start + size], at, edit))
        start += size
    if not any(p.products for p in parts) or any(not isinstance(p.shape[-1], int) for p in parts):
        return leaf
    kind = {"axis": len(leaf.shape) - 1}
    return _Part(
        np.concatenate([p.matrix for p in parts]),
        np.sum([p.shift for p in parts], 0),
        lambda: edit.insert(at, "Concat", [p.make() for p in parts], op.outputs[0], **kind),
        (*leaf.shape[:-1], sum(len(p.matrix) for p in parts)),
        sum(p.products for p in parts),
        sum(p.numbers for p in parts),
        frozenset({op.index}).union(*(p.ops for p in parts)),
    )


def _reshaped(op: Op, matrix: Wide, leaf: _Part, at: Op, edit: Edit) -> _Part:
    """Of a rearrangement: the same, of what is behind it."""
    part = _part(op.inputs[0], matrix, at, edit)
    shape = (*leaf.shape[:-1], len(part.matrix))
    to = edit.target(part.shape, shape)
    if not part.products or to is None:
        return leaf
    return _Part(
        part.matrix, part.shift,
        lambda: edit.insert(at, "Reshape", [part.make(), edit.constant(op.outputs[0], to)], op.outputs[0]),
        shape, part.products, part.numbers, part.ops | {op.index},
    )  # fmt: skip


def _write(op: Op, part: _Part, edit: Edit) -> bool:
    """The one product in place of the several, if what it adds can go somewhere."""
    node = edit.nodes[op.index]
    if part.shift.any():
        where = _bias(op, edit)
        if where is None:
            return False
        target, slot = where
        had = edit.view.constants[target.inputs[slot]]
        edit.nodes[target.index].input[slot] = edit.constant(
            target.inputs[slot], (had.astype(np.float64) + part.shift).astype(had.dtype)
        )
    matrix = part.matrix.T if op.attributes.get("transB") else part.matrix
    node.input[1] = edit.constant(op.inputs[1], matrix.astype(np.float32))
    node.input[0] = part.make()
    edit.changed = True
    return True


def _bias(op: Op, edit: Edit) -> tuple[Op, int] | None:
    """Where a constant is added to a product, for each of its outputs."""
    outs = edit.sizes.of(op.outputs[0])[-1]
    if op.type == "Gemm":
        at, slot = op, 2
    else:
        found = edit.view.readers.get(op.outputs[0], [])
        if len(found) != 1 or found[0][0].type != "Add" or op.outputs[0] in edit.fixed:
            return None
        at, slot = found[0][0], 1 - found[0][1]
    values = edit.view.constants.get(at.input(slot))
    fits = values is not None and values.ndim and values.shape[-1] == outs == values.size
    return (at, slot) if fits and len(edit.view.readers[at.inputs[slot]]) == 1 else None
