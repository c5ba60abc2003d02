"""A model as one flat list of steps, ordered so that it can be run level by level.

The bodies of If are laid flat: each of their steps carries a guard, the conditions under which it runs. Bodies of Loop
and Scan, and local functions, stay whole. A *site* is a step that uses a weight linearly; its level is one more than
the highest of its inputs, so all sites of one level can be solved together, once everything below has been run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from emp_onnx.errors import MissingExtraError, ModelError
from emp_onnx.files.graph import Graph, Node, Tensor
from emp_onnx.files.model_io import Model

__all__ = ["Guard", "Program", "Step", "flatten"]

Guard = tuple[tuple[str, bool], ...]
Proto = Any
T = TypeVar("T")


@dataclass(eq=False)
class Step:
    """One operation. `inputs` also names what its bodies read from outside; empty names stand for absent inputs."""

    proto: Proto
    node: Node
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    guard: Guard = ()
    level: int = 0

    @property
    def reads(self) -> Iterator[str]:
        """Every value that must be there before: inputs, and conditions."""
        yield from (name for name in self.inputs if name)
        yield from (name for name, _ in self.guard)


@dataclass(eq=False)
class Program:
    """The steps of a model.

    Attributes:
        steps: in an order in which they can run.
        constants: value to the tensor it is.
        inputs, outputs: of the model.
        functions: local functions, for steps that call them.
        opsets: what the model imports.
        ir_version: of the file.
    """

    steps: list[Step]
    constants: dict[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    functions: list[Proto] = field(default_factory=list)
    opsets: list[Proto] = field(default_factory=list)
    ir_version: int = 8

    @cached_property
    def makers(self) -> dict[str, list[Step]]:
        """The steps that make each value; several when the branches of an If do."""
        out: dict[str, list[Step]] = {}
        for step in self.steps:
            for name in filter(None, step.outputs):
                out.setdefault(name, []).append(step)
        return out

    @cached_property
    def readers(self) -> dict[str, list[tuple[Step, int]]]:
        """The steps that read each value, and as which input."""
        out: dict[str, list[tuple[Step, int]]] = {}
        for step in self.steps:
            for slot, name in enumerate(step.inputs):
                if name:
                    out.setdefault(name, []).append((step, slot))
        return out

    @cached_property
    def fixed(self) -> frozenset[str]:
        """Values that follow from constants alone."""
        known = set(self.constants)
        for step in self.steps:
            random = step.node.op.startswith("Random") or step.node.op in ("Multinomial", "Bernoulli")
            if not random and all(not name or name in known for name in step.inputs):
                known.update(filter(None, step.outputs))
        return frozenset(known)

    def sources(self, name: str, /) -> set[str]:
        """The tensors, by key, that a fixed value is made from."""
        found, todo, seen = set[str](), [name], set[str]()
        while todo:
            now = todo.pop()
            if now in seen:
                continue
            seen.add(now)
            if now in self.constants:
                found.add(self.constants[now].key)
            for step in self.makers.get(now, ()):
                todo += [value for value in step.inputs if value]
        return found

    def closure(self, names: Iterable[str], /) -> list[Step]:
        """The steps that make these fixed values, in order."""
        wanted, todo = set[int](), list(names)
        while todo:
            for step in self.makers.get(todo.pop(), ()):
                if id(step) not in wanted:
                    wanted.add(id(step))
                    todo += [value for value in step.inputs if value]
        return [step for step in self.steps if id(step) in wanted]

    def rank(self, is_site: Callable[[Step], bool], /) -> int:
        """Give every step its level; returns the highest."""
        level: dict[str, int] = {}
        for step in self.steps:
            step.level = max((level.get(name, 0) for name in step.reads if name not in self.fixed), default=0)
            step.level += is_site(step)
            for name in step.outputs:
                level[name] = max(level.get(name, 0), step.level)
        return max((step.level for step in self.steps), default=0)

    def whole(self, look: Callable[[], T], /) -> T:
        """What is seen while all steps are of one level; their levels are then as before."""
        levels = [step.level for step in self.steps]
        self.rank(lambda step: False)
        try:
            return look()
        finally:
            for step, level in zip(self.steps, levels, strict=True):
                step.level = level


def flatten(model: Model, inline: Callable[[Graph], bool], /) -> Program:
    """Lay a model flat; an If is opened when `inline` holds for one of its bodies.

    Raises:
        ModelError: a node that onnx cannot read.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx") from error
    steps: list[Step] = []
    constants: dict[str, Tensor] = {}
    work = _Flat(onnx, model, inline, steps, constants)
    protos = []
    for at, end in model.contents.nodes:
        proto = onnx.NodeProto()
        try:
            proto.ParseFromString(model.source.read(at, end - at))
        except Exception as error:  # protobuf's own errors have no common base
            raise ModelError(f"model must hold nodes that onnx can read, got {model.origin}: {error}") from error
        protos.append(proto)
    work.graph(model.graph, protos, {}, "", ())
    head = _head(onnx, model)
    inputs = tuple(name for name in model.graph.inputs if name not in constants)
    return Program(
        _ordered(steps), constants, inputs, model.graph.outputs, list(head.functions), list(head.opset_import),
        head.ir_version,
    )  # fmt: skip


