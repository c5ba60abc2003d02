"""ONNX messages, read by position: graphs, nodes and the headers of tensors, and where each tensor's numbers lie.

The numbers themselves are not read. Field numbers are those of `onnx.proto`; fields that are not needed here, or
that no version of onnx knows, are passed over, and stay in the file as they are.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

from emp_onnx.errors import ModelError, quote
from emp_onnx.files.graph import Graph, Node, Place, Recipe, Run, Tensor
from emp_onnx.files.source import Source
from emp_onnx.files.wire import DEPTH, FIXED32, FIXED64, LENGTH, VARINT, Field, Wire, WireError

__all__ = ["CONTENTS", "DOMAIN", "DTYPES", "Contents", "read"]

NODES = 300_000
DOMAIN = "effective_pruning.packed"  # of the functions that unpack tensors
RANK = 64  # NumPy's own limit

# data_type -> name here, bytes of one number, field that holds it when it is not in raw_data
DTYPES: dict[int, tuple[str, int, int]] = {
    1: ("float32", 4, 4), 2: ("uint8", 1, 5), 3: ("int8", 1, 5), 4: ("uint16", 2, 5), 5: ("int16", 2, 5),
    6: ("int32", 4, 5), 7: ("int64", 8, 7), 8: ("string", 0, 6), 9: ("bool", 1, 5), 10: ("float16", 2, 5),
    11: ("float64", 8, 10), 12: ("uint32", 4, 11), 13: ("uint64", 8, 11), 14: ("complex64", 8, 4),
    15: ("complex128", 16, 10), 16: ("bfloat16", 2, 5), 17: ("float8e4m3fn", 1, 5), 18: ("float8e4m3fnuz", 1, 5),
    19: ("float8e5m2", 1, 5), 20: ("float8e5m2fnuz", 1, 5), 21: ("uint4", 0, 5), 22: ("int4", 0, 5),
    23: ("float4e2m1", 0, 5), 24: ("float8e8m0", 1, 5), 25: ("uint2", 0, 5), 26: ("int2", 0, 5),
}  # fmt: skip
NUMBERS = {4: FIXED32, 5: VARINT, 7: VARINT, 10: FIXED64, 11: VARINT}
# what a tensor is made of besides its header: the numbers, and where they are kept
CONTENTS = frozenset({4, 5, 6, 7, 9, 10, 11, 13, 14})


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


class _Reader:
    def __init__(self, source: Source) -> None:
        self.wire = Wire(source)
        self.left = NODES
        self.all: list[Tensor] = []
        self.spans: list[tuple[int, int]] = []
        self.keys: dict[str, int] = {}

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
                version = _signed(at)
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
        found: dict[str, int | float | str | tuple[int, ...] | None] = {}
        bodies: list[Graph] = []
        constant: Tensor | None = None
        plain = "" if domain == "ai.onnx" else domain
        holds = op == "Constant" and not plain and bool(outputs)
        if plain == DOMAIN and op.startswith("Unpack") and outputs:
            constant = self.packed(op, inputs, outputs[0], attributes, graph, (start, stop))
            return Node(op, plain, name, tuple(inputs), tuple(outputs), {}, (), constant)
        for at, end in attributes:
            attribute = self._attribute(at, end)
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

    def packed(
        self, op: str, inputs: list[str], output: str, attributes: list[tuple[int, int]], graph: Graph,
        node: tuple[int, int],
    ) -> Tensor | None:  # fmt: skip
        """The tensor that a node of our own domain unpacks; None if that is not as it should be."""
        numbers: dict[str, tuple[int, ...]] = {}
        for at, end in attributes:
            attribute = self._attribute(at, end)
            if attribute.name != "ends" and len(attribute.tensors) == 1:
                numbers[attribute.name] = self._whole(*attribute.tensors[0])
        many = {"UnpackGaps6": 2, "UnpackEarly": 3}.get(op, 1)
        parts = [graph.tensors.get(name) for name in inputs[: many + 1]]
        values = parts[-1] if len(parts) == many + 1 else None
        if values is None or None in parts or "shape" not in numbers:
            return None
        where = tuple(part.key for part in parts[:-1] if part)
        recipe = Recipe(op, values.key, where, numbers.get("count", (0,))[0], node)
        shape = numbers["shape"]
        tensor = Tensor(output, values.dtype, shape, "packed", self._key(graph.path + output), None, recipe=recipe)
        self.all.append(tensor)
        return tensor

    def _whole(self, start: int, stop: int) -> tuple[int, ...]:
        """A tensor of whole numbers, as those in attributes are."""
        data = b""
        for number, kind, at, _, end in self.wire.fields(start, stop):
            if number == 9 and kind == LENGTH:
                data = self.wire.data(at, end)
        if len(data) % 8 or len(data) > 8 * RANK:
            raise WireError("an attribute holds no whole numbers")
        return struct.unpack(f"<{len(data) // 8}q", data)

    def _attribute(self, start: int, stop: int) -> _Attribute:
        found = _Attribute()
        single = 0
        for number, kind, at, _, end in self.wire.fields(start, stop):
            if kind == VARINT:
                if number == 20:
                    found.kind = at
                elif number == 3:
                    found.number = _signed(at)
                elif number == 8:
                    found.numbers.append(_signed(at))
            elif kind == FIXED32 and number == 2:
                found.real = float(struct.unpack("<f", self.wire.data(at, end))[0])
            elif kind == LENGTH:
                if number == 1:
                    found.name = self.wire.text(at, end)
                elif number == 4:
                    found.text = self.wire.data(at, end).decode("utf-8", "replace") if end - at < 4096 else ""
                elif number == 21:
                    found.borrowed = end > at
                elif number == 5 or number == 10:
                    found.tensors.append((at, end))
                    single += number == 5
                elif number == 6 or number == 11:
                    found.graphs.append((at, end))
                    single += 16 * (number == 6)
                elif number == 22 or number == 23:
                    found.sparse.append((at, end))
                elif number == 8:
                    found.numbers += map(_signed, self.wire.numbers(at, end))
        if single & 15 > 1 or single > 31:
            raise WireError("an attribute is written in two pieces")
        return found

    def sparse(self, start: int, stop: int, path: str, name: str | None = None) -> Tensor:
        values, indices, mine, dims = None, None, 0, list[int]()
        for number, kind, at, _, end in self.wire.fields(start, stop):
            if number == 3:
                self._dims(dims, kind, at, end)
            elif kind == LENGTH and number == 1:
                values, mine = self.tensor(at, end, path, name), len(self.all) - 1
            elif kind == LENGTH and number == 2:
                indices = self.tensor(at, end, path, f"indices of {name or ''}")
        if values is None or indices is None:
            return Tensor("", "", tuple(dims), "sparse")
        # the address is that of the whole; its values get one of their own
        part = replace(values, key=self._key(f"{path}values of {values.name}"))
        self.all[mine] = part
        place = Place(0, LENGTH, (), (), None, (start, stop))
        whole = Tensor(values.name, values.dtype, tuple(dims), "sparse", values.key, place, (part, indices))
        self.all.append(whole)
        return whole

    def tensor(self, start: int, stop: int, path: str, name: str | None = None) -> Tensor:
        dims: list[int] = []
        dtype, own, far, runs, entries = 0, "", False, dict[int, list[Run]](), dict[str, str]()
        places: dict[str, tuple[int, int]] = {}
        raw: tuple[int, int] | None = None
        segment = False
        for number, kind, at, _, end in self.wire.fields(start, stop):
            if number == 1:
                self._dims(dims, kind, at, end)
            elif number == 2 and kind == VARINT:
                dtype = at
            elif number == 8 and kind == LENGTH:
                own = self.wire.text(at, end)
            elif number == 9 and kind == LENGTH:
                raw = at, end
            elif number in NUMBERS:
                _add(runs.setdefault(number, []), NUMBERS[number], kind, at, end)
            elif number == 13 and kind == LENGTH:
                key, value, places_at = self._located(at, end)
                entries[key], places[key] = value, places_at
            elif number == 14 and kind == VARINT:
                far = at == 1
            elif number == 3 and kind == LENGTH:
                segment = True
        kind_name, width, typed = DTYPES.get(dtype, (f"type {dtype}" if dtype else "undefined", 0, 0))
        storage = "segment" if segment else "external" if far else "raw" if raw else "typed"
        if storage == "raw" and raw:
            found: tuple[Run, ...] = (Run(raw[0], raw[1] - raw[0], 1, 1),)
        else:
            found = tuple(runs.get(typed, ())) if storage == "typed" else ()
        external = tuple(entries.items()) if far else ()
        place = Place(width, NUMBERS.get(typed, LENGTH), found, external, places.get("location"), (start, stop))
        key = self._key(path + (own if name is None else name))
        tensor = Tensor(own if name is None else name, kind_name, tuple(dims), storage, key, place)
        self.all.append(tensor)
        return tensor

    def _key(self, key: str) -> str:
        """An address that nothing else has."""
        seen = self.keys.get(key, 0) + 1
        self.keys[key] = seen
        return key if seen == 1 else f"{key}#{seen}"

    def _dims(self, dims: list[int], kind: int, at: int, end: int) -> None:
        if kind == VARINT:
            dims.append(_signed(at))
        elif kind == LENGTH and end - at <= 10 * RANK:
            dims.extend(map(_signed, self.wire.numbers(at, end)))
        if len(dims) > RANK:
            raise ModelError(f"a tensor must have at most {RANK} dimensions, got more")

    def _entry(self, start: int, stop: int) -> tuple[str, str]:
        key, value, _ = self._located(start, stop)
        return key, value

    def _located(self, start: int, stop: int) -> tuple[str, str, tuple[int, int]]:
        key, value, place = "", "", (0, 0)
        for number, kind, at, _, end in self.wire.fields(start, stop):
            if kind == LENGTH and number == 1:
                key = self.wire.text(at, end)
            elif kind == LENGTH and number == 2:
                value, place = self.wire.text(at, end), (at, end)
        return key, value, place

    def _text_of(self, wanted: int, start: int, stop: int) -> str:
        text = ""
        for number, kind, at, _, end in self.wire.fields(start, stop):
            if kind == LENGTH and number == wanted:
                text = self.wire.text(at, end)
        return text


@dataclass
class _Attribute:
    name: str = ""
    kind: int = 0
    number: int = 0
    real: float = 0.0
    text: str = ""
    borrowed: bool = False
    numbers: list[int] = field(default_factory=list)
    tensors: list[tuple[int, int]] = field(default_factory=list)
    graphs: list[tuple[int, int]] = field(default_factory=list)
    sparse: list[tuple[int, int]] = field(default_factory=list)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _add(runs: list[Run], wanted: int, kind: int, at: int, end: int) -> None:
    """Note where numbers of a typed field lie: packed in one go, or one by one."""
    if kind == LENGTH:
        if wanted == VARINT:
            runs.append(Run(at, end - at, 1, 1))
        else:
            width = 4 if wanted == FIXED32 else 8
            if (end - at) % width:
                raise WireError("packed numbers end within one")
            runs.append(Run(at, (end - at) // width, width, width))
    elif kind == wanted == VARINT:
        runs.append(Run(at, -1, 0, 0))  # the number itself: single integers are rare, and kept as they were read
    elif kind == wanted:
        width = 4 if wanted == FIXED32 else 8
        last = runs[-1] if runs else None
        if last and last.width == width and last.many > 0:
            step = at - (last.at + (last.many - 1) * last.step)
            if width < step <= width + 3 and (last.many == 1 or step == last.step):
                runs[-1] = Run(last.at, last.many + 1, width, step)
                return
        runs.append(Run(at, 1, width, width))
