"""Biases for layers that have none: nothing changes until they are solved, and it can be checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import emp_onnx
from emp_onnx import UsageError
from emp_onnx.certificates.added import Added, added_of, with_biases
from emp_onnx.certificates.rule import KEY
from emp_onnx.files.model_io import Model, load
from emp_onnx.refit.fitting import Fitting
from emp_onnx.refitting import refit
from tests.onnx.builders import model, tensor, value

OPS = ("MatMul", "Gemm", "Gemm turned", "MatMul, Add", "Gemm, bias", "MatMul, Relu")


def layers(ops: list[str], seed: int = 0, width: int = 10, ir: int = 8) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    nodes, tensors, name = [], [], "x"
    for i, op in enumerate(ops):
        kind, _, more = op.partition(" ")
        kind, result = kind.rstrip(","), f"y{i}"
        tensors.append(tensor(f"w{i}", (rng.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)))
        reads, turned = [name, f"w{i}"], {"transB": 1} if more == "turned" else {}
        if more in ("Add", "bias"):
            tensors.append(tensor(f"b{i}", rng.standard_normal(width).astype(np.float32)))
        if more == "bias":
            reads.append(f"b{i}")
        nodes.append(helper.make_node(kind, reads, [f"m{i}" if more in ("Add", "Relu") else result], **turned))
        if more == "Add":
            nodes.append(helper.make_node("Add", [f"m{i}", f"b{i}"], [result]))
        elif more == "Relu":
            nodes.append(helper.make_node("Relu", [f"m{i}"], [result]))
        name = result
    made = model(nodes, [value("x", ["n", width])], [value(name, ["n", width])], tensors)
    made.ir_version = ir
    return made


def some(count: int = 30, width: int = 10) -> list[dict[str, Any]]:
    rng = np.random.default_rng(5)
    mix = rng.standard_normal((width, width))
    return [{"x": (rng.standard_normal((4, width)) @ mix + 2).astype(np.float32)} for _ in range(count)]


def run(file: Any, feeds: list[dict[str, Any]]) -> Any:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in feeds])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(OPS), min_size=1, max_size=5), st.integers(0, 99))
def test_zeros_change_nothing(ops: list[str], seed: int) -> None:
    proto = layers(ops, seed)
    fitting = Fitting(Model(proto), some(4), biases=True)
    lacking = [i for i, op in enumerate(ops) if op.partition(" ")[2] not in ("Add", "bias")]
    assert [item.name for item in fitting.added] == [f"w{i}.bias" for i in lacking]
    assert all(p.bias is not None for site in fitting.network.sites for p in site.problems)
    made = fitting.model.to_bytes()
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_array_equal(run(made, some(2)), run(proto.SerializeToString(), some(2)))


def test_a_convolution_gets_one_too() -> None:
    rng = np.random.default_rng(0)
    kernel = tensor("k", rng.standard_normal((6, 2, 3, 3)).astype(np.float32))
    nodes = [helper.make_node("Conv", ["x", "k"], ["y"], group=2, pads=[1, 1, 1, 1])]
    proto = model(nodes, [value("x", [1, 4, 5, 5])], [value("y", [1, 6, 5, 5])], [kernel])
    feeds = [{"x": rng.standard_normal((1, 4, 5, 5)).astype(np.float32)} for _ in range(8)]
    fitting = Fitting(Model(proto), feeds, biases=True)
    assert fitting.added == [Added(0, "k.bias", "float32", 6)]
    np.testing.assert_array_equal(run(fitting.model.to_bytes(), feeds), run(proto.SerializeToString(), feeds))


def test_what_is_lost_is_less_and_the_file_verifies(tmp_path: Path) -> None:
    onnx.save(layers(["MatMul, Relu", "Gemm, Relu", "MatMul"]), tmp_path / "in.onnx")
    report = refit(tmp_path / "in.onnx", tmp_path / "out.onnx", feeds=some(), sparsity=0.5)
    assert any("Layers without a bias got one" in note for note in report.notes)
    assert set(report.biases) == {"w0.bias", "w1.bias", "w2.bias"}
    assert emp_onnx.verify(tmp_path / "out.onnx", tmp_path / "in.onnx").ok
    dense, fresh = run(str(tmp_path / "in.onnx"), some(60)[30:]), some(60)[30:]
    fitting = Fitting(load(tmp_path / "in.onnx"), some(), held=0.05)
    plain = emp_onnx.save(
        fitting.model.replaced(fitting.thin(fitting.count(sparsity=0.5)).changed, {}), tmp_path / "b.onnx"
    )[0]
    lost, before = (np.square(run(str(file), fresh) - dense).sum() for file in (tmp_path / "out.onnx", plain))
    assert lost < 0.95 * before


def test_a_certificate_that_says_otherwise(tmp_path: Path) -> None:
    onnx.save(layers(["MatMul"]), tmp_path / "in.onnx")
    onnx.save(layers(["Gemm, bias"]), tmp_path / "other.onnx")
    refit(tmp_path / "in.onnx", tmp_path / "out.onnx", feeds=some(), sparsity=0.5)
    assert not emp_onnx.verify(tmp_path / "out.onnx", tmp_path / "other.onnx").ok
    touched = onnx.load(tmp_path / "out.onnx")
    next(i for i in touched.graph.initializer if i.name == "w0.bias").raw_data = b"\0" * 40
    onnx.save(touched, tmp_path / "touched.onnx")
    assert "bias 'w0.bias' is not as certified" in " ".join(emp_onnx.verify(tmp_path / "touched.onnx").faults)
    body = json.loads(load(tmp_path / "out.onnx").metadata[KEY])
    assert body["added"] == [{"node": 0, "name": "w0.bias", "dtype": "float32", "size": 10}]
    for bad in ([{}], [{**body["added"][0], "node": "0"}], 3, [[]]):
        with pytest.raises(UsageError, match="must list added biases"):
            added_of({"added": bad})


BAD: list[dict[str, Any]] = [{"node": 9}, {"node": -1}, {"name": "w0"}, {"dtype": "int8"}, {"size": 0}, {"node": 1}]


@pytest.mark.parametrize("bad", BAD)
def test_what_does_not_fit(bad: dict[str, Any]) -> None:
    item = Added(**{"node": 0, "name": "b", "dtype": "float32", "size": 10, **bad})
    with pytest.raises(UsageError, match="an added bias must"):
        with_biases(Model(layers(["MatMul, Relu"])), [item])


def test_old_formats_and_statistics_stay_as_they_are(tmp_path: Path) -> None:
    onnx.save(layers(["MatMul"], ir=3), tmp_path / "in.onnx")
    assert Fitting(load(tmp_path / "in.onnx"), some(4), biases=True).added == []
    stats = emp_onnx.calibrate(Model(layers(["MatMul"])), some())
    report = refit(Model(layers(["MatMul"])), tmp_path / "out.onnx", stats=stats, sparsity=0.5)
    assert report.biases == ()
