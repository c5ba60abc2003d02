"""Where a weight acts linearly: the rows it is multiplied with, and where each of its numbers lies in the file.

Each use becomes one or more *problems* `Y = X·Wᵀ + b`: X of shape (groups, samples, d), W of shape (groups, out, d).
W is given by indices into tensors as stored, so whatever a weight passes through on its way (Transpose, Slice,
Concat, …) is undone by looking up; for recurrent cells the input side and the hidden side of a gate are one problem,
since they add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.places import Places
from emp_onnx.calibration.program import Program, Step
from emp_onnx.calibration.recurrent import recurrent
from emp_onnx.calibration.unroll import Window, positions, stuffed, unroll
from emp_onnx.files.model_io import Model
from emp_onnx.weights.find import Weight
from emp_onnx.weights.layout import SLOTS

__all__ = ["UNOPENED", "Bias", "Problem", "Site", "find_sites"]

Array = NDArray[Any]
Index = NDArray[np.int64]
Get = Callable[[str], "Array | None"]


@dataclass(frozen=True, eq=False)
class Bias:
    """Where a problem's bias is kept: added `sign` times; index of shape (groups, out), repeated in several tensors;
    `readers`: how many steps it ends at."""

    key: str
    index: Index
    sign: float = 1.0
    readers: int = 1


@dataclass(eq=False)
class Problem:
    """One linear map.

    Attributes:
        parts: tensors by key, each with the places (groups, out, its share of d) of its numbers.
        rows: from values and a seed for the choice of samples, X of shape (groups, samples, d).
        outs: the same samples of something that has the shape of the step's output, as (groups, samples, out).
        bias: where its bias is, or None.
        same: problems for which this is equal, and not None, have the same rows.
        stacks: whether feeds that are joined along their first axis give the rows of each, one after the other.
    """

    parts: list[tuple[str, Places]]
    rows: Callable[[Get, int, int], Array]
    outs: Callable[[Array, int, int], Array] | None = None
    bias: Bias | None = None
    same: object = None
    stacks: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, out, d)."""
        groups, out = self.parts[0][1].shape[:2]
        return groups, out, sum(places.shape[2] for _, places in self.parts)

    @property
    def size(self) -> int:
        """How many numbers."""
        return sum(places.size for _, places in self.parts)


@dataclass(eq=False)
class Site:
    """A step that uses weights, with its problems.

    Attributes:
        step: the step.
        reads: values that its rows are made from.
        hidden: whether its own output is one of these: then it must be run for the rows.
        skip: a value that is added to its output, so an error already in it can be made good here.
        pooled: a value whose mean over positions its input may be.
        program: the one that the step is of: the model's, or that of a body.
        path: the loops around it, the outermost first.
        also: other places where the same weights act; their samples count as this one's.
    """

    step: Step
    keys: tuple[str, ...]
    reads: tuple[str, ...]
    problems: list[Problem]
    hidden: str = ""
    skip: str = ""
    pooled: str = ""
    program: Program = field(init=False)
    path: tuple[Step, ...] = ()
    also: list[Site] = field(default_factory=list)

    @property
    def outer(self) -> Step:
        """The step of the model's own program that this is, or is in."""
        return self.path[0] if self.path else self.step

    @property
    def level(self) -> int:
        """Its level."""
        return self.outer.level

    @property
    def needs(self) -> tuple[str, ...]:
        """Values of the model's own program that its rows are made from."""
        if self.path:
            return tuple(self.outer.reads)
        # a cell is run again for what it remembers, with its first state and the lengths of its sequences
        cell = [name for name in self.step.inputs if name not in self.program.fixed] if self.hidden else []
        return tuple(filter(None, (*self.reads, *cell, self.skip, self.pooled)))

    @property
    def uses(self) -> list[Site]:
        """This site, and the others with the same weights."""
        return [self, *self.also]

    @property
    def again(self) -> bool:
        """Whether what it sees depends on its own weights: then it is solved twice."""
        return bool(self.hidden or self.path or self.also)


