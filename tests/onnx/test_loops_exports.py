"""Real exports: a loop that torch scripts, and modules that it writes as functions, are refitted inside."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="needs torch, whose exporter writes the models")

import emp_onnx  # noqa: E402
from emp_onnx.refitting import refit  # noqa: E402

QUIET = onnxruntime.SessionOptions()
QUIET.log_severity_level = 4


class Steps(torch.nn.Module):
    """A cell of its own making, over a sequence of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(5 + 12, 16), torch.nn.Linear(16, 12)
        self.last = torch.nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros(x.shape[1], 12)
        for i in range(x.shape[0]):
            h = torch.tanh(self.second(torch.relu(self.first(torch.cat([x[i], h], 1)))))
        return self.last(h)


class Block(torch.nn.Module):
    """Exported as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.relu(self.first(x)))


def exported(kind: str, path: Path) -> tuple[int, ...]:
    """Writes the model; returns the shape of its input."""
    torch.manual_seed(0)
    shape = (6, 3, 5) if kind == "loop" else (3, 8)
    more: dict[str, Any] = {}
    if kind == "loop":
        more = {"dynamic_axes": {"x": {0: "steps"}}}
    else:
        more = {"export_modules_as_functions": {Block}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = torch.jit.script(Steps()) if kind == "loop" else torch.nn.Sequential(Block(), Block(), Block())
        torch.onnx.export(
            net.eval(), (torch.randn(shape),), str(path), dynamo=False, input_names=["x"], output_names=["y"],
            opset_version=15, **more,
        )  # fmt: skip
    return shape


def outputs(file: Path, given: list[dict[str, Any]]) -> Any:
    session = onnxruntime.InferenceSession(str(file), QUIET, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0].reshape(-1) for feed in given])


@pytest.mark.parametrize("kind", ["loop", "functions"])
def test_an_export(kind: str, tmp_path: Path) -> None:
    shape = exported(kind, tmp_path / "in.onnx")
    made = onnx.load(tmp_path / "in.onnx")
    assert made.functions if kind == "functions" else any(node.op_type == "Loop" for node in made.graph.node)
    rng = np.random.default_rng(1)
    mix = rng.standard_normal((shape[-1], shape[-1]))
    feeds = [{"x": (rng.standard_normal(shape) @ mix).astype(np.float32)} for _ in range(120)]
    report = refit(tmp_path / "in.onnx", tmp_path / "a.onnx", feeds=feeds[:80], sparsity=0.5)
    assert not any("not refitted" in note for note in report.notes)
    emp_onnx.prune(tmp_path / "in.onnx", tmp_path / "b.onnx", sparsity=0.5)
    dense, fitted, zeros = (outputs(tmp_path / f"{name}.onnx", feeds[80:]) for name in ("in", "a", "b"))
    assert np.square(fitted - dense).sum() < 0.2 * np.square(zeros - dense).sum()
    assert emp_onnx.verify(tmp_path / "a.onnx", tmp_path / "in.onnx").ok
