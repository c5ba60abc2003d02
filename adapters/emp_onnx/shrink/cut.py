"""Units taken out of a model: constants sliced, and what says a size in so many words set anew.

Nothing else changes. What the operations compute for the units that stay is what they computed before, as long as the
units that
go were zero: that is for the proof to show.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.errors import ModelError
from emp_onnx.shrink.axes.links import Axis
from emp_onnx.shrink.axes.trace import Trace
from emp_onnx.shrink.tensors import add_constant, free
from emp_onnx.shrink.view import Op, View

__all__ = ["Masks", "cut", "merge_masks", "scatter", "sliced"]

Masks = Mapping[Axis, NDArray[np.bool_]]
Array = NDArray[Any]


def merge_masks(many: list[dict[Axis, NDArray[np.bool_]]]) -> dict[Axis, NDArray[np.bool_]]:
    """The union of what goes."""
    out: dict[Axis, NDArray[np.bool_]] = {}
    for masks in many:
        for axis, mask in masks.items():
            out[axis] = out[axis] | mask if axis in out else mask
    return out


def sliced(name: str, values: Array, masks: Masks) -> Array:
    """A constant without the coordinates that go."""
    for axis in range(values.ndim):
        mask = masks.get((name, axis))
        if mask is not None:
            values = np.compress(~mask, values, axis)
    return values


def scatter(name: str, values: Array, shape: tuple[int, ...], masks: Masks) -> Array:
    """The way back: the constant in its old shape, zero where coordinates went."""
    out = np.zeros(shape, values.dtype)
    places = []
    for axis, size in enumerate(shape):
        mask = masks.get((name, axis))
        places.append(np.arange(size) if mask is None else np.flatnonzero(~mask))
    out[np.ix_(*places)] = values
    return out


def cut(view: View, traced: Trace, masks: Masks) -> Any:
    """A copy of the model without the coordinates that `masks` marks.

    Raises:
        ModelError: a size that would have to change stands where this does not reach it.
    """
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(view.model)
    graph = model.graph
    for tensor in graph.initializer:
        if any((tensor.name, axis) in masks for axis in range(len(tensor.dims))):
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(
                    np.asarray(sliced(tensor.name, view.constants[tensor.name], masks)), tensor.name
                )
            )
    surgeon = _Surgeon(view, traced, masks, model)
    for op, node in zip(view.ops, list(graph.node), strict=True):
        surgeon.operation(op, node)
    surgeon.settle()
    for info in (*graph.value_info, *graph.input):
        _resize(info, masks)
    drop_dead(graph)
    return model


def drop_dead(graph: Any) -> None:
    """Remove nodes whose results nobody reads, and constants and value_info that are no longer used."""
    from emp_onnx.shrink.view import _captured

    needed = {o.name for o in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output if name):
            kept.append(node)
            needed |= set(node.input) | _captured(node)
    if len(kept) < len(graph.node):
        copies = [type(node).FromString(node.SerializeToString()) for node in reversed(kept)]
        del graph.node[:]
        graph.node.extend(copies)
    gone = {t.name for t in graph.initializer if t.name not in needed}
    for field in (graph.initializer, graph.input, graph.value_info):
        made = {name for node in graph.node for name in node.output} | needed
        for i in reversed(range(len(field))):
            name = field[i].name
            if name in gone or (field is graph.value_info and name not in made):
                del field[i]


def _resize(info: Any, masks: Masks) -> None:
    if not info.type.HasField("tensor_type"):
        return
    for axis, dim in enumerate(info.type.tensor_type.shape.dim):
        mask = masks.get((info.name, axis))
        if mask is not None:
            dim.Clear()
            dim.dim_value = int((~mask).sum())


class _Surgeon:
    def __init__(self, view: View, traced: Trace, masks: Masks, model: Any) -> None:
        self.view, self.trace, self.masks, self.model, self.graph = view, traced, masks, model, model.graph
        self.names = {n for op in view.ops for n in (*op.inputs, *op.outputs)} | set(view.constants)
        self.before: dict[int, list[Any]] = {}

    def gone(self, name: str, axis: int) -> int:
        """How many coordinates an axis loses."""
        mask = self.masks.get((name, axis))
        return 0 if mask is None else int(mask.sum())

    def touched(self, name: str) -> bool:
        """Whether a tensor changes its shape."""
        return any(self.gone(name, axis) for axis in range(len(self.trace.shapes.get(name) or ())))

    def constant(self, base: str, values: Array) -> str:
        """A new constant; its name."""
        return add_constant(self.model, self.new(base), values)

    def new(self, base: str) -> str:
        """A name that is not taken."""
        return free(f"{base}_shrunk", self.names)

    def operation(self, op: Op, node: Any) -> None:
        """Set anew what this operation says of sizes."""
        fix = getattr(self, f"_{op.type.split('.')[-1].lower()}", None)
        if fix is not None:
            fix(op, node)

    def _number(self, op: Op, node: Any, attribute: str, label: str, times: int = 1) -> None:
        gone = self.gone(f"#{op.index}.{label}", 0) * times
        if gone:
            self._set(node, attribute, int(op.attributes.get(attribute, 1)) - gone)

    def _set(self, node: Any, name: str, value: Any) -> None:
        import onnx

        for i in reversed(range(len(node.attribute))):
            if node.attribute[i].name == name:
                del node.attribute[i]
        node.attribute.append(onnx.helper.make_attribute(name, value))

    def _conv(self, op: Op, node: Any) -> None:
        self._number(op, node, "group", "groups")

    _convtranspose = _fusedconv = _conv

    def _groupnormalization(self, op: Op, node: Any) -> None:
        self._number(op, node, "num_groups", "groups")

    def _lstm(self, op: Op, node: Any) -> None:
        if self.gone(f"#{op.index}.hidden", 0):
            hidden = self.trace.shapes[op.inputs[2]][2]
            self._set(node, "hidden_size", int(hidden or 0) - self.gone(f"#{op.index}.hidden", 0))

    _gru = _rnn = _lstm

    def _multiheadattention(self, op: Op, node: Any) -> None:
        self._number(op, node, "num_heads", "heads")

    def _attention(self, op: Op, node: Any) -> None:
        if op.type != "Attention":
            self._number(op, node, "num_heads", "heads")
        elif "q_num_heads" in op.attributes:
            self._shared(op, node, "q_num_heads")

    def _groupqueryattention(self, op: Op, node: Any) -> None:
        self._shared(op, node, "num_heads")

    def _shared(self, op: Op, node: Any, queries: str) -> None:
        share = int(op.attributes[queries]) // int(op.attributes["kv_num_heads"])
        self._number(op, node, queries, "heads", share)
        self._number(op, node, "kv_num_heads", "heads")

    def _reshape(self, op: Op, node: Any) -> None:
        self._target(op, node, 1, fold=True)

    def _expand(self, op: Op, node: Any) -> None:
        self._target(op, node, 1)

    def _constantofshape(self, op: Op, node: Any) -> None:
        self._target(op, node, 0)

    def _resize(self, op: Op, node: Any) -> None:
        if op.input(3):
            self._target(op, node, 3)

    def _target(self, op: Op, node: Any, slot: int, fold: bool = False) -> None:
        """A shape said in an input: sizes that change are put in; sizes of the caller stay computed."""
        import onnx

        out = op.outputs[0]
        if not self.touched(out):
            return
        sizes = self.trace.shapes[out]
        new = [None if s is None else s - self.gone(out, a) for a, s in enumerate(sizes)]
        if slot >= len(op.inputs):  # opset 1 to 4 says it in an attribute
            shape = list(op.attributes["shape"])
            self._set(node, "shape", [n if self.gone(out, a) else shape[a] for a, n in enumerate(new)])
            return
        given = self.trace.values.get(op.inputs[slot])
        open_axes = [a for a, n in enumerate(new) if n is None]
        if given is not None:
            values = [
                new[a] if self.gone(out, a) and (given[a] != -1 or not fold) else int(v) for a, v in enumerate(given)
            ]
            node.input[slot] = self.constant(op.inputs[slot], np.array(values, np.int64))
        elif len(open_axes) <= 1 and fold:
            node.input[slot] = self.constant(op.inputs[slot], np.array([-1 if n is None else n for n in new], np.int64))
        else:
            known = self.constant(op.inputs[slot], np.array([n is not None for n in new]))
            sizes_name = self.constant(op.inputs[slot], np.array([n or 0 for n in new], np.int64))
            result = self.new(op.inputs[slot])
            where = onnx.helper.make_node("Where", [known, sizes_name, op.inputs[slot]], [result])
            self.before.setdefault(op.index, []).append(where)
            node.input[slot] = result

    def _split(self, op: Op, node: Any) -> None:
        axis = int(op.attributes.get("axis", 0)) % len(self.trace.shapes[op.inputs[0]])
        if not self.gone(op.inputs[0], axis):
            return
        sizes = [int(self.trace.shapes[o][axis] or 0) - self.gone(o, axis) for o in op.outputs]
        if self.view.opset < 13:
            self._set(node, "split", sizes)
            return
        for i in reversed(range(len(node.attribute))):
            if node.attribute[i].name == "num_outputs":
                del node.attribute[i]
        name = self.constant(op.outputs[0], np.array(sizes, np.int64))
        del node.input[1:]
        node.input.append(name)

    def _slice(self, op: Op, node: Any) -> None:
        x = op.inputs[0]
        shape = self.trace.shapes.get(x)
        cut_axes = [a for a in range(len(shape or ())) if self.gone(x, a)]
        if not cut_axes or shape is None:
            return
        from emp_onnx.shrink.axes.links import Links, Relation
        from emp_onnx.shrink.axes.rules.moving import slices

        taken = slices(Relation(op, self.view, self.trace, Links()))
        if not any(axis in taken for axis in cut_axes):
            return
        new: dict[int, tuple[int, int, int]] = {}
        for axis, given in taken.items():
            if given is None:
                raise ModelError(f"{op.label} must have constant bounds, got computed ones")
            size = shape[axis]
            if axis in cut_axes and size is not None:
                index = np.arange(size)[slice(*_bounds(given, size))]
                stays = ~self.masks[x, axis]
                if given[2] == 1:
                    first = int(stays[: index[0]].sum()) if index.size else 0
                    given = (first, first + int(stays[index].sum()), 1)
                else:  # all of the axis, backwards
                    given = (int(stays.sum()) - 1, -(int(stays.sum()) + 1), -1)
            new[axis] = given
        starts, ends, steps = (np.array([v[i] for v in new.values()], np.int64) for i in range(3))
        if "starts" in op.attributes:
            for name, values in (("starts", starts), ("ends", ends), ("axes", np.array(list(new)))):
                self._set(node, name, [int(v) for v in values])
            return
        del node.input[1:]
        for values in (starts, ends, np.array(list(new), np.int64), steps):
            node.input.append(self.constant(x, values))

    def _gather(self, op: Op, node: Any) -> None:
        x, rank = op.inputs[0], len(self.trace.shapes.get(op.inputs[0]) or ())
        if not rank:
            return
        axis = int(op.attributes.get("axis", 0)) % rank
        mask = self.masks.get((x, axis))
        if mask is None:
            return
        given = self.trace.values[op.inputs[1]]
        place = np.cumsum(~mask) - 1
        index = given.astype(np.intp) % len(mask)
        index = index[~mask[index]] if index.ndim else index
        values = place[index].astype(given.dtype)
        node.input[1] = self.constant(op.inputs[1], np.asarray(values))

    def settle(self) -> None:
        """Put new nodes before the ones that read them; make constants of values that followed from sizes as they
        were."""
        import onnx

        tainted: set[str] = set()
        drop: set[int] = set()
        for op in self.view.ops:
            if op.outputs and op.outputs[0] not in self.trace.free:
                continue
            source = op.type in ("Shape", "Size") and self.touched(op.inputs[0])
            if not source and not any(name in tainted for name in op.inputs):
                continue
            tainted |= set(op.outputs)
            if all(o in self.trace.values and not self.touched(o) for o in op.outputs if o):
                drop.add(op.index)
                for name in op.outputs:
                    if name:
                        self.graph.initializer.append(onnx.numpy_helper.from_array(self.trace.values[name], name))
        if not drop and not self.before:
            return
        nodes = []
        for op, node in zip(self.view.ops, list(self.graph.node), strict=True):
            nodes += self.before.get(op.index, [])
            if op.index not in drop:
                copy = onnx.NodeProto()
                copy.CopyFrom(node)
                nodes.append(copy)
        del self.graph.node[:]
        self.graph.node.extend(nodes)


def _bounds(given: tuple[int, int, int], size: int) -> tuple[int, int | None, int]:
    start, stop, step = given
    return start, (None if step < 0 and stop < -size else stop), step
