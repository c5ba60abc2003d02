"""Where the tensors are that could be stored otherwise: in which graph and fields of the file, and in which sidecar."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from emp_onnx.files.graph import Graph, Node, Tensor
from emp_onnx.files.model_io import Model
from emp_onnx.files.wire import LENGTH, Wire
from emp_onnx.packing.forms import Form, Survey

__all__ = ["Chosen", "Place", "graphs", "location", "parts_of", "places_of", "span_of"]


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
class Place:
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


def places_of(model: Model, wire: Wire) -> dict[str, Place]:
    """Every tensor of the graphs that could be stored otherwise."""
    found: dict[str, Place] = {}
    for graph in graphs(model):
        fields: dict[int, tuple[int, int]] = {}
        nodes: list[tuple[int, int]] = []
        for number, kind, at, tag, end in wire.fields(*graph.span):
            if kind == LENGTH and number in (1, 5, 15):
                fields[at] = (tag, end)
                nodes += [(tag, end)] if number == 1 else []
        for tensor in (*graph.tensors.values(), *graph.sparse.values()):
            if tensor.place is not None and tensor.place.message[0] in fields:
                found[tensor.key] = Place(graph, [fields[tensor.place.message[0]]], False, location(tensor))
        for node, span in zip(graph.nodes, nodes, strict=True):
            held = node.constant
            if held is None:
                continue
            if held.recipe is None:
                found[held.key] = Place(graph, [span], True, location(held), node)
                continue
            parts = [found[key] for key in (*held.recipe.where, *held.recipe.values)]
            found[held.key] = Place(graph, [parts[0].fields[0], span, *(p.fields[0] for p in parts[1:])], False,
                                       parts[-1].location, node)  # fmt: skip
    return found


def parts_of(tensor: Tensor) -> tuple[str, ...]:
    """The keys of the tensors that a packed one consists of."""
    return (*tensor.recipe.where, *tensor.recipe.values) if tensor.recipe else ()


def location(tensor: Tensor) -> str:
    """The sidecar that holds a tensor's numbers; empty where they are in the file itself."""
    if tensor.storage != "external" or tensor.place is None:
        return ""
    return dict(tensor.place.external).get("location", "")


def span_of(tensor: Tensor) -> tuple[int, int]:
    """Where in its sidecar a tensor's numbers begin and end."""
    entries = dict(tensor.place.external) if tensor.place else {}
    start = int(entries.get("offset", "0"))
    length = entries.get("length")
    size = int(length) if length is not None else math.prod(tensor.shape) * (tensor.place.width if tensor.place else 0)
    return start, start + size
