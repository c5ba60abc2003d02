"""Real models after `emp prune` and `emp pack`, with kernels where they are faster, beside the dense originals.

`python -m tests.benchmarks.kernel_models FOLDER --work SCRATCH [--write docs/kernels.md]`: latency in one interleaved
run (wall time, one thread, medians), time to load in processes of their own, and what was fused.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import emp_onnx
from emp_onnx.bench import feeds_for
from emp_onnx.engine import open_engine
from emp_onnx.errors import OnnxError
from tests.benchmarks._report import machine, table, write
from tests.kernels.native import build

HEADER = ["model", "sparsity", "dense ms", "packed ms", "speed", "load", "fused"]


def row(model: Path, packed: Path, sparsity: float, seconds: float) -> list[str]:
    """Both in turn until `seconds` have passed."""
    start = time.perf_counter()
    dense = open_engine(model, kernels="off", threads=1)
    middle = time.perf_counter()
    fast = open_engine(packed, threads=1)
    load = (time.perf_counter() - middle) / (middle - start)
    feed = feeds_for(dense, 1)
    spent: tuple[list[float], list[float]] = ([], [])
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(spent[0]) < 15:
        for engine, taken in zip((dense, fast), spent, strict=True):
            begin = time.perf_counter()
            engine.session.run(None, dict(feed))
            taken.append(time.perf_counter() - begin)
    one, other = (statistics.median(taken) for taken in spent)
    fused = f"{sum(bool(item.op) for item in fast.fused)} of {len(fast.fused)}"
    return [model.stem, f"{sparsity:.0%}", f"{one * 1e3:.3f}", f"{other * 1e3:.3f}", f"{one / other:.3f}",
            f"{load:.2f}", fused]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the models")
    parser.add_argument("--work", type=Path, required=True, help="where packed models are, or will be")
    parser.add_argument("--prepare", action="store_true", help="prune and pack, and measure nothing")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each model")
    parser.add_argument("--write", type=Path, help="replace the table in this page")
    options = parser.parse_args()
    os.environ["EMP_KERNELS_LIBRARY"] = str(next(build().glob("libemp_kernels.*")))
    options.work.mkdir(parents=True, exist_ok=True)
    rows: list[list[str]] = []
    for model in sorted(options.folder.glob("*.onnx")):
        pruned, packed = options.work / f"{model.stem}.pruned.onnx", options.work / f"{model.stem}.packed.onnx"
        try:
            if not packed.exists():
                emp_onnx.prune(model, pruned)
                emp_onnx.pack(pruned, packed)
            if not options.prepare:
                rows.append(row(model, packed, _sparsity(packed), options.seconds))
                print(" | ".join(rows[-1]), flush=True)
        except OnnxError as error:
            rows.append([model.stem, "", "", "", "", "", f"not measured: {error}"])
            print(" | ".join(rows[-1]), flush=True)
    if rows:
        text = f"{table(HEADER, rows)}\n\n{machine('onnxruntime', 'numpy')} One thread, wall time."
        print(text)
        if options.write:
            write(options.write, "models", text)


def _sparsity(packed: Path) -> float:
    plan: Any = emp_onnx.plan(emp_onnx.load(packed))
    total = sum(entry.n for entry in plan.entries)
    return sum(entry.zeros for entry in plan.entries) / max(total, 1)


if __name__ == "__main__":
    main()