@dataclass
class _Finder:
    program: Program
    model: Model
    weights: Mapping[str, Weight]
    whole: Program
    cache: dict[str, tuple[str, Index] | None] = field(default_factory=dict)

    def weight(self, name: str) -> tuple[str, Index] | None:
        """The weight behind a fixed value, and the index map; None if it is none, or several."""
        if name not in self.cache:
            self.cache[name] = self._weight(name)
        return self.cache[name]

    def _weight(self, name: str) -> tuple[str, Index] | None:
        if not name or name not in self.program.fixed:
            return None
        keys = self.program.sources(name) & self.weights.keys()
        if len(keys) != 1:
            return None
        key = next(iter(keys))
        index = self.index(name, key)
        return None if index is None or (index < 0).any() else (key, index)

    def index(self, name: str, key: str) -> Index | None:
        """Where each element of a fixed value lies in the tensor `key`; −1 for what comes from elsewhere."""
        program = self.program
        if name in program.constants:
            tensor = program.constants[name]
            return np.arange(tensor.size).reshape(tensor.shape) if tensor.key == key else None
        steps = program.closure([name])
        moves = {
            "Identity",
            "Transpose",
            "Reshape",
            "Flatten",
            "Squeeze",
            "Unsqueeze",
            "Slice",
            "Split",
            "Concat",
            "Cast",
        }
        at: dict[str, Array] = {}
        for step in steps:
            for value in step.inputs:
                if value in program.constants:
                    at[value] = self._marked(value, key)
        from emp_onnx.calibration.runner import open_session

        for step in steps:
            touched = any(
                at.get(v) is not None and at[v].dtype == np.int64 and (at[v] >= MARK).any() for v in step.inputs if v
            )
            if touched and (step.node.op not in moves or step.node.domain):
                return None
            if touched and step.node.op == "Cast":
                at[step.outputs[0]] = at[step.inputs[0]]
                continue
            reads = {v: at[v] for v in step.inputs if v}
            if touched:
                reads = {
                    v: np.full(a.shape, MARK - 1) if i and a.dtype.kind == "f" else a
                    for i, (v, a) in enumerate(reads.items())
                } if step.node.op != "Concat" else {
                    v: a if a.dtype == np.int64 else np.full(a.shape, MARK - 1) for v, a in reads.items()
                }  # fmt: skip
            gives = [v for v in step.outputs if v]
            bare = Program([step], {}, (), (), program.functions, program.opsets, program.ir_version)
            out = open_session(bare, [step], reads, gives, None, 1).run(gives, reads)
            at.update(zip(gives, out, strict=True))
        found = at.get(name)
        if found is None or found.dtype != np.int64:
            return None
        return np.where(found >= MARK, found - MARK, -1)

    def _marked(self, value: str, key: str) -> Array:
        tensor = self.program.constants[value]
        if tensor.key == key:
            return MARK + np.arange(tensor.size, dtype=np.int64).reshape(tensor.shape)
        return self.model.values(tensor.key)

    def alone(self, name: str) -> Bias | None:
        """A constant float vector, whatever it passes through: a bias that may change where no other step reads it."""
        return next((hit for hit in self.parts(name) if (hit.index >= 0).all()), None)

    def parts(self, name: str) -> list[Bias]:
        """The same where it is put together from several: each with −1 for what comes from the others."""
        if not name or name not in self.program.fixed:
            return []
        found = []
        for key in sorted(self.program.sources(name) - self.weights.keys()):
            if self.model.tensors[key].dtype in FLOATS and (readers := _readers(self.whole, key)):
                index = self.index(name, key)
                if index is not None:
                    found.append(Bias(key, index, readers=readers))
        return found


def _readers(program: Program, key: str) -> int:
    """At how many steps all that is made from a tensor ends, in bodies too; 0 if the model gives it as an output."""
    ends: dict[int, Step] = {}
    todo = [value for value, tensor in program.constants.items() if tensor.key == key]
    seen = set(todo)
    while todo:
        value = todo.pop()
        if value in program.outputs:
            return 0
        for step, _ in program.readers.get(value, ()):
            made = {out for out in step.outputs if out}
            if not made <= program.fixed:
                ends[id(step)] = step
            todo += made & program.fixed - seen
            seen |= made
    inside = [1 if step.body is None else _readers(step.body.program, key) for step in ends.values()]
    return sum(inside) if all(inside) else 0


