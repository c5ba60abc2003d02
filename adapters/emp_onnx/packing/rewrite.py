"""A model whose tensors are stored in other forms: the edits that make it of the loaded file, and the new sidecars.

All that is not about these tensors stays as it is. What is added: initializers with the parts, one node per packed
tensor at the beginning of its graph, the functions, and the import of their domain. Where the format's version is too
old for functions it is raised to 8, the first that has them; nothing else about older versions is different, but
for initializers, which before version 4 all had to be inputs of the graph as well, and no longer are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from emp_onnx.files import emit
from emp_onnx.files.functions import DOMAIN, EARLY, cut_in
from emp_onnx.files.graph import Tensor
from emp_onnx.files.model_io import Model, Sheet
from emp_onnx.files.wire import Edit, Piece, Wire
from emp_onnx.packing.bodies import initializers, sparse
from emp_onnx.packing.fill import fill_parts
from emp_onnx.packing.header import header
from emp_onnx.packing.places import Chosen, Place, graphs, location, parts_of, places_of
from emp_onnx.packing.sidecars import sidecar
from emp_onnx.packing.stages import count, stage_name, stage_nodes, stages_of, staging

__all__ = ["half_name", "rewritten"]


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
        self.places = places_of(self.model, self.wire)
        self.of = {item.tensor.key: item for item in self.chosen}
        for graph in graphs(self.model):
            self.names |= {*graph.inputs, *graph.outputs, *graph.tensors, *graph.sparse}
            self.names |= {name for node in graph.nodes for name in (*node.inputs, *node.outputs)}

    def sheet(self) -> Sheet:
        """The edits, for whatever names the sidecars get, and what these consist of."""
        parts = {key for item in self.chosen if item.tensor.recipe for key in parts_of(item.tensor)}
        locations = {self.places[item.tensor.key].location for item in self.chosen} - {""}
        sidecars: dict[str, list[Piece]] = {}
        for held in locations:
            sidecars[held], self.taken[held] = sidecar(self.model, self.of, self.places, held, parts, self._write)
        return Sheet(partial(self._edits, parts), sidecars, frozenset(self.of))

    def _write(self, item: Chosen, starts: Sequence[int], put: Any) -> None:
        fill_parts(self.model, item.tensor.key, item.form, item.found, starts, put)

    def _edits(self, gone: set[str], names: Mapping[str, str]) -> list[Edit]:
        edits: list[Edit] = []
        nodes: dict[str, list[bytes]] = {}
        needed: set[str] = set()
        stages = stages_of(self.chosen)
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
        edits += staging(self.model, self.wire, self.places, staged)
        for graph in graphs(self.model):
            new = nodes.get(graph.path, [])
            if graph is self.model.graph and staged:
                new = [*stage_nodes(count(self.model, stages)), *new]
            if new:
                tag = next(self.wire.fields(*graph.span))[3]
                edits.append(Edit(tag, tag, b"".join(emit.field(1, node) for node in new), insert=True))
        edits += header(self.model, self.wire, needed)
        return _merged(edits)

    def _made(
        self, item: Chosen, place: Place, names: Mapping[str, str], stages: Mapping[str, list[int]]
    ) -> tuple[list[Piece], list[bytes]]:
        """The fields with a tensor's parts, and the contents of the nodes that make it of them."""
        tensor, form, dtype = item.tensor, item.form, "float16" if item.half else item.tensor.dtype
        output = self._free(half_name(tensor.name)) if item.half else tensor.name
        cast = [emit.node("Cast", [output], [tensor.name], {"to": emit.CODES[tensor.dtype]})] if item.half else []
        held = (names[place.location], self.taken[place.location]) if place.location else None
        if form.kind == "dense":
            return initializers(item, [(output, dtype, tensor.shape)], self._write, held), cast
        if form.kind == "coo":
            return sparse(item, self._write), []
        width, cut = form.width, cut_in(form.kind)
        stored = item.found.counts.parts if cut else [form.stored]
        gaps = form.kind.startswith("UnpackGaps")
        where = (["codes", "high"] if gaps else ["mask", "starts", "size"])[: len(form.parts) - 1]
        where = [f"mask.{i}" for i in range(cut)] or where
        parts = [f"values.{i}" for i in range(cut)] or ["values"]
        called = [self._free(f"{tensor.name}.{part}") for part in (*where, *parts)]
        heads: list[tuple[str, str, Sequence[int]]] = []
        for part, name, size in zip(where, called, form.parts, strict=False):
            kind, item_size = {"starts": ("int32", 4), "size": ("int64", 8)}.get(part, ("uint8", 1))
            heads.append((name, kind, (size // item_size,)))
        for name, many in zip(called[len(where) :], stored, strict=True):
            heads.append((name, dtype, (many + 1,) if width == 1 else (many + 1, width)))
        made = initializers(item, heads, self._write, held)
        attributes: dict[str, Any] = {"shape": np.array(tensor.shape, np.int64)}
        if gaps:
            attributes["count"] = np.array([form.codes], np.int64)
        if form.kind == EARLY:
            attributes["ends"] = (tensor.size,)
        after = [stage_name(i) for i in stages[tensor.key]]
        return made, [emit.node(form.kind, [*called, *after], [output], attributes, domain=DOMAIN), *cast]

    def _moved(self, tensor: Tensor, names: Mapping[str, str]) -> list[Edit]:
        """Where a tensor of a sidecar that stays as it is will be found."""
        held = location(tensor)
        assert tensor.place is not None
        if held not in self.taken:
            if held in names and tensor.place.location:
                return [Edit(*tensor.place.location, names[held].encode())]
            return []
        start, stop = tensor.place.message
        kept: list[Piece] = [
            (tag, end) for number, _, _, tag, end in self.wire.fields(start, stop) if number not in (13, 14)
        ]
        return [Edit(start, stop, (*kept, emit.external_entries(names[held], *self.taken[held][tensor.key])))]

    def _free(self, name: str) -> str:
        while name in self.names:
            name += "'"
        self.names.add(name)
        return name


def half_name(name: str) -> str:
    """What a tensor of float16 is called, of which a Cast makes the one of this name."""
    return f"{name}.float16"


def _merged(edits: Sequence[Edit]) -> list[Edit]:
    """In order; those that insert at one place become one, in the order given."""
    out: list[Edit] = []
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.stop)):
        if out and edit.insert and out[-1].insert and out[-1].start == edit.start:
            out[-1] = Edit(edit.start, edit.stop, (*out[-1].pieces, *edit.pieces), insert=True)
        else:
            out.append(edit)
    return out
