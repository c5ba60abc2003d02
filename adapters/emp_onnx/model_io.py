"""ONNX files in and out: the only room that touches protobufs.

A `Model` shows the other rooms a tree of graphs (nodes, initializers' headers) and NumPy views of weights; it is never
changed, `replaced` gives a new one. What a model holds beyond that (other tensors, metadata, fields unknown to this
version of onnx, order) is carried along untouched.

Weights in sidecar files (external data) are mapped, not read. A saved model gets sidecars of its own, named after the
output and the contents, so the input's sidecars are never written to.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx._files import check_target, same_file, staged, sync_folder
from emp_onnx.errors import MissingExtraError, ModelError, OutputError, UsageError, quote
from emp_onnx.graph import Graph, Node, Tensor

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

__all__ = ["Model", "Values", "load", "save"]

FLOAT = 1
Values = NDArray[np.float32]


class Model:
    """An ONNX model, as loaded: graphs to look at, weights to view, metadata.

    Attributes:
        path: the file it came from, or None.
        graph: the main graph, with the bodies of control flow hanging from their nodes.
        functions: local functions by (domain, name).
    """

    def __init__(
        self, proto: ModelProto, path: Path | None = None, patches: Mapping[str, Values] | None = None
    ) -> None:
        self._proto = proto
        self.path = path
        self._patches = dict(patches or {})
        self.graph = _graph(proto.graph, "", None)
        self.functions = {(_text(f.domain), _text(f.name)): _function(f) for f in proto.functions}
        self._index = {t.name: i for i, t in enumerate(proto.graph.initializer)}

    @property
    def origin(self) -> str:
        """The file's name in quotes, or words for a model that has none."""
        return quote(self.path) if self.path else "a model in memory"

    @property
    def metadata(self) -> dict[str, str]:
        """The model's metadata_props, as a copy."""
        return {_text(entry.key): _text(entry.value) for entry in self._proto.metadata_props}

    def values(self, name: str, /) -> Values:
        """The values of a float32 initializer of the main graph, in its shape, read-only.

        Raises:
            ModelError: the tensor's bytes do not fit its shape, or its sidecar file is missing, short or out of bounds.
        """
        tensor = self._initializer(name)
        shape = tuple(tensor.dims)
        if name in self._patches:
            flat = self._patches[name].reshape(-1)
        elif tensor.data_location == 1:
            flat = self._mapped(tensor)
        elif tensor.HasField("raw_data"):
            raw = tensor.raw_data
            if len(raw) != 4 * math.prod(shape):
                raise ModelError(_misfit(name, shape, len(raw)))
            flat = np.frombuffer(raw, "<f4")
        else:
            flat = np.array(tensor.float_data, "<f4")
            if flat.size != math.prod(shape):
                raise ModelError(_misfit(name, shape, 4 * flat.size))
        view = flat.reshape(shape)
        view.flags.writeable = False
        return view

    def _initializer(self, name: str) -> TensorProto:
        tensor: TensorProto = self._proto.graph.initializer[self._index[name]]
        return tensor

    def replaced(self, values: Mapping[str, Values], metadata: Mapping[str, str | None]) -> Model:
        """A new model that differs in these weights and metadata entries (None removes one), and in nothing else."""
        proto = type(self._proto)()
        proto.CopyFrom(self._proto)
        patches = dict(self._patches)
        for name, new in values.items():
            tensor = proto.graph.initializer[self._index[name]]
            if tuple(tensor.dims) != new.shape or tensor.data_type != FLOAT:
                raise ValueError(
                    f"{name} must stay float32 of shape {tuple(tensor.dims)}, got {new.dtype} of {new.shape}"
                )
            if tensor.data_location == 1:
                patches[name] = new
            elif tensor.HasField("raw_data"):
                tensor.raw_data = np.ascontiguousarray(new, "<f4").tobytes()
            else:
                del tensor.float_data[:]
                tensor.float_data.extend(new.ravel().tolist())
        for key, text in metadata.items():
            found = [entry for entry in proto.metadata_props if entry.key == key]
            if text is None or len(found) > 1:
                kept = [entry for entry in proto.metadata_props if entry.key != key]
                kept = [type(entry).FromString(entry.SerializeToString()) for entry in kept]
                del proto.metadata_props[:]
                proto.metadata_props.extend(kept)
                found = []
            if text is not None:
                entry = found[0] if found else proto.metadata_props.add(key=key)
                entry.value = text
        return Model(proto, self.path, patches)

    def rest(self, names: frozenset[str], key: str) -> dict[str, str]:
        """Everything but the values of these initializers and one metadata entry, as hashes by place.

        Two models are equal outside those weights exactly when these are equal; a differing place says where to look.
        """
        proto = type(self._proto)()
        proto.CopyFrom(self._proto)
        out = {}
        for tensor in _tensors(proto):
            if tensor.data_location == 1 and tensor.name not in names:
                # the bytes, wherever they are kept, not the place
                out[f"external tensor {quote(tensor.name)}"] = hashlib.sha256(
                    self._mapped(tensor, raw=True).data
                ).hexdigest()
            del tensor.external_data[:]
        for tensor in proto.graph.initializer:
            if tensor.name in names:
                tensor.ClearField("raw_data")
                del tensor.float_data[:]
            out[f"initializer {quote(tensor.name)}"] = _digest(tensor)
        for entry in proto.metadata_props:
            if entry.key != key:
                out[f"metadata {quote(entry.key)}"] = _digest(entry)
        order = [t.name for t in proto.graph.initializer], [e.key for e in proto.metadata_props if e.key != key]
        out["order of initializers and metadata"] = hashlib.sha256(repr(order).encode("utf-8", "replace")).hexdigest()
        for i, node in enumerate(proto.graph.node):
            out[f"node {i} ({quote(node.name or node.op_type)})"] = _digest(node)
        del proto.graph.initializer[:], proto.graph.node[:], proto.metadata_props[:]
        out["graph inputs, outputs, functions and other fields"] = _digest(proto)
        return out

    def to_bytes(self) -> bytes:
        """The model as one ONNX file in memory.

        Raises:
            ModelError: it keeps weights in sidecar files, or would be larger than the 2 GB one file can hold.
        """
        if any(t.data_location == 1 for t in _tensors(self._proto)):
            raise ModelError(f"model must hold its weights itself for this, got sidecar files in {self.origin}")
        return _serialise(self._proto, self.origin)

    def sidecars(self) -> dict[str, Path]:
        """The sidecar files this model needs: the location as written in the model, and the real file.

        Raises:
            ModelError: a location that leads out of the model's directory, or a file that is not there.
        """
        found: dict[str, Path] = {}
        for tensor in _tensors(self._proto):
            if tensor.data_location == 1:
                location = _entries(tensor).get("location", "")
                if location not in found:
                    found[location] = self._sidecar(location, tensor.name)
        return found

    def _sidecar(self, location: str, name: str) -> Path:
        if self.path is None:
            raise ModelError(
                f"tensor {quote(name)} is kept in the file {quote(location)}; load the model from its path"
            )
        folder = Path(os.path.realpath(self.path.parent))
        plain = location and "\0" not in location and not Path(location).is_absolute()
        real = Path(os.path.realpath(folder / location)) if plain else folder.parent
        if not real.is_relative_to(folder):
            raise ModelError(
                f"tensor {quote(name)} must be kept inside the model's directory, got the location {quote(location)}"
            )
        if not real.is_file():
            raise ModelError(f"tensor {quote(name)} is kept in {quote(location)}, which is not a file beside the model")
        return real

    def _mapped(self, tensor: TensorProto, raw: bool = False) -> NDArray[Any]:
        """The values of an external tensor (or its bytes), mapped from its sidecar, with every bound checked."""
        entries = _entries(tensor)
        file = self._sidecar(entries.get("location", ""), tensor.name)
        size, have = 4 * math.prod(tensor.dims), file.stat().st_size
        try:
            offset = int(entries.get("offset", 0))
            length = int(entries.get("length", have - offset if raw else size))
        except ValueError as error:
            raise ModelError(f"tensor {quote(tensor.name)} must have whole numbers as offset and length") from error
        fits = offset >= 0 and 0 <= length <= have - offset
        if not fits or (not raw and length != size):
            raise ModelError(
                f"tensor {quote(tensor.name)} of shape {tuple(tensor.dims)} claims {length} bytes at {offset}, which "
                f"{quote(file.name)} of {have} bytes cannot hold for it"
            )
        if length == 0:
            return np.empty(0, np.uint8 if raw else "<f4")
        try:
            data = np.memmap(file, np.uint8, "r", offset, (length,))
        except (OSError, ValueError) as error:
            raise ModelError(f"the file {quote(file)} could not be read: {error}") from error
        return data if raw else data.view("<f4")


