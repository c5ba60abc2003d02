"""What a packed model says outside its graph: the format's version, the import of the domain, and the functions."""

from __future__ import annotations

from collections.abc import Iterator

from emp_onnx.files import emit
from emp_onnx.files.functions import DOMAIN, EARLY, STAGE, VERSION, function_bytes
from emp_onnx.files.model_io import Model
from emp_onnx.files.wire import LENGTH, Edit, Wire

__all__ = ["FREE_SINCE", "header"]

FUNCTIONS_SINCE = 8  # version of the format
FREE_SINCE = 4  # version from which initializers need not be inputs


def header(model: Model, wire: Wire, needed: set[str]) -> list[Edit]:
    """Version, import and functions as they must be."""
    contents, edits = model.contents, list[Edit]()
    opset = next((version for name, (version, _) in contents.imports.items() if not name), 1)
    for (domain, _), item in contents.calls.items():
        if domain == DOMAIN:
            edits.append(Edit(item[3], item[4], b""))
    own = contents.imports.get(DOMAIN)
    first = next(wire.fields(0, wire.size))[3]
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
        edits += _inputs(model, wire)
    return edits


def _inputs(model: Model, wire: Wire) -> Iterator[Edit]:
    """Inputs of the graph that only say that there is an initializer."""
    graph = model.graph
    for number, kind, at, tag, end in wire.fields(*graph.span):
        if number == 11 and kind == LENGTH:
            name = ""
            for inner, how, start, _, stop in wire.fields(at, end):
                if inner == 1 and how == LENGTH:
                    name = wire.text(start, stop)
            if name in graph.tensors or name in graph.sparse:
                yield Edit(tag, end, b"")
