"""One graph after the other laid flat: names made fresh, branches and calls opened, bodies of loops kept as programs.

See `flat.py`, which begins with the model's own graph.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from emp_onnx.calibration.program import Body, Guard, Program, Step, ordered
from emp_onnx.calibration.protos import captures, domain, rank, rename, told
from emp_onnx.files.graph import Graph, Node, Tensor
from emp_onnx.files.model_io import Model

__all__ = ["Frame", "Laying"]

Proto = Any
Names = Mapping[str, str]
FIRST_SCAN = 9  # version of the operators in which Scan has no batch of its own any more


@dataclass(frozen=True)
class Frame:
    """Where a graph is laid: into these steps, under a prefix, behind a guard; `whole`: with its bodies in their nodes;
    `given`: the attributes of the call, in a function."""

    steps: list[Step]
    prefix: str = ""
    guard: Guard = ()
    whole: bool = False
    given: Mapping[str, Proto] | None = None


@dataclass
class Laying:
    """Lays graphs flat, one within the other."""

    onnx: Any
    model: Model
    inline: Callable[[Graph], bool]
    whole: Container[int]
    functions: list[Proto]
    opsets: list[Proto]
    constants: dict[str, Tensor] = field(default_factory=dict)

    def graph(
        self, graph: Graph, protos: Sequence[Proto], frame: Frame, outer: Names, preset: Names | None = None
    ) -> Names:
        """Lay one graph flat; returns what its names mean. `preset` says what some of them shall mean."""
        prefix = frame.prefix
        names = dict(outer)
        for name in (*graph.inputs, *graph.tensors, *graph.sparse):
            names[name] = prefix + name
        for tensor in (*graph.tensors.values(), *graph.sparse.values()):
            if not prefix or tensor.name not in graph.inputs:  # a loop gives its body's inputs
                self.constants[prefix + tensor.name] = tensor
        for node in graph.nodes:
            names.update({name: prefix + name for name in node.outputs if name})
        names.update(preset or {})
        for i, (node, proto) in enumerate(zip(graph.nodes, protos, strict=True)):
            if node.constant is not None and node.outputs:
                self.constants[names[node.outputs[0]]] = node.constant
                continue
            if frame.given is not None:
                node, proto = told(node, proto, frame.given, self.onnx)
            function = self._function(node)
            if function is not None:
                self._call(node, proto, function, frame, names, i)
            elif node.op == "If" and not node.domain and not frame.whole and any(map(self.inline, node.bodies)):
                self._branches(node, proto, frame, names, i)
            else:
                self._step(node, proto, frame, names, i)
        return names

    def _function(self, node: Node) -> tuple[Graph, Proto] | None:
        """The function that a node calls, if it is to be opened and its operators are of the versions of the model."""
        graph = self.model.functions.get((node.domain, node.op))
        if graph is None or not self.inline(graph):
            return None
        found = [f for f in self.functions if (f.domain, f.name) == (node.domain, node.op)]
        if len(found) != 1:
            return None
        have = {domain(item): item.version for item in self.opsets}
        if any(have.get(domain(item), item.version) != item.version for item in found[0].opset_import):
            return None
        self.opsets += [item for item in found[0].opset_import if domain(item) not in have]
        return graph, found[0]

    def _call(
        self, node: Node, proto: Proto, function: tuple[Graph, Proto], frame: Frame, names: Names, i: int
    ) -> None:
        graph, body = function
        prefix = f"{frame.prefix}{i}:"
        given = {a.name: a for a in body.attribute_proto} | {a.name: a for a in proto.attribute}
        gives = [names.get(name, name) if name else "" for name in node.inputs]
        preset = dict(zip(graph.inputs, [*gives, *[""] * len(graph.inputs)], strict=False))
        made = {name for inner in graph.nodes if inner.constant is None for name in inner.outputs} - {*graph.inputs}
        for inside, outside in zip(graph.outputs, node.outputs, strict=False):
            if outside and inside in made and inside not in preset:
                preset[inside] = names[outside]
        inner = self.graph(
            graph, list(body.node), Frame(frame.steps, prefix, frame.guard, frame.whole, given), {}, preset
        )
        for inside, outside in zip(graph.outputs, node.outputs, strict=False):
            if outside and inner.get(inside, inside) != names[outside]:
                frame.steps.append(self._same(inner.get(inside, inside), names[outside], frame.guard))

    def _branches(self, node: Node, proto: Proto, frame: Frame, names: Names, i: int) -> None:
        for j, (body, attribute) in enumerate(self._bodies(node, proto)):
            condition = names.get(node.inputs[0], node.inputs[0])
            here = (*frame.guard, (condition, attribute.name == "then_branch"))
            inside = Frame(frame.steps, f"{frame.prefix}{i}.{j}:", here, False, frame.given)
            inner = self.graph(body, list(attribute.g.node), inside, names)
            for made, given in zip(node.outputs, body.outputs, strict=False):
                if made:
                    frame.steps.append(self._same(inner.get(given, given), names[made], here))

    def _step(self, node: Node, proto: Proto, frame: Frame, names: Names, i: int) -> None:
        copy = self.onnx.NodeProto()
        copy.CopyFrom(proto)
        copy.name = frame.prefix + copy.name if copy.name else ""  # no two nodes may have the same
        captured: dict[str, None] = {}
        opened = self._looped(node)
        if frame.whole or opened:
            for j, (body, attribute) in enumerate(self._bodies(node, copy)):
                inside = Frame([], f"{frame.prefix}{i}.{j}:", (), True, frame.given)
                attribute.g.CopyFrom(self._body(body, attribute.g, inside, names))
                captured.update(captures(attribute.g))
        else:
            for attribute in copy.attribute:
                for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                    rename(graph, names, set(), captured)
        for field_ in (copy.input, copy.output):
            renamed = [names.get(name, name) if name else "" for name in field_]
            del field_[:]
            field_.extend(renamed)
        step = Step(copy, node, (*copy.input, *captured), tuple(copy.output), frame.guard)
        if opened and not frame.whole:
            ((graph_, attribute),) = self._bodies(node, proto)
            inside = Frame([], f"{frame.prefix}{i}.0:", (), False, frame.given)
            inner = self.graph(graph_, list(attribute.g.node), inside, names)
            program = Program(
                ordered(inside.steps), self.constants, tuple(inner[n] for n in graph_.inputs),
                tuple(inner.get(n, n) for n in graph_.outputs), self.functions, self.opsets,
            )  # fmt: skip
            step.body = Body(program, tuple(rank(item) for item in attribute.g.input))
        frame.steps.append(step)

    def _looped(self, node: Node) -> bool:
        """Whether a node is a loop whose body is to be opened."""
        if node.domain or node.op not in ("Loop", "Scan") or not any(map(self.inline, node.bodies)):
            return False
        if any(id(body) in self.whole for body in node.bodies):
            return False
        version = next((item.version for item in self.opsets if not domain(item)), 1)
        return node.op == "Loop" or version >= FIRST_SCAN

    def _body(self, graph: Graph, proto: Proto, frame: Frame, outer: Names) -> Proto:
        """A body as a node has it, under fresh names and without its constants."""
        names = self.graph(graph, list(proto.node), frame, outer)
        inside = {names[name] for name in graph.inputs} | {name for step in frame.steps for name in step.outputs}
        out = self.onnx.GraphProto(name=proto.name or "body")
        for item in proto.input:
            out.input.add().CopyFrom(item)
            out.input[-1].name = names[item.name]
        for i, item in enumerate(proto.output):
            out.output.add().CopyFrom(item)
            name = names.get(item.name, item.name)
            if name not in inside:  # a body gives only what it makes
                frame.steps.append(self._same(name, f"{frame.prefix}{i} given:"))
                name = f"{frame.prefix}{i} given:"
            out.output[-1].name = name
        out.node.extend(step.proto for step in ordered(frame.steps))
        return out

    def _bodies(self, node: Node, proto: Proto) -> Iterator[tuple[Graph, Proto]]:
        graphs = [attribute for attribute in proto.attribute if attribute.type == self.onnx.AttributeProto.GRAPH]
        return zip(node.bodies, graphs, strict=True)

    def _same(self, source: str, target: str, guard: Guard = ()) -> Step:
        same = self.onnx.helper.make_node("Identity", [source], [target])
        return Step(same, Node("Identity", "", "", (source,), (target,), {}, ()), (source,), (target,), guard)
