"""What kernels cost, what a second thread brings: `python -m tests.benchmarks.kernel_costs --write docs/kernels.md`.

Dense and fused files side by side: speed with one and two threads, wall time, interleaved; then time to load and memory
held afterwards, each in a process of its own, medians of three.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import onnx

import emp_onnx
from emp_onnx.bench import bench
from emp_onnx.runtime.fuse import fused_model
from tests.benchmarks._report import machine, table, write
from tests.benchmarks.kernels import SPARSITIES
from tests.benchmarks.networks import SHAPES, save_network
from tests.kernels.native import build

HEAD = ["sparsity", "1 thread", "2 threads", "share kept", "load", "resident MB, dense", "kernels", "file MB"]


def costs(name: str, sparsities: tuple[float, ...], seconds: float) -> str:
    """The table of one network."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain, packed, made = (Path(folder, f"{part}.onnx") for part in ("plain", "packed", "fused"))
        for sparsity in sparsities:
            save_network(name, sparsity, plain)
            emp_onnx.pack(plain, packed)
            model, told = fused_model(packed)
            onnx.save(model, made)
            source = made if any(item.op for item in told) else packed
            del model
            dense, *_, fast = bench([plain, source], threads=(1, 2), seconds=seconds)
            one, two = (timing.speed for timing in fast.timings)
            rows.append([f"{sparsity:.0%}", f"{one:.2f}", f"{two:.2f}", f"{two / one:.0%}",
                         f"{fast.load / dense.load:.2f}", f"{dense.resident / 1e6:.0f}", f"{fast.resident / 1e6:.0f}",
                         f"{fast.file / 1e6:.0f}"])  # fmt: skip
    return table(HEAD, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="replace the tables in this page")
    parser.add_argument("--only", choices=[name[0] for name in SHAPES], help="one network, by its first letter")
    parser.add_argument("--sparsity", type=float, action="append", help="some sparsities only")
    parser.add_argument("--seconds", type=float, default=0.4, help="for each way and number of threads")
    options = parser.parse_args()
    os.environ["EMP_KERNELS_LIBRARY"] = str(next(build().glob("libemp_kernels.*")))
    for name in SHAPES:
        if options.only in (None, name[0]):
            made = costs(name, tuple(options.sparsity or SPARSITIES), options.seconds)
            text = f"{name}:\n\n{made}\n\n{machine('onnxruntime', 'numpy')} Wall time."
            print(text, flush=True)
            if options.write:
                write(options.write, f"costs {name[0]}", text)


if __name__ == "__main__":
    main()
