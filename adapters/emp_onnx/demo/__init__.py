"""The demonstration: a network trained on the UCI handwritten digits, pruned by the plain rule."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emp_onnx.errors import OnnxError
from emp_onnx.files.model_io import load
from emp_onnx.prune import Report, prune
from emp_onnx.runtime.compare import Session
from emp_onnx.texts.pruning import report_text
from emp_onnx.texts.style import Style

__all__ = ["MODEL", "Demo", "run_demo"]

FOLDER = Path(__file__).resolve().parent
MODEL = FOLDER / "digits.onnx"


@dataclass(frozen=True)
class Demo:
    """What the demonstration showed: the report, accuracy on digits the network never saw, and how long it took."""

    report: Report
    digits: int
    before: float
    after: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        accuracy = {"digits": self.digits, "before": self.before, "after": self.after}
        return {"accuracy": accuracy, "seconds": self.seconds, **self.report.to_dict()}

    def text(self, style: Style | None = None) -> str:
        """As text for people."""
        total = self.report.plan.total
        return "\n".join(
            [
                "A network trained on the UCI handwritten digits, pruned without choosing a sparsity.",
                report_text(self.report, style),
                f"Accuracy on {self.digits} digits it never saw: {self.before:.2%} before, {self.after:.2%} after, "
                f"with {total.sparsity:.2%} of its weights removed.",
                f"All of it took {self.seconds:.1f} s, in a temporary directory that is gone now.",
                "Your own model: emp prune model.onnx",
            ]
        )


def run_demo(*, scope: str = "tensor", threads: int | None = None) -> Demo:
    """Prune the shipped network by the plain rule, and measure its accuracy before and after.

    Raises:
        OnnxError: the files that belong to the demonstration are not installed.
    """
    start = time.perf_counter()
    source, data = FOLDER / "digits.onnx", FOLDER / "digits.npz"
    if not source.is_file() or not data.is_file():
        raise OnnxError(
            f"the demonstration must have its files digits.onnx and digits.npz in {FOLDER}, which are missing"
        )
    with np.load(data, allow_pickle=False) as file:
        feeds, digits, labels = file["x_feeds"], file["x_test"], file["y_test"]
    name = Session(source, threads=threads).inputs[0].name
    with tempfile.TemporaryDirectory(prefix="emp-demo-") as folder:
        out = Path(folder) / "digits.pruned.onnx"
        report = prune(load(source), out, scope=scope, feeds=[{name: feeds}], threads=threads)
        before, after = (_accuracy(file, name, digits, labels, threads) for file in (source, out))
    return Demo(report, len(labels), before, after, time.perf_counter() - start)


def _accuracy(model: Path, name: str, digits: Any, labels: Any, threads: int | None) -> float:
    session = Session(model, threads=threads)
    scores = next(iter(session.run({name: digits}).values()))
    return float((np.asarray(scores).reshape(len(labels), -1).argmax(axis=1) == labels).mean())
