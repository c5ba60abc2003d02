"""Kernels for packed weights beside dense ones: `python -m tests.benchmarks.kernels [--write docs/kernels.md]`.

One thread, processor time (wall time says little on a machine that others use), medians of interleaved runs.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

import emp_onnx
from emp_onnx.engine import open_engine
from tests.benchmarks._report import machine, table, write
from tests.benchmarks.networks import SHAPES, save_network
from tests.kernels.native import Conv, Linear, build, library

SPARSITIES = (0.4, 0.5, 0.6, 0.8, 0.9, 0.95)
HEADER = [f"{sparsity:.0%}" for sparsity in SPARSITIES]
BATCHES = (1, 4, 16, 64, 256)
CONVS = [
    (64, 64, 56, 3, 1), (128, 128, 28, 3, 1), (256, 256, 14, 3, 1), (512, 512, 7, 3, 1), (128, 128, 56, 3, 2),
    (256, 64, 56, 1, 1), (512, 1024, 14, 1, 1), (1024, 512, 14, 1, 1),
]  # fmt: skip
CELLS = [
    ("LSTM", 256, 50, 1), ("LSTM", 512, 50, 1), ("LSTM", 1024, 50, 1), ("LSTM", 512, 1, 1), ("LSTM", 512, 50, 16),
    ("GRU", 256, 50, 1), ("GRU", 512, 50, 1), ("GRU", 512, 50, 16), ("RNN", 1024, 50, 1),
]  # fmt: skip
Run = Callable[[], Any]


def dense(op: str, weight: Any, x: list[Any], **attributes: Any) -> Any:
    """A session of one operation."""
    info = helper.make_tensor_value_info
    node = helper.make_node(op, ["x", "w"], ["y"], **attributes)
    graph = helper.make_graph(
        [node], "g", [info("x", 1, x)], [info("y", 1, ["a", "b", "c", "d"][: len(x)])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def medians(candidates: Sequence[Run], rounds: int) -> list[float]:
    """Seconds of processor time of each; all run in turn, round by round, once to warm up."""
    spent: list[list[float]] = [[] for _ in candidates]
    for i in range(rounds + 1):
        for run, taken in zip(candidates, spent, strict=True):
            start = time.thread_time()
            run()
            if i:
                taken.append(time.thread_time() - start)
    return [statistics.median(taken) for taken in spent]


def on_a_line(array: Any) -> Any:
    """A copy that begins on a cache line, as onnxruntime's own arrays do."""
    room = np.empty(array.size + 16, array.dtype)
    at = -room.ctypes.data % 64 // array.itemsize
    made = room[at : at + array.size].reshape(array.shape)
    made[...] = array
    return made


def sparse(weight: Any, sparsity: float) -> Any:
    kept = weight.copy()
    kept[np.random.default_rng(1).random(weight.shape) < sparsity] = 0
    return kept


def products(size: int = 2048, layers: int = 6) -> str:
    """Six layers of 16 MiB each, one after the other: more than caches hold."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((size, size)).astype(np.float32) for _ in range(layers)]
    sessions = [dense("Gemm", weight, ["n", size], transB=1) for weight in weights]
    packed = [[Linear.of(sparse(weight, s)) for weight in weights] for s in SPARSITIES]
    rows = []
    for batch in BATCHES:
        x, y = rng.standard_normal((batch, size)).astype(np.float32), np.empty((batch, size), np.float32)
        runs: list[Run] = [lambda x=x: [one.run(None, {"x": x}) for one in sessions]]  # type: ignore[misc]
        runs += [lambda x=x, y=y, ones=ones: [one(x, out=y) for one in ones] for ones in packed]  # type: ignore[misc]
        base, *others = medians(runs, 15 if batch < 64 else 7)
        ways = "/".join(dict.fromkeys(ones[0].way(batch) for ones in packed))
        rows.append([str(batch), f"{base / layers * 1e3:.2f}", *(f"{base / other:.2f}" for other in others), ways])
    return table(["batch", "dense ms", *HEADER, "way"], rows)


def convolutions() -> str:
    rng = np.random.default_rng(0)
    rows = []
    for channels, outputs, size, kernel, stride in CONVS:
        weight = rng.standard_normal((outputs, channels, kernel, kernel)).astype(np.float32)
        pads = (kernel // 2,) * 4
        session = dense("Conv", weight, [1, channels, size, size], pads=list(pads), strides=[stride] * 2)
        x = on_a_line(rng.standard_normal((1, channels, size, size)).astype(np.float32))
        packed = [Conv(sparse(weight, s), stride=(stride, stride), pads=pads) for s in SPARSITIES]
        runs: list[Run] = [lambda session=session, x=x: session.run(None, {"x": x})]  # type: ignore[misc]
        y = packed[0](x)
        runs += [lambda one=one, x=x, y=y: one(x, out=y) for one in packed]  # type: ignore[misc]
        base, *others = medians(runs, 21)
        name = f"{kernel}×{kernel}, {channels} to {outputs}, {size}²{', stride 2' if stride == 2 else ''}"
        rows.append([name, f"{base * 1e3:.2f}", *(f"{base / other:.2f}" for other in others)])
    return table(["convolution", "dense ms", *HEADER], rows)


def networks() -> str:
    """Whole files: pruned and dense in onnxruntime, packed and fused with the kernels."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in SHAPES.items():
            cells, error = [], 0.0
            for sparsity in SPARSITIES:
                plain, packed = Path(folder, "plain.onnx"), Path(folder, "packed.onnx")
                save_network(name, sparsity, plain)
                emp_onnx.pack(plain, packed)
                one, other = open_engine(plain, kernels="off", threads=1), open_engine(packed, threads=1)
                feed = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
                want, got = one.session.run(None, feed)[0], other.session.run(None, feed)[0]
                error = max(error, float(np.abs(want - got).max() / np.abs(want).max()))
                runs = [lambda e=engine, f=feed: e.session.run(None, f) for engine in (one, other)]  # type: ignore[misc]
                base, fast = medians(runs, 9)
                cells.append(f"{base / fast:.2f}")
            rows.append([name, f"{base * 1e3:.1f}", *cells, f"{error:.0e}"])
    return table(["network, batch 1", "dense ms", *HEADER, "error"], rows)