FLOATS = ("float32", "float64", "float16")
UNOPENED = "its use lies in a body or a function that is not opened, or depends on more than itself"
MARK = 1 << 40  # added to indices, so that they are not taken for sizes


def find_sites(program: Program, model: Model, weights: Sequence[Weight]) -> tuple[list[Site], dict[str, str]]:
    """Every place where one of these float weights acts linearly; and for the other weights why there is none."""
    why: dict[str, str] = {}
    sites = list(_sites(_Finder(program, model, {w.name: w for w in weights}, program), (), why))
    have = {key for site in sites for key in site.keys}
    for weight in weights:
        if weight.name not in have and weight.name not in why:
            known = weight.dtype in FLOATS
            why[weight.name] = UNOPENED if known else f"{weight.dtype} weights are not refitted"
    return sites, {key: reason for key, reason in why.items() if key not in have}


def _sites(finder: _Finder, path: tuple[Step, ...], why: dict[str, str]) -> Iterator[Site]:
    """Those of a program, in the order of its steps."""
    for step in finder.program.steps:
        if step.body is not None:
            inside = _Finder(step.body.program, finder.model, finder.weights, finder.whole)
            yield from _sites(inside, (*path, step), why)
        slots = [
            slot.index for slot in SLOTS.get((step.node.domain, step.node.op), ()) if slot.index < len(step.inputs)
        ]
        found = {i: hit for i in slots if (hit := finder.weight(step.inputs[i])) is not None}
        found = {i: hit for i, hit in found.items() if finder.weights[hit[0]].dtype in FLOATS}
        if not found or (path and all(name in finder.program.fixed for name in step.outputs)):
            continue
        make = MAKERS.get(step.node.op) if not step.node.domain else None
        site = make(finder, step, found) if make else f"{step.node.op} is not refitted"
        if isinstance(site, str):
            why.update({key: site for key, _ in found.values()})
        else:
            site.program, site.path = finder.program, path
            yield site


Found = Mapping[int, tuple[str, Index]]


def _only_reader(program: Program, name: str) -> Step | None:
    users = program.readers.get(name, [])
    return users[0][0] if len(users) == 1 and name not in program.outputs else None


def _later_bias(finder: _Finder, step: Step, out: int, axis: int) -> Bias | None:
    """The constant of an Add behind a step, if there is one for each output along `axis` (counted from the end)."""
    user = _only_reader(finder.program, step.outputs[0])
    if user is None or user.node.op != "Add" or user.node.domain:
        return None
    other = user.inputs[1] if user.inputs[0] == step.outputs[0] else user.inputs[0]
    hit = finder.alone(other)
    if hit is None or hit.index.size != out:
        return None
    shape = hit.index.shape
    if any(size != 1 for i, size in enumerate(shape) if i - len(shape) != axis):
        return None
    return _flat(hit)


def _behind(finder: _Finder, step: Step, out: int) -> Bias | None:
    """The mean of a BatchNormalization behind a step, which is a bias with the sign turned.

    Its variance stays. Solved outputs vary a little less than those that were wanted, and dividing by their own
    variance would make them larger; but of all factors that they could be given, 1 has the least error already.
    """
    user = _only_reader(finder.program, step.outputs[0])
    if (
        user is None
        or user.node.op != "BatchNormalization"
        or user.inputs[0] != step.outputs[0]
        or user.node.number("training_mode")
    ):
        return None
    mean = finder.alone(user.inputs[3])
    return replace(_flat(mean), sign=-1.0) if mean is not None and mean.index.size == out else None


def _flat(bias: Bias) -> Bias:
    return replace(bias, index=bias.index.reshape(1, -1))


