"""The weights of a model, wherever they are: each one is a Weight, or a Refusal with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from emp_core.quick import quick
from emp_onnx.errors import ModelError, UsageError, quote
from emp_onnx.files.graph import Tensor
from emp_onnx.files.model_io import Model, unfused
from emp_onnx.weights.layout import EMBEDDINGS, LEFT, SLOTS, Layout, Slot, canonical
from emp_onnx.weights.steps import Understood, understand
from emp_onnx.weights.trace import LONGEST, THROUGH, Trace, Use, Value
from emp_onnx.weights.zero import FLOAT, Zero

__all__ = ["NOTHING", "Found", "Refusal", "Weight", "find_weights"]

NOTHING = "no operation that is known here has a constant weight"  # why a model without weights has none

FLOATS = {
    "float32", "float16", "bfloat16", "float64", "float8e4m3fn", "float8e5m2", "float8e4m3fnuz", "float8e5m2fnuz",
    "float4e2m1",
}  # fmt: skip
INTEGERS = {"int8", "uint8", "int4", "uint4", "int2", "uint2", "int16", "uint16"}


@quick
@dataclass(frozen=True)
class Weight:
    """A constant tensor that can be pruned.

    Attributes:
        name: its key, unique in the model (see `Tensor`).
        op: the operation that uses it (the first one, if several do).
        uses: every use, in words.
        shape: its shape, as stored; of a packed weight that of its codes, of a sparse one that of the dense tensor.
        layout: its output units in the stored axes, or None when its uses disagree about them or they are not known.
        nodes: names of the nodes that use it.
        dtype: of its elements.
        path: the operations that it passes through on the way to its first use.
        zero: what a pruned element becomes, and how magnitude is measured.
        tensor: its plain name.
    """

    name: str
    op: str
    uses: tuple[str, ...]
    shape: tuple[int, ...]
    layout: Layout | None
    nodes: tuple[str, ...] = ()
    dtype: str = "float32"
    path: tuple[str, ...] = ()
    zero: Zero = FLOAT
    tensor: str = ""

    @property
    def key(self) -> str:
        """The same as `name`: the address of its tensor in the model."""
        return self.name


@dataclass(frozen=True)
class Refusal:
    """A tensor that one might expect to be pruned, and the reason why it is not.

    `code` is a short stable name of the reason: dtype, rank, empty, repeated, sparse, behind, output, shared, packed,
    embedding, quantised, point, option, zeros, units, scale.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    code: str
    reason: str
    uses: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    tensor: str = ""


@dataclass(frozen=True)
class Found:
    """What `find_weights` found, in the order in which the network uses it."""

    weights: tuple[Weight, ...]
    refusals: tuple[Refusal, ...]


def find_weights(
    model: Model,
    /,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_size: int = 1,
    embeddings: bool = False,
) -> Found:
    """Every weight of the model that can be pruned, and a Refusal for each that cannot.

    Args:
        model: from `load`.
        include: if given, only weights that match one of these patterns (`*`, `?`, `[…]`), by their own name or by the
            name of a node that uses them.
        exclude: weights that match one of these are left out.
        min_size: weights with fewer elements are left out.
        embeddings: also the tables that Gather reads.

    Raises:
        UsageError: a pattern that matches nothing, or a `min_size` below 0.
        ModelError: a model that `emp fuse` wrote.

    An initializer also listed as a graph input (all are, before IR version 4) is pruned like any other: its value
    is then a default, and whoever feeds another value gets that one.
    """
    unfused(model)
    if min_size < 0:
        raise UsageError(f"min_size must be ≥ 0, got {min_size}")
    cached = model.cache.get(embeddings)
    if cached is None:
        cached = model.cache[embeddings] = _everything(model, embeddings)
    order: list[Weight | Refusal] = list(cached)
    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(_matches(pattern, item) for item in order):
                names = [quote(item.name) for item in order]
                some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                raise UsageError(f"{option} must match a weight, got {quote(pattern)}; there are: {some or 'none'}")
    chosen = [_choose(item, include, exclude, min_size) if isinstance(item, Weight) else item for item in order]
    return Found(
        tuple(item for item in chosen if isinstance(item, Weight)),
        tuple(item for item in chosen if isinstance(item, Refusal)),
    )


