"""The weights of a model, wherever they are: each one is a Weight, or a Refusal with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from emp_onnx.errors import UsageError, quote
from emp_onnx.graph import Graph, Node, Tensor
from emp_onnx.layout import SLOTS, Layout, layout_of
from emp_onnx.model_io import Model

__all__ = ["Found", "Refusal", "Weight", "find_weights"]

# operations whose weights a person would expect here, and that are left alone so far: inputs, and why
LATER: Mapping[tuple[str, str], tuple[tuple[int, ...], str]] = {
    ("", "Gather"): ((0,), "an embedding table (Gather) is not pruned"),
    ("", "Einsum"): ((0, 1, 2, 3), "weights of Einsum are not pruned yet"),
    ("", "QLinearConv"): ((3,), "quantised weights are not pruned yet"),
    ("", "QLinearMatMul"): ((0, 3), "quantised weights are not pruned yet"),
    ("", "ConvInteger"): ((1,), "quantised weights are not pruned yet"),
    ("", "MatMulInteger"): ((0, 1), "quantised weights are not pruned yet"),
    ("com.microsoft", "MatMulNBits"): ((1,), "quantised weights are not pruned yet"),
    ("com.microsoft", "DynamicQuantizeMatMul"): ((1,), "quantised weights are not pruned yet"),
    ("com.microsoft", "MatMulIntegerToFloat"): ((0, 1), "quantised weights are not pruned yet"),
    ("com.microsoft", "DynamicQuantizeLSTM"): ((1, 2), "quantised weights are not pruned yet"),
    ("com.microsoft", "QAttention"): ((1,), "quantised weights are not pruned yet"),
    ("com.microsoft", "Attention"): ((1,), "weights of Attention are not pruned yet"),
    ("com.microsoft", "FusedConv"): ((1,), "weights of FusedConv are not pruned yet"),
    ("com.microsoft", "FusedGemm"): ((0, 1), "weights of FusedGemm are not pruned yet"),
    ("com.microsoft", "FusedMatMul"): ((0, 1), "weights of FusedMatMul are not pruned yet"),
    ("com.microsoft", "EmbedLayerNormalization"): ((2, 3, 4), "an embedding table is not pruned"),
}

# operations that a weight may pass through on its way
THROUGH = {
    "Identity", "Cast", "CastLike", "Transpose", "Reshape", "Flatten", "Unsqueeze", "Squeeze", "DequantizeLinear",
}  # fmt: skip
FLOATS = {"float32", "float16", "bfloat16", "float64"}


@dataclass(frozen=True)
class Weight:
    """A float32 initializer that can be pruned.

    Attributes:
        name: its name in the model.
        op: the operation that uses it (the first one, if several do).
        uses: every use, in words.
        shape: its shape.
        layout: its output units, or None when its uses disagree about them.
        nodes: names of the nodes that use it.
    """

    name: str
    op: str
    uses: tuple[str, ...]
    shape: tuple[int, ...]
    layout: Layout | None
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """A tensor that one might expect to be pruned, and the reason why it is not.

    `code` is a short stable name of the reason: dtype, rank, empty, repeated, sparse, body, function, constant, behind,
    output, shared, later, option, zeros, units.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    code: str
    reason: str
    uses: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()


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
) -> Found:
    """Every weight of the model that can be pruned, and a Refusal for each that cannot.

    Args:
        model: from `load`.
        include: if given, only weights that match one of these patterns (`*`, `?`, `[…]`), by their own name or by the
            name of a node that uses them.
        exclude: weights that match one of these are left out.
        min_size: weights with fewer elements are left out.

    Raises:
        UsageError: a pattern that matches nothing, or a `min_size` below 0.

    An initializer also listed as a graph input (all are, before IR version 4) is pruned like any other: its value
    is then a default, and whoever feeds another value gets that one.
    """
    if min_size < 0:
        raise UsageError(f"min_size must be ≥ 0, got {min_size}")
    uses, order = _Uses(model), []
    for candidate in uses.candidates.values():
        order.append(_judge(candidate, uses.all.get(candidate.key, [])))
    order += [refusal for key, refusal in uses.hidden.items() if key not in uses.candidates]
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


