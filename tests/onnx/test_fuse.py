"""Packed weights moved into the nodes that use them, and the commands that run models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import emp_onnx
from emp_onnx.cli import main
from emp_onnx.errors import ModelError, UsageError
from emp_onnx.files.model_io import load
from emp_onnx.fused.bench import bench
from emp_onnx.fused.engine import open_engine
from emp_onnx.fused.fuse import fused_before, fused_model
from tests.kernels.native import build


def mlp(path: Path, sparsity: float, *, external: bool = False) -> Path:
    """Three layers: MatMul with Add and Relu; Gemm with bias and Relu; MatMul alone, whose weight is used twice."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> Any:
        made = rng.standard_normal(shape).astype(np.float32) / 20
        made[rng.random(shape) < sparsity] = 0
        return made

    arrays = {
        "w0": weight(64, 600),
        "b0": weight(600),
        "w1": weight(600, 600),
        "b1": weight(600),
        "w2": weight(600, 600),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["m"]), helper.make_node("Add", ["m", "b0"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Gemm", ["r", "w1", "b1"], ["g"], transB=1),
        helper.make_node("Relu", ["g"], ["s"]), helper.make_node("MatMul", ["s", "w2"], ["t"]),
        helper.make_node("MatMul", ["t", "w2"], ["y"]), helper.make_node("Identity", ["t"], ["z"]),
    ]  # fmt: skip
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", 1, ["batch", 64])], [info("y", 1, ["batch", 600]), info("z", 1, ["batch", 600])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.stem}.data", size_threshold=0)
    return path


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMP_KERNELS_LIBRARY", str(next(build().glob("libemp_kernels.*"))))


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMP_KERNELS_LIBRARY", str(tmp_path / "absent.so"))