@dataclass
class _Candidate:
    """A constant tensor, with its uses as a weight and all others."""

    tensor: Tensor
    repeated: bool
    uses: list[tuple[Use, Slot]] = field(default_factory=list)
    others: list[Use] = field(default_factory=list)
    origins: list[Value] = field(default_factory=list)


def _everything(model: Model, embeddings: bool) -> list[Weight | Refusal]:
    """Every weight and refusal, in the order of first use."""
    trace = Trace(model)
    slots = {**SLOTS, **(EMBEDDINGS if embeddings else {})}
    candidates: dict[str, _Candidate] = {}
    for origin in trace.origins:
        tensor = origin.tensor
        if tensor is None:
            continue
        item = candidates.get(tensor.key)
        if item is None:
            item = candidates[tensor.key] = _Candidate(tensor, origin.name in origin.frame.graph.repeated)
        before = [*(use for use, _ in item.uses), *item.others]
        known = {(id(use.node), use.slot) for use in before if use.node} if before else ()
        for use in trace.uses(origin):
            if use.node is not None and (id(use.node), use.slot) in known and use.frame.graph.where:
                continue  # a function called again
            for slot in slots.get((use.node.domain, use.node.op), ()) if use.node is not None else ():
                if slot.index == use.slot:
                    item.uses.append((use, slot))
                    break
            else:
                item.others.append(use)
        item.origins.append(origin)
    reached: dict[tuple[int, int], int] = {}
    for i, (_, node, slot_, _) in enumerate(trace.reads):
        reached.setdefault((id(node), slot_), i)
    placed: list[tuple[int, Weight | Refusal]] = []
    for item in candidates.values():
        judged = _judge(model, item)
        if judged is not None:
            uses = [use for use, _ in item.uses] or item.others
            first = min(reached.get((id(use.node), use.slot), len(reached)) for use in uses)
            placed.append((first, judged))
    mine = {(id(use.node), use.slot) for item in candidates.values() for use, _ in item.uses}
    for i, (frame, node, slot_, value) in enumerate(trace.reads):
        if value not in trace.derived or (id(node), slot_) in mine:
            continue
        if not any(s.index == slot_ for s in slots.get((node.domain, node.op), ())):
            continue
        if (maker := trace.blocker(value)) is not None:
            mine.add((id(node), slot_))
            reason = f"computed from constants by {maker.op}, which is not followed"
            if maker.op in THROUGH:
                reason = f"it passes through more operations on its way than the {LONGEST} that are followed"
            words = Use(frame, node, slot_, None).words
            name = value.frame.graph.path + value.name
            placed.append((i, Refusal(name, node.op, (), "behind", reason, (words,), (node.name,), value.name)))
    return [item for _, item in sorted(placed, key=lambda pair: pair[0])]


def _judge(model: Model, item: _Candidate) -> Weight | Refusal | None:
    """A weight, unless one of the reasons against it holds; None for a constant that no one would take for a weight."""
    tensor = item.tensor
    if not item.uses:
        return _left(item)
    words = tuple(dict.fromkeys(use.words for use, _ in item.uses))
    nodes = tuple(dict.fromkeys(use.node.name for use, _ in item.uses if use.node))
    op = item.uses[0][0].node.op if item.uses[0][0].node else ""
    seen: list[Understood] = []
    for code, reason in _against(model, item, seen):
        return Refusal(tensor.key, op, tensor.shape, code, reason, words, nodes, tensor.name)
    layouts = [one.layout for one in seen if one.layout is not None]
    whole = len(layouts) == len(seen)
    if whole and len(layouts) > 1:
        whole = len({canonical(layout) for layout in layouts}) == 1
    shape, layout = tensor.shape, layouts[0] if whole else None
    path = tuple(step.node.op for step in item.uses[0][0].steps)
    if tensor.storage == "sparse":
        path = ("sparse tensor", *path)
    zero, dtype, codes = seen[0].zero, tensor.dtype, seen[0].codes
    if codes is not None:
        try:
            model.read_codes(tensor.key, codes)
        except ModelError as error:
            return Refusal(tensor.key, op, tensor.shape, "packed", str(error), words, nodes, tensor.name)
        shape, dtype = codes.shape, codes.dtype
    if tensor.dtype in INTEGERS and not zero.quantised:
        zero = Zero(quantised=True)
    return Weight(tensor.key, op, words, shape, layout, nodes, dtype, path, zero, tensor.name)


