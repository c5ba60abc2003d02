"""Where every constant tensor goes: through bodies, local functions and operations that only pass it on.

A frame is one graph at one place: a body belongs to the frame around it, a local function has one frame per call. Names
are resolved to values (frame and name), so that a name defined anew in a body is another value, and an argument of a
function is the value that the call gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from emp_onnx.errors import ModelError
from emp_onnx.files.graph import Graph, Node, Tensor
from emp_onnx.files.model_io import Model

__all__ = ["Frame", "Step", "Trace", "Use", "Value"]

# operations that pass a weight on, at input 0
THROUGH = {
    "Identity", "Cast", "CastLike", "Transpose", "Reshape", "Flatten", "Unsqueeze", "Squeeze", "DequantizeLinear",
    "QuantizeLinear",
}  # fmt: skip
MOVING = {"Slice", "Split", "Concat"}  # these move elements; followed where all their inputs are constants
PASSING = THROUGH | MOVING
HARMLESS = {"Shape", "Size"}  # these look at a weight's dimensions only
FLOATS = {1, 10, 11, 16}
LONGEST, FRAMES = 64, 20_000


@dataclass(eq=False)
class Frame:
    """One graph at one place; `arguments` are what a call gives to a local function's inputs."""

    graph: Graph
    parent: Frame | None
    arguments: dict[str, Value | None]
    makers: dict[str, Node | None]
    depth: int = 0
    followed: set[str] | None = None  # of the main graph: names of what is a constant, or may be a weight on its way

    def value(self, name: str) -> Value | None:
        """What `name` means here."""
        if self.parent is None and not self.arguments:  # nearly always
            return Value(self, name) if name in self.makers else None
        frame: Frame | None = self
        while frame is not None:
            if name in frame.arguments:
                return frame.arguments[name]
            if name in frame.makers:
                return Value(frame, name)
            frame = frame.parent
        return None


class Value(NamedTuple):
    """A value: the frame that defines it, and its name there."""

    frame: Frame
    name: str

    @property
    def maker(self) -> Node | None:
        """The node that makes it, if one does."""
        return self.frame.makers.get(self.name)

    @property
    def tensor(self) -> Tensor | None:
        """The constant tensor that it is, if it is one."""
        node = self.maker
        if node is not None:
            return node.constant
        return self.frame.graph.tensors.get(self.name) or self.frame.graph.sparse.get(self.name)


@dataclass(frozen=True)
class Step:
    """An operation that a weight passes through, after `before`."""

    node: Node
    frame: Frame
    before: Step | None
    count: int


@dataclass(frozen=True)
class Use:
    """A place where a constant ends up: an input of a node that does something with it, or an output of a graph."""

    frame: Frame
    node: Node | None
    slot: int
    last: Step | None

    @property
    def words(self) -> str:
        """For people: which node and input, and where that is, if not in the main graph."""
        where = f" in the {self.frame.graph.where}" if self.frame.graph.where else ""
        return f"{self.node.label} input {self.slot}{where}" if self.node else self.frame.graph.where or "the graph"

    @property
    def steps(self) -> tuple[Step, ...]:
        """What it passes through, in order."""
        out, step = [], self.last
        while step is not None:
            out.append(step)
            step = step.before
        return tuple(reversed(out))


