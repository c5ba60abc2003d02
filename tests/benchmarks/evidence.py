"""What the plain rule does to real models: scores and sparsities under every scope, as a Markdown table.

    python -m tests.benchmarks.evidence [TASK ...] [--write docs/evidence.md]

Models, data and scores come from `../shared/eval/tasks.py`, which is no part of this repository. Everything is done
through `emp_onnx`'s public functions. Each cell is `score @ sparsity`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import emp_onnx

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
SCOPES = ("tensor", "row", "model")
Cell = tuple[float, float]


def load_tasks() -> dict[str, Any]:
    """The tasks, or an exit with the reason."""
    file = SHARED / "eval" / "tasks.py"
    if not file.is_file():
        sys.exit(f"evidence: the tasks must be in {file}, which does not exist; they are not part of the repository")
    spec = importlib.util.spec_from_file_location("emp_shared_tasks", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    tasks: dict[str, Any] = module.TASKS
    return tasks


def measure(task: Any, scopes: tuple[str, ...] = SCOPES) -> tuple[float, dict[str, Cell | str]]:
    """The dense score, and (score, sparsity in percent) by scope, or the reason why nothing was pruned."""
    cells: dict[str, Cell | str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for scope in scopes:
            out = Path(folder) / f"{scope}.onnx"
            try:
                report = emp_onnx.prune(task.model, out, scope=scope, gzip=False)
            except emp_onnx.ModelError as error:
                cells[scope] = str(error).split("can be pruned: ")[-1]
                continue
            cells[scope] = (float(task.score(out)), 100 * report.plan.total.sparsity)
    return float(task.score(task.model)), cells


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.evidence", description=__doc__.split("\n")[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="which tasks (default: all)")
    parser.add_argument("--write", metavar="FILE", type=Path, help="also write the tables there")
    options = parser.parse_args(argv)
    tasks = load_tasks()
    if unknown := set(options.tasks) - set(tasks):
        parser.error(f"TASK must be one of {', '.join(tasks)}, got {', '.join(sorted(unknown))}")
    rows = ["| task | what | dense | scope tensor | scope row | scope model |", "|---|---|---|---|---|---|"]
    for name in options.tasks or tasks:
        start = time.perf_counter()
        dense, cells = measure(tasks[name])
        texts = [c if isinstance(c, str) else f"{c[0]:.3f} @ {c[1]:.1f} %" for c in cells.values()]
        rows.append(f"| {name} | {tasks[name].what} | {dense:.3f} | {' | '.join(texts)} |")
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    text = "\n".join([*INTRODUCTION, *rows, "", footer(), ""])
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    return 0


INTRODUCTION = [
    "# What the plain rule does to real models",
    "",
    "β = 1, magnitude, nothing else: no retraining, no refit, no layer left out. Each cell is `score @ sparsity`: the "
    "score named under",
    '"what", on data with labels, and the share of weights that became zero. Where much is lost, '
    "[a refit from your inputs](accuracy.md) keeps most of it. Made by `python -m tests.benchmarks.evidence`.",
    "",
]


def footer() -> str:
    """Versions and the kind of machine."""
    import numpy
    import onnx
    import onnxruntime

    return (
        f"Python {platform.python_version()}, NumPy {numpy.__version__}, onnx {onnx.__version__}, onnxruntime "
        f"{onnxruntime.__version__}; {platform.system()} on {platform.machine()}, {os.cpu_count()} cores."
    )


if __name__ == "__main__":
    sys.exit(main())
