"""Which tensors of a model get which form, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np

from emp_onnx.errors import ModelError, UsageError, quote
from emp_onnx.files.functions import DOMAIN, EARLY_OPSET, STAGE, function_bytes
from emp_onnx.files.graph import Graph, Tensor
from emp_onnx.files.model_io import Model
from emp_onnx.files.storage import PLAIN, pieces_of
from emp_onnx.packing.counts import Counts
from emp_onnx.packing.forms import DTYPES, FOLDED, FORMS, NODE, TARGETS, Form, Survey, forms, survey
from emp_onnx.packing.header import FREE_SINCE
from emp_onnx.packing.places import Chosen, graphs, parts_of

__all__ = ["REPLACEABLE", "Row", "choose"]

SMALL = 1 << 10  # dense bytes below which a tensor is not looked at
SMALLEST = "no other form is smaller"
REPLACEABLE = "it is also an input of the graph: another value may be given for it"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: of the tensor.
        dtype, shape: its type and shape.
        density: share of elements that are not the fill (0, or what occurs most among integers).
        before, after: bytes of the numbers, masks, codes and indices.
        form: what it is stored as.
        why: the reason for that.
        was: what it was stored as.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    density: float
    before: int
    after: int
    form: str
    why: str
    was: str


@dataclass
class _Candidate:
    tensor: Tensor
    before: int
    now: str
    against: str = ""
    kept: int = 64
    found: Survey | None = None
    forms: list[Form] = field(default_factory=list)

    @property
    def words(self) -> str:
        """The form that it has."""
        return Form(self.now, self.kept, ()).words


def choose(
    model: Model,
    *,
    form: str = "auto",
    target: str = "onnxruntime",
    compact: bool = False,
    half: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keys: frozenset[str] | None = None,
) -> tuple[list[Chosen], list[Row]]:
    """The tensors that get another form than they have, and a row for every tensor looked at.

    Args:
        model: from `load`, or with values replaced.
        form: auto (the smallest), or dense, coo, packed: the smallest of that kind, where it is smaller than dense.
        target: what must be able to run the result.
        compact: indices of the coo form have 16 or 32 bits where that is enough, not 64.
        half: store the values of float32 tensors as float16: they are rounded.
        include, exclude: patterns of names.
        keys: only these tensors, if given.

    Raises:
        UsageError: a form or target that does not exist, or a pattern that matches nothing.
    """
    for option, given, known in (("form", form, FORMS), ("target", target, TARGETS)):
        if given not in known:
            raise UsageError(f"{option} must be one of {', '.join(known)}, got {quote(given)}")
    candidates = list(_candidates(model))
    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(_matches(item.tensor, [pattern]) for item in candidates):
                raise UsageError(f"{option} must match a tensor of the model, got {quote(pattern)}")
    opset = next((version for name, (version, _) in model.contents.imports.items() if not name), 1)
    looked: list[_Candidate] = []
    for item in candidates:
        if (keys is not None and item.tensor.key not in keys) or item.tensor.size == 0:
            continue
        if include and not _matches(item.tensor, include):
            item.against = "no include pattern matches it"
        elif exclude and _matches(item.tensor, exclude):
            item.against = "excluded"
        if not item.against:
            floats = item.tensor.dtype == "float32" and item.tensor.recipe is None
            rounds = half and floats and _within(model, item.tensor)
            said = _known(model, item.tensor) if form == "dense" else None
            item.found = said or survey(model, item.tensor, half=rounds)
            # kernels read values of sidecars where they are, so there they stay in one place
            cut = all(model.tensors[key].storage != "external" for key in parts_of(item.tensor) or [item.tensor.key])
            possible = forms(item.tensor, item.found, target, compact=compact, opset=opset, cut=cut)
            item.forms = [f for f in possible if _fits(f, form) and not (rounds and f.kind == "coo")]
            item.forms += [_as_it_is(item, f) for f in item.forms if f.kind == item.now == "coo" and form == "auto"]
        looked.append(item)
    return _decided(looked, opset, form, forced=keys is not None)


def _candidates(model: Model) -> Iterator[_Candidate]:
    """Every tensor of the graphs that may be stored otherwise, with what there is against that."""
    contents = model.contents
    opset = next((version for name, (version, _) in contents.imports.items() if not name), 1)
    for graph in graphs(model):
        parts = {key for node in graph.nodes if node.constant and node.constant.recipe
                 for key in (*node.constant.recipe.where, *node.constant.recipe.values)}  # fmt: skip
        nodes = [node.constant for node in graph.nodes if node.constant is not None]
        for tensor in (*(t for t in graph.tensors.values() if t.key not in parts), *graph.sparse.values(), *nodes):
            if tensor.storage not in ("raw", "typed", "external", "packed", "sparse"):
                continue
            if tensor.dtype not in DTYPES or any(size < 0 for size in tensor.shape):
                continue
            if tensor.storage == "sparse":
                yield _sparse(model, graph, tensor)
                continue
            dtype = model.stored(tensor.key).dtype
            size = tensor.size * dtype.itemsize
            if size < SMALL:
                continue
            before, now = size, "dense"
            if tensor.recipe is not None:
                inner = [model.stored(key) for key in (*tensor.recipe.values, *tensor.recipe.where)]
                before, now = sum(s.tensor.size * s.dtype.itemsize for s in inner), tensor.recipe.function
            yield _Candidate(tensor, before, now, _against(model, graph, tensor) or _too_old_or_large(tensor, opset))
    for (domain, _), function in model.functions.items():
        for node in function.nodes:
            held = node.constant
            if held is not None and domain != DOMAIN and held.dtype in DTYPES and held.recipe is None:
                size = held.size * np.dtype(PLAIN.get(held.dtype, "<u2")).itemsize
                if size >= SMALL:
                    yield _Candidate(held, size, "dense", "it is in a local function, which has no initializers")


def _sparse(model: Model, graph: Graph, tensor: Tensor) -> _Candidate:
    """A sparse initializer, or the sparse value of a Constant node."""
    values, indices = tensor.parts
    if any(part.storage == "external" for part in tensor.parts):
        return _Candidate(tensor, 0, "coo", "it is sparse with numbers in a sidecar file")
    try:
        found = model.stored(tensor.key)
        places = model.stored(indices.key).dtype
    except ModelError as error:
        return _Candidate(tensor, 0, "coo", str(error))
    before = values.size * found.dtype.itemsize + indices.size * places.itemsize
    # indices of one number each may stay as they are, whatever their width
    kept = 8 * places.itemsize if len(indices.shape) == 1 else 64
    return _Candidate(tensor, before, "coo", _against(model, graph, tensor), kept=kept)


def _as_it_is(item: _Candidate, form: Form) -> Form:
    """The sparse form with indices as wide as those that are there."""
    return replace(form, width=item.kept, parts=(form.stored * item.kept // 8, form.parts[1]))


def _against(model: Model, graph: Graph, tensor: Tensor) -> str:
    if tensor.name in graph.repeated:
        return "several constants have this name"
    if tensor.name in graph.outputs:
        return "it is also an output of the graph"
    if tensor.name in graph.inputs and (model.contents.version[0] >= FREE_SINCE or graph is not model.graph):
        return REPLACEABLE
    return ""


def _too_old_or_large(tensor: Tensor, opset: int) -> str:
    """Why a packed form would not be unpacked when the model is loaded."""
    if opset < EARLY_OPSET:
        return f"packed forms need opset {EARLY_OPSET}, the model has {opset}"
    if tensor.size > FOLDED:
        return "onnxruntime does not fold what is larger than 1 GiB"
    return ""


def _known(model: Model, tensor: Tensor) -> Survey | None:
    """What a packed or sparse tensor says itself, which is enough to make it dense."""
    if tensor.storage == "sparse":
        return Survey(np.zeros((), model.stored(tensor.key).dtype), Counts(tensor.size, tensor.parts[0].size))
    if tensor.recipe is None:
        return None
    dtype, values = model.stored(tensor.key).dtype, [model.stored(key).tensor for key in tensor.recipe.values]
    stored = sum(part.size - part.size // part.shape[0] for part in values)
    return Survey(np.zeros((), dtype), Counts(tensor.size, stored))


def _within(model: Model, tensor: Tensor) -> bool:
    """Whether float16 holds all values, finite and not beyond its range."""
    limit = np.finfo(np.float16).max
    pieces = (model.piece(tensor.key, start, stop) for start, stop in pieces_of(tensor.size))
    return all(bool((np.abs(values) <= limit).all()) for values in pieces)


def _fits(form: Form, asked: str) -> bool:
    if asked == "auto" or form.kind == "dense":
        return asked in ("auto", "dense") or form.kind == "dense"
    if form.kind == "coo":
        return asked == "coo"
    return asked == "packed"


def _decided(looked: Sequence[_Candidate], opset: int, asked: str, forced: bool) -> tuple[list[Chosen], list[Row]]:
    """The forms that make the whole smallest: a function is worth its own bytes, or is not used."""
    kinds = {form.kind for item in looked for form in item.forms} - {"dense", "coo"}
    cost = {kind: len(function_bytes(kind, opset)) for kind in (*kinds, STAGE)} if kinds else {}
    best, least = _best(looked, kinds), _total(_best(looked, kinds), cost)
    shrinking = True
    while shrinking:
        shrinking = False
        for kind in sorted(kinds, key=cost.__getitem__, reverse=True):
            fewer = _best(looked, kinds - {kind})
            total = _total(fewer, cost)
            if total < least:
                best, least, kinds, shrinking = fewer, total, kinds - {kind}, True
                break
    chosen, rows = [], []
    for item, form in zip(looked, best, strict=True):
        tensor = item.tensor
        if form is None or item.found is None:
            rows.append(
                Row(tensor.name, tensor.dtype, tensor.shape, 1.0, item.before, item.before, item.words, item.against,
                    item.words)
            )  # fmt: skip
            continue
        one = Chosen(tensor, form, item.found)
        if form.kind != item.now or forced or form.bytes != item.before or one.half:
            chosen.append(one)
        why = _why(item, form, asked, kinds) + ("; values ROUNDED to float16" if one.half else "")
        rows.append(
            Row(tensor.name, tensor.dtype, tensor.shape, item.found.density, item.before, form.bytes, form.words, why,
                item.words)
        )  # fmt: skip
    return chosen, rows


def _why(item: _Candidate, form: Form, asked: str, kinds: set[str]) -> str:
    if form.kind == "dense":
        return "asked for" if asked == "dense" else SMALLEST
    others = [f for f in item.forms if f.kind == "dense" or (f.kind in kinds and f.words != form.words)]
    second = min(others, key=lambda f: f.bytes)
    return f"smallest; next is {second.words} with {second.bytes:,} bytes"


def _best(looked: Sequence[_Candidate], kinds: set[str]) -> list[Form | None]:
    out: list[Form | None] = []
    for item in looked:
        some = [form for form in item.forms if form.kind in ("dense", "coo") or form.kind in kinds]
        out.append(min(some, key=_stored_bytes) if some else None)
    return out


def _stored_bytes(form: Form) -> int:
    return form.bytes if form.kind == "dense" else form.bytes + NODE


def _total(best: Sequence[Form | None], cost: Mapping[str, int]) -> int:
    used = {form.kind for form in best if form} - {"dense", "coo"}
    functions = sum(cost[kind] for kind in used) + (cost[STAGE] if used else 0)
    return functions + sum(_stored_bytes(form) for form in best if form)


def _matches(tensor: Tensor, patterns: Sequence[str]) -> bool:
    test: Callable[[str], bool] = lambda pattern: fnmatchcase(tensor.name, pattern) or tensor.name == pattern  # noqa: E731
    return any(map(test, patterns))
