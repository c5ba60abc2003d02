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

Values = NDArray[Any]


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
        self._places: dict[str, TensorProto] = {}
        reader = _Reader(self._places)
        self.graph = reader.graph(proto.graph, "", "", None)
        self.functions = {(_text(f.domain), _text(f.name)): reader.function(f) for f in proto.functions}

    @property
    def origin(self) -> str:
        """The file's name in quotes, or words for a model that has none."""
        return quote(self.path) if self.path else "a model in memory"

    @property
    def metadata(self) -> dict[str, str]:
        """The model's metadata_props, as a copy."""
        return {_text(entry.key): _text(entry.value) for entry in self._proto.metadata_props}

    def values(self, key: str, /) -> Values:
        """The values of any constant tensor by its key (see `Tensor`), in its shape and its own dtype, read-only.

        Of a sparse tensor these are the stored values, in order. Types that NumPy lacks come as those of ml_dtypes.

        Raises:
            ModelError: the tensor's bytes do not fit its shape, or its sidecar file is missing, short or out of bounds.
        """
        tensor = self._places[key]
        shape, dtype = tuple(tensor.dims), _dtype(tensor)
        count = math.prod(shape)
        if key in self._patches:
            flat = self._patches[key].reshape(-1)
        elif tensor.data_location == 1:
            flat = _unpacked(self._mapped(tensor), dtype, count)
        elif tensor.HasField("raw_data"):
            raw = np.frombuffer(tensor.raw_data, np.uint8)
            if raw.size != _nbytes(dtype, count):
                raise ModelError(_misfit(tensor, raw.size))
            flat = _unpacked(raw, dtype, count)
        else:
            flat = _typed(tensor, dtype)
        view = flat.reshape(shape).view()
        view.flags.writeable = False
        return view

    def replaced(self, values: Mapping[str, Values], metadata: Mapping[str, str | None]) -> Model:
        """A new model that differs in these tensors and metadata entries (None removes one), and in nothing else."""
        proto = type(self._proto)()
        proto.CopyFrom(self._proto)
        patches = dict(self._patches)
        places = Model(proto)._places if values else {}
        for key, new in values.items():
            tensor = places[key]
            if tuple(tensor.dims) != new.shape or _dtype(tensor) != new.dtype:
                raise ValueError(
                    f"{key} must stay {_kind(tensor)} of shape {tuple(tensor.dims)}, got {new.dtype} of {new.shape}"
                )
            if tensor.data_location == 1:
                patches[key] = new
            elif tensor.HasField("raw_data"):
                tensor.raw_data = _packed(new)
            else:
                _retype(tensor, new)
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
        """Everything but the values of these tensors and one metadata entry, as hashes by place.

        Two models are equal outside those weights exactly when these are equal; a differing place says where to look.
        """
        proto = type(self._proto)()
        proto.CopyFrom(self._proto)
        out = {}
        places = Model(proto)._places
        chosen = {id(places[name]) for name in names if name in places}
        keys = {id(tensor): name for name, tensor in places.items()}
        for tensor in _tensors(proto):
            if tensor.data_location == 1 and id(tensor) not in chosen:
                # the bytes, wherever they are kept, not the place
                name = keys.get(id(tensor), tensor.name)
                found = self._patches.get(name)
                data = np.frombuffer(_packed(found), np.uint8) if found is not None else self._mapped(tensor, raw=True)
                out[f"external tensor {quote(name)}"] = hashlib.sha256(data.data).hexdigest()
            del tensor.external_data[:]
        for name in names & places.keys():
            tensor = places[name]
            for field in ("raw_data", "float_data", "int32_data", "double_data"):
                tensor.ClearField(field)
        for tensor in proto.graph.initializer:
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

    def _mapped(self, tensor: TensorProto, raw: bool = False) -> NDArray[np.uint8]:
        """The bytes of an external tensor, mapped from its sidecar, with every bound checked."""
        entries = _entries(tensor)
        file = self._sidecar(entries.get("location", ""), tensor.name)
        size, have = 0 if raw else _nbytes(_dtype(tensor), math.prod(tensor.dims)), file.stat().st_size
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
            return np.empty(0, np.uint8)
        try:
            return np.memmap(file, np.uint8, "r", offset, (length,))
        except (OSError, ValueError) as error:
            raise ModelError(f"the file {quote(file)} could not be read: {error}") from error


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
            for key, new in model._patches.items():
                entries = _entries(model._places[key])
                if entries.get("location") == location:
                    file.seek(int(entries.get("offset", 0)))
                    file.write(_packed(new))
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


