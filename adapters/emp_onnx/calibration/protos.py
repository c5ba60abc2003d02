"""Nodes as onnx has them: names in them changed, and attributes of a call put in their places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emp_onnx.files.graph import Node

__all__ = ["captures", "domain", "rank", "rename", "told"]

Proto = Any
Names = Mapping[str, str]


def told(node: Node, proto: Proto, given: Mapping[str, Proto], onnx: Any) -> tuple[Node, Proto]:
    """A node of a function, with the attributes that the call gives in their places."""
    told = onnx.NodeProto()
    told.CopyFrom(proto)
    _tell(told, given)
    if not node.open:
        return node, told
    attributes = {k: v for k, v in node.attributes.items() if v is not None}
    for attribute in told.attribute:
        if attribute.name in node.attributes and attribute.name not in attributes:
            value = onnx.helper.get_attribute_value(attribute)
            if isinstance(value, (list, tuple)) and all(isinstance(v, int) for v in value):
                attributes[attribute.name] = tuple(value)
            elif isinstance(value, bytes):
                attributes[attribute.name] = value.decode("utf-8", "replace")
            elif isinstance(value, (int, float)):
                attributes[attribute.name] = value
    return node._replace(attributes=attributes), told


def _tell(node: Proto, given: Mapping[str, Proto]) -> None:
    kept = []
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            value = given.get(attribute.ref_attr_name)
            if value is None:
                continue
            name = attribute.name
            attribute.CopyFrom(value)
            attribute.name = name
        for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
            for inner in graph.node:
                _tell(inner, given)
        kept.append(attribute)
    copies = [type(attribute)() for attribute in kept]
    for copy, attribute in zip(copies, kept, strict=True):
        copy.CopyFrom(attribute)
    del node.attribute[:]
    node.attribute.extend(copies)


def captures(body: Proto) -> dict[str, None]:
    """What a body with names of its own reads from outside."""
    made = {item.name for item in (*body.input, *body.initializer)} | {n for node in body.node for n in node.output}
    found: dict[str, None] = {}
    for node in body.node:
        found.update((name, None) for name in node.input if name)
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                found.update(captures(graph))
    return {name: None for name in found if name not in made}


def rename(body: Proto, names: Names, shadow: set[str], captured: dict[str, None]) -> None:
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
                rename(nested, names, inner, captured)
    for item in body.output:
        if item.name not in inner and item.name in names:
            captured[names[item.name]] = None
            item.name = names[item.name]


def domain(item: Proto) -> str:
    """Of an operator set, the standard one by its short name."""
    return "" if item.domain == "ai.onnx" else str(item.domain)


def rank(item: Proto) -> int | None:
    """Of a declared value, None where that is not said."""
    kind = item.type.tensor_type
    return len(kind.shape.dim) if kind.HasField("shape") else None
