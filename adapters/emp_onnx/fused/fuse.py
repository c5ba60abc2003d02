"""Packed weights moved into the nodes that use them, so that kernels can compute with them as they are.

`emp pack` puts a node of its own before each use of a packed weight, which unpacks it. Kernels need weight and
activations in one node. So a MatMul, Gemm or Conv with such a weight becomes one node of the same domain, with the bias
and the Relu that follow it, and with a local function of its name that says in standard operations what it computes.
Without kernels onnxruntime inlines that function, and all is as before.

Weights may be cast to float32, or dequantised, before they are used. A MatMulInteger between the operations that
quantise its activations and scale its sums, as onnxruntime's `quantize_dynamic` writes them, becomes one node with all
of these; a ConvInteger likewise. What is added to a Conv becomes part of it too. In a model of float16 a node with
kernels takes and gives float32, with a Cast on either side, as onnxruntime itself does it.

Inputs of such a node: the activations; the bias (not for MatMul); scale and zero point of integers; those of the
function that unpacks.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import helper

from emp_onnx.errors import ModelError, quote
from emp_onnx.files.model_io import Model
from emp_onnx.files.reader import DOMAIN
from emp_onnx.fused.body import ATTRIBUTES, Shape, function_of
from emp_onnx.fused.chains import Candidate, worth
from emp_onnx.fused.graph import FORMS, STANDARD, Uses, Weight, shape_of, value_of
from emp_onnx.fused.parts import rejoin
from emp_onnx.fused.recurrent import (
    CELLS,
    against_cell,
    cell_attributes,
    cell_function,
    cell_inputs,
    cell_name,
    is_cell,
)

__all__ = ["FORMS", "Fused", "fuse", "fused_before", "fused_model"]

DYNAMIC = ("MatMulInteger", "ConvInteger")  # whose activations are quantised as they come
FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
# Above these densities dense kernels win, whatever the shape. Convolutions are decided together (fused_chains.py).
DENSEST = {"MatMul": 0.7, "Gemm": 0.7, "Conv": 0.5, "MatMulInteger": 0.55, "ConvInteger": 1.0}
LARGE, DENSEST_LARGE = 1 << 20, 0.65  # convolutions whose weight does not fit the second-level cache
# Elements: smaller weights stay in cache, and win dense.
LEAST = {"MatMul": 1 << 18, "Gemm": 1 << 18, "Conv": 1 << 13, "MatMulInteger": 1 << 18, "ConvInteger": 0}


@dataclass(frozen=True)
class Fused:
    """What became of one use of a packed weight.

    Attributes:
        weight: its name.
        op: the node that it is part of now, or "" where it is unpacked as before.
        reason: why it is unpacked; "" otherwise.
    """

    weight: str
    op: str
    reason: str


def fused_model(path: str | os.PathLike[str], /, *, every: bool = False) -> tuple[onnx.ModelProto, list[Fused]]:
    """The model with packed weights moved into the nodes that use them. Weights in sidecars are not read.

    Args:
        path: a model that `emp pack` wrote; one without packed weights comes back as it is.
        every: also where dense kernels are expected to be faster.

    Raises:
        ModelError: not an ONNX model.

    Example:
        >>> fused_model("missing.onnx")
        Traceback (most recent call last):
            ...
        emp_onnx.errors.ModelError: model must be an ONNX file, got 'missing.onnx', which cannot be read
    """
    try:
        model = onnx.load(os.fspath(path), load_external_data=False)
    except Exception as error:  # protobuf's own errors have no common base
        raise ModelError(f"model must be an ONNX file, got {quote(str(path))}, which cannot be read") from error
    return model, fuse(model, every=every, folder=Path(path).resolve().parent)


def fuse(model: onnx.ModelProto, /, *, every: bool = False, folder: Path | None = None) -> list[Fused]:
    """Change `model` so; says what became of each use of a packed weight in its main graph.

    Args:
        model: with the numbers of its weights, or with their places in files of `folder`.
        every: also where dense kernels are expected to be faster.
        folder: where these files are.

    Example:
        >>> fuse(onnx.ModelProto())
        []
    """
    rejoin(model)
    work = _Work(model, every, folder)
    told: list[Fused] = []
    for node in list(model.graph.node):
        told += _fused_before(node.domain, node.op_type, node.input)
        if id(node) in work.graph.gone or node.domain == DOMAIN:
            continue
        if is_cell(node):
            told += work.cell(node)
            continue
        for name in sorted(set(node.input) & work.graph.weights.keys()):
            weight = work.graph.weights[name]
            if len(shape_of(weight.unpack)) < 2 or node is weight.after or _only_leads_on(work.graph, node, weight):
                continue  # a bias, which is unpacked wherever it goes; or it is used further on
            reason = work.against(node, name, weight)
            told.append(Fused(weight.name, "" if reason else work.join(node, name, weight), reason))
    work.finish()
    return told


def fused_before(model: Model, /) -> list[Fused]:
    """The uses of packed weights that were moved into nodes when the file was written.

    Example:
        >>> from emp_onnx.files.model_io import load
        >>> fused_before(load("fused.onnx"))  # doctest: +SKIP
        [Fused(weight='w0.values', op='MatMulAddReluMask', reason='')]
    """
    return [use for node in model.graph.nodes for use in _fused_before(node.domain, node.op, node.inputs)]


def _fused_before(domain: str, op: str, inputs: Sequence[str]) -> list[Fused]:
    """What a node holds that was fused before: the values of each weight, by name."""
    if domain != DOMAIN or not op.startswith(("MatMul", "Gemm", "Conv", "Dynamic", *CELLS)):
        return []
    found, place = list[Fused](), len(inputs)
    for form in reversed(re.findall("Mask4|Mask|Gaps[468]", op)):
        value = place - (5 if form == "Mask4" else 2)
        found.insert(0, Fused(str(inputs[value]), op, ""))
        place = value - (2 if form == "Gaps6" else 1)
    return found


def _only_leads_on(graph: Uses, node: onnx.NodeProto, weight: Weight) -> bool:
    return weight.after is None and any(w.after is node for w in graph.weights.values())


class _Work:
    """The graph, and the functions that it needs."""

    def __init__(self, model: onnx.ModelProto, every: bool, folder: Path | None) -> None:
        self.model, self.every = model, every
        self.graph = Uses(model.graph, folder)
        self.made: dict[str, onnx.FunctionProto] = {}
        self.new: dict[int, list[onnx.NodeProto]] = {}  # before a node, by its id
        self.behind: dict[int, list[onnx.NodeProto]] = {}
        self.place: dict[int, int] = {}  # the last node that a node took in, since what that needs may come late
        self.opset = next((item.version for item in model.opset_import if item.domain in STANDARD), 0)
        self.convolutions = set() if every else self._convolutions()

    # whether

    def _convolutions(self) -> set[int]:
        """The ids of the convolutions that are worth a kernel."""
        nodes, weights = list(self.model.graph.node), self.graph.weights
        shapes: dict[str, list[int]] = {name: list(tensor.dims) for name, tensor in self.graph.tensors.items()}
        shapes.update((name, shape_of(weight.unpack)) for name, weight in weights.items())
        candidates = {}
        for place, node in enumerate(nodes):
            weight = weights.get(node.input[1]) if node.op_type == "Conv" and len(node.input) > 1 else None
            if weight is None or self._impossible(node, node.input[1], weight):
                continue
            density, size = self._density(weight), math.prod(shape_of(weight.unpack))
            large = size >= LARGE
            least = DENSEST_LARGE if large else DENSEST["Conv"]
            candidates[place] = Candidate(density, density <= least and size >= LEAST["Conv"], large)
        return {id(nodes[place]) for place in worth(nodes, shapes, candidates)} if candidates else set()

    def _density(self, weight: Weight) -> float:
        values = self.graph.stored(weight)
        assert values is not None
        return float(math.prod(values.dims) - 1) / max(math.prod(shape_of(weight.unpack)), 1)

    def against(self, node: onnx.NodeProto, name: str, weight: Weight) -> str:
        """Why this use stays as it is; "" if nothing speaks against."""
        if (reason := self._impossible(node, name, weight)) or self.every:
            return reason
        density, size, least = self._density(weight), math.prod(shape_of(weight.unpack)), LEAST[node.op_type]
        if node.op_type == "Conv" and id(node) in self.convolutions:
            return ""
        if density > DENSEST[node.op_type]:
            return f"its density of {density:.0%} is above {DENSEST[node.op_type]:.0%}"
        if size < least:
            return f"it has fewer than {least} elements"
        return "too much around it stays dense, in onnxruntime's own layout" if node.op_type == "Conv" else ""

    def _impossible(self, node: onnx.NodeProto, name: str, weight: Weight) -> str:
        """Why no kernel can take this use; "" if one can."""
        shape, values = shape_of(weight.unpack), self.graph.stored(weight)
        if node.domain not in STANDARD or node.op_type not in ATTRIBUTES:
            return f"used by {node.op_type}, which has no kernel"
        if len(node.input) < 2 or node.input[1] != name or node.input[0] == name:
            return f"not the second input of {node.op_type}"
        if values is None:
            return "its values are no initializer"
        return self._types(node, weight, values.data_type) or self._geometry(node, shape, weight)

    def _types(self, node: onnx.NodeProto, weight: Weight, kind: int) -> str:
        if node.op_type in DYNAMIC:
            return self._dynamic(node, weight)
        if weight.values == "Dequantize":
            return self._dequantized(node, weight)
        if weight.values == "Cast":
            return "" if kind in (FLOAT16, onnx.TensorProto.BFLOAT16) else "its values are not floats of 16 bits"
        return "" if kind in (FLOAT, FLOAT16) else "its values are not float32"

    def _zero(self, name: str, weight: Weight) -> tuple[int, str]:
        """The zero point of a weight, and what is wrong with it."""
        given = self.graph.constant(name) if name else None
        if name and given is None:
            return 0, "its zero point is no initializer in the model's own file"
        zeros = {int(z) for z in given.reshape(-1)} if given is not None else {0}
        if len(zeros) != 1:
            return 0, "its zero points differ"
        (zero,) = zeros
        return zero, "" if self.graph.fill(weight) == zero else "what is most frequent in it is not its zero point"

    def _dequantized(self, node: onnx.NodeProto, weight: Weight) -> str:
        after = weight.after
        assert after is not None
        maker = self.graph.makers.get(node.input[0])
        if not self.every and maker is not None and maker.op_type == "DequantizeLinear":
            return "its activations are quantised too, so onnxruntime's integer kernels run it"
        scale = self.graph.constant(after.input[1])
        if scale is None or scale.dtype.name != "float32" or value_of(after, "block_size", 0):
            return "its scales are not float32 numbers in the model's own file, one for all or one for each output"
        shape = shape_of(weight.unpack)
        axis = value_of(after, "axis", 1) % max(len(shape), 1)
        outputs = 1 if node.op_type == "MatMul" or (node.op_type == "Gemm" and not value_of(node, "transB", 0)) else 0
        if scale.ndim and (axis != outputs or scale.shape != (shape[axis],)):
            return "its scales are not one for all, or one for each output"
        return self._zero(after.input[2] if len(after.input) > 2 else "", weight)[1]

    def _dynamic(self, node: onnx.NodeProto, weight: Weight) -> str:
        if weight.values:
            return f"it is not the weight itself that {node.op_type} takes"
        if _chain(self.graph, node) is None:
            return "it is not between DynamicQuantizeLinear and a multiplication by both scales"
        zero, wrong = self._zero(node.input[3] if len(node.input) > 3 else "", weight)
        stored = self.graph.stored(weight)
        assert stored is not None
        fits = 0 if stored.data_type == onnx.TensorProto.INT8 else 128
        return wrong or ("" if zero == fits else "its values less their zero point may not fit 8 bits")

    def _geometry(self, node: onnx.NodeProto, shape: list[int], weight: Weight) -> str:
        if node.op_type in ("Conv", "ConvInteger"):
            group = value_of(node, "group", 1)
            if len(shape) != 4:
                return "it is not a convolution over two axes"
            if value_of(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b""):
                return "its pads are not written out"
            if max(value_of(node, "strides", [1])) > 1024 or math.prod(shape[1:]) > 65536:
                return "its strides or kernels are too large"
            if group > 1 and node.op_type == "ConvInteger":
                return "it has groups"
            return "each group has few channels" if group > 1 and shape[1] < 8 else ""
        if len(shape) != 2:
            return "it has not two dimensions"
        if node.op_type == "Gemm":
            if value_of(node, "transA", 0) or value_of(node, "alpha", 1.0) != 1.0 or value_of(node, "beta", 1.0) != 1.0:
                return "transA, alpha or beta of its Gemm is set"
            rows = shape[0] if value_of(node, "transB", 0) else shape[1]
            kind = FLOAT16 if self._half(weight) else FLOAT
            if len(node.input) > 2 and node.input[2] and not self.graph.vector(node.input[2], rows, kind):
                return "the bias of its Gemm is not one number for each output"
        return ""

    def _half(self, weight: Weight) -> bool:
        """Whether activations are float16: where the weight is, as its node takes it."""
        stored = self.graph.stored(weight)
        return weight.after is None and stored is not None and stored.data_type == FLOAT16

    # how

    def join(self, node: onnx.NodeProto, name: str, weight: Weight) -> str:
        """Turn `node` into one with its weight, and with what follows it; the name of what it is now."""
        op, half, graph = node.op_type, self._half(weight), self.graph
        bias = [node.input[2] if len(node.input) > 2 else ""] if op in ("Gemm", "Conv") else []
        scales: list[str] = []
        activations = node.input[0]
        spare = [maker for maker in (weight.after, weight.unpack) if maker is not None]
        if op in DYNAMIC:
            activations, scales = self._absorb(node, spare)
        elif weight.after is not None and weight.values == "Dequantize":
            scales = [weight.after.input[1], weight.after.input[2] if len(weight.after.input) > 2 else ""]
        after = graph.only_user(node.output[0])
        if op in ("MatMul", "MatMulInteger") and after is not None and _is(after, "Add"):
            other = [item for item in after.input if item != node.output[0]]
            # a bias of [1, outputs] would add an axis to activations of one axis, so only a plain vector will do
            plain = len(other) == 1 and (other[0] in graph.unpacked or len(self._dims(other[0])) == 1)
            if plain and graph.vector(other[0], shape_of(weight.unpack)[1], FLOAT16 if half else FLOAT):
                bias = other
                after = self._take(node, after)
        elif op == "ConvInteger" and after is not None and _is(after, "Add"):
            bias = [item for item in after.input if item != node.output[0]]
            bias = bias if self._over_channels(bias, shape_of(weight.unpack)[0]) else []
            after = self._take(node, after) if bias else after
        added: list[str] = []
        if op == "Conv" and not half and after is not None and _is(after, "Add"):
            added = [item for item in after.input if item != node.output[0]]
            if added:
                after = self._take(node, after)
        relu = after is not None and _is(after, "Relu")
        if relu:
            assert after is not None
            self._take(node, after)
        values = "Cast" if half else weight.values
        add = bool(added) or (bool(bias) and op not in ("Gemm", "Conv"))
        shape = Shape(op, add, relu, values, FORMS[weight.unpack.op_type])
        if shape.name not in self.made:
            self.made[shape.name] = function_of(shape, weight.unpack, self.opset)
        if half:
            activations, bias = self._widened(node, activations, bias)
        self._rewrite(node, shape, weight, [activations, *bias, *added, *scales, *weight.unpack.input])
        for maker in spare:
            graph.drop_unused(maker)
        return shape.name

    def cell(self, node: onnx.NodeProto) -> list[Fused]:
        """Turn a recurrent cell into one with both its weights, if nothing speaks against it."""
        known = self.graph.weights
        if reason := against_cell(self.graph, node, self.every):
            return [Fused(known[name].name, "", reason) for name in node.input[1:3] if name in known]
        weights = (known[node.input[1]], known[node.input[2]])
        name = cell_name(node, weights)
        if name not in self.made:
            self.made[name] = cell_function(node, weights, self.opset)
        inputs, attributes = cell_inputs(node, weights), cell_attributes(node, weights)
        self._become(node, name, inputs, attributes)
        missing = len(self.made[name].output) - len(node.output)  # checkers want a place for each output of a function
        node.output.extend([""] * missing)
        for weight in weights:
            for maker in (weight.after, weight.unpack):
                if maker is not None:
                    self.graph.drop_unused(maker)
        return [Fused(weight.name, name, "") for weight in weights]

    def _over_channels(self, names: list[str], channels: int) -> bool:
        """Whether this is one value, a constant of one number for each channel of an image."""
        maker = self.graph.makers.get(names[0]) if len(names) == 1 else None
        if maker is not None and _is(maker, "Reshape"):
            shape = self.graph.constant(maker.input[1])
            known = shape is not None and list(shape) in ([1, -1, 1, 1], [1, channels, 1, 1])
            return known and self.graph.vector(maker.input[0], channels)
        return len(names) == 1 and self._dims(names[0]) in ([1, channels, 1, 1], [channels, 1, 1])

    def _dims(self, name: str) -> list[int]:
        tensor = self.graph.tensors.get(name)
        return list(tensor.dims) if tensor is not None else []

    def _absorb(self, node: onnx.NodeProto, spare: list[onnx.NodeProto]) -> tuple[str, list[str]]:
        """Take in what quantises the activations of a MatMulInteger, and what scales its sums; some become spare."""
        found = _chain(self.graph, node)
        assert found is not None
        quantise, cast, scales, mul, scale = found
        zero = node.input[3] if len(node.input) > 3 else ""
        for following in (cast, mul):
            self._take(node, following)
        spare += [scales, quantise]
        return quantise.input[0], [scale, zero]

    def _widened(self, node: onnx.NodeProto, activations: str, bias: list[str]) -> tuple[str, list[str]]:
        """Casts around a node of float32 in a model of float16."""
        made = []
        out = node.output[0]
        for source in (activations, *(item for item in bias if item)):
            wide = f"{source}/float of {out}"
            made.append(helper.make_node("Cast", [source], [wide], to=FLOAT))
        self.new[id(node)] = made
        node.output[0] = f"{out}/float"
        self.behind[id(node)] = [helper.make_node("Cast", [node.output[0]], [out], to=FLOAT16)]
        return made[0].output[0], [made[1].output[0]] if len(made) > 1 else bias

    def _rewrite(self, node: onnx.NodeProto, shape: Shape, weight: Weight, inputs: list[str]) -> None:
        own = [a for a in node.attribute if a.name in ATTRIBUTES[shape.op]]
        attributes = [*(a for a in weight.unpack.attribute if a.name in ("shape", "count")), *own]
        if weight.values == "Dequantize":
            assert weight.after is not None
            attributes.append(helper.make_attribute("axis", value_of(weight.after, "axis", 1)))
        self._become(node, shape.name, inputs, attributes)

    def _become(
        self, node: onnx.NodeProto, name: str, inputs: list[str], attributes: list[onnx.AttributeProto]
    ) -> None:
        self.graph.uses.subtract(node.input)
        self.graph.uses.update(inputs)
        node.op_type, node.domain = name, DOMAIN
        del node.input[:], node.attribute[:]
        node.input.extend(inputs)
        node.attribute.extend(attributes)

    def _take(self, node: onnx.NodeProto, after: onnx.NodeProto) -> onnx.NodeProto | None:
        """Let `node` make what `after` makes, in its place, and drop `after`; who alone uses that, if one does."""
        self.graph.drop(after)
        self.place[id(node)] = id(after)
        node.output[0] = after.output[0]
        return self.graph.only_user(node.output[0])

    def finish(self) -> None:
        """Write the nodes that are left, and the functions."""
        graph = self.model.graph
        alive = []
        known_nodes = {id(node): node for node in graph.node}
        moved = {place: known_nodes[node] for node, place in self.place.items()}
        for here in graph.node:
            node = moved.get(id(here), here)
            if id(node) not in self.graph.gone and self.place.get(id(node), id(here)) == id(here):
                alive += [*self.new.get(id(node), []), node, *self.behind.get(id(node), [])]
        del graph.node[:]
        graph.node.extend(alive)
        known = {item.name for item in self.model.functions if item.domain == DOMAIN}
        self.model.functions.extend(self.made[name] for name in sorted(self.made.keys() - known))


def _is(node: onnx.NodeProto, op: str) -> bool:
    return node.op_type == op and node.domain in STANDARD


_Chain = tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto, onnx.NodeProto, str]


def _chain(graph: Uses, node: onnx.NodeProto) -> _Chain | None:
    """What stands around a MatMulInteger of dynamically quantised activations: the node that quantises them, the Cast
    of its sums, the product of both scales, the multiplication by it, and the name of the weight's scale."""
    quantise = graph.makers.get(node.input[0])
    if quantise is None or not _is(quantise, "DynamicQuantizeLinear"):
        return None
    if node.input[0] != quantise.output[0] or len(node.input) < 3 or node.input[2] != quantise.output[2]:
        return None
    cast = graph.only_user(node.output[0])
    if cast is None or not _is(cast, "Cast") or value_of(cast, "to", 0) != FLOAT:
        return None
    mul = graph.only_user(cast.output[0])
    if mul is None or not _is(mul, "Mul"):
        return None
    others = [name for name in mul.input if name != cast.output[0]]
    scales = graph.makers.get(others[0]) if len(others) == 1 else None
    if scales is None or not _is(scales, "Mul") or quantise.output[1] not in scales.input:
        return None
    scale = [name for name in scales.input if name != quantise.output[1]]
    found = graph.constant(scale[0]) if len(scale) == 1 else None
    if found is None or found.dtype.name != "float32" or found.ndim > 1:
        return None
    if node.op_type == "ConvInteger":
        return (quantise, cast, scales, mul, scale[0]) if found.size == 1 else None
    columns = shape_of(graph.unpacked[node.input[1]])[-1] if node.input[1] in graph.unpacked else -1
    return (quantise, cast, scales, mul, scale[0]) if found.size in (1, columns) else None
