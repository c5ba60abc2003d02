"""Packed weights of 16 and 8 bits in the nodes that use them; products whose activations are quantised on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import emp_onnx
from emp_onnx.engine import open_engine
from emp_onnx.runtime.fuse import Fused, fused_model
from tests.kernels.native import build

FLOAT, HALF, BFLOAT = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMP_KERNELS_LIBRARY", str(next(build().glob("libemp_kernels.*"))))


def sparse(rng: np.random.Generator, *shape: int) -> Any:
    made = rng.standard_normal(shape).astype(np.float32)
    made[rng.random(shape) < 0.6] = 0
    return made


def save(path: Path, nodes: list[Any], tensors: dict[str, Any], x: list[Any], kind: int = FLOAT) -> Path:
    info = helper.make_tensor_value_info
    made = [t if isinstance(t, onnx.TensorProto) else numpy_helper.from_array(t, name) for name, t in tensors.items()]
    graph = helper.make_graph(
        nodes, "g", [info("x", kind, x)], [info("y", kind, [f"y{i}" for i in range(len(x))])], made
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def run(source: Any, feed: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(source, options).run(None, {"x": feed})[0]


def fused(tmp_path: Path, source: Path, x: Any, **packing: Any) -> tuple[list[Fused], Any, Any, Any]:
    """What was told; outputs of the packed file, of the fused one without kernels, and with them."""
    emp_onnx.pack(source, tmp_path / "p.onnx", form="packed", **packing)
    model, told = fused_model(tmp_path / "p.onnx", every=True)
    onnx.checker.check_model(model, full_check=True)
    engine = open_engine(tmp_path / "p.onnx", threads=2, every=True)
    return told, run(tmp_path / "p.onnx", x), run(model.SerializeToString(), x), engine.session.run(None, {"x": x})[0]


def quantised(weight: Any, kind: Any, axis: int | None) -> tuple[Any, Any, Any]:
    """Codes, scales and zero point, of all or along an axis."""
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.asarray(np.abs(weight).max(axis=others) / 127, np.float32)
    wide = scale if axis is None else np.expand_dims(scale, others)
    zero = np.full(scale.shape, 0 if kind is np.int8 else 128, kind)
    return (np.rint(weight / wide) + int(zero.flat[0])).astype(kind), scale, zero


@pytest.mark.parametrize(
    ("kind", "per_output", "items"), [(np.int8, False, 1), (np.uint8, False, 3), (np.int8, True, 40)]
)
def test_dynamically_quantised_products(tmp_path: Path, kind: Any, per_output: bool, items: int) -> None:
    """As `onnxruntime.quantization.quantize_dynamic` writes them: the same numbers, bit for bit."""
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {"b0": rng.standard_normal(160).astype(np.float32)}
    nodes = []
    before = "x"
    for i, shape in enumerate([(256, 160), (160, 96), (160, 96)]):
        codes, scale, zero = quantised(sparse(rng, *shape), kind, 1 if per_output else None)
        tensors |= {f"w{i}": codes, f"s{i}": scale, f"z{i}": zero.flat[0] if not per_output else zero}
        if i < 2:
            nodes.append(helper.make_node("DynamicQuantizeLinear", [before], [f"q{i}", f"qs{i}", f"qz{i}"]))
        source = min(i, 1)
        nodes += [
            helper.make_node("Mul", [f"qs{source}", f"s{i}"], [f"ss{i}"]),
            helper.make_node("MatMulInteger", [f"q{source}", f"w{i}", f"qz{source}", f"z{i}"], [f"i{i}"]),
            helper.make_node("Cast", [f"i{i}"], [f"f{i}"], to=FLOAT),
            helper.make_node("Mul", [f"f{i}", f"ss{i}"], [f"m{i}"]),
        ]
        if i == 0:
            nodes += [helper.make_node("Add", ["m0", "b0"], ["a0"]), helper.make_node("Relu", ["a0"], ["r0"])]
            before = "r0"
    nodes.append(helper.make_node("Sub", ["m1", "m2"], ["y"]))
    source_path = save(tmp_path / "m.onnx", nodes, tensors, ["n", 256])
    x = rng.standard_normal((items, 256)).astype(np.float32)
    told, packed, plain, kernels = fused(tmp_path, source_path, x)
    assert sorted(item.op for item in told) == ["DynamicMatMulAddReluMask", "DynamicMatMulMask", "DynamicMatMulMask"]
    model, _ = fused_model(tmp_path / "p.onnx", every=True)
    assert [node.op_type for node in model.graph.node] == [
        "DynamicMatMulAddReluMask", "DynamicMatMulMask", "DynamicMatMulMask", "Sub",
    ]  # fmt: skip
    np.testing.assert_allclose(plain, packed, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(kernels, packed, rtol=1e-6, atol=1e-6)


def test_a_sum_that_is_used_twice_stays(tmp_path: Path) -> None:
    codes, scale, zero = quantised(sparse(np.random.default_rng(0), 256, 160), np.int8, None)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        helper.make_node("MatMulInteger", ["q", "w", "qz", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=FLOAT),
        helper.make_node("Mul", ["f", "qs"], ["m"]),
        helper.make_node("Add", ["m", "f"], ["y"]),
    ]
    source = save(tmp_path / "m.onnx", nodes, {"w": codes, "s": scale, "z": zero}, ["n", 256])
    emp_onnx.pack(source, tmp_path / "p.onnx", form="packed")
    _, told = fused_model(tmp_path / "p.onnx", every=True)
    assert "not between DynamicQuantizeLinear" in told[0].reason


@pytest.mark.parametrize(("kind", "per_output", "items"), [(np.int8, True, 1), (np.uint8, False, 7)])
@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Gemm transposed", "Conv"])
def test_dequantised_weights(tmp_path: Path, kind: Any, per_output: bool, op: str, items: int) -> None:
    rng = np.random.default_rng(1)
    shape = {"MatMul": (256, 96), "Gemm": (256, 96), "Gemm transposed": (96, 256), "Conv": (96, 16, 3, 3)}[op]
    axis = 1 if op in ("MatMul", "Gemm") else 0
    codes, scale, zero = quantised(sparse(rng, *shape), kind, axis if per_output else None)
    name, attributes = op.split()[0], {"transB": 1} if op.endswith("transposed") else {}
    tensors = {"w": codes, "s": scale, "z": zero, "b": rng.standard_normal(96).astype(np.float32)}
    bias = ["b"] if name != "MatMul" else []
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=axis),
        helper.make_node(name, ["x", "d", *bias], ["p"], **attributes),
        helper.make_node("Relu", ["p"], ["y"]),
    ]
    feed = [items, 16, 9, 9] if op == "Conv" else [items, 256]
    source = save(tmp_path / "m.onnx", nodes, tensors, feed)
    x = rng.standard_normal(feed).astype(np.float32)
    told, packed, plain, kernels = fused(tmp_path, source, x)
    assert [item.op for item in told] == [f"{name}ReluDequantizeMask"]
    # onnxruntime itself may turn a dequantised product into one of 8 bits, so the weight is given in float32
    wide = scale if not per_output else np.expand_dims(scale, tuple(i for i in range(codes.ndim) if i != axis))
    dense = (codes.astype(np.float32) - np.float32(zero.flat[0])) * wide
    want = run(save(tmp_path / "d.onnx", nodes[1:], {"d": dense, "b": tensors["b"]}, feed), x)
    np.testing.assert_allclose(kernels, want, rtol=1e-5, atol=2e-4)
    for loose in (packed, plain):
        assert np.abs(loose - want).max() < 0.03 * np.abs(want).max()


def test_scales_along_the_inputs_stay(tmp_path: Path) -> None:
    codes, scale, zero = quantised(sparse(np.random.default_rng(0), 256, 96), np.int8, 0)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=0),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    source = save(tmp_path / "m.onnx", nodes, {"w": codes, "s": scale, "z": zero}, ["n", 256])
    emp_onnx.pack(source, tmp_path / "p.onnx", form="packed")
    _, told = fused_model(tmp_path / "p.onnx", every=True)
    assert [item.reason for item in told] == ["its scales are not one for all, or one for each output"]


@pytest.mark.parametrize(("op", "items"), [("MatMul", 1), ("Gemm", 7), ("Conv", 1)])
def test_weights_rounded_to_float16_when_packed(tmp_path: Path, op: str, items: int) -> None:
    rng = np.random.default_rng(2)
    shape = (96, 16, 3, 3) if op == "Conv" else (256, 96)
    tensors = {"w": sparse(rng, *shape), "b": rng.standard_normal(96).astype(np.float32)}
    nodes = [helper.make_node(op, ["x", "w", *(["b"] if op != "MatMul" else [])], ["p"])]
    nodes += [helper.make_node("Add", ["p", "b"], ["a"])] if op == "MatMul" else []
    nodes.append(helper.make_node("Relu", ["a" if op == "MatMul" else "p"], ["y"]))
    feed = [items, 16, 9, 9] if op == "Conv" else [items, 256]
    source = save(tmp_path / "m.onnx", nodes, tensors, feed)
    x = rng.standard_normal(feed).astype(np.float32)
    told, packed, plain, kernels = fused(tmp_path, source, x, values="float16")
    kind = "MatMulAdd" if op == "MatMul" else op
    assert [item.op for item in told] == [f"{kind}ReluCastMask"]
    np.testing.assert_allclose(plain, packed, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(kernels, packed, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Conv"])
def test_a_model_of_float16(tmp_path: Path, op: str) -> None:
    """Its nodes with kernels take and give float32, with a Cast on either side."""
    rng = np.random.default_rng(3)
    shape = (96, 16, 3, 3) if op == "Conv" else (256, 96)
    tensors = {"w": sparse(rng, *shape).astype(np.float16), "b": rng.standard_normal(96).astype(np.float16)}
    nodes = [
        helper.make_node(op, ["x", "w", *(["b"] if op != "MatMul" else [])], ["p"]),
        helper.make_node("Relu", ["p"], ["y"]),
    ]
    feed = [2, 16, 9, 9] if op == "Conv" else [2, 256]
    source = save(tmp_path / "m.onnx", nodes, tensors, feed, HALF)
    x = rng.standard_normal(feed).astype(np.float16)
    told, packed, plain, kernels = fused(tmp_path, source, x)
    assert [item.op for item in told] == [f"{op}ReluCastMask"]
    for got in (plain, kernels):
        assert got.dtype == np.float16
        np.testing.assert_allclose(got.astype(np.float32), packed.astype(np.float32), rtol=2e-3, atol=2e-2)


def test_weights_of_bfloat16_that_are_cast(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    raw = (sparse(rng, 256, 96).view(np.uint32) >> 16).astype("<u2")
    tensor = onnx.TensorProto(name="w", data_type=BFLOAT, dims=raw.shape, raw_data=raw.tobytes())
    nodes = [helper.make_node("Cast", ["w"], ["d"], to=FLOAT), helper.make_node("MatMul", ["x", "d"], ["y"])]
    source = save(tmp_path / "m.onnx", nodes, {"w": tensor}, ["n", 256])
    x = rng.standard_normal((3, 256)).astype(np.float32)
    told, packed, plain, kernels = fused(tmp_path, source, x)
    assert [item.op for item in told] == ["MatMulCastMask"]
    np.testing.assert_allclose(plain, packed, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(kernels, packed, rtol=1e-5, atol=1e-5)


HOSTILE = {
    "another fill": ("w/values", lambda a: np.concatenate([a[:1] + 1, a[1:]]), "must have its zero point as its fill"),
    "a value less": ("w/values", lambda a: a[:-1], "must have as many values as bits set in its mask"),
    "a short mask": ("w/mask", lambda a: a[:-1], "must have a mask of"),
    "two scales": ("s", lambda a: np.array([1, 2], np.float32), "must have one scale, or one for each of its 96"),
    "another type": ("w/values", lambda a: a.astype(np.float32), "must have values of the type that its node is made"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_parts_of_integers_that_disagree_are_refused(tmp_path: Path, case: str) -> None:
    codes, scale, zero = quantised(sparse(np.random.default_rng(0), 256, 96), np.int8, None)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"]), helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]  # fmt: skip
    source = save(tmp_path / "m.onnx", nodes, {"w": codes, "s": scale, "z": zero}, ["n", 256])
    emp_onnx.pack(source, tmp_path / "p.onnx", form="packed")
    model, _ = fused_model(tmp_path / "p.onnx", every=True)
    name, change, sentence = HOSTILE[case]
    (node,) = (n for n in model.graph.node if n.op_type.startswith("MatMul"))
    index = {"w/mask": 3, "w/values": 4, "s": 1}[name]
    for tensor in model.graph.initializer:
        if tensor.name == node.input[index]:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    import emp_kernels

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    emp_kernels.register(options)
    with pytest.raises(Exception, match=sentence):
        onnxruntime.InferenceSession(model.SerializeToString(), options)
