"""What a graph says in a roundabout way, said plainly: the same numbers from fewer operations.

Small networks spend more time between products than in them. Four things go, none of which changes what is computed
beyond float rounding, whatever the input:

- Sizes that are the model's own, worked out anew in every run, become constants; sizes of the caller that a Reshape
  passes on become 0 (as it was) or the one −1 (what is left).
- The same size worked out twice is worked out once, and so is whatever follows from the same in the same way.
- A BatchNormalization whose readers are products: y = s·x + t, so y·W + b = x·(s·W) + (t·W + b).
- A Transpose after a Transpose is one, or none.

The result is compared with what was, on the feeds and with every open size doubled; if it differs it is not used.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.shrink.axes.trace import Trace
from emp_onnx.shrink.fitting.readers import Reader, find_readers
from emp_onnx.shrink.plainer.edit import Edit
from emp_onnx.shrink.view import Op, View

__all__ = ["plain"]

RANDOM = ("Random", "Multinomial", "Bernoulli", "Dropout")
BODIES = ("If", "Loop", "Scan", "SequenceMap")
Wide = NDArray[np.float64]


def plain(view: View, traced: Trace) -> Any:
    """A copy of a prepared model that says the same with fewer operations; None if there is nothing to do."""
    writer = _Writer(view, traced)
    if not traced.fixed:  # else what stayed the same may only not have been varied
        writer.known_sizes()
    writer.targets()
    writer.once()
    writer.norms()
    writer.turns()
    return writer.done()


class _Writer(Edit):
    def known_sizes(self) -> None:
        """Constants for what followed from sizes and never changed."""
        for op in self.view.ops:
            if any(o not in self.trace.values or o not in self.trace.free or o in self.fixed for o in op.outputs):
                continue
            for name in op.outputs:
                users = [u for u, _ in self.view.readers.get(name, [])]
                if any(o not in self.trace.values for u in users for o in u.outputs):
                    self.read_instead(name, self.constant(name, np.asarray(self.trace.values[name])))

    def targets(self) -> None:
        """Constant targets for Reshape; an Expand to ones is none."""
        for op in self.view.ops:
            target = self.view.constants.get(op.input(1))
            if op.type == "Expand" and not (op.outputs[0] in self.fixed or op.inputs[0] in self.view.constants):
                values = self.trace.values.get(op.input(1)) if not self.trace.fixed else target
                rank = len(self.trace.shapes.get(op.inputs[0]) or ())
                if values is not None and (values == 1).all() and len(values) <= rank:
                    self.read_instead(op.outputs[0], self.instead.get(op.inputs[0], op.inputs[0]))
            if op.type != "Reshape" or target is not None or op.attributes.get("allowzero"):
                continue
            found = self.sizes.values.get(op.input(1))
            if found is None or found[0] != 1:
                continue
            before, entries = self.sizes.of(op.inputs[0]), found[1]
            new = [
                e if isinstance(e, int) else 0 if a < len(before) and before[a] == e else -1
                for a, e in enumerate(entries)
            ]
            if new.count(-1) < 2:
                self.nodes[op.index].input[1] = self.constant(op.input(1), np.array(new, np.int64))
                self.changed = True

    def once(self) -> None:
        """What is worked out twice from the same is worked out once, and so are sizes that are equal."""
        seen: dict[Any, str] = {}
        for op in self.view.ops:
            if len(op.outputs) != 1 or op.outputs[0] in self.fixed or op.type in BODIES:
                continue
            if op.outputs[0] in self.instead or op.type.startswith(RANDOM):
                continue
            name = op.outputs[0]
            value = self.sizes.values.get(name) if name in self.trace.free else None
            key: Any = ("sizes", value, self.trace.dtypes.get(name))
            if value is None:
                node = self.nodes[op.index]
                inputs = tuple(self._same(n) for n in node.input)
                key = (op.type, inputs, tuple(sorted(a.SerializeToString() for a in node.attribute)))
            if seen.setdefault(key, name) != name:
                self.read_instead(name, seen[key])

    def _same(self, name: str) -> Any:
        values = self.view.constants.get(name)
        if values is not None and values.size <= 16:
            return (values.dtype.str, values.shape, values.tobytes())
        return self.instead.get(name, name)

    def norms(self) -> None:
        """BatchNormalization into the products that read it."""
        readers = find_readers(self.view, self.trace)
        for op in self.view.ops:
            if op.type != "BatchNormalization" or len([o for o in op.outputs if o]) != 1:
                continue
            given = [self.view.constants.get(name) for name in op.inputs[1:5]]
            taken = self._taken(op, readers)
            if not taken or any(g is None or g.dtype != np.float32 for g in given):
                continue
            scale, shift, mean, variance = (np.asarray(g, np.float64) for g in given)
            scale = scale / np.sqrt(variance + op.attributes.get("epsilon", 1e-5))
            shift = shift - scale * mean
            if all(r.bias for r in taken) or not shift.any():
                for reader in taken:
                    self._absorb(reader, scale, shift)
                self.read_instead(op.outputs[0], self.instead.get(op.inputs[0], op.inputs[0]))

    def _taken(self, op: Op, readers: list[Reader]) -> list[Reader]:
        """The products that are all that reads the channels of a norm, through transposes; empty if there is more."""
        out: list[Reader] = []
        waiting = [(op.outputs[0], 1)]
        while waiting:
            name, axis = waiting.pop()
            if name in self.fixed:
                return []
            for user, _ in self.view.readers.get(name, []):
                if user.type == "Transpose":
                    rank = len(self.trace.shapes.get(name) or ())
                    waiting.append((user.outputs[0], list(user.attributes.get("perm", range(rank)[::-1])).index(axis)))
                    continue
                found = [r for r in readers if r.op is user and r.source == name and r.axis == axis]
                if len(found) != 1 or found[0].kind not in ("right", "rightt"):
                    return []
                out += found
        return out

    def _absorb(self, reader: Reader, scale: Wide, shift: Wide) -> None:
        weight = self._now(reader.weight)
        matrix = replace(reader).matrix(weight)
        if reader.bias:
            self._put(reader.bias, reader.add_bias(self._now(reader.bias), matrix[:, :, 0] @ shift))
        self._put(reader.weight, reader.put(matrix * scale[None, :, None], weight))

    def _now(self, name: str) -> NDArray[Any]:
        import onnx

        return np.asarray(onnx.numpy_helper.to_array(self.tensors[name]))

    def _put(self, name: str, values: NDArray[Any]) -> None:
        import onnx

        self.tensors[name].CopyFrom(onnx.numpy_helper.from_array(values, name))

    def turns(self) -> None:
        """A Transpose of a Transpose."""
        makers = {o: node for node in self.model.graph.node for o in node.output}
        for op in self.view.ops:
            node = self.nodes[op.index]
            before = makers.get(node.input[0]) if node.input else None
            if op.type != "Transpose" or before is None or before.op_type != "Transpose":
                continue
            rank = len(self.trace.shapes.get(op.outputs[0]) or ())
            first, second = (self._order(n, rank) for n in (before, node))
            if not rank:
                continue
            both = [first[axis] for axis in second]
            if both == list(range(rank)) and op.outputs[0] not in self.fixed:
                self.read_instead(op.outputs[0], before.input[0])
            else:
                import onnx

                node.input[0] = before.input[0]
                del node.attribute[:]
                node.attribute.append(onnx.helper.make_attribute("perm", both))
                self.changed = True

    def _order(self, node: Any, rank: int) -> list[int]:
        given = [list(a.ints) for a in node.attribute if a.name == "perm"]
        return given[0] if given else list(range(rank))[::-1]