Key = tuple[int, str]  # the graph's identity, and a name in it


@dataclass
class _Use:
    node: Node
    slot: int

    @property
    def words(self) -> str:
        return f"{self.node.label} input {self.slot}"


@dataclass
class _Candidate:
    key: Key
    graph: Graph
    tensor: Tensor
    uses: list[_Use] = field(default_factory=list)


class _Uses:
    """One walk over all graphs: who uses which initializer, candidates by first use, and what hides elsewhere."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.all: dict[Key, list[_Use | str]] = {}
        self.candidates: dict[Key, _Candidate] = {}
        self.hidden: dict[Key, Refusal] = {}
        self.makers: dict[int, dict[str, Node | None]] = {}
        for graph in [model.graph, *model.functions.values()]:
            self._walk(graph)

    def _walk(self, graph: Graph) -> None:
        made: dict[str, Node | None] = dict.fromkeys(graph.inputs)
        for node in graph.nodes:
            made.update(dict.fromkeys(node.outputs, node))
        self.makers[id(graph)] = made
        for node in graph.nodes:
            for slot, name in enumerate(node.inputs):
                if name and (home := self._home(graph, name)) is not None and _holds(home, name):
                    self.all.setdefault((id(home), name), []).append(_Use(node, slot))
            self._visit(graph, node)
            for body in node.bodies:
                self._walk(body)
        for name in graph.outputs:
            home = self._home(graph, name)
            if home is not None and _holds(home, name):
                self.all.setdefault((id(home), name), []).append(graph.where or "the graph")

    def _home(self, graph: Graph | None, name: str) -> Graph | None:
        """The innermost graph around here that defines `name`."""
        while graph is not None:
            if _holds(graph, name) or name in self.makers[id(graph)]:
                return graph
            graph = graph.parent
        return None

    def _visit(self, graph: Graph, node: Node) -> None:
        if not node.domain and node.op in SLOTS:
            for slot in SLOTS[node.op]:
                self._weight(graph, node, slot)
        elif (node.domain, node.op) in LATER:
            slots, reason = LATER[node.domain, node.op]
            for slot in slots:
                self._later(graph, node, slot, reason)
        elif (node.domain, node.op) in self.model.functions:
            reason = f"it goes into the local function {quote(node.op)}; what functions use is not pruned yet"
            for slot in range(len(node.inputs)):
                self._later(graph, node, slot, reason, "function")

    def _weight(self, graph: Graph, node: Node, slot: int) -> None:
        name = node.inputs[slot] if slot < len(node.inputs) else ""
        home = self._home(graph, name) if name else None
        if home is None:
            return
        use, key = _Use(node, slot), (id(home), name)
        if name in home.tensors:
            self.candidates.setdefault(key, _Candidate(key, home, home.tensors[name])).uses.append(use)
        elif name in home.sparse:
            self._hide(key, home.sparse[name], use, "sparse", "sparse initializers are not pruned yet")
        else:
            self._trace(home, name, use)

    def _trace(self, home: Graph, name: str, use: _Use) -> None:
        """Follow a computed value back; if a constant is at the end, it is a weight in hiding."""
        path: list[str] = []
        for _ in range(32):
            maker = self.makers[id(home)].get(name)
            if maker is None:
                return
            if maker.op == "Constant" and not maker.domain:
                if maker.attributes.get("#rank", 0) >= 2 or not path:
                    tensor = Tensor(name, "", (), "constant")
                    behind = f", behind {' and '.join(reversed(path))}" if path else ""
                    self._hide(
                        (id(home), name), tensor, use, "constant", f"held by a Constant node{behind}: not pruned yet"
                    )
                return
            if maker.op not in THROUGH or maker.domain or not maker.inputs or not maker.inputs[0]:
                return
            path.append(maker.op)
            name = maker.inputs[0]
            source = self._home(home, name)
            if source is None:
                return
            home = source
            if name in home.tensors:
                reason = f"reaches {use.node.op} through {' and '.join(reversed(path))}: not pruned yet"
                if "DequantizeLinear" in path:
                    dtype = home.tensors[name].dtype
                    reason = f"quantised ({dtype}), reaches {use.node.op} through DequantizeLinear: not pruned yet"
                self._hide((id(home), name), home.tensors[name], use, "behind", reason)
                return

    def _later(self, graph: Graph, node: Node, slot: int, reason: str, code: str = "later") -> None:
        name = node.inputs[slot] if slot < len(node.inputs) else ""
        home = self._home(graph, name) if name else None
        if home is None or name not in home.tensors:
            return
        tensor = home.tensors[name]
        if len(tensor.shape) >= 2 and (tensor.dtype in FLOATS or "quantised" in reason):
            self._hide((id(home), name), tensor, _Use(node, slot), code, reason)

    def _hide(self, key: Key, tensor: Tensor, use: _Use, code: str, reason: str) -> None:
        if key in self.candidates:
            return
        old = self.hidden.get(key)
        words = (*old.uses, use.words) if old else (use.words,)
        nodes = (*old.nodes, use.node.name) if old else (use.node.name,)
        first = old or Refusal(tensor.name, use.node.op, tensor.shape, code, reason)
        self.hidden[key] = Refusal(first.name, first.op, first.shape, first.code, first.reason, words, nodes)


def _holds(graph: Graph, name: str) -> bool:
    return name in graph.tensors or name in graph.sparse


def _judge(candidate: _Candidate, everywhere: list[_Use | str]) -> Weight | Refusal:
    """A weight, unless one of the reasons against it holds."""
    tensor, uses = candidate.tensor, candidate.uses
    words = tuple(use.words for use in uses)
    nodes = tuple(use.node.name for use in uses)
    found = [layout_of(use.node.op, use.slot, tensor.shape, use.node.attributes) for use in uses]
    layouts = [item for item in found if isinstance(item, Layout)]
    for code, reason in _against(candidate, everywhere, next((item for item in found if isinstance(item, str)), "")):
        return Refusal(tensor.name, uses[0].node.op, tensor.shape, code, reason, words, nodes)
    agreed = layouts[0] if len(set(layouts)) == 1 else None
    return Weight(tensor.name, uses[0].node.op, words, tensor.shape, agreed, nodes)


def _against(candidate: _Candidate, everywhere: list[_Use | str], shape: str) -> Iterator[tuple[str, str]]:
    tensor, mine = candidate.tensor, {(id(use.node), use.slot) for use in candidate.uses}
    if candidate.graph.where:
        yield "body", f"it lives in the {candidate.graph.where}, and those are not pruned yet"
    if tensor.name in candidate.graph.repeated:
        yield "repeated", "several initializers have this name"
    if tensor.dtype != "float32":
        yield "dtype", f"{tensor.dtype} weights are not pruned yet"
    if tensor.storage == "segment":
        yield "dtype", "stored in segments, which is not supported"
    if shape:
        yield "rank", shape
    if tensor.size == 0:
        yield "empty", "it has no elements"
    for use in everywhere:
        if isinstance(use, str):
            yield "output", f"it is also an output of {use}"
        elif (id(use.node), use.slot) not in mine:
            yield "shared", f"it is also input {use.slot} of {use.node.label}, where zeros would change something else"


def _matches(pattern: str, item: Weight | Refusal) -> bool:
    return any(fnmatchcase(name, pattern) or name == pattern for name in (item.name, *item.nodes) if name)


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
    return Refusal(weight.name, weight.op, weight.shape, "option", reason, weight.uses, weight.nodes)
