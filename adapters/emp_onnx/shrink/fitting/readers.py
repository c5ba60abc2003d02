"""Who sums over a group's coordinates with weights: Conv, Gemm, MatMul, and the input and hidden sides of LSTM, GRU
and RNN.

A reader is y = M·x + b with M of shape (outputs, channels, places): places are those of a kernel, one elsewhere. It
gives its weights as such a matrix, takes them back, and cuts samples of x out of an activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.shrink.axes.trace import Trace
from emp_onnx.shrink.tensors import add_constant, free
from emp_onnx.shrink.view import Op, View

__all__ = ["Reader", "drop_zero_biases", "find_readers", "with_biases"]

Array = NDArray[Any]
Wide = NDArray[np.float64]


@dataclass(frozen=True)
class Reader:
    """One use of a weight.

    Attributes:
        op: the operation. weight: name of its constant. source: the tensor it reads (for `state`, the one that holds
            states).
        kind: conv, right (x·W), rightt (x·Wᵀ), left (W·x), input or state (of a recurrent operation).
        axis: of `source`, the channels. out: (constant, axis) of the outputs. bias: name of the constant added, or
            empty.
        direction: for `state`, which. channels: how many it sums over.
    """

    op: Op
    weight: str
    source: str
    kind: str
    axis: int
    out: int
    bias: str = ""
    direction: int = 0
    channels: int = 0

    def matrix(self, weight: Array) -> Wide:
        """The weight as (outputs, channels, places)."""
        w: Wide = weight.astype(np.float64)
        if self.kind == "conv":
            w = w.reshape(w.shape[0], w.shape[1], -1)
        elif self.kind == "input":
            w = w.reshape(-1, w.shape[2], 1)
        else:
            w = np.expand_dims(w[self.direction] if self.kind == "state" else w.T if self.kind == "right" else w, 2)
        return w

    def put(self, matrix: Wide, weight: Array) -> Array:
        """`weight` with the matrix in its place, in its type."""
        if self.kind == "state":
            new = weight.copy()
            new[self.direction] = matrix[:, :, 0]
            return new
        flat = matrix[:, :, 0] if self.kind != "conv" else matrix
        return np.ascontiguousarray(
            (flat.T if self.kind == "right" else flat).reshape(weight.shape).astype(weight.dtype)
        )

    def add_bias(self, bias: Array, shift: Wide) -> Array:
        """The constant that is added, moved by `shift` for each output."""
        new = bias.astype(np.float64)
        if self.kind == "input":
            new[:, : new.shape[1] // 2] += shift.reshape(new.shape[0], -1)
        elif self.kind == "state":
            new[self.direction, new.shape[1] // 2 :] += shift
        else:
            new = new + shift.reshape([1] * (new.ndim - 1) + [-1])
        return np.ascontiguousarray(new.astype(bias.dtype))

    def rows(self, x: Array, rng: np.random.Generator, most: int) -> Wide:
        """Samples of what one output sums over, (samples, channels, places); at most `most`, drawn by `rng`."""
        if self.kind == "conv":
            return self._windows(x, rng, most)
        if self.kind == "state":  # (length, directions, batch, hidden): the state before each step but the first
            h = x[:, self.direction]
            flat = (h[1:] if self._backwards() else h[:-1]).reshape(-1, x.shape[-1])
        else:
            flat = np.moveaxis(x, self.axis, -1).reshape(-1, x.shape[self.axis])
        if len(flat) > most:
            flat = flat[np.sort(rng.choice(len(flat), most, replace=False))]
        return flat.astype(np.float64)[:, :, None]

    def _backwards(self) -> bool:
        way = self.op.attributes.get("direction", b"forward")
        return bool(way == b"reverse" or self.direction == 1)

    def _windows(self, x: Array, rng: np.random.Generator, most: int) -> Wide:
        op, dims = self.op, x.ndim - 2
        shape = op.attributes.get("kernel_shape")
        assert shape is not None
        steps = list(op.attributes.get("strides", [1] * dims))
        apart = list(op.attributes.get("dilations", [1] * dims))
        pads = list(op.attributes.get("pads", [0] * 2 * dims))
        auto = op.attributes.get("auto_pad", b"NOTSET")
        if auto in (b"SAME_UPPER", b"SAME_LOWER"):
            for i, size in enumerate(x.shape[2:]):
                total = max((-(-size // steps[i]) - 1) * steps[i] + (shape[i] - 1) * apart[i] + 1 - size, 0)
                less, more = total // 2, total - total // 2
                pads[i], pads[i + dims] = (less, more) if auto == b"SAME_UPPER" else (more, less)
        x = np.pad(x, [(0, 0), (0, 0), *((pads[i], pads[i + dims]) for i in range(dims))])
        reach = [(k - 1) * a + 1 for k, a in zip(shape, apart, strict=True)]
        view = np.lib.stride_tricks.sliding_window_view(x, reach, tuple(range(2, 2 + dims)))
        strided: Any = (slice(None), slice(None), *(slice(None, None, s) for s in (*steps, *apart)))
        view = view[strided]
        places = (view.shape[0], *view.shape[2 : 2 + dims])
        count = prod(places)
        chosen = np.arange(count) if count <= most else np.sort(rng.choice(count, most, replace=False))
        n, *at = np.unravel_index(chosen, places)
        return np.asarray(view[(n, slice(None), *at)]).reshape(len(chosen), x.shape[1], -1).astype(np.float64)


def find_readers(view: View, traced: Trace) -> list[Reader]:
    """Every reader of the model, in the order of its operations."""
    out: list[Reader] = []
    for op in view.ops:
        found: Sequence[Reader] = ()
        if op.type == "Conv":
            found = _conv(op, view)
        elif op.type == "Gemm":
            found = _gemm(op, view)
        elif op.type == "MatMul":
            found = _matmul(op, view, traced)
        elif op.type in ("LSTM", "GRU", "RNN"):
            found = _recurrent(op, view)
        # a weight with several uses would have to suit them all
        found = [replace(r, channels=r.matrix(view.constants[r.weight]).shape[1]) for r in found]
        out += [
            r
            for r in found
            if len({o.index for o, _ in view.readers[r.weight]}) == 1 and view.constants[r.weight].dtype.kind == "f"
        ]
    return out


def _own(view: View, name: str) -> str:
    return name if name in view.constants and len(view.readers[name]) == 1 else ""


def _conv(op: Op, view: View) -> list[Reader]:
    w = op.inputs[1]
    if w not in view.constants or int(op.attributes.get("group", 1)) != 1:
        return []
    op.attributes.setdefault("kernel_shape", list(view.constants[w].shape[2:]))
    return [Reader(op, w, op.inputs[0], "conv", 1, 0, _own(view, op.input(2)))]


def _gemm(op: Op, view: View) -> list[Reader]:
    w, alpha, beta = op.inputs[1], op.attributes.get("alpha", 1.0), op.attributes.get("beta", 1.0)
    if w not in view.constants or op.attributes.get("transA") or alpha != 1.0 or beta != 1.0:
        return []
    transposed = bool(op.attributes.get("transB"))
    outs = view.constants[w].shape[0 if transposed else 1]
    bias = _own(view, op.input(2))
    if bias and view.constants[bias].size != outs:
        bias = ""
    return [Reader(op, w, op.inputs[0], "rightt" if transposed else "right", 1, 0 if transposed else 1, bias)]


def _matmul(op: Op, view: View, traced: Trace) -> list[Reader]:
    a, b = op.inputs
    if b in view.constants and view.constants[b].ndim == 2 and a not in view.constants:
        rank = len(traced.shapes.get(a) or ())
        return (
            [Reader(op, b, a, "right", rank - 1, 1, _added(op, view, view.constants[b].shape[1]))] if rank > 1 else []
        )
    if a in view.constants and view.constants[a].ndim == 2:
        rank = len(traced.shapes.get(b) or ())
        return [Reader(op, a, b, "left", rank - 2, 0)] if rank > 1 else []
    return []


def _added(op: Op, view: View, outs: int) -> str:
    """The constant that the only reader of a product adds to its last axis."""
    readers = view.readers.get(op.outputs[0], [])
    if len(readers) != 1 or op.outputs[0] in view.outputs or readers[0][0].type != "Add":
        return ""
    other = readers[0][0].inputs[1 - readers[0][1]]
    values = view.constants.get(other)
    fits = values is not None and values.ndim and values.shape[-1] == outs == values.size and values.dtype.kind == "f"
    return _own(view, other) if fits else ""


def _recurrent(op: Op, view: View) -> list[Reader]:
    w, r = op.inputs[1], op.inputs[2]
    if w not in view.constants or r not in view.constants or int(op.attributes.get("layout", 0)):
        return []
    bias = _own(view, op.input(3))
    out = [Reader(op, w, op.inputs[0], "input", 2, 1, bias)]
    if op.outputs[0]:
        # the hidden side of the new gate of a GRU may be scaled before its bias: only its weights are fitted
        out += [Reader(op, r, op.outputs[0], "state", 3, 1, bias, d) for d in range(view.constants[r].shape[0])]
    return out


def with_biases(model: Any, view: View, readers: Sequence[Reader]) -> list[str]:
    """Give a zero bias, in place, to Conv, Gemm and recurrent readers that have none; the names of those given."""
    given: list[str] = []
    taken = {*view.makers, *view.constants, *view.readers}
    for reader in readers:
        slot = 3 if reader.kind in ("input", "state") else 2
        op, node = reader.op, model.graph.node[reader.op.index]
        if (
            reader.bias
            or op.type not in ("Conv", "Gemm", "LSTM", "GRU", "RNN")
            or (len(node.input) > slot and node.input[slot])
        ):
            continue
        w = view.constants[reader.weight]
        outs = (w.shape[0], 2 * w.shape[1]) if slot == 3 else (w.shape[reader.out],)
        name = free(f"{reader.weight}_bias", taken)
        while len(node.input) < slot:
            node.input.append("")
        if len(node.input) == slot:
            node.input.append(name)
        else:
            node.input[slot] = name
        given.append(add_constant(model, name, np.zeros(outs, w.dtype)))
    return given


def drop_zero_biases(model: Any, names: Sequence[str]) -> None:
    """Take away, in place, the biases of `names` that are still zero."""
    import onnx

    zero = {t.name for t in model.graph.initializer if t.name in set(names) and not onnx.numpy_helper.to_array(t).any()}
    for node in model.graph.node:
        for slot, name in enumerate(node.input):
            if name in zero:
                node.input[slot] = ""
        while node.input and not node.input[-1]:
            del node.input[-1]
    for field in (model.graph.initializer, model.graph.input):
        for i in reversed(range(len(field))):
            if field[i].name in zero:
                del field[i]
