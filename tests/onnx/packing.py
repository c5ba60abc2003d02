"""Tensors and models for the tests of packing, and slow, obvious readers of the packed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

DTYPES: dict[str, Any] = {
    "float32": np.float32, "float16": np.float16, "float64": np.float64, "bfloat16": ml_dtypes.bfloat16,
    "int8": np.int8, "uint8": np.uint8,
}  # fmt: skip


def awkward(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, density: float, block: int = 1) -> Any:
    """Values of any bits at all, −0.0, infinities and NaN with payloads among them; most are the fill."""
    kind = np.dtype(DTYPES[dtype])
    size = int(np.prod(shape))
    values = rng.integers(0, 256, size * kind.itemsize, dtype=np.uint8).view(kind)
    keep = np.repeat(rng.random(-(-size // block)) < density, block)[:size]
    bits = values.view(f"u{kind.itemsize}").copy()
    bits[~keep] = 131 if kind.kind in "iu" else 0
    if size > 2 and kind.kind not in "iu":
        bits[rng.integers(0, size)] = 1 << (8 * kind.itemsize - 1)  # −0.0
    return bits.view(kind).reshape(shape)


@st.composite
def arrays(draw: st.DrawFn) -> tuple[str, Any]:
    """A type and an array of it: any rank and density, blocks, empty rows, all or nothing stored."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(
        st.one_of(
            st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple),
            st.sampled_from([(4, 64), (8, 32), (16, 256), (64, 200), (1, 5000), (4, 8, 4, 4)]),
        )
    )
    density = draw(st.sampled_from([0.0, 0.002, 0.03, 0.1, 0.3, 0.6, 1.0]))
    array = awkward(rng, shape, dtype, density, draw(st.sampled_from([1, 1, 8, 32])))
    if draw(st.booleans()) and array.ndim > 1:
        array[rng.random(len(array)) < 0.5] = np.zeros((), array.dtype)
    return dtype, array


def proto_of(name: str, array: Any) -> TensorProto:
    """An initializer; any type."""
    kinds = {"bfloat16": TensorProto.BFLOAT16}
    kind = kinds.get(array.dtype.name) or helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)


def holder(arrays: dict[str, Any], *, opset: int = 17, ir: int = 8, as_constants: bool = False) -> onnx.ModelProto:
    """A model whose outputs are its tensors: each through Identity, so that none is an output itself."""
    nodes, outputs, initializers = [], [], []
    for name, array in arrays.items():
        proto = proto_of(name, array)
        if as_constants:
            nodes.append(helper.make_node("Constant", [], [name], value=proto))
        else:
            initializers.append(proto)
        nodes.append(helper.make_node("Identity", [name], [f"{name}_out"]))
        outputs.append(helper.make_tensor_value_info(f"{name}_out", proto.data_type, array.shape))
    graph = helper.make_graph(nodes, "g", [], outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def write_one_sidecar(proto: onnx.ModelProto, path: Path) -> Path:
    """All tensors of at least 64 bytes in one other file."""
    onnx.save(proto, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=64)
    return path


def read_packed(path: Path) -> dict[str, bytes]:
    """The bytes of every packed tensor, decoded element by element from what onnx itself reads."""
    model = onnx.load(path)
    tensors = {t.name: t for t in model.graph.initializer}
    return {n.output[0]: decoded(n, tensors) for n in model.graph.node if n.op_type.startswith("Unpack")}


def decoded(node: onnx.NodeProto, tensors: dict[str, TensorProto]) -> bytes:
    """One packed tensor."""
    attributes = {a.name: numpy_helper.to_array(a.t) for a in node.attribute if a.name != "ends"}
    size = int(np.prod(attributes["shape"]))
    inputs = [tensors[name] for name in node.input if name in tensors and "stage" not in name]
    parts = int(node.op_type[11:]) if node.op_type.startswith("UnpackParts") else 1
    several, where = inputs[-parts:], [numpy_helper.to_array(t).tolist() for t in inputs[:-parts]]
    if parts > 1:
        where = [[byte for mask in where for byte in mask]]
    values = several[0]
    width = values.dims[1] if len(values.dims) > 1 else 1
    item = len(values.raw_data) // (values.dims[0] * width) * width
    stored = [values.raw_data[:item]]
    for part in several:
        stored += [part.raw_data[i : i + item] for i in range(item, len(part.raw_data), item)]
    if "Gaps" not in node.op_type:
        out, rank = [], 0
        for i in range(size // width):
            bit = where[0][i // 8] >> i % 8 & 1
            rank += bit
            out.append(stored[rank] if bit else stored[0])
        return b"".join(out)
    bits = int(node.op_type[-1])
    out, rank = [stored[0]] * size, 0
    at = 0
    for i in range(int(attributes["count"][0])):
        code = where[0][i] if bits == 8 else where[0][i // 2] >> 4 * (i % 2) & 15
        code |= (where[1][i // 4] >> 2 * (i % 4) & 3) << 4 if bits == 6 else 0
        at += code
        if code < 2**bits - 1:
            rank += 1
            out[at] = stored[rank]
            at += 1
    return b"".join(out)