def _conv(finder: _Finder, step: Step, found: Found) -> Site | str:
    key, index = found[1]
    groups, shape = step.node.number("group", 1), index.shape
    if len(shape) < 3 or shape[0] % groups:
        return "its shape is not that of a kernel"
    given = _window(step, shape[2:])
    auto = step.node.attributes.get("auto_pad", "NOTSET")
    name, out = step.inputs[0], shape[0]
    matrix = index.reshape(groups, out // groups, -1)

    def window(x: Array) -> Window:
        return _auto(given, str(auto), x.shape[2:])

    def rows(get: Get, seed: int, limit: int) -> Array:
        x = get(name)
        assert x is not None
        w = window(x)
        count = x.shape[0] * int(np.prod(w.sizes(x.shape[2:])))
        return unroll(x, w, groups, positions(count, limit, seed))

    bias = _grouped(_given_bias(finder, step, 2, out) if _has(step, 2) else None, groups)
    if bias is None and not _has(step, 2):
        bias = _grouped(_later_bias(finder, step, out, 1 - len(shape)) or _behind(finder, step, out), groups)
    same = ("Conv", name, given, str(auto), groups)
    return Site(step, (key,), (name,), [Problem([(key, Places(matrix))], rows, _channels(groups), bias, same, True)])


def _conv_transpose(finder: _Finder, step: Step, found: Found) -> Site | str:
    key, index = found[1]
    groups, kernel = step.node.number("group", 1), index.shape[2:]
    if "output_shape" in step.node.attributes or str(step.node.attributes.get("auto_pad", "NOTSET")) != "NOTSET":
        return "a ConvTranspose with output_shape or auto_pad is not refitted"
    given = _window(step, kernel)
    extra = step.node.numbers("output_padding") or (0,) * len(kernel)
    pads = tuple(
        (d * (k - 1) - before, d * (k - 1) - after + more)
        for (before, after), d, k, more in zip(given.pads, given.dilations, kernel, extra, strict=True)
    )
    if any(b < 0 or a < 0 for b, a in pads):
        return "a ConvTranspose with pads beyond its kernel is not refitted"
    plain = Window(given.kernel, (1,) * len(kernel), given.dilations, pads)
    name = step.inputs[0]
    # (in, out/group, …) turned round: (group, out, in, …) with the kernel reversed
    turned = index.reshape(groups, index.shape[0] // groups, *index.shape[1:]).swapaxes(1, 2)
    turned = np.flip(turned, tuple(range(3, turned.ndim)))
    out = groups * index.shape[1]
    matrix = np.ascontiguousarray(turned).reshape(groups, index.shape[1], -1)

    def rows(get: Get, seed: int, limit: int) -> Array:
        x = get(name)
        assert x is not None
        x = stuffed(x, given.strides)
        count = x.shape[0] * int(np.prod(plain.sizes(x.shape[2:])))
        return unroll(x, plain, groups, positions(count, limit, seed))

    bias = _grouped(
        _given_bias(finder, step, 2, out) if _has(step, 2) else _later_bias(finder, step, out, 1 - index.ndim), groups
    )
    return Site(step, (key,), (name,), [Problem([(key, Places(matrix))], rows, _channels(groups), bias, None, True)])


def _channels(groups: int) -> Callable[[Array, int, int], Array]:
    def outs(y: Array, seed: int, limit: int) -> Array:
        flat = np.moveaxis(y, 1, 0).reshape(y.shape[1], -1)
        some = positions(flat.shape[1], limit, seed)
        flat = flat if some is None else flat[:, some]
        return flat.reshape(groups, -1, flat.shape[1]).transpose(0, 2, 1)

    return outs


def _last(y: Array, seed: int, limit: int) -> Array:
    flat = y.reshape(-1, y.shape[-1])
    some = positions(len(flat), limit, seed)
    return (flat if some is None else flat[some])[None]


def _matrix(name: str, turned: bool, scale: float) -> Callable[[Get, int, int], Array]:
    """Rows of a matrix product: the last axis is summed over, or the last but one. What scales it scales them."""

    def rows(get: Get, seed: int, limit: int) -> Array:
        x = get(name)
        assert x is not None
        found = _last(np.swapaxes(x, -1, -2) if turned else x, seed, limit)
        return found if scale == 1 else found * np.float32(scale)

    return rows


def _gemm(finder: _Finder, step: Step, found: Found) -> Site | str:
    if len(found) != 1:
        return "both factors are weights"
    slot, (key, index) = next(iter(found.items()))
    scale = {"alpha": 1.0, "beta": 1.0, **{a.name: a.f for a in step.proto.attribute if a.name in ("alpha", "beta")}}
    if not scale["alpha"]:
        return "a Gemm whose alpha is 0 is not refitted"
    flags = step.node.number("transA"), step.node.number("transB")
    name = step.inputs[1 - slot]
    if slot == 1:
        matrix, turned = (index if flags[1] else index.T), bool(flags[0])
        outs: Any = _last
    else:  # (W·X)ᵀ = Xᵀ·Wᵀ
        matrix, turned = (index.T if flags[0] else index), not flags[1]
        outs = None
    bias = None
    if slot == 1:
        if _has(step, 2):
            hit = finder.alone(step.inputs[2])
            shape = None if hit is None else hit.index.shape
            if hit is not None and hit.index.size == len(matrix) and (not shape or shape[-1] == len(matrix)):
                bias = replace(_flat(hit), sign=1 / scale["beta"]) if scale["beta"] else None
        else:
            bias = _later_bias(finder, step, len(matrix), -1)
    return Site(step, (key,), (name,), [_matrix_problem(key, matrix, name, turned, outs, bias, scale["alpha"])])


def _matmul(finder: _Finder, step: Step, found: Found) -> Site | str:
    if len(found) != 1:
        return "both factors are weights"
    slot, (key, index) = next(iter(found.items()))
    name, mine = step.inputs[1 - slot], slot == 1
    if index.ndim < 2:
        return "a vector is not refitted"
    if index.ndim > 2:
        return Site(step, (key,), (name,), [_batched(key, index, name, mine)])
    matrix = index.T if mine else index
    bias = _later_bias(finder, step, len(matrix), -1 if mine else -2)
    return Site(step, (key,), (name,), [_matrix_problem(key, matrix, name, not mine, _last if mine else None, bias)])


def _batched(key: str, index: Index, name: str, mine: bool) -> Problem:
    """A batch of matrices, each a group with its own share of the other factor; `mine`: they are on the right."""
    batch = index.shape[:-2]
    own = [axis - len(batch) - 2 for axis, size in enumerate(batch) if size > 1]  # counted from the end
    groups = int(np.prod(batch))

    def grouped(y: Array) -> Array:
        """The batch in front; whatever else there is are samples."""
        y = np.broadcast_to(y, (*np.broadcast_shapes(y.shape[:-2], batch), *y.shape[-2:]))
        return np.moveaxis(y, own, range(len(own))).reshape(groups, -1, y.shape[-1])

    def taken(y: Array, seed: int, limit: int) -> Array:
        y = grouped(y if mine else np.swapaxes(y, -1, -2))
        some = positions(y.shape[1], limit, seed)
        return y if some is None else y[:, some]

    def rows(get: Get, seed: int, limit: int) -> Array:
        x = get(name)
        assert x is not None
        return taken(x, seed, limit)

    matrix = (np.swapaxes(index, -1, -2) if mine else index).reshape(groups, -1, index.shape[-2 if mine else -1])
    return Problem([(key, Places(matrix))], rows, taken)


def _matrix_problem(
    key: str, matrix: Index, name: str, turned: bool, outs: Any, bias: Bias | None, scale: float = 1.0
) -> Problem:
    same = ("matrix", name, turned, scale)
    return Problem([(key, Places(matrix[None]))], _matrix(name, turned, scale), outs, bias, same, not turned)


def _einsum(finder: _Finder, step: Step, found: Found) -> Site | str:
    if len(found) != 1 or len(step.inputs) != 2:
        return "an Einsum of other than two factors, one of them a weight, is not refitted"
    slot, (key, index) = next(iter(found.items()))
    equation = str(step.node.attributes.get("equation", "")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if "." in equation or not arrow or len(terms) != 2:
        return "an Einsum with an ellipsis, or without an output term, is not refitted"
    mine, other, name = terms[slot], terms[1 - slot], step.inputs[1 - slot]
    summed = [c for c in mine if c in other and c not in right]
    shared = [c for c in mine if c in other and c in right]
    free = [c for c in mine if c not in other and c in right]
    rest = [c for c in other if c not in mine and c in right]
    plain = all(len(set(term)) == len(term) for term in (mine, other, right))
    if not plain or len(summed + shared + free) != len(mine) or len(summed + shared + rest) != len(other):
        return "an Einsum that sums over one factor alone, or repeats a letter, is not refitted"
    sizes = dict(zip(mine, index.shape, strict=True))
    many = [int(np.prod([sizes[c] for c in some], dtype=np.int64)) for some in (shared, free, summed)]
    matrix = index.transpose([mine.index(c) for c in (*shared, *free, *summed)]).reshape(many)

    def rows(get: Get, seed: int, limit: int) -> Array:
        x = get(name)
        assert x is not None
        x = x.transpose([other.index(c) for c in (*shared, *rest, *summed)]).reshape(many[0], -1, many[2])
        some = positions(x.shape[1], limit, seed)
        return x if some is None else x[:, some]

    return Site(step, (key,), (name,), [Problem([(key, Places(matrix))], rows)])


def _cell(finder: _Finder, step: Step, found: Found) -> Site | str:
    if set(found) != {1, 2}:
        return "a recurrent cell of which only one side is a weight is not refitted"
    given = finder.parts(step.inputs[3]) if _has(step, 3) else []
    readers = {bias.key: bias.readers for bias in given}
    made = recurrent(step, found[1], found[2], [(bias.key, bias.index) for bias in given])
    if isinstance(made, str):
        return made
    problems, hidden = made
    bias = [Bias(*p.bias, readers=readers[p.bias[0]]) if p.bias else None for p in problems]
    reads = tuple(step.inputs[i] for i in (0, 4, 5) if _has(step, i))
    return Site(
        step, (found[1][0], found[2][0]), reads,
        [
            Problem([(key, Places(index)) for key, index in p.parts], p.rows, None, b)
            for p, b in zip(problems, bias, strict=True)
        ],
        hidden,
    )  # fmt: skip


MAKERS: Mapping[str, Callable[[_Finder, Step, Found], Site | str]] = {
    "Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _matmul, "Einsum": _einsum,
    "LSTM": _cell, "GRU": _cell, "RNN": _cell,
}  # fmt: skip


def _has(step: Step, slot: int) -> bool:
    return slot < len(step.inputs) and bool(step.inputs[slot])


def _given_bias(finder: _Finder, step: Step, slot: int, out: int) -> Bias | None:
    hit = finder.alone(step.inputs[slot])
    return _flat(hit) if hit is not None and hit.index.size == out else None


def _grouped(bias: Bias | None, groups: int) -> Bias | None:
    return bias and replace(bias, index=bias.index.reshape(groups, -1))


def _window(step: Step, kernel: Sequence[int]) -> Window:
    rank = len(kernel)
    pads = step.node.numbers("pads") or (0,) * (2 * rank)
    ones = (1,) * rank
    return Window(
        tuple(kernel), step.node.numbers("strides") or ones, step.node.numbers("dilations") or ones,
        tuple(zip(pads[:rank], pads[rank:], strict=True)),
    )  # fmt: skip


def _auto(window: Window, auto: str, spatial: Sequence[int]) -> Window:
    if auto in ("NOTSET", ""):
        return window
    pads = []
    for size, k, s, d in zip(spatial, window.kernel, window.strides, window.dilations, strict=True):
        total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size) if auto != "VALID" else 0
        less = total // 2
        pads.append((less, total - less) if auto == "SAME_UPPER" else (total - less, less))
    return Window(window.kernel, window.strides, window.dilations, tuple(pads))
