"""Large models are unpacked in stages: one for each of onnxruntime's passes, each a little less than the one before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from emp_onnx import load, pack
from emp_onnx.files.functions import DOMAIN, STAGE
from emp_onnx.packing import stages


def network(layers: int, size: int, path: Path) -> Path:
    rng, tensors, nodes = np.random.default_rng(0), [], []
    for i in range(layers):
        weight = rng.standard_normal((size, size), dtype=np.float32)
        weight[rng.random(weight.shape) < 0.5] = 0
        tensors.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x0", 1, ["n", size])], [value(f"x{layers}", 1, ["n", size])], tensors
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("layers", [4, 10])
def test_each_pass_unpacks_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], layers: int
) -> None:
    monkeypatch.setattr(stages, "STAGED", 0)
    path = network(layers, 512, tmp_path / "m.onnx")
    done = pack(path, tmp_path / "p.onnx")
    graph = onnx.load(done.out).graph
    used = [
        int(name.rpartition(" ")[2])
        for node in graph.node if node.domain == DOMAIN and node.op_type != STAGE
        for name in node.input if "/stage " in name
    ]  # fmt: skip
    assert len(used) == 4 * layers
    assert used == sorted(used)
    shares = np.bincount(used, minlength=stages.STAGES + 1)
    assert shares[0] == 0  # what stage 0 begins would be done in the pass of stage 1
    wanted = stages.SHRINK ** np.arange(stages.STAGES)
    assert (np.abs(shares[1:] - len(used) * wanted / wanted.sum()) <= 1).all()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 0
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    capfd.readouterr()
    session = onnxruntime.InferenceSession(str(done.out), options, providers=["CPUExecutionProvider"])
    said = capfd.readouterr().err
    assert said.count("GraphTransformer ConstantFolding modified: 1") == stages.STAGES
    assert {node.op_type for node in onnx.load(tmp_path / "folded.onnx").graph.node} == {"MatMul"}
    feeds = {"x0": np.random.default_rng(1).standard_normal((2, 512), dtype=np.float32)}
    plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.run(None, feeds)[0].tobytes() == plain.run(None, feeds)[0].tobytes()
    assert load(done.out).values("w1").tobytes() == load(path).values("w1").tobytes()
