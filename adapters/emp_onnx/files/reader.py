"""ONNX messages, read by position: models, graphs and nodes; tensors are read by `headers.py`.

The numbers themselves are not read. Field numbers are those of `onnx.proto`; fields that are not needed here, or
that no version of onnx knows, are passed over, and stay in the file as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from emp_onnx.errors import ModelError, quote
from emp_onnx.files.attributes import read_attribute
from emp_onnx.files.graph import Graph, Node, Recipe, Tensor
from emp_onnx.files.headers import Headers, signed
from emp_onnx.files.source import Source
from emp_onnx.files.wire import DEPTH, LENGTH, VARINT, Field, WireError

__all__ = ["DOMAIN", "Contents", "added", "read"]

NODES = 300_000
DOMAIN = "effective_pruning.packed"  # of the functions that unpack tensors


@dataclass
class Contents:
    """A model as read.

    `tensors` holds every tensor anywhere; `imports` the version of each domain, `version` that of the format,
    `calls` the local functions, each with the field that says so.
    """

    graph: Graph
    functions: dict[tuple[str, str], Graph]
    metadata: list[tuple[str, str, Field]]
    tensors: list[Tensor]
    span: tuple[int, int] = (0, 0)
    nodes: list[tuple[int, int]] = field(default_factory=list)
    imports: dict[str, tuple[int, Field]] = field(default_factory=dict)
    version: tuple[int, Field | None] = (0, None)
    calls: dict[tuple[str, str], Field] = field(default_factory=dict)


def read(source: Source, origin: str) -> Contents:
    """Read a model.

    Raises:
        ModelError: it is no ONNX model, or damaged; the message says which.
    """
    try:
        contents = _Reader(source).model()
    except WireError as error:
        raise ModelError(f"model must be an ONNX file, got {origin}, which is damaged or something else") from error
    if contents is None:
        raise ModelError(f"model must be an ONNX file with a graph, got {origin}, which has none")
    return contents


def added(source: Source, start: int) -> list[tuple[str, str, Field]]:
    """The metadata entries of which all that follows `start` in a model consists.

    Raises:
        WireError: something else is there.
    """
    reader = _Reader(source)
    found = list(reader.wire.fields(start, source.size))
    if any(number != 14 or kind != LENGTH for number, kind, _, _, _ in found):
        raise WireError("there is more than metadata")
    return [(*reader._entry(item[2], item[4]), item) for item in found]


class _Reader(Headers):
    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.left = NODES
        self.spans: list[tuple[int, int]] = []

    def model(self) -> Contents | None:
        graph, functions, metadata, training = None, list[Field](), list[tuple[str, str, Field]](), []
        imports: dict[str, tuple[int, Field]] = {}
        version: tuple[int, Field | None] = (0, None)
        for item in self.wire.fields(0, self.wire.size):
            number, kind, at, _, end = item
            if number == 1 and kind == VARINT:
                version = at, item
            if kind != LENGTH:
                continue
            if number == 7:
                if graph is not None:
                    raise WireError("there are two graphs")
                graph = at, end
            elif number == 14:
                metadata.append((*self._entry(at, end), item))
            elif number == 20:
                training += [(a, e) for n, k, a, _, e in self.wire.fields(at, end) if k == LENGTH and n in (1, 2)]
            elif number == 8:
                imports.setdefault(*self._import(item))
            elif number == 25:
                functions.append(item)
        if graph is None:
            return None
        main = self.graph(*graph, "", "", None, 1)
        if not (main.nodes or main.outputs or main.tensors):
            return None
        named = [self.function(item[2], item[4]) for item in functions]
        for i, span in enumerate(training):
            self.graph(*span, "training", f"training {i}/", None, 2)
        calls = {name: item for (name, _), item in zip(named, functions, strict=True)}
        return Contents(main, dict(named), metadata, self.all, graph, self.spans, imports, version, calls)

    def _import(self, item: Field) -> tuple[str, tuple[int, Field]]:
        domain, version = "", 0
        for number, kind, at, _, end in self.wire.fields(item[2], item[4]):
            if number == 1 and kind == LENGTH:
                domain = self.wire.text(at, end)
            elif number == 2 and kind == VARINT:
                version = signed(at)
        return "" if domain == "ai.onnx" else domain, (version, item)

    def graph(self, start: int, stop: int, where: str, path: str, parent: Graph | None, depth: int) -> Graph:
        if depth > DEPTH:
            raise WireError("messages are nested too deeply")
        inputs, outputs, nodes = list[str](), list[str](), list[tuple[int, int]]()
        tensors: list[tuple[Tensor, bool]] = []
        for number, kind, at, _, end in self.wire.fields(start, stop):
            if kind != LENGTH:
                continue
            if number == 1:
                nodes.append((at, end))
                self.left -= 1
                if self.left < 0:
                    raise ModelError(f"model must have at most {NODES} nodes, got more")
            elif number == 5:
                tensors.append((self.tensor(at, end, path), False))
            elif number == 11 or number == 12:
                (inputs if number == 11 else outputs).append(self._text_of(1, at, end))
            elif number == 15:
                tensors.append((self.sparse(at, end, path), True))
        graph = Graph(where, parent, tuple(inputs), tuple(outputs), path=path, span=(start, stop))
        for tensor, sparse in tensors:
            if sparse:
                if tensor.name in graph.tensors or tensor.name in graph.sparse:
                    graph.repeated.add(tensor.name)
                graph.sparse[tensor.name] = tensor
                continue
            if tensor.name in graph.tensors:
                graph.repeated.add(tensor.name)
            graph.tensors[tensor.name] = tensor
        if parent is None and not where:
            self.spans = nodes
        taken: set[str] = set()
        for at, end in nodes:
            graph.nodes.append(self.node(at, end, graph, taken, depth + 1))
        return graph

    def function(self, start: int, stop: int) -> tuple[tuple[str, str], Graph]:
        name = domain = ""
        inputs, outputs, nodes = list[str](), list[str](), list[tuple[int, int]]()
        for number, kind, at, _, end in self.wire.fields(start, stop):
            if kind != LENGTH:
                continue
            if number == 1:
                name = self.wire.text(at, end)
            elif number == 10:
                domain = self.wire.text(at, end)
            elif number == 4 or number == 5:
                (inputs if number == 4 else outputs).append(self.wire.text(at, end))
            elif number == 7:
                nodes.append((at, end))
                self.left -= 1
                if self.left < 0:
                    raise ModelError(f"model must have at most {NODES} nodes, got more")
        where = f"local function {quote(name)}"
        path = f"function {quote(f'{domain}.{name}')}/"
        graph = Graph(where, None, tuple(inputs), tuple(outputs), path=path)
        taken: set[str] = set()
        for at, end in nodes:
            graph.nodes.append(self.node(at, end, graph, taken, 2))
        return (domain, name), graph

    def node(self, start: int, stop: int, graph: Graph, taken: set[str], depth: int) -> Node:
        op, domain, name, inputs, outputs, attributes = self._short_node(start, stop) or self._long_node(start, stop)
        found: dict[str, int | float | str | tuple[int, ...] | None] = {}
        bodies: list[Graph] = []
        constant: Tensor | None = None
        plain = "" if domain == "ai.onnx" else domain
        holds = op == "Constant" and not plain and bool(outputs)
        if plain == DOMAIN and op.startswith("Unpack") and outputs:
            constant = self.packed(op, inputs, outputs[0], attributes, graph, (start, stop))
            return Node(op, plain, name, tuple(inputs), tuple(outputs), {}, (), constant)
        for at, end in attributes:
            attribute = read_attribute(self.wire, at, end)
            what = attribute.name
            if attribute.borrowed:
                found[what] = None
            elif attribute.kind == 1:
                found[what] = attribute.real
            elif attribute.kind == 2:
                found[what] = attribute.number
            elif attribute.kind == 3:
                found[what] = attribute.text
            elif attribute.kind == 7:
                found[what] = tuple(attribute.numbers)
            if not (attribute.graphs or attribute.tensors or attribute.sparse):
                continue
            called = f"{what} of {op} {quote(name or (outputs[0] if outputs else ''))}"
            for i, span in enumerate(attribute.graphs):
                part = what if attribute.kind == 5 else f"{what} {i}"
                unique = f"{part} of {op} {quote(name or (outputs[0] if outputs else ''))}"
                while unique in taken:
                    unique += "'"
                taken.add(unique)
                where = f"body {quote(part)} of {op} {quote(name)}"
                body = self.graph(*span, where, f"{graph.path}{unique}/", graph, depth + 2)
                if attribute.kind in (5, 10):
                    bodies.append(body)
            for span in attribute.tensors:
                value = holds and attribute.kind == 4
                tensor = self.tensor(*span, graph.path, outputs[0] if value else called)
                constant = tensor if value else constant
            for span in attribute.sparse:
                value = holds and attribute.kind == 11
                tensor = self.sparse(*span, graph.path, outputs[0] if value else called)
                constant = tensor if value else constant
        return Node(op, plain, name, tuple(inputs), tuple(outputs), found, tuple(bodies), constant)

    def _short_node(self, start: int, stop: int) -> _Head | None:
        """What a node consists of, as almost all of them are written; None where a closer look is needed.

        The same as `_long_node` in a third of the time: a graph has tens of thousands of them.
        """
        data = self.wire.held(start, stop)
        if data is None:
            return None
        texts: list[list[str]] = [[], [], [], [], [], [], [], []]
        attributes: list[tuple[int, int]] = []
        i, size, count = 0, len(data), 0
        try:
            while i < size:
                tag, end = data[i], i + 2 + data[i + 1]
                if tag & 7 != LENGTH or not 8 < tag < 64 or end - i > 129 or end > size:
                    return None
                if tag == 42:
                    attributes.append((start + i + 2, start + end))
                else:
                    texts[tag >> 3].append(data[i + 2 : end].decode())
                i, count = end, count + 1
        except (IndexError, UnicodeDecodeError):
            return None
        self.wire.counted(count)
        _, inputs, outputs, *others = texts
        name, op, _, _, domain = (found[-1] if found else "" for found in others)
        return op, domain, name, inputs, outputs, attributes

    def _long_node(self, start: int, stop: int) -> _Head:
        wire = self.wire
        inputs, outputs, attributes = list[str](), list[str](), list[tuple[int, int]]()
        op = domain = name = ""
        for number, kind, at, _, end in wire.fields(start, stop):
            if kind != LENGTH:
                continue
            if number == 1:
                inputs.append(wire.text(at, end))
            elif number == 2:
                outputs.append(wire.text(at, end))
            elif number == 5:
                attributes.append((at, end))
            elif number == 4:
                op = wire.text(at, end)
            elif number == 3:
                name = wire.text(at, end)
            elif number == 7:
                domain = wire.text(at, end)
        return op, domain, name, inputs, outputs, attributes

    def packed(
        self, op: str, inputs: list[str], output: str, attributes: list[tuple[int, int]], graph: Graph,
        node: tuple[int, int],
    ) -> Tensor | None:  # fmt: skip
        """The tensor that a node of our own domain unpacks; None if that is not as it should be."""
        numbers: dict[str, tuple[int, ...]] = {}
        for at, end in attributes:
            attribute = read_attribute(self.wire, at, end)
            if attribute.name != "ends" and len(attribute.tensors) == 1:
                numbers[attribute.name] = self.whole(*attribute.tensors[0])
        cut = int(op[11:]) if op.startswith("UnpackParts") and op[11:].isdecimal() and len(op) < 14 else 1
        many = {"UnpackGaps6": 2, "UnpackEarly": 3}.get(op, cut)
        parts = [tensor for name in inputs[: many + cut] if (tensor := graph.tensors.get(name)) is not None]
        if len(parts) != many + cut or cut < 1 or "shape" not in numbers:
            return None
        where, values = (tuple(part.key for part in some) for some in (parts[:many], parts[many:]))
        recipe = Recipe(op, values, where, numbers.get("count", (0,))[0], node)
        shape = numbers["shape"]
        tensor = Tensor(output, parts[-1].dtype, shape, "packed", self.key(graph.path + output), None, recipe=recipe)
        self.all.append(tensor)
        return tensor

    def _entry(self, start: int, stop: int) -> tuple[str, str]:
        key, value, _ = self.located(start, stop)
        return key, value

    def _text_of(self, wanted: int, start: int, stop: int) -> str:
        text = ""
        for number, kind, at, _, end in self.wire.fields(start, stop):
            if kind == LENGTH and number == wanted:
                text = self.wire.text(at, end)
        return text


# operation, domain, name, inputs, outputs, where its attributes lie
_Head = tuple[str, str, str, list[str], list[str], list[tuple[int, int]]]
