"""A copy of a prepared model under change: new constants, new nodes, and readers sent elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.shrink.axes.sizes import Entry, Sizes
from emp_onnx.shrink.axes.trace import Trace
from emp_onnx.shrink.cut import drop_dead
from emp_onnx.shrink.fitting.distance import ancestors
from emp_onnx.shrink.tensors import add_constant, free
from emp_onnx.shrink.view import Op, View

__all__ = ["Edit"]


class Edit:
    """What a rewrite works on.

    Attributes:
        nodes: of the copy, by the index of the operation that they stand for. tensors: its constants as they came.
        sizes: of the model as it was.
        fixed: tensors that have to stay as they are: outputs, what bodies read, and the scores behind outputs that
            are whole numbers, by which models are compared.
    """

    def __init__(self, view: View, traced: Trace) -> None:
        import onnx

        self.view, self.trace = view, traced
        self.model = onnx.ModelProto()
        self.model.CopyFrom(view.model)
        self.nodes = {op.index: node for op, node in zip(view.ops, self.model.graph.node, strict=True)}
        self.tensors = {t.name: t for t in self.model.graph.initializer}
        self.sizes = Sizes(view, traced)
        self.fixed = set(view.outputs) | view.captured | set(ancestors(view.model))
        self.taken = {n for op in view.ops for n in (*op.inputs, *op.outputs)} | set(view.constants)
        self.changed = False
        self.instead: dict[str, str] = {}
        self._before: dict[int, list[Any]] = {}

    def name(self, base: str) -> str:
        """A name that nothing has yet."""
        return free(f"{base}_plain", self.taken)

    def constant(self, base: str, values: NDArray[Any]) -> str:
        """A new constant; its name."""
        return add_constant(self.model, self.name(base), values)

    def insert(self, at: Op, kind: str, inputs: list[str], base: str, **attributes: Any) -> str:
        """A new node before the one that stands for an operation; what it makes."""
        import onnx

        out = self.name(base)
        self._before.setdefault(at.index, []).append(onnx.helper.make_node(kind, inputs, [out], **attributes))
        self.changed = True
        return out

    def read_instead(self, old: str, new: str) -> None:
        """Let every reader of a tensor read another one."""
        for op, slot in self.view.readers.get(old, []):
            self.nodes[op.index].input[slot] = new
        self.instead[old] = new
        self.changed = True

    def put(self, at: Op, kind: str, inputs: list[str], **attributes: Any) -> None:
        """Another operation in place of one, which makes the same tensor, its only one."""
        import onnx

        node = self.nodes[at.index]
        node.CopyFrom(onnx.helper.make_node(kind, inputs, [node.output[0]], name=node.name, **attributes))
        self.changed = True

    def only_reader(self, name: str) -> Op | None:
        """The operation that alone reads a tensor, once, if that may change."""
        found = self.view.readers.get(name, [])
        return found[0][0] if len(found) == 1 and name not in self.fixed else None

    def target(self, source: tuple[Entry, ...], wanted: tuple[Entry, ...]) -> NDArray[np.int64] | None:
        """What a Reshape from one shape to another is told; None if it cannot be said once and for all."""
        new = [
            e if isinstance(e, int) else 0 if a < len(source) and source[a] == e else -1 for a, e in enumerate(wanted)
        ]
        if new.count(-1) > 1 or any(e == 0 for e in (*source, *wanted)):
            return None
        return np.array(new, np.int64)

    def done(self) -> Any:
        """The changed model; None if nothing changed."""
        import onnx

        if not self.changed:
            return None
        nodes = []
        for op in self.view.ops:
            for node in (*self._before.get(op.index, ()), self.nodes[op.index]):
                copy = onnx.NodeProto()
                copy.CopyFrom(node)
                nodes.append(copy)
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes)
        drop_dead(self.model.graph)
        return self.model
