"""Biases that a refit added to layers without one: a list that is certified, and the model with them, all zero.

A Gemm or a Conv has a place for one. Behind a MatMul an Add is put, which onnxruntime fuses with it where it can.
Nothing else of the file changes, and it follows from the original and the list, so it can be checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from emp_onnx.errors import UsageError, quote
from emp_onnx.files import emit
from emp_onnx.files.graph import Node
from emp_onnx.files.model_io import Model
from emp_onnx.files.source import Memory
from emp_onnx.files.wire import Edit, Wire

__all__ = ["KINDS", "TAKING", "Added", "added_of", "names_of", "with_biases"]

INPUT, OUTPUT = 1, 2  # fields of a node
TAKING = ("Conv", "ConvTranspose", "Gemm")  # have an input for a bias, the third
KINDS = ("float32", "float64", "float16")


@dataclass(frozen=True)
class Added:
    """One bias: the number of its node in the main graph, its name, type and length."""

    node: int
    name: str
    dtype: str
    size: int


def with_biases(model: Model, added: Sequence[Added]) -> Model:
    """The model with these biases, all zero.

    Raises:
        UsageError: one does not fit the model.
    """
    if not added:
        return model
    wire, graph = Wire(model.source), model.graph
    begin = {content: tag for _, _, content, tag, _ in wire.fields(*graph.span)}
    first = next(wire.fields(*graph.span))[3]
    taken = names_of(model)
    tensors, edits = [], []
    for item in added:
        if not 0 <= item.node < len(graph.nodes) or item.name in taken or item.dtype not in KINDS or item.size < 1:
            raise UsageError(f"an added bias must fit the model, got {quote(item.name)}")
        taken.add(item.name)
        tensors.append(_zeros(item))
        at, end = model.contents.nodes[item.node]
        node, content = graph.nodes[item.node], model.source.read(at, end - at)
        if node.op in TAKING:
            edits.append(Edit(at, end, _renamed(content, INPUT, (*node.inputs[:2], item.name))))
        elif node.op == "MatMul":
            result = node.outputs[0]
            plain = f"{item.name} not added"
            while plain in taken:
                plain += "'"
            taken.add(plain)
            # the product comes before what was its place, where the sum is now
            product = emit.field(1, _renamed(content, OUTPUT, (plain,)))
            edits.append(Edit(begin[at], begin[at], product, insert=True))
            edits.append(Edit(at, end, emit.node("Add", [plain, item.name], [result], name=f"{item.name} added")))
        else:
            raise UsageError(f"an added bias must be one of a product, got {quote(item.name)} at {quote(node.op)}")
    edits = [Edit(first, first, b"".join(tensors), insert=True), *edits]
    edits.sort(key=lambda edit: (edit.start, edit.stop))
    pieces, _ = wire.edited(0, model.source.size, edits)
    read = model.source.read
    whole = b"".join(p if isinstance(p, bytes) else bytes(read(p[0], p[1] - p[0])) for p in _plain(pieces))
    return Model(whole, model.path)


def _renamed(node: bytes, kind: int, names: Sequence[str]) -> bytes:
    """A node with these inputs or outputs, and all its other fields as they are."""
    others = [node[at:end] for number, _, _, at, end in Wire(Memory(node)).fields(0, len(node)) if number != kind]
    return b"".join([*(emit.field(kind, name) for name in names), *others])


def _plain(pieces: Sequence[Any]) -> Iterator[Any]:
    for piece in pieces:
        assert isinstance(piece, (bytes, tuple))
        yield piece


def added_of(body: Mapping[str, Any]) -> list[Added]:
    """What a certificate says was added.

    Raises:
        UsageError: it says something else.
    """
    try:
        found = [Added(int(said["node"]), str(said["name"]), str(said["dtype"]), int(said["size"]))
                 for said in body.get("added", [])]  # fmt: skip
        if [asdict(item) for item in found] != body.get("added", []):
            raise ValueError("other types")
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"certificate must list added biases as this tool does, got {error!r}") from error
    return found


def _zeros(item: Added) -> bytes:
    data = np.zeros(item.size, item.dtype).tobytes()
    return emit.field(5, emit.tensor(item.name, item.dtype, (item.size,), data))


def names_of(model: Model, /) -> set[str]:
    """Every name that is taken in a model's main graph, or in a body within it."""
    def of(node: Node) -> Iterator[str]:
        yield from (*node.inputs, *node.outputs)
        for body in node.bodies:
            yield from (*body.inputs, *body.outputs, *body.tensors)
            for inner in body.nodes:
                yield from of(inner)

    graph = model.graph
    return {*graph.inputs, *graph.outputs, *graph.tensors, *(name for node in graph.nodes for name in of(node))}