def outputs(session: Any, batch: int = 3) -> list[Any]:
    x = np.random.default_rng(1).standard_normal((batch, 64)).astype(np.float32)
    return list(session.run(None, {"x": x}))


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("sparsity", [0.4, 0.5, 0.8, 0.9, 0.97])
def test_the_same_numbers_with_and_without_kernels(
    tmp_path: Path, sparsity: float, external: bool, kernels: None
) -> None:
    source = mlp(tmp_path / "m.onnx", sparsity, external=external)
    emp_onnx.pack(source, tmp_path / "p.onnx")
    expected = outputs(open_engine(source, kernels="off").session)
    assert main(["fuse", str(tmp_path / "p.onnx"), str(tmp_path / "f.onnx"), "--every", "--quiet"]) == 0
    onnx.checker.check_model(str(tmp_path / "f.onnx"), full_check=True)
    for got, want in zip(outputs(onnxruntime.InferenceSession(tmp_path / "f.onnx")), expected, strict=True):
        assert np.array_equal(got, want)
    every = fused_model(tmp_path / "p.onnx", every=True)[1]
    assert [use.op for use in fused_before(load(tmp_path / "f.onnx"))] == [use.op for use in every]
    assert fused_before(load(tmp_path / "p.onnx")) == []
    for path in ("p.onnx", "f.onnx"):
        engine = open_engine(tmp_path / path, threads=2)
        assert engine.kernels
        assert path == "p.onnx" or len(engine.fused) == len(every)
        for got, want in zip(outputs(engine.session), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_weights_that_all_stay_dense_are_unpacked_before_onnxruntime_optimises(
    tmp_path: Path, kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With local functions in it the model would be optimised otherwise, and might be slower than the dense one."""
    emp_onnx.pack(mlp(tmp_path / "m.onnx", 0.28), tmp_path / "p.onnx", form="packed")
    opened: list[Any] = []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: opened.append(a[0]) or real(*a, **k))
    engine = open_engine(tmp_path / "p.onnx")
    assert (engine.kernels, [use.op for use in engine.fused]) == ("", ["", "", "", ""])
    given = onnx.load_from_string(opened[0])
    assert not [node for node in given.graph.node if node.domain]
    for got, want in zip(outputs(engine.session), outputs(real(tmp_path / "m.onnx")), strict=True):
        assert np.array_equal(got, want)


def test_what_is_fused_and_what_is_not(tmp_path: Path) -> None:
    emp_onnx.pack(mlp(tmp_path / "m.onnx", 0.5), tmp_path / "p.onnx")
    model, told = fused_model(tmp_path / "p.onnx", every=True)
    assert {(item.weight, item.op) for item in told} == {
        ("w0", "MatMulAddReluMask"), ("w1", "GemmReluMask4"), ("w2", "MatMulMask4"),
    }  # fmt: skip
    assert [node.op_type for node in model.graph.node if not node.op_type.startswith(("Stage", "Unpack"))] == [
        "MatMulAddReluMask", "GemmReluMask4", "MatMulMask4", "MatMulMask4", "Identity",
    ]  # fmt: skip
    _, told = fused_model(tmp_path / "p.onnx")
    assert {item.weight: item.reason for item in told if item.reason} == {"w0": "it has fewer than 262144 elements"}


def test_a_model_without_packed_weights_is_left_alone(tmp_path: Path) -> None:
    source = mlp(tmp_path / "m.onnx", 0.5)
    model, told = fused_model(source)
    assert told == []
    assert model == onnx.load(source)
    assert main(["fuse", str(source)]) == 3
    assert not (tmp_path / "m.fused.onnx").exists()


def test_sidecars_are_shared_so_both_files_are_in_one_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    emp_onnx.pack(mlp(tmp_path / "m.onnx", 0.5, external=True), tmp_path / "p.onnx")
    (tmp_path / "other").mkdir()
    assert main(["fuse", str(tmp_path / "p.onnx"), str(tmp_path / "other" / "f.onnx")]) == 2
    assert "in the folder of the model" in capsys.readouterr().err
    assert main(["fuse", str(tmp_path / "p.onnx"), str(tmp_path / "p.onnx")]) == 2


def test_the_result_is_beside_the_input_however_the_ending_is_written(tmp_path: Path) -> None:
    emp_onnx.pack(mlp(tmp_path / "m.onnx", 0.5), tmp_path / "P.ONNX")
    assert main(["fuse", str(tmp_path / "P.ONNX"), "--every", "--quiet"]) == 0
    assert {file.name for file in tmp_path.iterdir()} == {"m.onnx", "P.ONNX", "P.fused.onnx"}


def test_a_fused_file_is_an_end_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    emp_onnx.pack(mlp(tmp_path / "m.onnx", 0.5), tmp_path / "p.onnx")
    fused = str(tmp_path / "f.onnx")
    assert main(["fuse", str(tmp_path / "p.onnx"), fused, "--every", "--quiet"]) == 0
    for command in ("plan", "prune", "verify", "pack", "unpack"):
        capsys.readouterr()
        assert main([command, fused]) == 3, command
        assert "take the packed file that it was made of" in capsys.readouterr().err


def test_run_says_which_path_was_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    emp_onnx.pack(mlp(tmp_path / "m.onnx", 0.5), tmp_path / "p.onnx")
    assert main(["run", str(tmp_path / "p.onnx"), "-o", str(tmp_path / "o.npz")]) == 0
    assert "Path: kernels (" in capsys.readouterr().out
    assert main(["run", str(tmp_path / "p.onnx"), "-o", str(tmp_path / "q.npz"), "--kernels", "off"]) == 0
    assert "Path: onnxruntime alone." in capsys.readouterr().out
    with np.load(tmp_path / "o.npz") as one, np.load(tmp_path / "q.npz") as other:
        assert set(one.files) == {"y", "z"}
        for name in one.files:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-5)
    assert main(["run", str(tmp_path / "m.onnx"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == "onnxruntime alone: it holds no packed weights"
    assert main(["run", str(tmp_path / "m.onnx"), "--kernels", "on"]) == 2


def test_without_the_library_the_model_still_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_kernels: None
) -> None:
    emp_onnx.pack(mlp(tmp_path / "m.onnx", 0.5), tmp_path / "p.onnx")
    assert main(["run", str(tmp_path / "p.onnx")]) == 0
    assert "Path: onnxruntime alone: EMP_KERNELS_LIBRARY must be" in capsys.readouterr().out
    assert main(["run", str(tmp_path / "p.onnx"), "--kernels", "on"]) == 2
    with pytest.raises(UsageError, match="kernels must be off or auto here"):
        open_engine(tmp_path / "p.onnx", kernels="on")


@pytest.mark.alone
def test_bench_measures_all_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str], kernels: None) -> None:
    source = mlp(tmp_path / "m.onnx", 0.6)
    emp_onnx.pack(source, tmp_path / "p.onnx")
    found = bench([source, tmp_path / "p.onnx"], batch=(1, 3), threads=(1, 2), seconds=0.02)
    assert [item.path.split(" (")[0] for item in found] == ["onnxruntime alone", "onnxruntime alone", "kernels"]
    for item in found:
        assert [(timing.batch, timing.threads) for timing in item.timings] == [(1, 1), (3, 1), (1, 2), (3, 2)]
        for timing in item.timings:
            assert 0 < timing.low <= timing.median <= timing.high
            assert timing.runs >= 5
        assert item.load > 0
        assert item.file > 0
    assert all(timing.speed == 1 for timing in found[0].timings)
    assert main(["bench", str(source), "--seconds", "0.01", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["timings"][0]["runs"] >= 5
    assert main(["bench", str(source), "--seconds", "0.01"]) == 0
    assert "onnxruntime alone" in capsys.readouterr().out


def test_wrong_ways_to_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(mlp(tmp_path / "m.onnx", 0.5))
    for arguments in (
        ["bench", source, "--batch", "0"], ["bench", source, "--batch", "1,x"], ["bench", source, "--seconds", "0"],
        ["bench", source, "--threads", "-1"], ["run", source, "--kernels", "maybe"], ["bench"],
        ["bench", source, "--batch", "2", "--feeds", "f"],
    ):  # fmt: skip
        assert main(arguments) == 2, arguments
    capsys.readouterr()
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    for command in ("run", "bench", "fuse"):
        assert main([command, str(tmp_path / "bad.onnx")]) == 3
        assert main([command, str(tmp_path / "absent.onnx")]) == 3
    with pytest.raises(UsageError, match="models must be at least one"):
        bench([])
    with pytest.raises(UsageError, match="kernels must be both"):
        bench([source], kernels="maybe")
    with pytest.raises(ModelError, match="does not exist"):
        open_engine(tmp_path / "absent.onnx")
