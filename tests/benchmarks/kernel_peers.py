"""What a user could take instead of the kernels: `python -m tests.benchmarks.kernel_peers --write docs/kernels.md`.

Three whole networks, at every sparsity, in one interleaved run: onnxruntime dense, onnxruntime with the dense model
dynamically quantised to 8 bits, the kernels with float32 and with 8-bit weights, and DeepSparse (`--deepsparse PYTHON`,
a Python that has deepsparse 1.8.0 and numpy < 2). Wall time; medians.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import emp_onnx
from emp_onnx.engine import open_engine
from tests.benchmarks._report import machine, table, write
from tests.benchmarks.kernels import HEADER, SPARSITIES
from tests.benchmarks.networks import SHAPES, save_network
from tests.kernels.native import build

CASES = {"MLP 12 × 2048²": (1, 64), "ResNet-like CNN": (1,), "transformer, 4 layers": (1,)}
Run = Callable[[], float]


class Peer:
    """DeepSparse with one model."""

    def __init__(self, python: str, model: Path, threads: int, shape: tuple[int, ...]) -> None:
        script = Path(__file__).with_name("peer_deepsparse.py")
        self.process = subprocess.Popen(
            [python, "-I", str(script), str(model), str(threads), json.dumps(shape)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line[0] in "{0123456789":
                return line
        raise RuntimeError("DeepSparse ended without an answer")

    def __call__(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        self.process.communicate()


def prepared(folder: Path, name: str, sparsity: float) -> dict[str, Path]:
    """The files of one network, made where they are not there yet."""
    from onnxruntime.quantization import quantize_dynamic

    logging.disable(logging.WARNING)
    stem = f"{name[0]}{sparsity:.0%}".replace("%", "")
    paths = {kind: folder / f"{stem}.{kind}.onnx" for kind in ("dense", "old", "int8", "packed", "packed8")}
    if not paths["packed8"].exists():
        save_network(name, sparsity, paths["dense"])
        save_network(name, sparsity, paths["old"], opset=13)
        quantize_dynamic(str(paths["dense"]), str(paths["int8"]))
        emp_onnx.pack(paths["dense"], paths["packed"])
        emp_onnx.pack(paths["int8"], paths["packed8"])
    return paths


def timed(engine: Any, feed: Any) -> Run:
    def run() -> float:
        start = time.perf_counter()
        engine.session.run(None, feed)
        return time.perf_counter() - start

    for _ in range(2):
        run()
    return run


def measured(
    folder: Path, name: str, batch: int, threads: int, python: str, rounds: int
) -> tuple[float, dict[str, list[str]]]:
    """Milliseconds of the dense network, and how much faster each of the others is at every sparsity."""
    shape = (batch, *SHAPES[name][1:])
    feed = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    cells: dict[str, list[str]] = {}
    base = []
    for sparsity in SPARSITIES:
        paths = prepared(folder, name, sparsity)
        ways = {
            "onnxruntime, float32": ("dense", "off"), "onnxruntime, dynamic int8": ("int8", "off"),
            "kernels, float32": ("packed", "auto"), "kernels, dynamic int8": ("packed8", "auto"),
        }  # fmt: skip
        runs: dict[str, Run] = {
            way: timed(open_engine(paths[kind], kernels=kernels, threads=threads), feed)
            for way, (kind, kernels) in ways.items()
        }
        peer = Peer(python, paths["old"], threads, shape) if python else None
        if peer is not None:
            runs["DeepSparse 1.8.0, float32"] = peer
        spent: dict[str, list[float]] = {way: [] for way in runs}
        for _ in range(rounds):
            for way, run in runs.items():
                if threads > 1:  # threads of the other sessions wait busily for a while, and would take a processor
                    time.sleep(0.03)
                    run()
                spent[way].append(run())
        if peer is not None:
            peer.close()
        dense = statistics.median(spent.pop("onnxruntime, float32"))
        base.append(dense * 1e3)
        for way, taken in spent.items():
            cells.setdefault(way, []).append(f"{dense / statistics.median(taken):.2f}")
    return statistics.median(base), cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="replace the tables in this page")
    parser.add_argument("--folder", type=Path, required=True, help="where the networks are, or will be")
    parser.add_argument("--prepare", action="store_true", help="make the networks, and measure nothing")
    parser.add_argument("--deepsparse", default="", help="a Python that has deepsparse")
    parser.add_argument("--only", choices=sorted({name[0] for name in CASES}), help="one network, by its first letter")
    parser.add_argument("--batch", type=int, help="one number of items")
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    os.environ["EMP_KERNELS_LIBRARY"] = str(next(build().glob("libemp_kernels.*")))
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, batches in CASES.items():
        if options.only not in (None, name[0]):
            continue
        if options.prepare:
            for sparsity in SPARSITIES:
                prepared(options.folder, name, sparsity)
            continue
        rows = []
        for batch in batches if options.batch is None else (options.batch,):
            for threads in (1, 2):
                found = measured(options.folder, name, batch, threads, options.deepsparse, options.rounds)
                for way, cells in found[1].items():
                    rows.append([way, str(batch), str(threads), f"{found[0]:.2f}", *cells])
        versions = machine("onnxruntime", "numpy")
        text = f"{name}:\n\n{table(['way', 'batch', 'threads', 'dense ms', *HEADER], rows)}\n\n{versions} Wall time."
        print(text, flush=True)
        if options.write:
            write(options.write, f"peers {name[0]}", text)


if __name__ == "__main__":
    main()