BITS = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}


def _kind(proto: TensorProto) -> str:
    """The element type in words: float32, int8, bfloat16, float8e4m3fn, …"""
    from onnx import TensorProto as Proto

    try:
        name: str = Proto.DataType.Name(proto.data_type).lower()
    except ValueError:
        return f"type {proto.data_type}"
    return {"float": "float32", "double": "float64"}.get(name, name)


def _dtype(proto: TensorProto) -> np.dtype[Any]:
    from onnx.helper import tensor_dtype_to_np_dtype

    try:
        dtype = np.dtype(tensor_dtype_to_np_dtype(proto.data_type))
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(f"tensor {quote(proto.name)} holds {_kind(proto)}, which is not known here") from error
    if dtype.kind not in "biufcV":
        raise ModelError(f"tensor {quote(proto.name)} holds {_kind(proto)}, which are not numbers")
    return dtype


def _nbytes(dtype: np.dtype[Any], count: int) -> int:
    return -(-count * BITS[dtype.name] // 8) if dtype.name in BITS else dtype.itemsize * count


def _misfit(tensor: TensorProto, have: int) -> str:
    need = _nbytes(_dtype(tensor), math.prod(tensor.dims))
    return f"weight {quote(tensor.name)} of shape {tuple(tensor.dims)} must hold {need} bytes, got {have}"


def _unpacked(raw: NDArray[np.uint8], dtype: np.dtype[Any], count: int) -> Values:
    """Elements from their bytes; types of fewer than 8 bits lie several in a byte, the lowest bits first."""
    bits = BITS.get(dtype.name, 8)
    if bits == 8:
        return raw.view(dtype)
    codes = np.stack([(raw >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], axis=1).reshape(-1)[:count]
    if dtype.name.startswith("int"):
        codes = np.where(codes >= 2 ** (bits - 1), codes.astype(np.int16) - 2**bits, codes).astype(np.int8)
        return codes.astype(dtype)
    return codes.view(dtype) if dtype.name.startswith("float") else codes.astype(dtype)


def _packed(values: Values) -> bytes:
    """The other way round."""
    flat = np.ascontiguousarray(values).reshape(-1)
    bits = BITS.get(flat.dtype.name, 8)
    if bits == 8:
        return flat.view(np.uint8).tobytes()
    whole = flat.view(np.uint8) if flat.dtype.name.startswith("float") else flat.astype(np.int8).view(np.uint8)
    codes, each = whole & (2**bits - 1), 8 // bits
    codes = np.concatenate([codes, np.zeros(-codes.size % each, np.uint8)]).reshape(-1, each)
    out = np.zeros(len(codes), np.uint8)
    for i in range(each):
        out |= codes[:, i] << np.uint8(i * bits)
    return out.tobytes()


def _typed(tensor: TensorProto, dtype: np.dtype[Any]) -> Values:
    """Elements kept in a field of numbers."""
    kind, count = tensor.data_type, math.prod(tensor.dims)
    if kind in (1, 14):
        flat: Values = np.array(tensor.float_data, "<f4").view(dtype)
    elif kind in (11, 15):
        flat = np.array(tensor.double_data, "<f8").view(dtype)
    elif kind == 7:
        flat = np.array(tensor.int64_data, "<i8")
    elif kind in (12, 13):
        flat = np.array(tensor.uint64_data, "<u8").astype(dtype)
    elif dtype.name in BITS:
        flat = _unpacked(np.array(tensor.int32_data, "<i4").astype(np.uint8), dtype, count)
    elif dtype.kind in "iub":
        flat = np.array(tensor.int32_data, "<i4").astype(dtype)
    else:
        flat = np.array(tensor.int32_data, "<i4").astype(f"<u{dtype.itemsize}").view(dtype)
    if flat.size != count:
        raise ModelError(_misfit(tensor, dtype.itemsize * flat.size))
    return flat


def _retype(tensor: TensorProto, values: Values) -> None:
    """Put elements into the field of numbers that holds them."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if flat.dtype in (np.float32, np.float64):
        target = tensor.float_data if flat.dtype == np.float32 else tensor.double_data
        numbers = flat
    else:
        target = tensor.int32_data
        if flat.dtype.name in BITS:
            numbers = np.frombuffer(_packed(flat), np.uint8)
        else:
            numbers = flat if flat.dtype.kind in "iu" else flat.view(f"<u{flat.dtype.itemsize}")
    del target[:]
    target.extend(numbers.tolist())


class _Reader:
    """Protobufs to graphs; every constant tensor met is put into `places` under its key."""

    def __init__(self, places: dict[str, TensorProto]) -> None:
        self.places = places

    def tensor(self, proto: TensorProto, path: str, name: str = "") -> Tensor:
        storage = "external" if proto.data_location == 1 else "raw" if proto.HasField("raw_data") else "typed"
        if proto.HasField("segment"):
            storage = "segment"
        name = name or _text(proto.name)
        key = path + name
        self.places[key] = proto
        return Tensor(name, _kind(proto), tuple(proto.dims), storage, key)

    def graph(self, proto: GraphProto, where: str, path: str, parent: Graph | None) -> Graph:
        inputs, outputs = _texts(i.name for i in proto.input), _texts(o.name for o in proto.output)
        graph = Graph(where, parent, inputs, outputs, path=path)
        for tensor in proto.initializer:
            if tensor.name in graph.tensors:
                graph.repeated.add(tensor.name)
            graph.tensors[tensor.name] = self.tensor(tensor, path)
        for sparse in proto.sparse_initializer:
            if sparse.values.name in graph.tensors or sparse.values.name in graph.sparse:
                graph.repeated.add(sparse.values.name)
            head = self.tensor(sparse.values, path)
            graph.sparse[head.name] = Tensor(head.name, head.dtype, tuple(sparse.dims), "sparse", head.key)
        taken: set[str] = set()
        graph.nodes.extend(self.node(node, graph, taken) for node in proto.node)
        return graph

    def function(self, proto: Any) -> Graph:
        where = f"local function {quote(proto.name)}"
        path = f"function {quote(f'{proto.domain}.{proto.name}')}/"
        graph = Graph(where, None, _texts(proto.input), _texts(proto.output), path=path)
        taken: set[str] = set()
        graph.nodes.extend(self.node(node, graph, taken) for node in proto.node)
        return graph

    def node(self, proto: NodeProto, graph: Graph, taken: set[str]) -> Node:
        found: dict[str, int | float | str | tuple[int, ...] | None] = {}
        bodies, constant = [], None
        name, op, outputs = _text(proto.name), _text(proto.op_type), _texts(proto.output)
        for attribute in proto.attribute:
            what = _text(attribute.name)
            if attribute.ref_attr_name:
                found[what] = None
            elif attribute.type == 1:
                found[what] = attribute.f
            elif attribute.type == 2:
                found[what] = attribute.i
            elif attribute.type == 3:
                found[what] = attribute.s.decode("utf-8", "replace")
            elif attribute.type == 7:
                found[what] = tuple(attribute.ints)
            elif attribute.type in (5, 10):
                for i, body in enumerate([attribute.g] if attribute.type == 5 else attribute.graphs):
                    part = what if attribute.type == 5 else f"{what} {i}"
                    called = f"{part} of {op} {quote(name or (outputs[0] if outputs else ''))}"
                    unique = called
                    while unique in taken:
                        unique += "'"
                    taken.add(unique)
                    where = f"body {quote(part)} of {op} {quote(name)}"
                    bodies.append(self.graph(body, where, f"{graph.path}{unique}/", graph))
            elif attribute.type == 4 and op == "Constant" and outputs:
                constant = self.tensor(attribute.t, graph.path, outputs[0])
            elif attribute.type == 11 and op == "Constant" and outputs:
                sparse = attribute.sparse_tensor
                head = self.tensor(sparse.values, graph.path, outputs[0])
                constant = Tensor(head.name, head.dtype, tuple(sparse.dims), "sparse", head.key)
        domain = "" if proto.domain == "ai.onnx" else _text(proto.domain)
        if domain or op != "Constant":
            constant = None
        return Node(op, domain, name, _texts(proto.input), outputs, found, tuple(bodies), constant)


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