def cell(op: str, size: int, sparsity: float) -> onnx.ModelProto:
    """A recurrent cell over [steps, batch, size]."""
    rng = np.random.default_rng(0)
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * size
    weights = [sparse((rng.standard_normal((1, rows, size)) / size**0.5).astype(np.float32), sparsity) for _ in "wr"]
    bias = rng.standard_normal((1, 2 * rows)).astype(np.float32)
    info = helper.make_tensor_value_info
    extra = {"linear_before_reset": 1} if op == "GRU" else {}
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w", "r", "b"], ["y"], hidden_size=size, **extra)], "g",
        [info("x", 1, ["steps", "batch", size])], [info("y", 1, ["steps", 1, "batch", size])],
        [numpy_helper.from_array(one, name) for one, name in zip([*weights, bias], "wrb", strict=True)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def cells() -> str:
    """Recurrent cells, dense in onnxruntime and packed with the kernels, also where fusing would leave them dense."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for op, size, steps, batch in CELLS:
            cells = []
            x = np.random.default_rng(0).standard_normal((steps, batch, size)).astype(np.float32)
            for sparsity in SPARSITIES:
                plain, packed = Path(folder, "plain.onnx"), Path(folder, "packed.onnx")
                onnx.save(cell(op, size, sparsity), plain)
                emp_onnx.pack(plain, packed)
                engines = [open_engine(plain, kernels="off", threads=1), open_engine(packed, threads=1, every=True)]
                runs = [lambda e=engine, x=x: e.session.run(None, {"x": x}) for engine in engines]  # type: ignore[misc]
                base, fast = medians(runs, 15)
                cells.append(f"{base / fast:.2f}")
            rows.append([f"{op} {size}, {steps} steps, batch {batch}", f"{base * 1e3:.2f}", *cells])
    return table(["cell", "dense ms", *HEADER], rows)


def roofline() -> str:
    """What one thread reads from memory, and what `dot` and `gather` read and compute."""
    big = np.ones(1 << 26, np.float32)
    bandwidth = big.nbytes / medians([big.max], 7)[0]  # keeps up with memory; NumPy's sum does not
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8192, 4096)).astype(np.float32)
    x, y = rng.standard_normal((1, 4096)).astype(np.float32), np.empty((1, 8192), np.float32)
    rows = []
    for sparsity in SPARSITIES:
        one = Linear.of(sparse(weight, sparsity))
        seconds = medians([lambda: one(x, out=y)], 9)[0]  # noqa: B023
        nonzeros = weight.size * (1 - sparsity)
        read = nonzeros * 4 + (nonzeros * 2 if one.way(1) == "gather" else weight.size / 8)
        rows.append([f"{sparsity:.0%}", one.way(1), f"{read / seconds / 1e9:.1f}", f"{read / seconds / bandwidth:.0%}",
                     f"{weight.size / seconds / 1e9:.1f}", f"{nonzeros / seconds / 1e9:.2f}"])  # fmt: skip
    head = ["sparsity", "way", "GB/s read", "of a plain read's", "10⁹ weights/s, zeros too", "10⁹ nonzeros/s"]
    found = f"The greatest of 256 MiB of numbers is found at {bandwidth / 1e9:.1f} GB/s, a plain read."
    return f"{found}\n\n{table(head, rows)}"


def decoders() -> str:
    """Ways that were tried for one item, each alone: decoders.cpp, compiled for this machine."""
    if "avx512f" not in Path("/proc/cpuinfo").read_text():
        return "These need AVX-512."
    columns: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        program, source = Path(folder, "decoders"), Path(__file__).with_name("decoders.cpp")
        subprocess.run(["c++", "-std=c++17", "-O3", "-march=native", "-w", str(source), "-o", str(program)], check=True)
        for sparsity in SPARSITIES:
            told = subprocess.run([str(program), str(sparsity)], check=True, capture_output=True, text=True).stdout
            columns.append([line.split("\t")[1] for line in told.splitlines()])
    ways = [line.split("\t")[0] for line in told.splitlines()]
    return table(["clocks for", *HEADER], [list(row) for row in zip(ways, *columns, strict=True)])


SECTIONS = {
    "products": products, "convolutions": convolutions, "networks": networks, "cells": cells, "roofline": roofline,
    "decoders": decoders,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="replace the tables in this page")
    parser.add_argument("--only", choices=SECTIONS, help="one table")
    options = parser.parse_args()
    os.environ["EMP_KERNELS_LIBRARY"] = str(next(build().glob("libemp_kernels.*")))
    isa = ctypes.c_char_p(library().emp_kernels_isa()).value or b""
    foot = f"{machine('onnxruntime', 'numpy')} Kernels: {isa.decode()}. One thread, processor time."
    for name, section in SECTIONS.items():
        if options.only in (None, name):
            text = f"{section()}\n\n{foot}"
            print(f"{name}\n\n{text}\n", flush=True)
            if options.write:
                write(options.write, name, text)


if __name__ == "__main__":
    main()