def load(path: str | os.PathLike[str], /) -> Model:
    """Read an ONNX file; values in sidecar files stay where they are until asked for.

    Raises:
        ModelError: no file there, no permission, or not an ONNX model (the message says which).
        MissingExtraError: onnx is not installed.

    Example:
        >>> load("missing.onnx")
        Traceback (most recent call last):
            ...
        emp_onnx.errors.ModelError: model must be an ONNX file, got 'missing.onnx', which does not exist
    """
    place = Path(path)
    try:
        data = place.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"model must be an ONNX file, got {quote(path)}, which does not exist") from error
    except IsADirectoryError as error:
        raise ModelError(f"model must be an ONNX file, got the directory {quote(path)}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"model {quote(path)} could not be read: {reason}") from error
    if not data:
        raise ModelError(f"model must be an ONNX file, got {quote(path)}, which is empty")
    proto = _parse(data, quote(path))
    del data
    return Model(proto, place)


def save(
    model: Model, path: str | os.PathLike[str], /, *, check: Callable[[Path], None] | None = None
) -> tuple[Path, ...]:
    """Write `model` to `path`, complete or not at all; returns the files written, the graph first.

    The graph is written beside `path` under a temporary name, brought to the disk and renamed; sidecar files come
    before it, under names of their own. `check` is called with the temporary file just before the rename: if it raises,
    nothing is left behind and whatever was at `path` stays.

    Raises:
        OutputError: the place cannot take the file; UsageError: it is one of the model's own sidecar files.
        ModelError: the model is larger than the 2 GB that one file can hold.
    """
    target = check_target(Path(path))
    sources = model.sidecars()
    for source in sources.values():
        if same_file(source, target):
            raise UsageError(f"output must not be a file that the input needs, got {quote(path)}")
    if sources and Path(path).is_symlink():
        raise OutputError(f"output must not be a symbolic link when a model has sidecar files, got {quote(path)}")
    proto, made, names = model._proto, list[Path](), dict[str, str]()
    old = _own_sidecars(target)
    try:
        if sources:
            for location, source in sources.items():
                file, new = _copy_sidecar(model, location, source, target)
                names[location] = file.name
                made += [file] if new else []
            proto = type(proto)()
            proto.CopyFrom(model._proto)
            for tensor in _tensors(proto):
                for entry in tensor.external_data:
                    if entry.key == "location" and tensor.data_location == 1:
                        entry.value = names[entry.value]
            sync_folder(target.parent)
        data = _serialise(proto, quote(path))
        with staged(target) as stage:
            stage.path.write_bytes(data)
            if check:
                check(stage.path)
    except BaseException:
        for file in made:
            with suppress(OSError):
                file.unlink()
        raise
    used = {target.with_name(name) for name in names.values()}
    elsewhere = set() if model.path and same_file(model.path, target) else set(sources.values())
    for file in old - used - elsewhere:
        with suppress(OSError):
            file.unlink()
    return (target, *sorted(used))


def _copy_sidecar(model: Model, location: str, source: Path, target: Path) -> tuple[Path, bool]:
    """Copy a sidecar with its pruned weights, under a name with a hash of its contents; and whether it is new."""
    with staged(target.with_name(f"{target.name}.data")) as stage:
        shutil.copyfile(source, stage.path)
        with open(stage.path, "rb+") as file:
            for name, new in model._patches.items():
                entries = _entries(model._initializer(name))
                if entries.get("location") == location:
                    file.seek(int(entries.get("offset", 0)))
                    file.write(np.ascontiguousarray(new, "<f4").tobytes())
            file.seek(0)
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        stage.target = target.with_name(f"{target.name}.{digest.hexdigest()[:12]}.data")
        new_name = not stage.target.exists()
    return stage.target, new_name


def _own_sidecars(target: Path) -> set[Path]:
    """Sidecar files that an earlier `save` to the same place made and that the model there now refers to."""
    try:
        old = load(target)
        pattern = re.compile(re.escape(target.name) + r"\.[0-9a-f]{12}\.data")
        return {file for location, file in old.sidecars().items() if pattern.fullmatch(location)}
    except (ModelError, MissingExtraError):
        return set()


def _parse(data: bytes, origin: str) -> ModelProto:
    try:
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
        from onnx import ModelProto
    except ImportError as error:
        raise MissingExtraError("onnx") from error
    if len(data) >= 2**31:
        raise ModelError(f"model must be smaller than 2 GiB (larger ones keep weights in sidecar files), got {origin}")
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError, RuntimeError) as error:
        raise ModelError(f"model must be an ONNX file, got {origin}, which is damaged or something else") from error
    graph = proto.graph
    if not proto.HasField("graph") or not (graph.node or graph.output or graph.initializer):
        raise ModelError(f"model must be an ONNX file with a graph, got {origin}, which has none")
    return proto


