"""Who makes and who uses what in a graph that is being fused, and what is known of its packed weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from emp_onnx.files.reader import DOMAIN

__all__ = ["FORMS", "OWN", "STANDARD", "Uses", "Weight", "is_standard", "shape_of", "value_of"]

FORMS = {f"Unpack{form}": form for form in ("Mask", "Mask4", "Early", "Gaps4", "Gaps6", "Gaps8")}
OWN = ("shape", "count", "ends")  # attributes of a node that unpacks
STANDARD = ("", "ai.onnx")
_BYTES: dict[int, Any] = {onnx.TensorProto.INT8: np.int8, onnx.TensorProto.UINT8: np.uint8}


@dataclass(frozen=True)
class Weight:
    """A packed weight where a node finds it.

    Attributes:
        unpack: the node that unpacks it.
        after: the Cast or DequantizeLinear between that and its user, if there is one.
    """

    unpack: onnx.NodeProto
    after: onnx.NodeProto | None = None

    @property
    def name(self) -> str:
        """That of the tensor."""
        return str(self.unpack.output[0])

    @property
    def values(self) -> str:
        """What is done to the stored values: nothing, Cast or Dequantize."""
        return "" if self.after is None else self.after.op_type.removesuffix("Linear")

    @property
    def after_inputs(self) -> int:
        """How many inputs of the function come behind the values."""
        return {"UnpackMask4": 4, "UnpackEarly": 0}.get(self.unpack.op_type, 1)


class Uses:
    """The main graph: what is gone from it is still in its list of nodes."""

    def __init__(self, graph: onnx.GraphProto, folder: Path | None) -> None:
        self.folder = folder
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = {item.name for item in graph.input}
        images = [item for item in graph.input if item.name not in self.tensors]
        self.sizes = {item.name: size for item in images if (size := _size(item))}
        self.unpacked = {n.output[0]: n for n in graph.node if n.domain == DOMAIN and n.op_type in FORMS}
        self.uses: Counter[str] = Counter()
        self.users: dict[str, list[onnx.NodeProto]] = {}
        self.makers: dict[str, onnx.NodeProto] = {}
        self.kept = {item.name for item in graph.output}
        self.gone: set[int] = set()
        for node in graph.node:
            self.uses.update(node.input)
            for name in node.input:
                self.users.setdefault(name, []).append(node)
            self.makers.update(dict.fromkeys(node.output, node))
            self.kept.update(_inner_names(node))
        self.weights = {name: Weight(unpack) for name, unpack in self.unpacked.items()}
        for node in graph.node:
            found = self.unpacked.get(node.input[0]) if node.input else None
            if found is None or node.domain not in STANDARD:
                continue
            widens = node.op_type == "Cast" and value_of(node, "to", 0) == onnx.TensorProto.FLOAT
            if widens or node.op_type == "DequantizeLinear":
                self.weights[node.output[0]] = Weight(found, node)

    def only_user(self, name: str) -> onnx.NodeProto | None:
        """The node that alone uses a value, if nothing else does."""
        users = [node for node in self.users.get(name, []) if id(node) not in self.gone]
        return users[0] if self.uses[name] == 1 and name not in self.kept and users else None

    def drop(self, node: onnx.NodeProto) -> None:
        """Take a node out of the graph."""
        self.gone.add(id(node))
        self.uses.subtract(node.input)

    def drop_unused(self, node: onnx.NodeProto) -> None:
        """Take it out if nothing uses what it makes, and then those before it likewise."""
        if id(node) in self.gone or any(self.uses[name] or name in self.kept for name in node.output):
            return
        self.drop(node)
        for name in node.input:
            if name in self.makers and name:
                self.drop_unused(self.makers[name])

    def constant(self, name: str) -> Any:
        """The numbers of a small initializer that no one else may give; None where there is none, or in a sidecar."""
        tensor = self.tensors.get(name)
        if tensor is None or name in self.inputs or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        return numpy_helper.to_array(tensor)

    def number(self, name: str) -> float | None:
        """The one number of a float32 constant of so few axes that nothing is spread over it; None otherwise."""
        maker = self.makers.get(name)
        found = self.constant(name)
        if maker is not None and is_standard(maker, "Constant"):
            given = value_of(maker, "value", None)
            short = value_of(maker, "value_float", None)
            found = numpy_helper.to_array(given) if given is not None else None if short is None else np.float32(short)
        if found is None or found.size != 1 or found.dtype != np.float32 or found.ndim > 1:
            return None
        return float(found.reshape(-1)[0])

    def stored(self, weight: Weight) -> onnx.TensorProto | None:
        """The header of its values."""
        return self.tensors.get(weight.unpack.input[len(weight.unpack.input) - weight.after_inputs - 1])

    def fill(self, weight: Weight) -> int | None:
        """What stands where nothing is stored, of 8-bit integers; None where it cannot be read."""
        tensor = self.stored(weight)
        if tensor is None or tensor.data_type not in _BYTES:
            return None
        raw = tensor.raw_data[:1]
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if self.folder is None or "location" not in entries:
                return None
            try:
                with open(self.folder / entries["location"], "rb") as stream:
                    stream.seek(int(entries.get("offset", "0")))
                    raw = stream.read(1)
            except (OSError, ValueError):
                return None
        if not raw:
            return int(tensor.int32_data[0]) if tensor.int32_data else None
        return int(np.frombuffer(raw, _BYTES[tensor.data_type])[0])

    def vector(self, name: str, size: int, kind: int = onnx.TensorProto.FLOAT, *, channels_of: int = 0) -> bool:
        """Whether `name` is a constant of this type with one number for each of `size` outputs.

        They lie along the last axis, or along one with so many more behind it, as the channels of an image do.
        """
        if unpack := self.unpacked.get(name):
            stored = self.stored(Weight(unpack))
            return shape_of(unpack) == [size] and stored is not None and stored.data_type == kind
        tensor = self.tensors.get(name)
        dims = [[size, *[1] * channels_of], [1, size, *[1] * channels_of]]
        return tensor is not None and tensor.data_type == kind and list(tensor.dims) in dims


def _size(item: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Of the images of an input: its axes behind batch and channels; () where one of them is open."""
    dims = item.type.tensor_type.shape.dim[2:]
    sizes = tuple(dim.dim_value for dim in dims)
    return sizes if all(size > 0 for size in sizes) else ()


def _inner_names(node: onnx.NodeProto) -> Iterator[str]:
    """Names that subgraphs of a node may take from outside."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
            yield from (item.name for item in graph.output)
            for inner in graph.node:
                yield from inner.input
                yield from _inner_names(inner)


def value_of(node: onnx.NodeProto, name: str, otherwise: Any) -> Any:
    """An attribute's value."""
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return otherwise


def shape_of(unpack: onnx.NodeProto) -> list[int]:
    """The shape of what a node unpacks."""
    return [int(size) for size in numpy_helper.to_array(value_of(unpack, "shape", None)).reshape(-1)]


def is_standard(node: onnx.NodeProto, op: str) -> bool:
    """Whether a node is this standard operation."""
    return node.op_type == op and node.domain in STANDARD
