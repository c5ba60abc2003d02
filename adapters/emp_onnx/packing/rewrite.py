"""A model whose tensors are stored in other forms: the edits that make it of the loaded file, and the new sidecars.

All that is not about these tensors stays as it is. What is added: initializers with the parts, one node per packed
tensor at the beginning of its graph, the functions, and the import of their domain. Where the format's version is too
old for functions it is raised to 8, the first that has them; nothing else about older versions is different, but
for initializers, which before version 4 all had to be inputs of the graph as well, and no longer are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from emp_onnx.files import emit
from emp_onnx.files.graph import Graph, Node, Tensor
from emp_onnx.files.model_io import Model, Sheet
from emp_onnx.files.wire import LENGTH, Blob, Edit, Piece, Wire, varint
from emp_onnx.packing.fill import fill_parts
from emp_onnx.packing.forms import Form, Survey
from emp_onnx.packing.functions import DOMAIN, EARLY, PARTS, STAGE, VERSION, function_bytes

__all__ = ["Chosen", "graphs", "half_name", "rewritten"]

FUNCTIONS_SINCE = 8  # version of the format
FREE_SINCE = 4  # version from which initializers need not be inputs
STAGES = 9  # passes that onnxruntime makes, less one: unpacking is spread over them
STAGED = 1 << 25  # dense bytes from which it is spread at all
ALIGN = 64


@dataclass(frozen=True)
class Chosen:
    """A tensor that gets another form."""

    tensor: Tensor
    form: Form
    found: Survey

    @property
    def half(self) -> bool:
        """Whether its values are rounded to float16."""
        return self.tensor.dtype == "float32" and self.found.fill.dtype == np.float16


@dataclass
class _Place:
    """Where a tensor is in the file: the graph, the fields it consists of, and where its numbers are kept."""

    graph: Graph
    fields: list[tuple[int, int]]
    is_node: bool
    location: str
    node: Node | None = None


def graphs(model: Model) -> Iterator[Graph]:
    """The main graph and all bodies in it; not the local functions."""
    todo = [model.graph]
    while todo:
        graph = todo.pop(0)
        yield graph
        todo += [body for node in graph.nodes for body in node.bodies]


def rewritten(model: Model, chosen: Sequence[Chosen]) -> Model:
    """The model with these tensors in these forms; values are made as they are written.

    Tensors that are packed and not among them stay packed, and are unpacked by the same functions.
    """
    return model.laid_out(_Rewrite(model, chosen).sheet())


@dataclass
class _Rewrite:
    model: Model
    chosen: Sequence[Chosen]
    names: set[str] = field(default_factory=set)
    taken: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.wire = Wire(self.model.source)
        self.places = self._places()
        self.of = {item.tensor.key: item for item in self.chosen}
        for graph in graphs(self.model):
            self.names |= {*graph.inputs, *graph.outputs, *graph.tensors, *graph.sparse}
            self.names |= {name for node in graph.nodes for name in (*node.inputs, *node.outputs)}

    def _places(self) -> dict[str, _Place]:
        """Every tensor of the graphs that could be stored otherwise."""
        found: dict[str, _Place] = {}
        for graph in graphs(self.model):
            fields: dict[int, tuple[int, int]] = {}
            nodes: list[tuple[int, int]] = []
            for number, kind, at, tag, end in self.wire.fields(*graph.span):
                if kind == LENGTH and number in (1, 5, 15):
                    fields[at] = (tag, end)
                    nodes += [(tag, end)] if number == 1 else []
            for tensor in (*graph.tensors.values(), *graph.sparse.values()):
                if tensor.place is not None and tensor.place.message[0] in fields:
                    found[tensor.key] = _Place(graph, [fields[tensor.place.message[0]]], False, _location(tensor))
            for node, span in zip(graph.nodes, nodes, strict=True):
                held = node.constant
                if held is None:
                    continue
                if held.recipe is None:
                    found[held.key] = _Place(graph, [span], True, _location(held), node)
                    continue
                parts = [found[key] for key in (*held.recipe.where, held.recipe.values)]
                found[held.key] = _Place(graph, [parts[0].fields[0], span, *(p.fields[0] for p in parts[1:])], False,
                                           parts[-1].location, node)  # fmt: skip
        return found

    def sheet(self) -> Sheet:
        """The edits, for whatever names the sidecars get, and what these consist of."""
        parts = {key for item in self.chosen if item.tensor.recipe for key in self._parts(item.tensor)}
        locations = {self.places[item.tensor.key].location for item in self.chosen} - {""}
        sidecars: dict[str, list[Piece]] = {location: self._sidecar(location, parts) for location in locations}
        return Sheet(partial(self._edits, parts), sidecars, frozenset(self.of))

    def _parts(self, tensor: Tensor) -> tuple[str, ...]:
        return (*tensor.recipe.where, tensor.recipe.values) if tensor.recipe else ()

    # sidecars

    def _sidecar(self, location: str, gone: set[str]) -> list[Piece]:
        """What a sidecar will hold: the tensors that stay, copied, and the parts of those that change."""
        pieces: list[Piece] = []
        spans: dict[tuple[int, int], int] = {}
        offsets = self.taken.setdefault(location, {})
        end = 0
        mine = [t for t in self.model.tensors.values() if t.storage == "external" and _location(t) == location]
        mine += [i.tensor for i in self.chosen if i.tensor.recipe and self.places[i.tensor.key].location == location]

        def first(tensor: Tensor) -> int:
            keys = self._parts(tensor) or (tensor.key,)
            return min(_span(self.model.tensors[key])[0] for key in keys)

        for tensor in sorted(mine, key=first):
            if tensor.key in gone:
                continue
            item = self.of.get(tensor.key)
            rest = -end % ALIGN
            if item is None:
                span = _span(tensor)
                if span in spans:
                    offsets[tensor.key] = (spans[span], span[1] - span[0])
                    continue
                pieces += [b"\0" * rest, span]
                end += rest
                spans[span], offsets[tensor.key] = end, (end, span[1] - span[0])
                end += span[1] - span[0]
                continue
            at = 0
            starts = []
            for i, size in enumerate(item.form.parts):
                starts.append(at)
                offsets[f"{tensor.key}\0{i}"] = (end + rest + at, size)
                at += size + (-size % ALIGN if i + 1 < len(item.form.parts) else 0)
            pieces += [b"\0" * rest, Blob(at, partial(self._write, item, starts))]
            end += rest + at
        return pieces

    def _write(self, item: Chosen, starts: Sequence[int], put: Any) -> None:
        fill_parts(self.model, item.tensor.key, item.form, item.found, starts, put)

    # the graph

    def _edits(self, gone: set[str], names: Mapping[str, str]) -> list[Edit]:
        edits: list[Edit] = []
        nodes: dict[str, list[bytes]] = {}
        needed: set[str] = set()
        stages = self._stages()
        for item in self.chosen:
            place = self.places[item.tensor.key]
            pieces, made = self._made(item, place, names, stages)
            if item.form.kind not in ("dense", "coo"):
                needed.add(item.form.kind)
            nodes.setdefault(place.graph.path, []).extend(made)
            if place.is_node:  # a Constant node
                tag = next(self.wire.fields(*place.graph.span))[3]
                edits.append(Edit(tag, tag, tuple(pieces), insert=True))
                pieces = []
            edits.append(Edit(*place.fields[0], tuple(pieces)))
            edits += [Edit(*span, b"") for span in place.fields[1:]]
        for tensor in self.model.tensors.values():
            if tensor.recipe and tensor.key not in self.of:
                needed.add(tensor.recipe.function)
            if tensor.storage == "external" and tensor.place and tensor.key not in gone | self.of.keys():
                edits += self._moved(tensor, names)
        staged = bool(needed - {EARLY})
        edits += self._staging(staged)
        for graph in graphs(self.model):
            new = nodes.get(graph.path, [])
            if graph is self.model.graph and staged:
                new = [*_stage_nodes(self._count(stages)), *new]
            if new:
                tag = next(self.wire.fields(*graph.span))[3]
                edits.append(Edit(tag, tag, b"".join(emit.field(1, node) for node in new), insert=True))
        edits += self._header(needed)
        return _merged(edits)

    def _made(
        self, item: Chosen, place: _Place, names: Mapping[str, str], stages: Mapping[str, list[int]]
    ) -> tuple[list[Piece], list[bytes]]:
        """The fields with a tensor's parts, and the contents of the nodes that make it of them."""
        tensor, form, dtype = item.tensor, item.form, "float16" if item.half else item.tensor.dtype
        output = self._free(half_name(tensor.name)) if item.half else tensor.name
        cast = [emit.node("Cast", [output], [tensor.name], {"to": emit.CODES[tensor.dtype]})] if item.half else []
        if form.kind == "dense":
            return self._initializers(item, [(output, dtype, tensor.shape)], names, place), cast
        if form.kind == "coo":
            return self._sparse(item), []
        width, stored = form.width, form.stored + 1
        values = (stored,) if width == 1 else (stored, width)
        gaps = form.kind.startswith("UnpackGaps")
        where = (["codes", "high"] if gaps else ["mask", "starts", "size"])[: len(form.parts) - 1]
        called = [self._free(f"{tensor.name}.{part}") for part in (*where, "values")]
        heads: list[tuple[str, str, Sequence[int]]] = []
        for part, name, size in zip(where, called, form.parts, strict=False):
            kind, item_size = {"starts": ("int32", 4), "size": ("int64", 8)}.get(part, ("uint8", 1))
            heads.append((name, kind, (size // item_size,)))
        heads.append((called[-1], dtype, values))
        made = self._initializers(item, heads, names, place)
        attributes: dict[str, Any] = {"shape": np.array(tensor.shape, np.int64)}
        if gaps:
            attributes["count"] = np.array([form.codes], np.int64)
        if form.kind == EARLY:
            attributes["ends"] = (tensor.size,)
        after = [_stage_name(i) for i in stages[tensor.key]]
        return made, [emit.node(form.kind, [*called, *after], [output], attributes, domain=DOMAIN), *cast]

    def _initializers(
        self, item: Chosen, heads: Sequence[tuple[str, str, Sequence[int]]], names: Mapping[str, str], place: _Place
    ) -> list[Piece]:
        """Fields of a graph with these tensors, whose numbers come from one blob, or are in a sidecar."""
        if place.location:
            taken = self.taken[place.location]
            bodies = [
                emit.tensor(*head) + emit.external_entries(names[place.location], *taken[f"{item.tensor.key}\0{i}"])
                for i, head in enumerate(heads)
            ]
            return [emit.field(5, body) for body in bodies]
        starts, fixed, at = [], list[tuple[int, bytes]](), 0
        for head, size in zip(heads, item.form.parts, strict=True):
            start = emit.tensor(*head) + varint(9 << 3 | LENGTH) + varint(size)
            start = varint(5 << 3 | LENGTH) + varint(len(start) + size) + start
            fixed.append((at, start))
            starts.append(at + len(start))
            at += len(start) + size

        def write(put: Any) -> None:
            for where, data in fixed:
                put(where, data)
            self._write(item, starts, put)

        return [Blob(at, write)]

    def _sparse(self, item: Chosen) -> list[Piece]:
        """A field of a graph with a sparse tensor: values, then indices, then sizes."""
        form, dtype = item.form, f"int{item.form.width}"
        parts = [(1, item.tensor.name, item.tensor.dtype, form.parts[1]), (2, "", dtype, form.parts[0])]
        body: list[tuple[bytes, int]] = []
        for number, name, kind, size in parts:
            inner = emit.tensor(name, kind, (form.stored,)) + varint(9 << 3 | LENGTH) + varint(size)
            body.append((varint(number << 3 | LENGTH) + varint(len(inner) + size) + inner, size))
        tail = b"".join(emit.number(3, size) for size in item.tensor.shape)
        length = sum(len(head) + size for head, size in body) + len(tail)
        top = varint(15 << 3 | LENGTH) + varint(length)
        values_at = len(top) + len(body[0][0])
        indices_at = values_at + body[0][1] + len(body[1][0])

        def write(put: Any) -> None:
            put(0, top + body[0][0])
            put(values_at + body[0][1], body[1][0])
            put(indices_at + body[1][1], tail)
            self._write(item, [indices_at, values_at], put)

        return [Blob(len(top) + length, write)]

    def _moved(self, tensor: Tensor, names: Mapping[str, str]) -> list[Edit]:
        """Where a tensor of a sidecar that stays as it is will be found."""
        location = _location(tensor)
        assert tensor.place is not None
        if location not in self.taken:
            if location in names and tensor.place.location:
                return [Edit(*tensor.place.location, names[location].encode())]
            return []
        start, stop = tensor.place.message
        kept: list[Piece] = [
            (tag, end) for number, _, _, tag, end in self.wire.fields(start, stop) if number not in (13, 14)
        ]
        return [Edit(start, stop, (*kept, emit.external_entries(names[location], *self.taken[location][tensor.key])))]

    def _free(self, name: str) -> str:
        while name in self.names:
            name += "'"
        self.names.add(name)
        return name

    # when each is unpacked

    def _stages(self) -> dict[str, list[int]]:
        """For each packed tensor the stages in which its parts are unpacked."""
        packed = [item for item in self.chosen if item.form.kind not in ("dense", "coo")]
        total = sum(map(_dense_bytes, packed))
        done, out = 0, dict[str, list[int]]()
        for item in packed:
            many, size = PARTS.get(item.form.kind, 1), _dense_bytes(item)
            steps = [done + size * i // max(many, 1) for i in range(many)]
            out[item.tensor.key] = [step * STAGES // total if total >= STAGED else 0 for step in steps]
            done += size
        return out

    def _count(self, stages: Mapping[str, list[int]]) -> int:
        """How many stages there are; tensors that stay packed keep theirs."""
        new = max((stage for some in stages.values() for stage in some), default=0)
        return 1 + max(new, sum(_is_stage(node) for node in self.model.graph.nodes))

    def _staging(self, needed: bool) -> list[Edit]:
        """The first stage's initializer, anew; what was there before goes."""
        edits = []
        graph = self.model.graph
        tensor = graph.tensors.get(_stage_name(0))
        if tensor is not None:
            edits += [Edit(*self.places[tensor.key].fields[0], b"")]
        stages = {span[0] for node, span in zip(graph.nodes, self.model.contents.nodes, strict=True) if _is_stage(node)}
        for number, kind, at, tag, end in self.wire.fields(*graph.span):
            if kind == LENGTH and number == 1 and at in stages:
                edits.append(Edit(tag, end, b""))
        if needed:
            tag = next(self.wire.fields(*graph.span))[3]
            body = emit.tensor(_stage_name(0), "float32", (), np.zeros((), np.float32).tobytes())
            edits.append(Edit(tag, tag, emit.field(5, body), insert=True))
        return edits

    # the model around it

    def _header(self, needed: set[str]) -> list[Edit]:
        """Version, import and functions as they must be."""
        contents, edits = self.model.contents, list[Edit]()
        opset = next((version for name, (version, _) in contents.imports.items() if not name), 1)
        for (domain, _), item in contents.calls.items():
            if domain == DOMAIN:
                edits.append(Edit(item[3], item[4], b""))
        own = contents.imports.get(DOMAIN)
        first = next(self.wire.fields(0, self.wire.size))[3]
        if own is not None:
            edits.append(Edit(own[1][3], own[1][4], b""))
        if not needed:
            return edits
        added = emit.field(8, emit.field(1, DOMAIN) + emit.number(2, VERSION))
        added += b"".join(
            emit.field(25, function_bytes(name, opset))
            for name in sorted(needed | ({STAGE} if needed - {EARLY} else set()))
        )
        version, written = contents.version
        if version < FUNCTIONS_SINCE:
            if written is not None:
                edits.append(Edit(written[3], written[4], b""))
            added = emit.number(1, FUNCTIONS_SINCE) + added
        edits.append(Edit(first, first, added, insert=True))
        if version < FREE_SINCE:
            edits += self._inputs()
        return edits

    def _inputs(self) -> Iterator[Edit]:
        """Inputs of the graph that only say that there is an initializer."""
        graph = self.model.graph
        for number, kind, at, tag, end in self.wire.fields(*graph.span):
            if number == 11 and kind == LENGTH:
                name = ""
                for inner, how, start, _, stop in self.wire.fields(at, end):
                    if inner == 1 and how == LENGTH:
                        name = self.wire.text(start, stop)
                if name in graph.tensors or name in graph.sparse:
                    yield Edit(tag, end, b"")


def half_name(name: str) -> str:
    """What a tensor of float16 is called, of which a Cast makes the one of this name."""
    return f"{name}.float16"


def _dense_bytes(item: Chosen) -> int:
    """Bytes of a tensor as it is unpacked."""
    return item.tensor.size * item.found.fill.dtype.itemsize


def _is_stage(node: Node) -> bool:
    return (node.domain, node.op) == (DOMAIN, STAGE)


def _stage_name(stage: int) -> str:
    return f"{DOMAIN}/stage {stage}"


def _stage_nodes(count: int) -> list[bytes]:
    return [emit.node(STAGE, [_stage_name(i)], [_stage_name(i + 1)], domain=DOMAIN) for i in range(count - 1)]


def _merged(edits: Sequence[Edit]) -> list[Edit]:
    """In order; those that insert at one place become one, in the order given."""
    out: list[Edit] = []
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.stop)):
        if out and edit.insert and out[-1].insert and out[-1].start == edit.start:
            out[-1] = Edit(edit.start, edit.stop, (*out[-1].pieces, *edit.pieces), insert=True)
        else:
            out.append(edit)
    return out


def _location(tensor: Tensor) -> str:
    if tensor.storage != "external" or tensor.place is None:
        return ""
    return dict(tensor.place.external).get("location", "")


def _span(tensor: Tensor) -> tuple[int, int]:
    entries = dict(tensor.place.external) if tensor.place else {}
    start = int(entries.get("offset", "0"))
    length = entries.get("length")
    size = int(length) if length is not None else math.prod(tensor.shape) * (tensor.place.width if tensor.place else 0)
    return start, start + size
