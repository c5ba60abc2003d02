"""A model as operations and constants: what the rules read, without the ways in which a file can say the same thing.

`prepared` brings a model into one form: constants are initializers, operations stand in order. Everything after it
works on that form, and the first proof is that it computes what the file computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.errors import ModelError

__all__ = ["Op", "View", "prepared"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Op:
    """A node, read: its place in the graph, its type (with the domain before it where it has one), and its
    attributes."""

    index: int
    node: Any
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    @property
    def label(self) -> str:
        """The operation in words: type, and name where it has one."""
        return f"{self.type} '{self.node.name}'" if self.node.name else f"{self.type} '{self.outputs[0]}'"

    def input(self, slot: int) -> str:
        """The name of an input, empty where it is absent."""
        return self.inputs[slot] if slot < len(self.inputs) else ""


@dataclass
class View:
    """A prepared model, and who makes and who reads each tensor.

    Attributes:
        model: the onnx protobuf.
        ops: in an order in which they can run.
        constants: initializers by name, as arrays.
        makers: the operation that makes a tensor.
        readers: the operations that read a tensor, each with the slot.
        inputs: graph inputs that are no constants. outputs: graph outputs.
        captured: tensors that a body of If, Loop or Scan reads from outside.
    """

    model: Any
    ops: list[Op] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    makers: dict[str, Op] = field(default_factory=dict)
    readers: dict[str, list[tuple[Op, int]]] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    captured: frozenset[str] = frozenset()
    overridable: frozenset[str] = frozenset()
    opset: int = 0

    @classmethod
    def of(cls, model: Any) -> View:
        """Read a prepared model."""
        import onnx

        graph = model.graph
        view = cls(model)
        for entry in model.opset_import:
            if entry.domain in ("", "ai.onnx"):
                view.opset = entry.version
        view.constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        declared = tuple(i.name for i in graph.input)
        view.inputs = tuple(name for name in declared if name not in view.constants)
        view.outputs = tuple(o.name for o in graph.output)
        if model.ir_version >= 4:
            view.overridable = frozenset(declared) & frozenset(view.constants)
        captured: set[str] = set()
        for index, node in enumerate(graph.node):
            captured |= _captured(node)
            domain = "" if node.domain in ("", "ai.onnx") else node.domain + "."
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if not a.ref_attr_name}
            op = Op(index, node, domain + node.op_type, tuple(node.input), tuple(node.output), attributes)
            view.ops.append(op)
            for name in op.outputs:
                if name:
                    view.makers[name] = op
            for slot, name in enumerate(op.inputs):
                if name:
                    view.readers.setdefault(name, []).append((op, slot))
        view.captured = frozenset(captured)
        return view


def _captured(node: Any) -> set[str]:
    """The names that the bodies of a node read from outside."""
    names: set[str] = set()
    for graph in _bodies(node):
        inside = {o.name for o in graph.output}
        for inner in graph.node:
            inside |= set(inner.input) | _captured(inner)
        made = {name for inner in graph.node for name in inner.output} | {i.name for i in graph.input}
        names |= inside - made - {t.name for t in graph.initializer}
    return names


def _bodies(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def prepared(model: Any) -> Any:
    """A copy in which constants are initializers and nodes stand in order.

    Raises:
        ModelError: a loop among the nodes, or constants of a kind that this does not read.
    """
    import onnx

    new = onnx.ModelProto()
    new.CopyFrom(model)
    graph = new.graph
    have = {t.name for t in graph.initializer}
    kept = []
    for node in graph.node:
        tensor = _constant(node) if node.op_type == "Constant" and node.domain in ("", "ai.onnx") else None
        if tensor is None:
            kept.append(node)
        elif tensor.name not in have:
            graph.initializer.append(tensor)
            have.add(tensor.name)
    _plain_states(kept, {t.name: t for t in graph.initializer})
    ordered = _ordered(kept, have | {i.name for i in graph.input} | {t.values.name for t in graph.sparse_initializer})
    copies = []
    for node in ordered:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)
    return new


def _plain_states(nodes: list[Any], constants: dict[str, Any]) -> None:
    """Leave out, in place, first states of recurrent operations that are zeros: absent ones are zeros too.

    Exporters cut the states of all layers from one tensor of zeros, which would tie their hidden units to each other.
    """
    import onnx

    makers = {name: node for node in nodes for name in node.output if name}

    def zero(name: str, depth: int = 16) -> bool:
        if name in constants:
            return not np.any(onnx.numpy_helper.to_array(constants[name]))
        node = makers.get(name)
        if node is None or not depth:
            return False
        if node.op_type == "ConstantOfShape":
            return not any(np.any(onnx.numpy_helper.to_array(a.t)) for a in node.attribute)
        passing = (
            "Slice",
            "Expand",
            "Identity",
            "Unsqueeze",
            "Squeeze",
            "Transpose",
            "Reshape",
            "Cast",
            "Tile",
            "Gather",
        )
        return node.op_type in passing and zero(node.input[0], depth - 1)

    for node in nodes:
        if node.op_type in ("LSTM", "GRU", "RNN"):
            for slot in (5, 6):
                if len(node.input) > slot and node.input[slot] and zero(node.input[slot]):
                    node.input[slot] = ""
            while node.input and not node.input[-1]:
                del node.input[-1]


def _constant(node: Any) -> Any:
    import onnx

    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            return tensor
        kind = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
        if attribute.name in kind:
            return onnx.numpy_helper.from_array(np.array(value, kind[attribute.name]), node.output[0])
    return None


def _ordered(nodes: list[Any], known: set[str]) -> list[Any]:
    """The nodes in an order in which each follows what it reads; unchanged where they are so already."""
    made = {name for node in nodes for name in node.output if name}
    waiting, out, have = list(nodes), [], set(known) | {""}
    while waiting:
        later = []
        for node in waiting:
            needs = (set(node.input) | _captured(node)) & made
            if needs <= have:
                out.append(node)
                have |= set(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ModelError(f"the model must have no loop among its operations, got one at '{later[0].output[0]}'")
        waiting = later
    return out