def _serialise(proto: ModelProto, origin: str) -> bytes:
    from google.protobuf.message import EncodeError  # type: ignore[import-untyped, unused-ignore]

    try:
        data: bytes = proto.SerializeToString()
        return data
    except (EncodeError, ValueError) as error:
        raise ModelError(f"model {origin} cannot be written as one file: {error}") from error


def _digest(message: Any) -> str:
    return hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()


def _misfit(name: str, shape: tuple[int, ...], have: int) -> str:
    return f"weight {quote(name)} of shape {shape} must hold {4 * math.prod(shape)} bytes, got {have}"


def _tensor(proto: TensorProto) -> Tensor:
    from onnx import TensorProto as Proto

    try:
        dtype = Proto.DataType.Name(proto.data_type).lower()
    except ValueError:
        dtype = f"type {proto.data_type}"
    storage = "external" if proto.data_location == 1 else "raw" if proto.HasField("raw_data") else "typed"
    if proto.HasField("segment"):
        storage = "segment"
    names = {"float": "float32", "double": "float64"}
    return Tensor(_text(proto.name), names.get(dtype, dtype), tuple(proto.dims), storage)


def _graph(proto: GraphProto, where: str, parent: Graph | None) -> Graph:
    graph = Graph(where, parent, _texts(i.name for i in proto.input), _texts(o.name for o in proto.output))
    for tensor in proto.initializer:
        if tensor.name in graph.tensors:
            graph.repeated.add(tensor.name)
        graph.tensors[tensor.name] = _tensor(tensor)
    for sparse in proto.sparse_initializer:
        head = _tensor(sparse.values)
        graph.sparse[head.name] = Tensor(head.name, head.dtype, tuple(sparse.dims), "sparse")
    graph.nodes.extend(_node(node, graph) for node in proto.node)
    return graph


