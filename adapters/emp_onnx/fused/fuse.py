"""Packed weights moved into the nodes that use them, so that kernels can compute with them as they are.

`emp pack` puts a node of its own before each use of a packed weight, which unpacks it. Kernels need weight and
activations in one node. So a MatMul, Gemm or Conv with such a weight becomes one node of the same domain, with the
bias, what else is added to it, and the activation that follows, and with a local function of its name that says in
standard operations what it computes. Without kernels onnxruntime inlines that function, and all is as before.

Weights may be cast to float32, or dequantised, before they are used. A MatMulInteger between the operations that
quantise its activations and scale its sums, as onnxruntime's `quantize_dynamic` writes them, becomes one node with all
of these; a ConvInteger likewise. A MatMul takes in what sorts its outputs by heads, as attention has them. A Conv takes
in the MaxPool behind it too, where nothing is added. In a model of float16 a node with kernels takes and gives float32,
with a Cast on either side, as onnxruntime itself does it.

Inputs of such a node: the activations; the bias (not for MatMul); what else is added; scale and zero point of integers;
those of the function that unpacks.
"""

from __future__ import annotations

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
from emp_onnx.fused.dynamic import DYNAMIC, chain_of
from emp_onnx.fused.endings import Ending, ending_behind
from emp_onnx.fused.gelu import gelu_behind
from emp_onnx.fused.graph import FORMS, OWN, STANDARD, Uses, Weight, is_standard, shape_of, value_of
from emp_onnx.fused.heads import heads_behind
from emp_onnx.fused.parts import rejoin
from emp_onnx.fused.pool import pool_behind
from emp_onnx.fused.recurrent import (
    CELLS,
    against_cell,
    cell_attributes,
    cell_function,
    cell_inputs,
    cell_name,
    is_cell,
)
from emp_onnx.fused.whether import Whether

__all__ = ["FORMS", "Fused", "fuse", "fused_before", "fused_model"]

FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


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
            reason = work.whether.against(node, name, weight)
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
    for form in reversed(re.findall("Mask4|Mask|Early|Gaps[468]", op)):
        value = place - {"Mask4": 5, "Early": 1}.get(form, 2)
        found.insert(0, Fused(str(inputs[value]), op, ""))
        place = value - {"Gaps6": 2, "Early": 3}.get(form, 1)
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
        self.whether = Whether(list(model.graph.node), self.graph, every)

    def join(self, node: onnx.NodeProto, name: str, weight: Weight) -> str:
        """Turn `node` into one with its weight, and with what follows it; the name of what it is now."""
        op, half, graph = node.op_type, self.whether.half(weight), self.graph
        bias = [node.input[2] if len(node.input) > 2 else ""] if op in ("Gemm", "Conv") else []
        scales: list[str] = []
        activations = node.input[0]
        spare = [maker for maker in (weight.after, weight.unpack) if maker is not None]
        if op in DYNAMIC:
            activations, scales = self._absorb(node, spare)
        elif weight.after is not None and weight.values == "Dequantize":
            scales = [weight.after.input[1], weight.after.input[2] if len(weight.after.input) > 2 else ""]
        after = graph.only_user(node.output[0])
        if op in ("MatMul", "MatMulInteger") and after is not None and is_standard(after, "Add"):
            other = [item for item in after.input if item != node.output[0]]
            # a bias of [1, outputs] would add an axis to activations of one axis, so only a plain vector will do
            plain = len(other) == 1 and (other[0] in graph.unpacked or len(self._dims(other[0])) == 1)
            if plain and graph.vector(other[0], shape_of(weight.unpack)[1], FLOAT16 if half else FLOAT):
                bias = other
                after = self._take(node, after)
        elif op == "ConvInteger" and after is not None and is_standard(after, "Add"):
            bias = [item for item in after.input if item != node.output[0]]
            bias = bias if self._over_channels(bias, shape_of(weight.unpack)) else []
            after = self._take(node, after) if bias else after
        added: list[str] = []
        if op in ("Conv", "MatMul", "Gemm") and not half and after is not None and is_standard(after, "Add"):
            added = [item for item in after.input if item != node.output[0]]
            if op != "Conv" and added and self._constant(added[0]):
                added = []  # a bias of another shape, which onnxruntime adds better
            if added:
                after = self._take(node, after)
        kind, ending = self._behind(node, added, weight)
        for step in ending.steps:
            self._take(node, step)
        if kind == "Pool":
            op = "ConvMaxPool"
        values = "Cast" if half else weight.values
        add = bool(added) if op == "Conv" else bool(bias) and op not in ("Gemm", "ConvMaxPool")
        residual = bool(added) and op != "Conv"
        form = FORMS[weight.unpack.op_type]
        shape = Shape(op, add, ending.name, values, form, residual, kind == "Heads")
        if shape.name not in self.made:
            self.made[shape.name] = function_of(shape, weight.unpack, self.opset)
        if half:
            activations, bias = self._widened(node, activations, bias)
        self._rewrite(node, shape, weight, [activations, *bias, *added, *ending.slopes, *scales, *weight.unpack.input])
        node.attribute.extend(ending.attributes)
        for maker in spare:
            graph.drop_unused(maker)
        return shape.name

    def _behind(self, node: onnx.NodeProto, added: list[str], weight: Weight) -> tuple[str, Ending]:
        """What follows and can be part of `node`: Pool, Heads, or "" for no more than an activation; and its steps."""
        nothing = "", Ending("", [])
        op, half, graph, made = node.op_type, self.whether.half(weight), self.graph, node.output[0]
        after = graph.only_user(made)
        if op == "Conv" and not added and (pool := pool_behind(graph, made)):
            return "Pool", Ending("Relu" if pool.relu else "", pool.steps, pool.attributes)
        if after is not None and is_standard(after, "Relu"):
            return "", Ending("Relu", [after])
        if added or op in DYNAMIC:
            return nothing
        if op == "Conv" and (ending := ending_behind(graph, made, shape_of(weight.unpack), self.opset)):
            return "", ending
        if not half and self.opset >= 9 and (ending := gelu_behind(graph, made)):
            return "", ending
        if op == "MatMul" and not half and self.opset >= 12:
            heads = heads_behind(graph, made, shape_of(weight.unpack)[1])
            return ("Heads", Ending("", heads.steps, heads.attributes)) if heads else nothing
        return nothing

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

    def _over_channels(self, names: list[str], weight: list[int]) -> bool:
        """Whether this is one value, a constant of one number for each channel that such a convolution makes."""
        channels, area = weight[0], [1] * (len(weight) - 2)
        maker = self.graph.makers.get(names[0]) if len(names) == 1 else None
        if maker is not None and is_standard(maker, "Reshape"):
            shape = self.graph.constant(maker.input[1])
            known = shape is not None and list(shape) in ([1, -1, *area], [1, channels, *area])
            return known and self.graph.vector(maker.input[0], channels)
        return len(names) == 1 and self._dims(names[0]) in ([1, channels, *area], [channels, *area])

    def _constant(self, name: str) -> bool:
        return name in self.graph.tensors or name in self.graph.weights

    def _dims(self, name: str) -> list[int]:
        tensor = self.graph.tensors.get(name)
        return list(tensor.dims) if tensor is not None else []

    def _absorb(self, node: onnx.NodeProto, spare: list[onnx.NodeProto]) -> tuple[str, list[str]]:
        """Take in what quantises the activations of a MatMulInteger, and what scales its sums; some become spare."""
        found = chain_of(self.graph, node)
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
        attributes = [*(a for a in weight.unpack.attribute if a.name in OWN), *own]
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
