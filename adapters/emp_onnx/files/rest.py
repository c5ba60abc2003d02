"""All of a model but its weights, as hashes by place: how two models are compared outside of what pruning may
change."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from emp_onnx.errors import ModelError, quote
from emp_onnx.files.coded import Coded
from emp_onnx.files.graph import Tensor
from emp_onnx.files.headers import CONTENTS
from emp_onnx.files.model_io import Model
from emp_onnx.files.reader import DOMAIN
from emp_onnx.files.source import Source
from emp_onnx.files.storage import pieces_of
from emp_onnx.files.stretches import Stretch
from emp_onnx.files.wire import LENGTH, Wire
from emp_onnx.files.writer import feed

__all__ = ["rest"]

ELSEWHERE = frozenset({9, 13})  # where the numbers of a tensor are kept that are in a sidecar file


def rest(model: Model, keys: frozenset[str], entry: str, apart: frozenset[str] = frozenset()) -> dict[str, object]:
    """See `Model.rest`."""
    wire, out = Wire(model.source), dict[str, object]()
    gone = _stored_otherwise(model, wire, apart) if apart else set[tuple[int, int]]()
    for key in sorted(apart & model.tensors.keys()):
        tensor = model.tensors[key]
        out[f"tensor {quote(key)}"] = f"{tensor.dtype} {tensor.shape} {'' if key in keys else _hash(model, key)}"
    skip = {key: model.tensors[key] for key in keys if key in model.tensors}
    # of a sparse tensor how many entries there are does not count, either
    parts = [part for tensor in skip.values() for part in tensor.parts]
    skip |= {part.key: part for part in parts}
    for tensor in model.tensors.values():
        there = tensor.place is not None and tensor.place.message not in gone
        if tensor.storage == "external" and tensor.key not in skip and there:
            # the bytes, wherever they are kept, not the place
            skip[tensor.key] = tensor
            out[f"external tensor {quote(tensor.key)}"] = Stretch(*_external(model, tensor))
    for key in keys & model.tensors.keys():
        where = model.stored(key)
        if isinstance(where, Coded):
            digest = hashlib.sha256()
            for codes in where.fill():
                digest.update(codes.tobytes())
            out[f"what fills up the blocks of {quote(key)}"] = digest.hexdigest()
    # messages of tensors whose numbers, or whose sidecar's name, do not count
    marked: dict[tuple[int, int], frozenset[int] | None] = {
        tensor.place.message: CONTENTS if tensor.key in keys else ELSEWHERE
        for tensor in skip.values()
        if tensor.place and not tensor.parts
    }
    marked |= {part.place.message: CONTENTS | {1} for part in parts if part.place}
    marked |= dict.fromkeys(gone)
    marks = sorted(marked)
    start, stop = model.contents.span
    hasher = _Hasher(wire, marked)
    initializers = {t.place.message: t.name for t in model.graph.tensors.values() if t.place}
    nodes = {at: i for i, (at, _) in enumerate(model.contents.nodes)}
    count = -1
    order, others = hashlib.sha256(), hashlib.sha256()
    for number, kind, at, tag, end in wire.fields(start, stop):
        if kind == LENGTH and (at, end) in gone:
            continue
        if number == 5 and kind == LENGTH:
            name = initializers.get((at, end), "")
            order.update(f"{name}\n".encode("utf-8", "replace"))
            out[_free(out, f"initializer {quote(name)}")] = hasher.of(tag, end, marks)
        elif number == 1 and kind == LENGTH and at in nodes:
            node, count = model.graph.nodes[nodes[at]], count + 1
            out[f"node {count} ({quote(node.name or node.op)})"] = hasher.of(tag, end, marks)
        else:
            hasher.add(others, tag, end, marks)
    seen = {key: text for key, text in model.metadata.items() if key != entry}
    for number, kind, at, tag, end in wire.fields(0, wire.size):
        if (number, kind, at) == (7, LENGTH, start):
            others.update(b"graph")
        elif (number != 14 or kind != LENGTH) and (at, end) not in gone and not (apart and number == 1):
            hasher.add(others, tag, end, marks)
    for key, text in seen.items():
        if key != entry:
            order.update(f"{key}\n".encode("utf-8", "replace"))
            out[f"metadata {quote(key)}"] = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    for key in sorted(model.patches.keys() - keys):
        if key not in apart:
            out[f"values of {quote(key)}"] = _hash(model, key)
    out["order of initializers and metadata"] = order.hexdigest()
    out["graph inputs, outputs, functions and other fields"] = others.hexdigest()
    return out


def _stored_otherwise(model: Model, wire: Wire, apart: frozenset[str]) -> set[tuple[int, int]]:
    """Where messages lie that are there because of the form in which these tensors are stored."""
    found: set[tuple[int, int]] = set()
    keys = set(apart)
    for key in apart & model.tensors.keys():
        recipe = model.tensors[key].recipe
        if recipe is not None:
            keys |= {*recipe.values, *recipe.where}
            found.add(recipe.node)
    found |= {t.place.message for t in model.tensors.values() if t.place and t.key in keys}
    todo = [model.graph]
    while todo:
        graph = todo.pop()
        todo += [body for node in graph.nodes for body in node.bodies]
        nodes = iter(graph.nodes)
        for number, kind, at, _, end in wire.fields(*graph.span):
            if kind == LENGTH and number == 1:
                node = next(nodes)
                constant = node.constant is not None and node.constant.key in apart
                if constant or node.domain == DOMAIN:
                    found.add((at, end))
            elif kind == LENGTH and number == 11 and graph is model.graph:
                name = next((wire.text(a, e) for n, k, a, _, e in wire.fields(at, end) if (n, k) == (1, LENGTH)), "")
                if name in graph.tensors or name in apart:
                    found.add((at, end))
        found |= {t.place.message for name, t in graph.tensors.items() if t.place and name.startswith(f"{DOMAIN}/")}
    found |= {(item[2], item[4]) for (domain, _), item in model.contents.calls.items() if domain == DOMAIN}
    found |= {(item[2], item[4]) for domain, (_, item) in model.contents.imports.items() if domain == DOMAIN}
    return found


def _hash(model: Model, key: str) -> str:
    digest = hashlib.sha256()
    for start, stop in pieces_of(model.tensors[key].size):
        digest.update(model.piece(key, start, stop).view(np.uint8).data)
    return digest.hexdigest()


class _Hasher:
    """Hashes of fields, without the numbers of tensors that do not count, and without the lengths around them."""

    def __init__(self, wire: Wire, apart: dict[tuple[int, int], frozenset[int] | None]) -> None:
        self.wire, self.source, self.apart = wire, wire.source, apart

    def of(self, start: int, stop: int, marks: Sequence[tuple[int, int]]) -> str:
        digest = hashlib.sha256()
        self.add(digest, start, stop, marks)
        return digest.hexdigest()

    def add(self, digest: Any, start: int, stop: int, marks: Sequence[tuple[int, int]]) -> None:
        """Hash the fields from `start` to `stop`."""
        from bisect import bisect_left

        first, last = bisect_left(marks, (start, 0)), bisect_left(marks, (stop, 0))
        inside = marks[first:last]
        if not inside:
            self._plain(digest, start, stop)
            return
        for _, kind, at, tag, end in self.wire.fields(start, stop):
            if kind == LENGTH and (at, end) in self.apart:
                passed = self.apart[at, end]
                if passed is not None:
                    digest.update(b"(")
                    self._header(digest, at, end, passed)
                    digest.update(b")")
            elif kind == LENGTH and any(at <= mark[0] and mark[1] <= end for mark in _near(inside, at, end)):
                digest.update(b"[")
                self._plain(digest, tag, tag + 1)
                self.add(digest, at, end, inside)
                digest.update(b"]")
            else:
                self._plain(digest, tag, end)

    def _header(self, digest: Any, start: int, stop: int, without: frozenset[int]) -> None:
        for number, _, _, tag, end in self.wire.fields(start, stop):
            if number not in without:
                self._plain(digest, tag, end)

    def _plain(self, digest: Any, start: int, stop: int) -> None:
        if stop - start <= 1 << 16:
            digest.update(self.wire.data(start, stop))
        else:
            feed(digest, self.source, start, stop)


def _near(marks: Sequence[tuple[int, int]], at: int, end: int) -> Sequence[tuple[int, int]]:
    from bisect import bisect_left

    i = bisect_left(marks, (at, 0))
    return marks[i : i + 1] if i < len(marks) and marks[i][0] < end else ()


def _external(model: Model, tensor: Tensor) -> tuple[Source, int, int]:
    """Where the bytes of a tensor lie that is of no interest but must stay."""
    entries = dict(tensor.place.external) if tensor.place else {}
    source = model.beside.file(entries.get("location", "")) if model.path else None
    if source is None:
        raise ModelError(f"tensor {quote(tensor.name)} is kept in a file; load the model from its path")
    try:
        start = int(entries.get("offset", "0"))
        length = int(entries.get("length", source.size - start))
    except ValueError as error:
        raise ModelError(f"tensor {quote(tensor.name)} must have whole numbers as offset and length") from error
    if start < 0 or not 0 <= length <= source.size - start:
        raise ModelError(
            f"tensor {quote(tensor.name)} of shape {tensor.shape} claims {length} bytes at {start}, which "
            f"{quote(entries.get('location', ''))} of {source.size} bytes cannot hold for it"
        )
    return source, start, start + length


def _free(out: dict[str, object], name: str) -> str:
    i = 2
    while name in out and f"{name} ({i})" in out:
        i += 1
    return f"{name} ({i})" if name in out else name
