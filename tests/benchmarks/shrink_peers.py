"""At the same parameters: onnxsim's structured pruning against `emp shrink --refit`, scored on labelled data.

    python -m tests.benchmarks.shrink_peers --python PATH [--write docs/shrinking.md] [--tasks a,b]

PATH is the interpreter of an environment with onnxsim, which needs no part of this project. It is asked for channels
by norm and by activation, each also with its own refit, at one sparsity; what is left in parameters is then the
target for ours.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import emp_onnx
from emp_onnx.shrink import shrink
from tests.benchmarks._report import machine, table, write
from tests.benchmarks.shrinking import FLOORS, tasks

PEER = """
import sys, numpy as np, onnx, onnxsim
path, feeds, folder, sparsity = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
z = np.load(feeds)
data = [{k: z[k][i] for k in z.files} for i in range(len(z[z.files[0]]))]
model = onnx.load(path)
made = {
    "norm": lambda: onnxsim.apply_structured_pruning(model, sparsity),
    "activation": lambda: onnxsim.apply_structured_wanda_pruning(model, calibration_data=data, sparsity=sparsity),
}
for name, make in made.items():
    try:
        out = make()
        onnx.save(out, f"{folder}/{name}.onnx")
        onnx.save(onnxsim.apply_pruning_finetune(model, out, calibration_data=data), f"{folder}/{name} + refit.onnx")
    except Exception as error:
        print(name, type(error).__name__, str(error)[:200])
print("onnxsim", onnxsim.__version__)
"""


def parameters(path: Path) -> int:
    """How many numbers the constants of a model hold, of those that something reads."""
    graph = onnx.load(path).graph
    read = {name for node in graph.node for name in node.input}
    return sum(int(np.prod(t.dims)) for t in graph.initializer if t.name in read)


def compare(name: str, task: Any, python: str, sparsity: float, folder: Path) -> list[list[str]]:
    """Rows of one task."""
    feeds = list(task.feeds(64))[:64]
    np.savez(folder / "feeds.npz", **{key: np.stack([feed[key] for feed in feeds]) for key in feeds[0]})
    done = subprocess.run(
        [python, "-c", PEER, str(task.model), str(folder / "feeds.npz"), str(folder), str(sparsity)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    print(done.stdout.strip(), done.stderr.strip()[-300:], file=sys.stderr)
    dense, whole, rows = task.score(task.model), parameters(task.model), []
    for file in sorted(folder.glob("*.onnx")):
        share = parameters(file) / whole
        try:
            theirs = f"{task.score(file):.4f}"
        except Exception as error:
            theirs = f"does not run: {type(error).__name__}"
        ours = "-"
        if share < 0.999:
            try:
                report = shrink(
                    task.model, folder / "ours.shrunk", feeds=feeds, refit=True, target_size=share, threads=2
                )
                ours = f"{task.score(report.out):.4f}"
            except emp_onnx.OnnxError as error:
                ours = str(error)
        rows.append([name, file.stem, f"{share:.0%}", f"{dense:.4f}", theirs, ours])
        print(*rows[-1], flush=True)
        file.unlink()
    return rows


def main(argv: list[str] | None = None) -> int:
    """Compare, print, and write if asked."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.shrink_peers", description=__doc__.split("\n")[0])
    parser.add_argument("--python", required=True, help="an interpreter that has onnxsim")
    parser.add_argument("--tasks", default=",".join(FLOORS))
    parser.add_argument("--sparsity", type=float, default=0.25)
    parser.add_argument("--write", metavar="FILE", type=Path)
    options = parser.parse_args(argv)
    rows, known = [], tasks()
    if not known:
        print("shrink_peers: the tasks are not there", file=sys.stderr)
        return 2
    version = subprocess.run(
        [options.python, "-c", "import importlib.metadata as m; print(m.version('onnxsim'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    heads = ["task", "onnxsim's channels by", "parameters left", "dense score", "onnxsim", "emp shrink --refit"]
    for name in options.tasks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows += compare(name, known[name], options.python, options.sparsity, Path(folder))
        foot = f"onnxsim {version}, sparsity {options.sparsity:g}, 64 feeds. {machine('onnx', 'onnxruntime', 'numpy')}"
        text = f"{table(heads, rows)}\n\n{foot}"
        if options.write:
            write(options.write, "peers", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
