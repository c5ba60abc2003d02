"""Packed weights of models of opsets 7 to 10, moved into the nodes that use them."""

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
from emp_onnx.cli import main
from emp_onnx.files.model_io import load
from emp_onnx.fused.engine import open_engine
from emp_onnx.fused.fuse import fused_before
from tests.kernels.native import build

BEHIND = {
    "": [], "Relu": [("Relu", {})], "LeakyRelu": [("LeakyRelu", {"alpha": 0.2})],
    "Clip": [("Clip", {"min": -0.5, "max": 1.5})], "Clip from below": [("Clip", {"min": -0.25})],
    "open Clip": [("Clip", {})],
    "MaxPool": [("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]})],
    "Relu, MaxPool": [("Relu", {}), ("MaxPool", {"kernel_shape": [3, 3], "strides": [1, 1]})],
    "Sigmoid": [("Sigmoid", {})], "PRelu": [("PRelu", {})], "Add": [("Add", {})],
}  # fmt: skip


def network(path: Path, opset: int, behind: list[str], seed: int, sparsity: float) -> Path:
    """Convolutions of 16 channels, with what is behind each, and a product."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    nodes: list[Any] = []

    def constant(*shape: int) -> str:
        made = (rng.standard_normal(shape) / 10).astype(np.float32)
        if len(shape) > 1 and made.size > 100:
            made[rng.random(shape) < sparsity] = 0
        arrays[f"t{len(arrays)}"] = made
        return f"t{len(arrays) - 1}"

    x, size = "x", 20
    for i, name in enumerate(behind):
        nodes.append(helper.make_node("Conv", [x, constant(16, 16, 3, 3), constant(16)], [f"c{i}"], pads=[1] * 4))
        before, x = x, f"c{i}"
        for j, (op, attributes) in enumerate(BEHIND[name]):
            more = [constant(16, 1, 1)] if op == "PRelu" else [before] if op == "Add" else []
            nodes.append(helper.make_node(op, [x, *more], [f"b{i}{j}"], **attributes))
            x = f"b{i}{j}"
            if op == "MaxPool":
                size = (size - attributes["kernel_shape"][0]) // attributes["strides"][0] + 1
    nodes += [
        helper.make_node("Flatten", [x], ["flat"]),
        helper.make_node("Gemm", ["flat", constant(400, 16 * size * size), constant(400)], ["y"], transB=1),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", 1, ["batch", 16, 20, 20])], [info("y", 1, ["batch", 400])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4), path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("early")


@settings(max_examples=40, deadline=None)
@given(
    opset=st.integers(7, 10), behind=st.lists(st.sampled_from(sorted(BEHIND)), min_size=1, max_size=3),
    seed=st.integers(0, 2**16), sparsity=st.sampled_from([0.4, 0.6, 0.9]),
)  # fmt: skip
def test_the_same_numbers_with_and_without_kernels(
    place: Path, opset: int, behind: list[str], seed: int, sparsity: float
) -> None:
    source = network(place / "m.onnx", opset, behind, seed, sparsity)
    emp_onnx.pack(source, place / "p.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMP_KERNELS_LIBRARY", str(next(build().glob("libemp_kernels.*"))))
        assert main(["fuse", str(place / "p.onnx"), str(place / "f.onnx"), "--every", "--quiet"]) == 0
        engine = open_engine(place / "f.onnx", threads=1)
    assert engine.kernels
    uses = fused_before(load(place / "f.onnx"))
    assert len(uses) == len(behind) + 1
    assert all(use.op.endswith("Early") for use in uses)
    x = np.random.default_rng(seed).standard_normal((2, 16, 20, 20)).astype(np.float32)
    (want,) = onnxruntime.InferenceSession(source).run(None, {"x": x})
    (plain,) = onnxruntime.InferenceSession(place / "f.onnx").run(None, {"x": x})
    (fast,) = engine.session.run(None, {"x": x})
    scale = np.abs(want).max()
    assert np.abs(plain - want).max() <= 1e-5 * scale
    assert np.abs(fast - want).max() <= 1e-5 * scale


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("starts", "must have starts that agree with its mask"),
        ("mask", "must have a mask of"),
        ("fewer", "must have .* starts"),
    ],
)
def test_parts_that_disagree_are_refused(
    place: Path, change: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    emp_onnx.pack(network(place / "h.onnx", 9, ["Relu"], 0, 0.6), place / "hp.onnx")
    monkeypatch.setenv("EMP_KERNELS_LIBRARY", str(next(build().glob("libemp_kernels.*"))))
    assert main(["fuse", str(place / "hp.onnx"), str(place / "hf.onnx"), "--every", "--quiet"]) == 0
    model = onnx.load(place / "hf.onnx")
    (node,) = (node for node in model.graph.node if node.op_type.startswith("Conv"))
    mask, starts = (next(t for t in model.graph.initializer if t.name == name) for name in node.input[-4:-2])
    if change == "mask":
        mask.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(mask)[:-1].copy(), mask.name))
    else:
        numbers = numpy_helper.to_array(starts).copy()
        numbers[-1] += 1
        numbers = numbers[:-1] if change == "fewer" else numbers
        starts.CopyFrom(numpy_helper.from_array(numbers, starts.name))
    onnx.save(model, place / "hf.onnx")
    import emp_kernels

    options = onnxruntime.SessionOptions()
    emp_kernels.register(options)
    with pytest.raises(Exception, match=sentence):
        onnxruntime.InferenceSession(place / "hf.onnx", options)
