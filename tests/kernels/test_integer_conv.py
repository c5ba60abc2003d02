"""Convolutions of 8-bit weights and activations: exact sums on every instruction set, and onnxruntime's own numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import emp_onnx
from emp_onnx.fused.engine import open_engine
from emp_onnx.fused.fuse import fused_model
from tests.kernels.native import IntegerConv, build, integer_instruction_sets
from tests.kernels.test_conv import convolve, problems
from tests.kernels.test_integer import quantised


@settings(max_examples=80, deadline=None)
@given(problem=problems(), threads=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_the_sums_are_exact(problem: dict[str, Any], threads: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    geometry = {name: value for name, value in problem["geometry"].items() if name != "group"}
    mask = problem["weight"] != 0
    dense = np.where(mask, rng.integers(-128, 128, mask.shape), 0).astype(np.int8)
    x = (problem["x"][:, : dense.shape[1]] * 10.0 ** rng.integers(-3, 3)).astype(np.float32).copy()
    bias, scale = problem["bias"], np.float32(rng.random() + 0.5)
    codes, x_scale, zero = quantised(x)
    sums = convolve((codes - zero).astype(np.float64), dense.astype(np.float64), 1, **geometry)
    want = sums.astype(np.float32) * (x_scale * scale)
    want = want if bias is None else want + bias[:, None, None]
    want = np.maximum(want, np.float32(0)) if problem["relu"] else want
    made = IntegerConv(dense, float(scale), **geometry)
    for isa in integer_instruction_sets():
        out = np.full(want.shape, 7, np.float32)
        assert np.array_equal(made(x, bias, out=out, relu=problem["relu"], isa=isa, threads=threads), want), isa


def save(path: Path, rng: np.random.Generator, attributes: dict[str, Any], *, reshaped: bool, axes: int = 2) -> Path:
    """As onnxruntime's quantize_dynamic writes two convolutions of one image."""
    tensors: dict[str, Any] = {"shape": np.array([1, -1, *[1] * axes])}
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"])]
    for i, outputs in enumerate((24, 33)):
        weight = rng.integers(-127, 128, (outputs, 10, *([3, 3] if axes == 2 else [9]))).astype(np.int8)
        weight[rng.random(weight.shape) < 0.7] = 0
        bias = rng.standard_normal(outputs).astype(np.float32)
        tensors |= {f"w{i}": weight, f"z{i}": np.int8(0), f"s{i}": np.float32(0.02 + i)}
        tensors[f"b{i}"] = bias if reshaped else bias.reshape(1, outputs, *[1] * axes)
        if reshaped:
            nodes.append(helper.make_node("Reshape", [f"b{i}", "shape"], [f"r{i}"]))
        nodes += [
            helper.make_node("Mul", ["qs", f"s{i}"], [f"f{i}"]),
            helper.make_node("ConvInteger", ["q", f"w{i}", "qz", f"z{i}"], [f"i{i}"], **attributes),
            helper.make_node("Cast", [f"i{i}"], [f"c{i}"], to=1),
            helper.make_node("Mul", [f"c{i}", f"f{i}"], [f"m{i}"]),
            helper.make_node("Add", [f"m{i}", f"{'r' if reshaped else 'b'}{i}"], [f"a{i}" if i else "y0"]),
        ]
    nodes.append(helper.make_node("Relu", ["a1"], ["y1"]))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", 1, ["n", 10, *"hw"[:axes]])],
        [info(name, 1, [f"{name}{axis}" for axis in "nchw"[: 2 + axes]]) for name in ("y0", "y1")],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("reshaped", [True, False])
@pytest.mark.parametrize(
    ("axes", "attributes"),
    [(2, {}), (2, {"strides": [2, 2], "pads": [1, 1, 1, 1]}), (2, {"dilations": [2, 1], "pads": [0, 2, 1, 0]}),
     (1, {}), (1, {"strides": [2], "pads": [1, 0], "dilations": [2]})],
)  # fmt: skip
def test_dynamically_quantised_convolutions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attributes: dict[str, Any], axes: int, reshaped: bool
) -> None:
    monkeypatch.setenv("EMP_KERNELS_LIBRARY", str(next(build().glob("libemp_kernels.*"))))
    rng = np.random.default_rng(3)
    plain = save(tmp_path / "plain.onnx", rng, attributes, reshaped=reshaped, axes=axes)
    packed = tmp_path / "packed.onnx"
    emp_onnx.pack(plain, packed)
    model, told = fused_model(packed)
    ops = [item.op.removesuffix("Gaps4").removesuffix("Mask") for item in told]
    assert ops == ["DynamicConvAdd", "DynamicConvAddRelu"]
    onnx.checker.check_model(model, full_check=True)
    x = rng.standard_normal((2, 10, 13, 11) if axes == 2 else (2, 10, 41)).astype(np.float32)
    want = onnxruntime.InferenceSession(plain).run(None, {"x": x})
    body = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    for got in (body, open_engine(packed, threads=2).session.run(None, {"x": x})):
        for one, other in zip(got, want, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-7, atol=1e-6)


def test_groups_stay(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    path = save(tmp_path / "plain.onnx", rng, {}, reshaped=True)
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "ConvInteger":
            node.attribute.append(helper.make_attribute("group", 3))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 30
    onnx.save(model, path)
    emp_onnx.pack(path, tmp_path / "packed.onnx")
    assert {item.reason for item in fused_model(tmp_path / "packed.onnx")[1]} == {"it has groups"}