def _head(onnx: Any, model: Model) -> Proto:
    """The model without its graph."""
    from emp_onnx.files.wire import Wire

    head, wire = onnx.ModelProto(), Wire(model.source)
    for number, _, _, tag, end in wire.fields(0, wire.size):
        if number in (1, 8, 25):
            head.MergeFromString(model.source.read(tag, end - tag))
    return head


@dataclass
class _Flat:
    onnx: Any
    model: Model
    inline: Callable[[Graph], bool]
    steps: list[Step]
    constants: dict[str, Tensor]
    frames: int = 0

    def graph(
        self, graph: Graph, protos: list[Proto], outer: dict[str, str], prefix: str, guard: Guard
    ) -> dict[str, str]:
        """Lay one graph flat; returns what its names mean."""
        names = dict(outer)
        for name in (*graph.inputs, *graph.tensors, *graph.sparse):
            names[name] = prefix + name
        for tensor in (*graph.tensors.values(), *graph.sparse.values()):
            self.constants[prefix + tensor.name] = tensor
        for node in graph.nodes:
            names.update({name: prefix + name for name in node.outputs if name})
        for node, proto in zip(graph.nodes, protos, strict=True):
            if node.constant is not None and node.outputs:
                self.constants[prefix + node.outputs[0]] = node.constant
                continue
            if node.op == "If" and not node.domain and any(self.inline(body) for body in node.bodies):
                self._branches(node, proto, names, guard)
            else:
                self._step(node, proto, names, guard)
        return names

    def _branches(self, node: Node, proto: Proto, names: dict[str, str], guard: Guard) -> None:
        graphs = [attribute for attribute in proto.attribute if attribute.type == self.onnx.AttributeProto.GRAPH]
        for body, attribute in zip(node.bodies, graphs, strict=True):
            self.frames += 1
            here = (*guard, (names.get(node.inputs[0], node.inputs[0]), attribute.name == "then_branch"))
            inner = self.graph(body, list(attribute.g.node), names, f"{self.frames}:", here)
            for made, given in zip(node.outputs, body.outputs, strict=False):
                if made:
                    source, target = inner.get(given, given), names[made]
                    same = self.onnx.helper.make_node("Identity", [source], [target])
                    plain = Node("Identity", "", "", (source,), (target,), {}, ())
                    self.steps.append(Step(same, plain, (source,), (target,), here))

    def _step(self, node: Node, proto: Proto, names: dict[str, str], guard: Guard) -> None:
        copy = self.onnx.NodeProto()
        copy.CopyFrom(proto)
        captured: dict[str, None] = {}
        for attribute in copy.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                _rename(body, names, set(), captured)
        for field_ in (copy.input, copy.output):
            renamed = [names.get(name, name) if name else "" for name in field_]
            del field_[:]
            field_.extend(renamed)
        inputs = (*copy.input, *captured)
        self.steps.append(Step(copy, node, inputs, tuple(copy.output), guard))


def _rename(body: Proto, names: dict[str, str], shadow: set[str], captured: dict[str, None]) -> None:
    """Rename what a body reads from outside, and note it."""
    inner = shadow | {item.name for item in (*body.input, *body.initializer)}
    inner |= {name for node in body.node for name in node.output}
    for node in body.node:
        for i, name in enumerate(node.input):
            if name and name not in inner and name in names:
                node.input[i] = names[name]
                captured[names[name]] = None
        for attribute in node.attribute:
            for nested in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                _rename(nested, names, inner, captured)
    for item in body.output:
        if item.name not in inner and item.name in names:
            captured[names[item.name]] = None
            item.name = names[item.name]


def _ordered(steps: list[Step]) -> list[Step]:
    """The steps so that each comes after those whose values it reads; otherwise in their own order."""
    makers: dict[str, list[int]] = {}
    for i, step in enumerate(steps):
        for name in filter(None, step.outputs):
            makers.setdefault(name, []).append(i)
    state, out = [0] * len(steps), list[Step]()
    for first in range(len(steps)):
        stack = [(first, False)]
        while stack:
            i, done = stack.pop()
            if done:
                out.append(steps[i])
            elif not state[i]:
                state[i] = 1
                stack.append((i, True))
                before = [j for name in steps[i].reads for j in makers.get(name, ()) if j != i]
                stack += [(j, False) for j in reversed(before) if not state[j]]
    return out