@dataclass
class Trace:
    """One walk over a model.

    Attributes:
        origins: every constant tensor met, as a value, in the order met; one in a function once per call.
        reads: every input of every node that may be a weight, in order: the frame, the node, the input's number, the
            value.
        derived: values computed from nothing but constants, and not constants themselves.
    """

    model: Model
    origins: list[Value] = field(default_factory=list)
    reads: list[tuple[Frame, Node, int, Value]] = field(default_factory=list)
    derived: set[Value] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._readers: dict[Value, list[tuple[Frame, Node | None, int]]] = {}
        self._makers: dict[int, dict[str, Node | None]] = {}
        self._frames = 0
        self._walk()

    def _frame(self, graph: Graph, parent: Frame | None, arguments: dict[str, Value | None], depth: int) -> Frame:
        self._frames += 1
        if self._frames > FRAMES or depth > LONGEST:
            raise ModelError(
                f"model must nest bodies and local functions at most {LONGEST} deep and use at most {FRAMES} of them, "
                f"got more in {self.model.origin}"
            )
        makers = self._makers.get(id(graph))
        if makers is None:
            makers = dict.fromkeys([*graph.inputs, *graph.tensors, *graph.sparse])
            for node in graph.nodes:
                for name in node.outputs:
                    if name:
                        makers[name] = node
            self._makers[id(graph)] = makers
        frame = Frame(graph, parent, arguments, makers, depth)
        if parent is None and not graph.where:
            held = (name for name in (*graph.tensors, *graph.sparse) if makers[name] is None)
            frame.followed = {*held, *(name for name, node in makers.items() if node is not None and node.constant)}
        self.origins += [Value(frame, name) for name in (*graph.tensors, *graph.sparse)]
        return frame

    def _walk(self) -> None:
        top = self._frame(self.model.graph, None, {}, 0)
        stack: list[tuple[Frame, Iterator[Node]]] = [(top, iter(top.graph.nodes))]
        while stack:
            frame, nodes = stack[-1]
            for node in nodes:
                if inner := self._node(frame, node):
                    stack += [(f, iter(f.graph.nodes)) for f in reversed(inner)]
                    break
            else:
                stack.pop()
                for name in frame.graph.outputs:
                    if (value := frame.value(name)) is not None:
                        self._readers.setdefault(value, []).append((frame, None, 0))

    def _node(self, frame: Frame, node: Node) -> list[Frame]:
        if frame.followed is not None and node.constant is None and not node.bodies:
            called = self.model.functions and (node.domain, node.op) in self.model.functions
            if not called and frame.followed.isdisjoint(node.inputs):
                return []  # nearly always: nothing that it reads is of interest
        values = [frame.value(name) if name else None for name in node.inputs]
        if node.constant is not None and node.constant.recipe is not None:
            self.origins.append(Value(frame, node.outputs[0]))
            return []
        function = self.model.functions.get((node.domain, node.op))
        if function is not None:
            given = dict(zip(function.inputs, [*values, *[None] * len(function.inputs)], strict=False))
            return [self._frame(function, None, given, frame.depth + 1)]
        fixed = False
        for slot, value in enumerate(values):
            if value is not None:
                fixed = True
                self.reads.append((frame, node, slot, value))
                known = self._readers.get(value)
                if known is None:
                    self._readers[value] = [(frame, node, slot)]
                else:
                    known.append((frame, node, slot))
        if node.constant is not None and node.outputs:
            self.origins.append(Value(frame, node.outputs[0]))
        if node.bodies:
            return [self._frame(body, frame, {}, frame.depth + 1) for body in node.bodies]
        if fixed and all(v is None or v in self.derived or v.tensor is not None for v in values):
            self.derived.update(Value(frame, name) for name in node.outputs)
            if frame.followed is not None:
                frame.followed.update(node.outputs)
        elif frame.followed is not None and node.op in PASSING:
            frame.followed.update(node.outputs)
        return []

    def uses(self, origin: Value) -> Iterator[Use]:
        """Where a constant ends up, followed through the operations that only pass it on."""
        seen, todo = {origin}, [(origin, None)]  # type: tuple[set[Value], list[tuple[Value, Step | None]]]
        while todo:
            value, last = todo.pop(0)
            for frame, node, slot in self._readers.get(value, ()):
                count = last.count + 1 if last else 1
                if node is None or not self._passes(frame, node, slot) or count > LONGEST:
                    if node is None or node.op not in HARMLESS or node.domain:
                        yield Use(frame, node, slot, last)
                    continue
                step = Step(node, frame, last, count)
                for name in node.outputs if node.op == "Split" else node.outputs[:1]:
                    after = Value(frame, name)
                    if after not in seen:
                        seen.add(after)
                        todo.append((after, step))

    def _passes(self, frame: Frame, node: Node, slot: int) -> bool:
        if node.op in MOVING and not node.domain and (node.op == "Concat" or not slot) and node.outputs:
            return Value(frame, node.outputs[0]) in self.derived
        if slot or node.op not in THROUGH or node.domain not in ("", "com.microsoft"):
            return False
        return node.op != "Cast" or node.number("to") in FLOATS

    def blocker(self, value: Value) -> Node | None:
        """The node behind a computed constant at which following it ends."""
        for _ in range(LONGEST):
            maker = value.maker
            if maker is None or maker.op not in THROUGH | MOVING or not maker.inputs:
                return maker
            before = value.frame.value(maker.inputs[0])
            if before is None or before.maker is None:
                return maker
            value = before
        return value.maker