def _function(proto: Any) -> Graph:
    graph = Graph(f"local function {quote(proto.name)}", None, _texts(proto.input), _texts(proto.output))
    graph.nodes.extend(_node(node, graph) for node in proto.node)
    return graph


def _node(proto: NodeProto, graph: Graph) -> Node:
    numbers, bodies = {}, []
    for attribute in proto.attribute:
        if attribute.type == 2:
            numbers[_text(attribute.name)] = attribute.i
        elif attribute.type == 5:
            where = f"body {quote(attribute.name)} of {proto.op_type} {quote(proto.name)}"
            bodies.append(_graph(attribute.g, where, graph))
        elif attribute.type == 10:
            bodies += [_graph(g, f"a body of {proto.op_type} {quote(proto.name)}", graph) for g in attribute.graphs]
        elif attribute.type == 4 and proto.op_type == "Constant":
            numbers["#dtype"], numbers["#rank"] = attribute.t.data_type, len(attribute.t.dims)
            numbers["#size"] = math.prod(attribute.t.dims)
    domain, op, name = "" if proto.domain == "ai.onnx" else _text(proto.domain), _text(proto.op_type), _text(proto.name)
    return Node(op, domain, name, _texts(proto.input), _texts(proto.output), numbers, tuple(bodies))


def _text(text: str | bytes) -> str:
    """A string field; protobuf hands out bytes where it is not UTF-8."""
    if isinstance(text, bytes):
        raise ModelError(f"model must hold names and texts in UTF-8, got {text[:20]!r}")
    return text


def _texts(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(_text(item) for item in items)


def _entries(tensor: TensorProto) -> dict[str, str]:
    """Where an external tensor is kept: location, offset, length."""
    return {_text(entry.key): _text(entry.value) for entry in tensor.external_data}


def _tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Every tensor anywhere in the model: initializers, sparse ones, attributes, bodies, functions, training."""
    graphs: list[Any] = [proto.graph]
    for training in proto.training_info:
        graphs += [training.initialization, training.algorithm]
    nodes: list[Any] = [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
            continue
        for attribute in nodes.pop().attribute:
            yield from ([attribute.t] if attribute.HasField("t") else [])
            yield from attribute.tensors
            for sparse in [*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [])]:
                yield from (sparse.values, sparse.indices)
            for sparse in attribute.sparse_tensors:
                yield from (sparse.values, sparse.indices)
            graphs += [attribute.g] if attribute.HasField("g") else []
            graphs += attribute.graphs


if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("emp_onnx needs a little-endian machine: ONNX stores numbers so, and views are taken in place")
