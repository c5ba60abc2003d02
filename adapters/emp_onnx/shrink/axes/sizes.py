"""Sizes as symbols: which sizes of which tensors are the same whatever the input, read from the graph alone.

An entry is a whole number, or the name of a size that the caller decides: (tensor, axis) of the first tensor that has
it. Two equal entries are equal sizes on every input on which the model runs. Rules say less rather than guess: where
broadcasting could make a size of one into another, the axis gets a symbol of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from emp_onnx.shrink.axes.rules.elementwise import BROADCAST, UNARY
from emp_onnx.shrink.axes.trace import Trace
from emp_onnx.shrink.view import Op, View

__all__ = ["Sizes"]

Entry = int | tuple[Any, ...]
MOST = 16  # entries of a tensor that describes sizes
SAME = {*UNARY, "Dropout", "Softmax", "LogSoftmax", "Hardmax", "LayerNormalization", "BatchNormalization",
        "InstanceNormalization", "CumSum"}  # fmt: skip


def quotient(whole: Sequence[Entry], parts: Sequence[Entry]) -> Entry | None:
    """The one size that is left of a product of sizes when others are taken out; None if it is not one."""
    left: list[Entry] = [e for e in whole if not isinstance(e, int)]
    for part in parts:
        if not isinstance(part, int):
            if part not in left:
                return None
            left.remove(part)
    number, rest = divmod(
        prod(e for e in whole if isinstance(e, int)), max(prod(e for e in parts if isinstance(e, int)), 1)
    )
    if rest or len(left) > 1 or (left and number != 1):
        return None
    return left[0] if left else number


class Sizes:
    """The sizes of every tensor (`shapes`), and of small tensors of whole numbers their entries (`values`, with their
    rank)."""

    def __init__(self, view: View, traced: Trace) -> None:
        self.view, self.trace = view, traced
        self.shapes: dict[str, tuple[Entry, ...]] = {}
        self.values: dict[str, tuple[int, tuple[Entry, ...]]] = {}
        for name in (*view.inputs, *view.constants):
            self._seen(name, None)
        for name, array in view.constants.items():
            if array.dtype.kind == "i" and array.ndim < 2 and array.size <= MOST:
                self.values[name] = (array.ndim, tuple(int(v) for v in array.reshape(-1)))
        for op in view.ops:
            rule: Callable[[Op], Any] | None = getattr(self, f"_{op.type.lower()}", None)
            found = rule(op) if rule is not None else self._general(op)
            for name in op.outputs:
                if name:
                    self._seen(name, found if name == op.outputs[0] or op.type == "Split" else None)
            if rule is None or op.type in ("Concat", "Gather", "Slice"):
                self._arithmetic(op)

    def _seen(self, name: str, found: Sequence[Entry | None] | None) -> None:
        """Take down a shape: numbers where every run had the same, symbols elsewhere."""
        shape = self.trace.shapes.get(name)
        if shape is None:
            return
        known = found if found is not None and len(found) == len(shape) else [None] * len(shape)
        self.shapes[name] = tuple(
            size if size is not None else (name, axis) if entry is None or isinstance(entry, int) else entry
            for axis, (size, entry) in enumerate(zip(shape, known, strict=True))
        )

    def of(self, name: str) -> tuple[Entry, ...]:
        """The shape of a tensor, empty where it has none."""
        return self.shapes.get(name, ())

    def _general(self, op: Op) -> Sequence[Entry | None] | None:
        if op.type in SAME and op.inputs:
            return self.of(op.inputs[0])
        if op.type in BROADCAST:
            return self._broadcast([self.of(name) for name in op.inputs if name])
        return None

    def _broadcast(self, shapes: Sequence[tuple[Entry, ...]]) -> list[Entry | None]:
        rank = max(map(len, shapes), default=0)
        out: list[Entry | None] = []
        for axis in range(-rank, 0):
            sizes = {shape[axis] for shape in shapes if len(shape) >= -axis} - {1}
            out.append(sizes.pop() if len(sizes) == 1 else None)
        return out

    def _where(self, op: Op) -> Sequence[Entry | None]:
        return self._broadcast([self.of(name) for name in op.inputs])

    def _matmul(self, op: Op) -> Sequence[Entry | None] | None:
        a, b = (self.of(name) for name in op.inputs)
        if len(a) < 2 or len(b) < 2:
            return None
        return [*self._broadcast([a[:-2], b[:-2]]), a[-2], b[-1]]

    def _transpose(self, op: Op) -> Sequence[Entry | None]:
        x = self.of(op.inputs[0])
        return [x[axis] for axis in op.attributes.get("perm", range(len(x))[::-1])] if x else []

    def _gather(self, op: Op) -> Sequence[Entry | None] | None:
        x, index = self.of(op.inputs[0]), self.of(op.inputs[1])
        axis = int(op.attributes.get("axis", 0)) % max(len(x), 1)
        return [*x[:axis], *index, *x[axis + 1 :]] if x else None

    def _concat(self, op: Op) -> Sequence[Entry | None] | None:
        shapes = [self.of(name) for name in op.inputs]
        if not shapes[0] or len({len(s) for s in shapes}) > 1:
            return None
        axis = int(op.attributes.get("axis", 0)) % len(shapes[0])
        return [None if a == axis else next((s[a] for s in shapes if isinstance(s[a], tuple)), None)
                for a in range(len(shapes[0]))]  # fmt: skip

    def _conv(self, op: Op) -> Sequence[Entry | None]:
        x = self.of(op.inputs[0])
        return [x[0], *[None] * (len(x) - 1)] if x else []

    def _reducemean(self, op: Op) -> Sequence[Entry | None] | None:
        x = self.of(op.inputs[0])
        axes = op.attributes.get("axes")
        if axes is None and op.input(1):
            axes = self.values.get(op.input(1), (1, ()))[1]
        if not axes or not op.attributes.get("keepdims", 1):
            return None
        gone = {int(a) % max(len(x), 1) for a in axes}
        return [1 if a in gone else size for a, size in enumerate(x)]

    _reducesum = _reducemax = _reducemin = _reducemean

    def _einsum(self, op: Op) -> Sequence[Entry | None] | None:
        left, _, right = op.attributes["equation"].decode().replace(" ", "").partition("->")
        terms = left.split(",")
        if "." in left or not right or len(terms) != len(op.inputs):
            return None
        letters: dict[str, set[Entry]] = {}
        for term, name in zip(terms, op.inputs, strict=True):
            for letter, size in zip(term, self.of(name), strict=False):
                letters.setdefault(letter, set()).add(size)
        return [next(iter(letters[c])) if len(letters.get(c, ())) == 1 else None for c in right]

    def _reshape(self, op: Op) -> Sequence[Entry | None] | None:
        x, target = self.of(op.inputs[0]), self.values.get(op.input(1))
        if target is None or op.attributes.get("allowzero"):
            return None
        out = [x[a] if v == 0 and a < len(x) else None if v == -1 else v for a, v in enumerate(target[1])]
        if out.count(None) == 1 and x:
            out[out.index(None)] = quotient(x, [e for e in out if e is not None])
        return out

    def _lstm(self, op: Op) -> Sequence[Entry | None] | None:
        x, r = self.of(op.inputs[0]), self.of(op.inputs[2])
        if len(x) != 3 or len(r) != 3 or op.attributes.get("layout", 0):
            return None
        return [x[0], r[0], x[1], r[2]]

    _gru = _rnn = _lstm

    def _range(self, op: Op) -> Sequence[Entry | None] | None:
        start, stop, step = (self.values.get(name) for name in op.inputs)
        if start is None or stop is None or step is None or start[1] != (0,) or step[1] != (1,):
            return None
        return [stop[1][0]]

    def _constantofshape(self, op: Op) -> Sequence[Entry | None] | None:
        target = self.values.get(op.inputs[0])
        return None if target is None else target[1]

    def _unsqueeze(self, op: Op) -> Sequence[Entry | None] | None:
        axes = self._axes(op)
        rank = len(self.trace.shapes.get(op.outputs[0]) or ())
        if axes is None or not rank:
            return None
        self._pass(op, rank)
        left = iter(self.of(op.inputs[0]))
        new = {a % rank for a in axes}
        return [1 if a in new else next(left, None) for a in range(rank)]

    def _squeeze(self, op: Op) -> Sequence[Entry | None] | None:
        axes = self._axes(op)
        x = self.of(op.inputs[0])
        self._pass(op, len(x) - 1)
        return None if axes is None else [s for a, s in enumerate(x) if a not in {b % len(x) for b in axes}]

    def _axes(self, op: Op) -> tuple[int, ...] | None:
        given = op.attributes.get("axes")
        if given is None and op.input(1):
            found = self.values.get(op.input(1))
            given = None if found is None else found[1]
        return None if given is None else tuple(int(a) for a in given)

    def _pass(self, op: Op, rank: int) -> None:
        found = self.values.get(op.inputs[0])
        if found is not None and rank < 2:
            self.values[op.outputs[0]] = (rank, found[1])

    def _shape(self, op: Op) -> None:
        x = self.of(op.inputs[0])
        if x and len(x) <= MOST:
            first, last = op.attributes.get("start", 0), op.attributes.get("end")
            self.values[op.outputs[0]] = (1, x[first:last])

    def _identity(self, op: Op) -> Sequence[Entry | None]:
        self._pass(op, len(self.of(op.inputs[0])))
        return self.of(op.inputs[0])

    def _cast(self, op: Op) -> Sequence[Entry | None]:
        if op.attributes.get("to") == 7:
            self._pass(op, len(self.of(op.inputs[0])))
        return self.of(op.inputs[0])

    def _arithmetic(self, op: Op) -> None:
        """Entries of what is computed from entries."""
        found = [self.values.get(name) for name in op.inputs if name]
        known = [f for f in found if f is not None]
        if not known or len(known) < len(found):
            return
        first = known[0]
        if op.type == "Concat" and all(rank == 1 for rank, _ in known):
            self._value(op, 1, tuple(e for _, entries in known for e in entries))
        elif op.type == "Gather" and all(isinstance(i, int) for i in known[1][1]):
            index = [int(i) for i in known[1][1] if isinstance(i, int)]
            if first[0] == 1 and all(-len(first[1]) <= i < len(first[1]) for i in index):
                self._value(op, known[1][0], tuple(first[1][i] for i in index))
        elif op.type == "Slice" and first[0] == 1 and len(known) >= 3:
            numbers = [entries[0] for _, entries in known[1:] if len(entries) == 1]
            if len(numbers) == len(known) - 1 and all(isinstance(n, int) for n in numbers):
                start, stop, *rest = (int(n) for n in numbers if isinstance(n, int))
                self._value(op, 1, first[1][start : stop : rest[1] if len(rest) > 1 else 1])
        elif op.type == "Sub" and len(known) == 2 and first == known[1]:
            self._value(op, first[0], (0,) * len(first[1]))

    def _value(self, op: Op, rank: int, entries: tuple[Entry, ...]) -> None:
        sizes = [size or 0 for size in self.trace.shapes.get(op.outputs[0]) or ()]
        if len(entries) <= MOST and prod(sizes) == len(entries):
            self.values[op.outputs[0]] = (rank, entries)
