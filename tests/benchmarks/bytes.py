"""Whole files: CPU time and resident memory of `emp prune` against loading and saving, and against other tools.

    python -m tests.benchmarks.bytes [--part small|large|huge|nodes] [--rows FILE.json] [--folder DIR]
                                     [--simplifier PYTHON] [--write docs/benchmarks.md]

Each run is a process of its own: CPU time (user and system, of all threads, and of processes that it started) and peak
resident memory are the kernel's figures for it, imports included. The parts together need 6 GB of disk; with `--rows`
they can be measured one by one. `--simplifier` names a Python in which onnxsim is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._report import machine, table, write

ROOT = Path(__file__).resolve().parents[2]
SIDE = 2000  # a weight has SIDE² elements

LOAD_SAVE = """
import sys, onnx
model = onnx.load(sys.argv[1])
if len(sys.argv) > 3: onnx.save(model, sys.argv[2], save_as_external_data=True, location="saved.data", size_threshold=0)
else: onnx.save(model, sys.argv[2])
"""
PARTITION = """
import sys, onnx, numpy as np
from onnx import numpy_helper
model = onnx.load(sys.argv[1])
weights = [numpy_helper.to_array(t) for t in model.graph.initializer]
flat = np.concatenate([np.abs(w).ravel() for w in weights])
threshold = np.partition(flat, flat.size // 2)[flat.size // 2]
for t, w in zip(model.graph.initializer, weights):
    t.raw_data = np.where(np.abs(w) >= threshold, w, np.float32(0)).tobytes()
onnx.save(model, sys.argv[2])
"""
TORCH = """
import sys, onnx, torch
from onnx import numpy_helper
from torch.nn.utils import prune
model = onnx.load(sys.argv[1])
layers = []
for t in model.graph.initializer:
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight = torch.nn.Parameter(torch.from_numpy(numpy_helper.to_array(t).copy()))
    layers.append(layer)
prune.global_unstructured([(l, "weight") for l in layers], prune.L1Unstructured, amount=0.5)
for t, l in zip(model.graph.initializer, layers):
    t.raw_data = l.weight.detach().numpy().tobytes()
onnx.save(model, sys.argv[2])
"""
SESSIONS = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
for _ in range(2): onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""
SIMPLIFIER = """
import sys, onnx, onnxsim
onnx.save(getattr(onnxsim, sys.argv[3])(onnx.load(sys.argv[1]), sparsity=0.5), sys.argv[2])
"""


def make(folder: Path, weights: int, *, external: bool = False, holes: int = 0) -> Path:
    """A chain of MatMuls; of every weight the last `holes` in 16 parts are zeros that take no place on the disk."""
    from onnx import TensorProto, helper

    rng, nodes, inits, last = np.random.default_rng(0), [], [], "x"
    size, folder = 4 * SIDE * SIDE, folder / f"{weights}{'e' if external else ''}{holes}"
    folder.mkdir()
    data = open(folder / "m.data", "wb") if external else None  # noqa: SIM115
    for i in range(weights):
        item = TensorProto(name=f"w{i}", dims=(SIDE, SIDE), data_type=1)
        values = rng.standard_normal(SIDE * SIDE - SIDE * SIDE * holes // 16, dtype=np.float32)
        if data is None:
            item.raw_data = values.tobytes()
        else:
            item.data_location = TensorProto.EXTERNAL
            for key, text in (("location", "m.data"), ("offset", str(i * size)), ("length", str(size))):
                item.external_data.add(key=key, value=text)
            data.seek(i * size)
            data.write(values.data)
            data.truncate((i + 1) * size)
        inits.append(item)
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"h{i}"]))
        last = f"h{i}"
    if data is not None:
        data.close()
    x, y = (helper.make_tensor_value_info(n, 1, [1, SIDE]) for n in ("x", last))
    made = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], inits), ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    )
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    return folder / "m.onnx"


def many_nodes(folder: Path, count: int, weights: int) -> Path:
    """A long chain of small operations; every so many of them a product with a weight of 16 to 256 elements."""
    from onnx import helper, numpy_helper

    rng, nodes, inits, last, width = np.random.default_rng(0), [], [], "x", 16
    for i in range(count):
        if i % (count // weights) == 0 and len(inits) < weights:
            after = int(rng.integers(1, 17))
            w = rng.standard_normal((width, after), dtype=np.float32)
            inits.append(numpy_helper.from_array(w, f"layers.{i}.weight"))
            nodes.append(helper.make_node("MatMul", [last, inits[-1].name], [f"h{i}"], f"product_{i}"))
            width = after
        else:
            nodes.append(helper.make_node("Relu", [last], [f"h{i}"], f"relu_{i}"))
        last = f"h{i}"
    x, y = helper.make_tensor_value_info("x", 1, [1, 16]), helper.make_tensor_value_info(last, 1, [1, width])
    graph = helper.make_graph(nodes, "g", [x], [y], inits)
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    path = folder / f"many{weights}.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def made(build: Any, *args: Any, **options: Any) -> Path:
    """What `build` makes, in a process of its own: a child's peak memory counts that of its parent."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        path: Path = pool.submit(build, *args, **options).result()
    return path


class Used(NamedTuple):
    """What a process used: CPU seconds, seconds on the clock, peak resident MB."""

    cpu: float
    wall: float
    peak: int


def run(command: Sequence[str]) -> Used | None:
    """Run a process; None if it failed."""
    # as installed: compiled files are written once, and kept
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}", "PYTHONDONTWRITEBYTECODE": ""}
    start = time.perf_counter()
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    return None if process.returncode else Used(used.ru_utime + used.ru_stime, wall, used.ru_maxrss // 1024)


def best(command: Sequence[str], rounds: int, out: Path) -> Used | None:
    """The least times and the largest memory of some runs; None if one failed."""
    found: list[Used | None] = []
    for _ in range(rounds):
        found.append(run(command))
        for file in out.parent.iterdir():
            file.unlink()
    return least_of(found)


def least_of(found: Sequence[Used | None]) -> Used | None:
    """The least times and the largest memory; None if a run failed."""
    good = [one for one in found if one is not None]
    if len(good) < len(found):
        return None
    return Used(min(one.cpu for one in good), min(one.wall for one in good), max(one.peak for one in good))


def emp(model: Path, out: Path, *options: str) -> list[str]:
    """Our command."""
    return [sys.executable, "-m", "emp_onnx", "prune", str(model), str(out), "--quiet", *options]


def other(script: str, model: Path, out: Path) -> list[str]:
    """A few lines of Python that do the same."""
    return [sys.executable, "-c", script, str(model), str(out)]


RULES: dict[str, tuple[str, ...]] = {
    "EMP, tensor": (), "EMP, model": ("--scope", "model"),
    "50 %, tensor": ("--sparsity", "0.5"), "50 %, model": ("--sparsity", "0.5", "--scope", "model"),
}  # fmt: skip


class Bench:
    """The measurements of one part of the table."""

    def __init__(self, folder: Path, simplifier: str | None) -> None:
        self.folder, self.simplifier, self.rows = folder, simplifier, list[list[str]]()
        self.out = folder / "out" / "out.onnx"
        self.out.parent.mkdir()

    def add(
        self, what: str, base: float | None, command: Sequence[str], must: str, rounds: int = 3, wall: bool = False
    ) -> float | None:
        """Measure one row; its CPU time."""
        one = best(command, rounds, self.out)
        if one is None:
            self.rows.append([what, "failed, or not installed", "", "", "", must])
            return None
        ratio = f"{one.cpu / base:.2f}" if base else ""
        self.rows.append([what, f"{one.cpu:.2f} s", f"{one.wall:.2f} s" if wall else "", f"{one.peak} MB", ratio, must])
        return one.cpu

    def rules(self, what: str, model: Path, load_save: Sequence[str], must: str, rounds: int = 3) -> None:
        """Loading and saving and every rule, in turns, so that what else the machine does falls on all alike."""
        commands = {f"{what}: onnx.load + onnx.save": load_save}
        commands |= {f"{what}: emp, {name}": emp(model, self.out, *options) for name, options in RULES.items()}
        found = {name: list[Used | None]() for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                found[name].append(best(command, 1, self.out))
        least = [least_of(some) for some in found.values()]
        for name, one in zip(commands, least, strict=True):
            if one is None:
                self.rows.append([name, "failed, or not installed", "", "", "", must])
                continue
            ratio = f"{one.cpu / least[0].cpu:.2f}" if least[0] and name != next(iter(commands)) else ""
            self.rows.append([name, f"{one.cpu:.2f} s", "", f"{one.peak} MB", ratio, must if ratio else ""])

    def small(self) -> None:
        """400 MB in one file, and the others."""
        model = made(make, self.folder, 25)
        out, simplifier = self.out, self.simplifier or sys.executable
        self.rules("400 MB", model, other(LOAD_SAVE, model, out), "≤ 1.0, 150 MB")
        base = float(self.rows[0][1].split()[0])
        self.add("400 MB: NumPy partition, 50 % of the model", base, other(PARTITION, model, out), "≥ 2 times emp", 1)
        self.add("400 MB: torch global_unstructured, 50 %", base, other(TORCH, model, out), "≥ 8 times emp", 1)
        for name in ("apply_magnitude_pruning", "prune_magnitude_cpp"):
            command = [simplifier, *other(SIMPLIFIER, model, out)[1:], name]
            self.add(f"400 MB: onnxsim {name}, 50 %", base, command, "≥ 15 times emp", 1)
        shutil.rmtree(model.parent)

    def large(self) -> None:
        """2.5 GB in a sidecar file."""
        model = made(make, self.folder, 156, external=True)
        self.rules("2.5 GB external", model, [*other(LOAD_SAVE, model, self.out), "external"], "≤ 0.8, 150 MB")
        shutil.rmtree(model.parent)

    def huge(self) -> None:
        """5 GB and 10 GB, of which most takes no place on the disk."""
        for weights, words in ((312, "5 GB"), (625, "10 GB")):
            model = made(make, self.folder, weights, external=True, holes=14)
            what = f"{words} external, sparse on disk: emp, EMP, model"
            self.add(what, None, emp(model, self.out, "--scope", "model"), "linear, 150 MB", 1)
            shutil.rmtree(model.parent)

    def nodes(self) -> None:
        """30 000 nodes."""
        for weights, words in ((1, "1 weight"), (10_000, "10 000 weights")):
            model = made(many_nodes, self.folder, 30_000, weights)
            plan = [sys.executable, "-m", "emp_onnx", "plan", str(model), "--quiet"]
            self.add(f"30 000 nodes, {words}: emp plan", None, plan, "≤ 2 s in all", wall=True)
            self.add(f"30 000 nodes, {words}: emp prune", None, emp(model, self.out), "≤ 2 s in all", 5, wall=True)
            what = f"30 000 nodes, {words}: of that, onnxruntime loading two models"
            self.add(what, None, other(SESSIONS, model, self.out), "", 3, wall=True)


PARTS = ("small", "large", "huge", "nodes")


def simplifier_version(python: str) -> str:
    """What onnxsim says of itself in its own environment."""
    code = "import importlib.metadata as m; print(m.version('onnxsim'))"
    said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return f"onnxsim {said.stdout.strip()}." if said.returncode == 0 else "onnxsim not installed."


def main() -> None:
    """Measure, print, and put the table where it belongs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parts = (*PARTS, "none")
    parser.add_argument("--part", choices=parts, action="append", help="only this part (more than once: these)")
    parser.add_argument("--rows", type=Path, metavar="FILE.json", help="keep what was measured there")
    parser.add_argument("--simplifier", metavar="PYTHON")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    known: dict[str, Any] = json.loads(options.rows.read_text()) if options.rows and options.rows.exists() else {}
    for part in options.part or PARTS:
        if part == "none":  # only show, or write, what is known
            continue
        folder, before = Path(tempfile.mkdtemp(dir=options.folder)), os.getloadavg()[0]
        try:
            bench = Bench(folder, options.simplifier)
            getattr(bench, part)()
        finally:
            shutil.rmtree(folder)
        known[part] = {"rows": bench.rows, "waiting": [round(before), round(os.getloadavg()[0])]}
        if options.rows:
            options.rows.write_text(json.dumps(known))
    header = ["work", "CPU time", "on the clock", "peak resident", "ratio to load + save", "must be"]
    there = [known[part] for part in PARTS if part in known]
    waiting = "; ".join("{} and {}".format(*part["waiting"]) for part in there)
    text = table(header, [row for part in there for row in part["rows"]])
    text += "\n\n" + machine("numpy", "onnx", "onnxruntime", "torch")
    text += f" {simplifier_version(options.simplifier or sys.executable)}"
    text += f" Processes that wanted to run, before and after each part of the table: {waiting}."
    print(text)
    if options.write:
        write(options.write, "bytes", text)


if __name__ == "__main__":
    main()