def _left(item: _Candidate) -> Refusal | None:
    """What looks like a weight, and is left alone."""
    tensor = item.tensor
    for use in item.others:
        if use.node is None or len(tensor.shape) < 2:
            continue
        slots, reason = LEFT.get((use.node.domain, use.node.op), ((), ""))
        code = "packed"
        if use.slot not in slots:
            table = EMBEDDINGS.get((use.node.domain, use.node.op), ())
            if not any(slot.index == use.slot for slot in table) or tensor.dtype not in FLOATS | INTEGERS:
                continue
            code, reason = "embedding", f"an embedding table ({use.node.op}), pruned only with embeddings"
        return Refusal(tensor.key, use.node.op, tensor.shape, code, reason, (use.words,), (use.node.name,), tensor.name)
    return None


def _against(model: Model, item: _Candidate, seen: list[Understood]) -> Iterator[tuple[str, str]]:
    """Reasons against a weight; what its uses say goes to `seen`."""
    tensor = item.tensor
    if item.repeated:
        yield "repeated", "several constants have this name"
    if tensor.dtype not in FLOATS | INTEGERS:
        yield "dtype", f"{tensor.dtype} weights are not pruned"
    if tensor.storage == "segment":
        yield "dtype", "stored in segments, which is not supported"
    if any(size < 0 for size in tensor.shape):
        yield "rank", f"its shape {tensor.shape} is none"
    if tensor.size == 0:
        yield "empty", "it has no elements"
    if tensor.storage == "sparse":
        if not tensor.parts:
            yield "sparse", "it has no values, or no indices"
        elif not tensor.parts[0].size:
            yield "empty", "it stores no elements"
    for use in item.others:
        if use.node is None:
            yield "output", f"it is also an output of {use.words}"
        else:
            behind = f", through {' and '.join(s.node.op for s in use.steps)}" if use.steps else ""
            yield (
                "shared",
                (f"it is also input {use.slot} of {use.node.label}{behind}, where zeros would change something else"),
            )
    for use, slot in item.uses:
        understood = understand(model, tensor, use, slot)
        if understood.against is not None:
            yield understood.against
        seen.append(understood)
    if tensor.dtype in INTEGERS:
        for one, (use, _) in zip(seen, item.uses, strict=True):
            if not one.zero.quantised and not any(step.node.op == "Cast" for step in use.steps):
                yield "dtype", f"{tensor.dtype} weights of {use.node.op if use.node else ''} are not pruned"
    if any(one.codes != seen[0].codes for one in seen[1:]):
        yield "packed", "its uses disagree about how its codes are packed"
    if any(not one.zero.same(seen[0].zero) for one in seen[1:]):
        yield "point", "its uses disagree about its zero point or scale"
    if tensor.storage == "sparse":
        if seen[0].zero.quantised:
            yield "sparse", "it is stored sparse and quantised, so what is not stored is not its zero"
        try:
            model.stored(tensor.key)
        except ModelError as error:
            yield "sparse", str(error)


def _matches(pattern: str, item: Weight | Refusal) -> bool:
    return any(fnmatchcase(name, pattern) or name == pattern for name in (item.name, item.tensor, *item.nodes) if name)


def _choose(weight: Weight, include: Sequence[str], exclude: Sequence[str], min_size: int) -> Weight | Refusal:
    size = 1
    for length in weight.shape:
        size *= length
    reason = ""
    if include and not any(_matches(pattern, weight) for pattern in include):
        reason = "no include pattern matches it"
    for pattern in exclude:
        if _matches(pattern, weight):
            reason = f"excluded by the pattern {quote(pattern)}"
    if not reason and size < min_size:
        reason = f"it has {size} elements, min_size is {min_size}"
    if not reason:
        return weight
    return Refusal(weight.name, weight.op, weight.shape, "option", reason, weight.uses, weight.nodes, weight.tensor)
