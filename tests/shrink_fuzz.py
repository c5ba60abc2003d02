"""Masked equals shrunk, on generated graphs: random compositions of all operations with a rule, random units taken out.

    python -m tests.shrink_fuzz [--graphs 2000] [--seed 0]

Each graph is cut three ways: with every constant of the chosen units at zero; with the weights at zero and what the
biases still say folded; and, after some channels were killed in the graph itself, of its dead units alone, which has
to leave the outputs as they were. Every result has to pass onnx's checker in full, with shape inference, load in
onnxruntime, and agree.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from emp_onnx.shrink.axes.trace import trace
from emp_onnx.shrink.cut import merge_masks
from emp_onnx.shrink.exact import dead, exact
from emp_onnx.shrink.problem import REWRITES, Problem
from emp_onnx.shrink.proof import prove
from emp_onnx.shrink.view import View, prepared


@dataclass
class Graph:
    """A graph under construction; values are names with shapes, of which axis 0 is the batch."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    count: int = 0
    used: Counter[str] = field(default_factory=Counter)

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def constant(self, array: np.ndarray) -> str:
        name = f"c{self.count}_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def weight(self, *shape: int) -> str:
        scale = 1 / np.sqrt(max(np.prod(shape[1:]), 1))
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, outs: int = 1, **attributes: object) -> list[str]:
        self.used[kind] += 1
        names = [self.name() for _ in range(outs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names


Value = tuple[str, tuple[int, ...]]


def conv(
    g: Graph, x: Value, out: int | None = None, kernel: int | None = None, groups: int = 1, bias: bool | None = None
) -> Value:
    name, (n, c, h, w) = x
    out = out or int(g.rng.choice([4, 6, 8, 12]))
    out = -(-out // groups) * groups
    k = kernel or int(g.rng.choice([1, 3]))
    inputs = [name, g.weight(out, c // groups, k, k)]
    if bias if bias is not None else g.rng.random() < 0.7:
        inputs.append(g.weight(out))
    (y,) = g.op("Conv", *inputs, group=groups, pads=[k // 2] * 4, kernel_shape=[k, k])
    return y, (n, out, h, w)


def norm(g: Graph, x: Value) -> Value:
    name, shape = x
    c = shape[1]
    kind = g.rng.choice(["BatchNormalization", "InstanceNormalization", "Affine", "GroupNorm"])
    if kind == "BatchNormalization":
        var = g.constant(g.rng.uniform(0.5, 2, c).astype(np.float32))
        return g.op(kind, name, g.weight(c), g.weight(c), g.weight(c), var)[0], shape
    if kind == "InstanceNormalization" and len(shape) == 4 and shape[2] * shape[3] > 1:
        return g.op(kind, name, g.weight(c), g.weight(c))[0], shape
    if kind == "GroupNorm" and c % 2 == 0 and len(shape) == 4 and shape[2] * shape[3] > 1:
        (y,) = g.op("GroupNormalization", name, g.weight(c), g.weight(c), num_groups=2)
        return y, shape
    tail = [1] * (len(shape) - 2)
    (y,) = g.op("Mul", name, g.weight(c, *tail))
    return g.op("Add", y, g.weight(c, *tail))[0], shape


def activation(g: Graph, x: Value) -> Value:
    name, shape = x
    kind = str(
        g.rng.choice(
            ["Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "Elu", "PRelu", "Softplus", "HardSwish", "Gelu", "Swish6"]
        )
    )
    if kind == "Clip":
        return g.op(kind, name, g.constant(np.float32(0)), g.constant(np.float32(6)))[0], shape
    if kind == "PRelu":
        return g.op(kind, name, g.weight(shape[1], *[1] * (len(shape) - 2)))[0], shape
    if kind == "Swish6":
        (s,) = g.op("Sigmoid", name)
        return g.op("Mul", name, s)[0], shape
    return g.op(kind, name)[0], shape


def residual(g: Graph, x: Value) -> Value:
    y = conv(g, activation(g, conv(g, x)), out=x[1][1])
    return g.op("Add", x[0], y[0])[0], x[1]


def dense(g: Graph, x: Value) -> Value:
    y = activation(g, conv(g, x))
    c = x[1][1] + y[1][1]
    return g.op("Concat", x[0], y[0], axis=1)[0], (x[1][0], c, *x[1][2:])


def split(g: Graph, x: Value) -> Value:
    n, c, h, w = x[1]
    if c < 3:
        return x
    a = int(g.rng.integers(1, c))
    left, right = g.op("Split", x[0], g.ints(a, c - a), outs=2, axis=1)
    y = conv(g, (left, (n, a, h, w)))
    if g.rng.random() < 0.5:
        return g.op("Concat", y[0], right, axis=1)[0], (n, y[1][1] + c - a, h, w)
    z = conv(g, (right, (n, c - a, h, w)), out=y[1][1])
    return g.op("Mul", y[0], z[0])[0], y[1]


def sliced(g: Graph, x: Value) -> Value:
    n, c, h, w = x[1]
    a = int(g.rng.integers(0, max(c // 2, 1)))
    b = int(g.rng.integers(a + 1, c + 1))
    if g.rng.random() < 0.3:
        index = g.rng.permutation(c)[: max(b - a, 1)]
        return g.op("Gather", x[0], g.ints(*index), axis=1)[0], (n, len(index), h, w)
    (y,) = g.op("Slice", x[0], g.ints(a), g.ints(b if g.rng.random() < 0.5 or b < c else 2**31), g.ints(1))
    return y, (n, b - a, h, w)


def depthwise(g: Graph, x: Value) -> Value:
    c = x[1][1]
    return conv(g, x, out=c * int(g.rng.integers(1, 3)), groups=c)


def grouped(g: Graph, x: Value) -> Value:
    c = x[1][1]
    groups = next((k for k in (3, 2) if c % k == 0), 1)
    return conv(g, x, groups=groups)


def shuffle(g: Graph, x: Value) -> Value:
    _, c, h, w = x[1]
    k = next((k for k in (2, 3) if c % k == 0), 0)
    if not k:
        return x
    (y,) = g.op("Reshape", x[0], g.ints(-1, k, c // k, h, w))
    (y,) = g.op("Transpose", y, perm=[0, 2, 1, 3, 4])
    return g.op("Reshape", y, g.ints(-1, c, h, w))[0], x[1]


def excite(g: Graph, x: Value) -> Value:
    n, c = x[1][:2]
    if g.rng.random() < 0.5:
        s: Value = (g.op("GlobalAveragePool", x[0])[0], (n, c, 1, 1))
    else:
        s = (g.op("ReduceMean", x[0], g.ints(2, 3), keepdims=1)[0], (n, c, 1, 1))
    s = conv(g, activation(g, conv(g, s, out=4, kernel=1)), out=c, kernel=1)
    (s_,) = g.op("Sigmoid", s[0])
    return g.op("Mul", x[0], s_)[0], x[1]


def pool(g: Graph, x: Value) -> Value:
    n, c, h, w = x[1]
    kind = str(g.rng.choice(["MaxPool", "AveragePool"]))
    if h < 4:
        (y,) = g.op("Resize", x[0], "", g.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
        return y, (n, c, h * 2, w * 2)
    (y,) = g.op(kind, x[0], kernel_shape=[2, 2], strides=[2, 2])
    return y, (n, c, h // 2, w // 2)


def transposed(g: Graph, x: Value) -> Value:
    n, c, h, w = x[1]
    groups = 2 if c % 2 == 0 and g.rng.random() < 0.4 else 1
    per = int(g.rng.choice([2, 3, 4]))
    (y,) = g.op("ConvTranspose", x[0], g.weight(c, per, 1, 1), g.weight(per * groups), group=groups)
    return y, (n, per * groups, h, w)


def depth(g: Graph, x: Value) -> Value:
    n, c, h, w = x[1]
    if c % 4 == 0:
        mode = str(g.rng.choice(["DCR", "CRD"]))
        return g.op("DepthToSpace", x[0], blocksize=2, mode=mode)[0], (n, c // 4, 2 * h, 2 * w)
    if h % 2 == 0:
        return g.op("SpaceToDepth", x[0], blocksize=2)[0], (n, 4 * c, h // 2, w // 2)
    return x


def padded(g: Graph, x: Value) -> Value:
    n, c, h, w = x[1]
    (y,) = g.op("Pad", x[0], g.ints(0, 1, 0, 0, 0, 2, 0, 0))
    return y, (n, c + 3, h, w)


def attention(g: Graph, x: Value) -> Value:
    n, c, h, w = x[1]
    length = h * w
    (t,) = g.op("Reshape", x[0], g.ints(0, c, -1))
    (t,) = g.op("Transpose", t, perm=[0, 2, 1])
    heads, size = int(g.rng.choice([2, 3])), int(g.rng.choice([2, 4]))
    wide = heads * size
    fused = g.rng.random() < 0.4
    parts, ready = [], False
    if fused:
        (p,) = g.op("MatMul", t, g.weight(c, 3 * wide))
        (p,) = g.op("Add", p, g.weight(3 * wide))
        if g.rng.random() < 0.5:
            parts = g.op("Split", p, g.ints(wide, wide, wide), outs=3, axis=2)
        else:
            (p,) = g.op("Reshape", p, g.ints(0, 0, 3, heads, size))
            (p,) = g.op("Transpose", p, perm=[2, 0, 3, 1, 4])
            parts, ready = [g.op("Gather", p, g.constant(np.int64(i)), axis=0)[0] for i in range(3)], True
    else:
        for _ in range(3):
            (p,) = g.op("MatMul", t, g.weight(c, wide))
            parts.append(g.op("Add", p, g.weight(wide))[0])
    if not ready:
        shaped = []
        for p in parts:
            if g.rng.random() < 0.5:  # as exporters do where sizes are open
                (s,) = g.op("Shape", p)
                (b,) = g.op("Gather", s, g.ints(0), axis=0)
                (m,) = g.op("Gather", s, g.ints(1), axis=0)
                (target,) = g.op("Concat", b, m, g.ints(heads, size), axis=0)
            else:
                target = g.ints(0, 0, heads, size)
            (p,) = g.op("Reshape", p, target)
            shaped.append(g.op("Transpose", p, perm=[0, 2, 1, 3])[0])
        parts = shaped
    (k,) = g.op("Transpose", parts[1], perm=[0, 1, 3, 2])
    (s,) = g.op("MatMul", parts[0], k)
    (s,) = g.op("Softmax", s, axis=-1)
    (o,) = g.op("MatMul", s, parts[2])
    (o,) = g.op("Transpose", o, perm=[0, 2, 1, 3])
    (o,) = g.op("Reshape", o, g.ints(0, 0, wide))
    (o,) = g.op("MatMul", o, g.weight(wide, c))
    if g.rng.random() < 0.5:
        (o,) = g.op("Add", o, t)
    if g.rng.random() < 0.5:
        (o,) = g.op("LayerNormalization", o, g.weight(c), g.weight(c), axis=-1)
    (u,) = g.op("MatMul", o, g.weight(c, 6))
    (v,) = g.op("MatMul", o, g.weight(c, 6))
    (v,) = g.op("Sigmoid", v)
    (u,) = g.op("Mul", u, v)
    (o,) = g.op("MatMul", u, g.weight(6, c))
    (o,) = g.op("Transpose", o, perm=[0, 2, 1])
    return g.op("Reshape", o, g.ints(0, c, h, w))[0], (n, c, h, w) if length else x[1]


def recurrent(g: Graph, x: Value) -> Value:
    n, c, h, w = x[1]
    kind, gates = [("LSTM", 4), ("GRU", 3), ("RNN", 1)][int(g.rng.integers(3))]
    hidden, ways = int(g.rng.choice([3, 4])), int(g.rng.choice([1, 2]))
    (t,) = g.op("Reshape", x[0], g.ints(0, c, -1))
    (t,) = g.op("Transpose", t, perm=[2, 0, 1])
    inputs = [t, g.weight(ways, gates * hidden, c), g.weight(ways, gates * hidden, hidden)]
    if g.rng.random() < 0.7:
        inputs.append(g.weight(ways, 2 * gates * hidden))
    extra = {"linear_before_reset": int(g.rng.integers(2))} if kind == "GRU" else {}
    (y,) = g.op(kind, *inputs, hidden_size=hidden, direction="bidirectional" if ways == 2 else "forward", **extra)
    (y,) = g.op("Transpose", y, perm=[2, 1, 3, 0])  # batch, ways, hidden, length
    return g.op("Reshape", y, g.ints(0, ways * hidden, h, w))[0], (n, ways * hidden, h, w)


def einsum(g: Graph, x: Value) -> Value:
    n, c, h, w = x[1]
    out = int(g.rng.choice([3, 5]))
    (y,) = g.op("Einsum", x[0], g.weight(c, out), equation="nchw,cd->ndhw")
    return y, (n, out, h, w)


def expanded(g: Graph, x: Value) -> Value:
    c = x[1][1]
    (s,) = g.op("Shape", x[0])
    if g.rng.random() < 0.5:
        (k,) = g.op("ConstantOfShape", s, value=numpy_helper.from_array(np.array([0.5], np.float32)))
    else:
        (k,) = g.op("Expand", g.weight(c, 1, 1), s)
    return g.op(str(g.rng.choice(["Add", "Mul", "Max"])), x[0], k)[0], x[1]


def scaled(g: Graph, x: Value) -> Value:
    """A factor computed from the number of channels, which must not follow when channels go."""
    (s,) = g.op("Shape", x[0])
    (c,) = g.op("Gather", s, g.constant(np.int64(1)), axis=0)
    (c,) = g.op("Cast", c, to=TensorProto.FLOAT)
    (c,) = g.op("Sqrt", c)
    return g.op("Div", x[0], c)[0], x[1]


def chosen(g: Graph, x: Value) -> Value:
    """One row, chosen after all rows were worked out."""
    w = x[1][3]
    (y,) = g.op("MatMul", x[0], g.weight(w, w))
    (y,) = g.op("Add", y, g.weight(w))
    (y,) = g.op("Tanh", y)
    at = int(g.rng.integers(-1, x[1][2]))
    if g.rng.random() < 0.5:
        (y,) = g.op("Gather", y, g.constant(np.int64(at)), axis=2)
        (y,) = g.op("Unsqueeze", y, g.ints(2))
    else:
        (y,) = g.op("Gather", y, g.ints(at), axis=2)
    return g.op("Add", x[0], y)[0], x[1]


def twice(g: Graph, x: Value) -> Value:
    """A product of a product, in rows that are told in several ways."""
    n, c, h, w = x[1]
    middle = int(g.rng.integers(1, 2 * w + 1))
    (y,) = g.op("Unsqueeze", x[0], g.ints(1))
    (y,) = g.op("MatMul", y, g.weight(w, middle))
    (y,) = g.op("Transpose", y, perm=[0, 2, 1, 3, 4])
    (y,) = g.op("Add", y, g.weight(middle))
    (y,) = g.op("Squeeze", y, g.ints(2))
    (y,) = g.op("MatMul", y, g.weight(middle, w))
    (y,) = g.op("Add", y, g.weight(w))
    if g.rng.random() < 0.5:
        (y,) = g.op("Reshape", y, g.ints(-1, w))
        (y,) = g.op("Reshape", y, g.ints(-1, c, h, w))
    return g.op("Add", x[0], y)[0], (n, c, h, w)


BLOCKS: list[Callable[[Graph, Value], Value]] = [
    conv, norm, activation, residual, dense, split, sliced, depthwise, grouped, shuffle, excite, pool, transposed,
    depth, padded, attention, recurrent, einsum, expanded, scaled, chosen, twice,
]  # fmt: skip


def graph(seed: int) -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]], Counter[str]]:
    """A model, feeds, and the operations in it."""
    rng = np.random.default_rng(seed)
    g = Graph(rng)
    x: Value = ("x", (2, 3, 4, 4))
    x = conv(g, x)
    for _ in range(int(rng.integers(2, 7))):
        x = BLOCKS[int(rng.integers(len(BLOCKS)))](g, x)
    if rng.random() < 0.5:
        (y,) = g.op("GlobalAveragePool", x[0])
        (y,) = g.op("Flatten", y)
        features = x[1][1]
    else:
        (y,) = g.op("Flatten", x[0])
        features = int(np.prod(x[1][1:]))
    (y,) = g.op("Gemm", y, g.weight(5, features), g.weight(5), transB=1)
    (y,) = g.op("Relu", y)
    g.nodes.append(helper.make_node("Gemm", [y, g.weight(5, 4)], ["y"]))
    batch: int | str = "batch" if rng.random() < 0.5 else 2
    model = helper.make_model(
        helper.make_graph(
            g.nodes, "g", [helper.make_tensor_value_info("x", 1, [batch, 3, 4, 4])],
            [helper.make_tensor_value_info("y", 1, [batch, 4])], g.constants,
        ),
        opset_imports=[helper.make_opsetid("", 21)], ir_version=10,
    )  # fmt: skip
    feeds = [{"x": rng.standard_normal((2, 3, 4, 4)).astype(np.float32)} for _ in range(2)]
    return model, feeds, g.used


def check(seed: int) -> tuple[list[str], Counter[str]]:
    """What is wrong with one graph's cuts, and what was counted."""
    model, feeds, used = graph(seed)
    rng = np.random.default_rng(seed + 1)
    counts: Counter[str] = Counter({f"op {k}": 1 for k in used})
    faults = _plain(model, feeds, counts)
    problem = Problem.of(model, feeds, biases=True)
    masks: dict = {}
    for group in problem.groups:
        gone = rng.permutation(group.units)[: int(rng.integers(0, group.units + 1))]
        trial = merge_masks([masks, group.removed(gone)])
        if not any(mask.all() for mask in trial.values()):
            masks = trial
    counts["units"] += sum(group.units for group in problem.groups)
    counts["cut"] += bool(masks)
    counts["plain"] += bool(problem.fewer)
    if masks:
        shrunk = problem.cut(masks)
        faults += _compare("masked", problem.reference(shrunk, masks), shrunk, problem.trace.feeds)
        reference, folded = exact(problem, masks)
        faults += _compare("folded", reference, folded, problem.trace.feeds)
    _kill(model, rng)
    problem = Problem.of(model, feeds, biases=True)
    gone, reference, shrunk, _ = dead(problem, model)
    counts["dead"] += bool(gone)
    faults += _compare("dead", model, shrunk, problem.trace.feeds)
    return [f"graph {seed}: {fault}" for fault in faults], counts


def _plain(model: onnx.ModelProto, feeds: list, counts: Counter[str]) -> list[str]:
    """The model said plainly, in each way, again and again, says the same; what is known of it is what is seen."""
    view = View.of(prepared(model))
    traced = trace(view, feeds)
    for _ in range(3):
        before = view
        for rewrite in REWRITES:
            new = rewrite(view, traced)
            if new is None:
                continue
            name = rewrite.__name__
            counts[f"way {name}"] = 1
            faults = _compare(name, view.model, new, traced.feeds)
            if faults:
                return faults
            view = View.of(new)
            known, traced = traced, trace(view, feeds)
            again = trace(view, feeds, known=known)
            if (again.shapes, again.runs, again.free, again.dtypes) != (
                traced.shapes, traced.runs, traced.free, traced.dtypes
            ):  # fmt: skip
                return [f"{name}: the trace brought up to date is another"]
        if view is before:
            break
    return []


def _kill(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Set rows of some weights to zero."""
    makers = {
        node.input[1]: 1 if node.op_type == "MatMul" else 0
        for node in model.graph.node
        if node.op_type in ("Conv", "MatMul", "Gemm")
    }
    for tensor in model.graph.initializer:
        if tensor.name in makers:
            values = numpy_helper.to_array(tensor).copy()
            rows = np.moveaxis(values, makers[tensor.name], 0)
            rows[rng.random(len(rows)) < 0.3] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _compare(what: str, reference: onnx.ModelProto, shrunk: onnx.ModelProto, feeds: list) -> list[str]:
    try:
        onnx.checker.check_model(shrunk, full_check=True)
    except Exception as error:
        return [f"{what}: onnx's checker says {str(error)[:300]}"]
    proof = prove(reference, shrunk, feeds)
    return [] if proof.holds else [f"{what}: {proof.problem}"]


def main(argv: list[str] | None = None) -> int:
    """Check graphs, print counts and faults; 1 if there was any."""
    parser = argparse.ArgumentParser(prog="python -m tests.shrink_fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--graphs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    start, counts, faults = time.perf_counter(), Counter[str](), []
    for seed in range(options.seed, options.seed + options.graphs):
        try:
            found, seen = check(seed)
        except Exception as error:
            found, seen = [f"graph {seed}: {type(error).__name__}: {error}"], Counter()
        faults += found
        counts += seen
        for fault in found:
            print(fault, flush=True)
    used = ", ".join(f"{k[3:]} {v}" for k, v in sorted(counts.items()) if k.startswith("op "))
    print(
        f"{options.graphs} graphs, {counts['cut']} of them cut, {counts['dead']} with dead units, "
        f"{counts['plain']} with fewer operations, "
        f"{counts['units']} units; {len(faults)} faults"
    )
    ways = ", ".join(f"{k[4:]} {v}" for k, v in sorted(counts.items()) if k.startswith("way "))
    print(f"graphs that were said with fewer operations in each way: {ways}")
    print(f"graphs with each operation: {used}")
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
