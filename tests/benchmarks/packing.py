"""Sizes, speed, load and latency of packed files against what else there is.

    python -m tests.benchmarks.packing [--write docs/packing.md]

Each load is a process of its own, in turn with those of the dense file; the machine's other work hits all alike.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from emp_onnx import load, pack, save, unpack
from emp_onnx.packing.choose import choose
from emp_onnx.packing.forms import entropy_bound
from emp_onnx.packing.rewrite import rewritten
from tests.benchmarks._report import machine, table, write

LEVELS = ((0.6366, "36 %, β = 1"), (0.5, "50 %"), (0.4, "60 %"), (0.2, "80 %"), (0.1, "90 %"), (0.05, "95 %"))
FLOORS = (0.68, 0.54, 0.44, 0.24, 0.14, 0.09)
LARGE = [(4096, 4096)] * 4
BLOCK = [*[(768, 768)] * 4, (768, 3072), (3072, 768)]  # the shapes of a block of a transformer
ROUNDS = 5
PROCESSES = 8  # that measure latency: where memory lies differs between them

LOADER = """
import json, sys, time, resource
import numpy as np, onnxruntime
def line(name):
    return int(next(l for l in open("/proc/self/status") if l.startswith(name)).split()[1]) * 1024
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
before, cpu, wall = line("VmRSS"), time.process_time(), time.perf_counter()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
print(json.dumps({"cpu": cpu, "wall": wall, "peak": line("VmHWM") - before, "rest": line("VmRSS") - before}))
"""

# the median of ratios to the first file, runs in turn and in an order that changes
LATENCY = """
import json, statistics, sys, time
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
turn, paths = int(sys.argv[1]), sys.argv[2:]
made = {}
for i in range(len(paths)):  # another is loaded first each time
    which = (i + turn) % len(paths)
    made[which] = onnxruntime.InferenceSession(paths[which], options, providers=["CPUExecutionProvider"])
x = {"x0": np.random.default_rng(1).standard_normal((1, made[0].get_inputs()[0].shape[1])).astype(np.float32)}
assert len({session.run(None, x)[0].tobytes() for session in made.values()}) == 1
ratios = [[] for _ in paths[1:]]
for i in range(60):
    taken = {}
    for j in range(len(paths)):
        which = (i + j if i // len(paths) % 2 else i - j) % len(paths)
        start = time.process_time()
        made[which].run(None, x)
        taken[which] = time.process_time() - start
    for k in range(1, len(paths)):
        ratios[k - 1].append(taken[k] / taken[0])
print(json.dumps([statistics.median(some) for some in ratios]))
"""


def network(shapes: Sequence[tuple[int, int]], density: float, path: Path) -> Path:
    """Layers of Gaussian weights, of which only the largest are kept."""
    rng, tensors, nodes = np.random.default_rng(0), [], []
    for i, shape in enumerate(shapes):
        weight = rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[0]))
        sample = np.abs(weight.reshape(-1)[:: max(1, weight.size // 100_000)])
        weight[np.abs(weight) < np.quantile(sample, 1 - density)] = 0
        tensors.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x0", 1, ["n", shapes[0][0]])], [value(f"x{len(shapes)}", 1, ["n", shapes[-1][1]])], tensors
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def zstd(path: Path) -> int | None:
    """Bytes that `zstd -19` leaves, where there is a zstd."""
    try:
        import zstandard
    except ImportError:
        if shutil.which("zstd") is None:
            return None
        return len(subprocess.run(["zstd", "-19", "-c", "-q", str(path)], capture_output=True, check=True).stdout)
    return len(zstandard.ZstdCompressor(level=19).compress(path.read_bytes()))


def coo(path: Path, index: int) -> int:
    """Bytes of the same model with a sparse initializer, whether that is smaller or not."""
    model = load(path)
    stored = int(np.count_nonzero(model.values("w0")))
    return path.stat().st_size - model.tensors["w0"].size * 4 + stored * (4 + index // 8)


def sparsified(path: Path, out: Path) -> int:
    """Bytes that onnxruntime's tools/python/sparsify_initializers.py writes of a model of float32; the wheel lacks it.

    As its source says: an initializer of which at least half is 0 becomes a sparse one, with the narrowest of int8,
    int16, int32 and int64 that holds its largest index, unless that takes no fewer bytes.
    """
    proto = onnx.load(path)
    graph = proto.graph
    dense, graph_dense = list(graph.initializer), []
    for item in dense:
        flat = numpy_helper.to_array(item).reshape(-1)
        places = np.flatnonzero(flat)
        index = next(k for k in (np.int8, np.int16, np.int32, np.int64) if places[-1] <= np.iinfo(k).max)
        values, indices = flat[places], places.astype(index)
        if 1 - places.size / flat.size < 0.5 or flat.nbytes <= values.nbytes + indices.nbytes:
            graph_dense.append(item)
            continue
        kind = helper.np_dtype_to_tensor_dtype(indices.dtype)
        graph.sparse_initializer.append(helper.make_sparse_tensor(
            numpy_helper.from_array(values, item.name),
            helper.make_tensor(f"{item.name}_indicies", kind, [places.size], indices.tobytes(), raw=True), item.dims,
        ))  # fmt: skip
    del graph.initializer[:]
    graph.initializer.extend(graph_dense)
    onnx.save(proto, out)
    return out.stat().st_size


def sizes(folder: Path) -> str:
    """The table of sizes."""
    rows = []
    for (density, name), floor in zip(LEVELS, FLOORS, strict=True):
        path = network([(1024, 1024)], density, folder / "one.onnx")
        done = pack(path, folder / "packed.onnx")
        row, dense = done.rows[0], path.stat().st_size
        bound = entropy_bound(1024**2, round(row.density * 1024**2), 4)
        plain = path.read_bytes()
        small = (folder / "packed.onnx").read_bytes()
        again, both = zstd(path), zstd(folder / "packed.onnx")
        script = sparsified(path, folder / "script.onnx")
        rows.append([
            name, row.form, f"**{done.after / dense:.4f}**", f"{floor:.2f}", f"{row.after / bound:.4f}",
            f"{len(gzip.compress(plain, 6)) / dense:.4f}", f"{again / dense:.4f}" if again else "-",
            f"{coo(path, 64) / dense:.3f}", f"{coo(path, 32) / dense:.3f}",
            f"{script / dense:.3f}", f"{len(gzip.compress(small, 6)) / dense:.4f}",
            f"{both / dense:.4f}" if both else "-",
        ])  # fmt: skip
    head = ["sparsity", "form", "packed", "must be ≤", "× bound", "gzip -6", "zstd -19", "coo int64", "coo int32",
            "onnxruntime's script", "packed + gzip -6", "packed + zstd -19"]  # fmt: skip
    return table(head, rows)


def loads(folder: Path) -> str:
    """The table of load time and memory."""
    rows = []
    for shapes, density, name in (
        (LARGE, 0.5, "4 × 4096², 50 %"), (LARGE, 0.1, "4 × 4096², 90 %"),
        ([(2048, 2048)] * 16, 0.5, "16 × 2048², 50 %"),
        (BLOCK * 8, 0.5, "48 weights of 768 and 3072, 50 %"),
    ):  # fmt: skip
        dense = network(shapes, density, folder / "dense.onnx")
        files = {"dense": dense, "packed": pack(dense, folder / "packed.onnx").out}
        if sparsified(dense, folder / "script.onnx") < dense.stat().st_size:
            files["onnxruntime's script"] = folder / "script.onnx"
        seen: dict[str, list[dict[str, float]]] = {which: [] for which in files}
        for _ in range(ROUNDS):
            for which, path in files.items():
                told = subprocess.run(
                    [sys.executable, "-c", LOADER, str(path)], capture_output=True, text=True, check=True
                )
                seen[which].append(json.loads(told.stdout))
        least = {w: {k: min(s[k] for s in some) for k in ("cpu", "wall", "peak", "rest")} for w, some in seen.items()}
        for which, path in files.items():
            one = least[which]
            rows.append([
                f"{name}, {which}", f"{path.stat().st_size / 1e6:.1f}", f"{one['cpu']:.2f}",
                f"{one['cpu'] / least['dense']['cpu']:.2f}", f"{one['peak'] / 1e6:.0f}",
                f"{one['peak'] / least['dense']['peak']:.2f}", f"{one['rest'] / 1e6:.0f}",
            ])  # fmt: skip
    head = ["", "file, MB", "load, CPU s", "× dense", "peak while loading, MB", "× dense", "after, MB"]
    return table(head, rows)


def latencies(folder: Path) -> str:
    """The table of latency: the packed file, and the dense one once more, against the dense one."""
    rows = []
    for density, name in ((0.5, "50 %"), (0.1, "90 %")):
        dense = network(LARGE, density, folder / "dense.onnx")
        files = {"dense, a second session": dense, "packed": pack(dense, folder / "packed.onnx").out}
        seen: dict[str, list[float]] = {which: [] for which in files}
        for i in range(PROCESSES):
            command = [sys.executable, "-c", LATENCY, str(i), str(dense), *map(str, files.values())]
            told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            for which, ratio in zip(files, told, strict=True):
                seen[which].append(ratio)
        for which, some in seen.items():
            rows.append([
                f"{name}, {which}", f"{statistics.median(some):.3f}", f"{min(some):.3f} to {max(some):.3f}",
                f"{statistics.stdev(some) / len(some) ** 0.5:.3f}",
            ])  # fmt: skip
    head = ["4 × 4096², one row, one thread", "latency, × dense: median", f"of {PROCESSES} processes", "standard error"]
    return table(head, rows)


def speed(folder: Path) -> str:
    """The table of the speed of packing and unpacking, without and with the checks."""
    rows = []
    for density, name in ((0.5, "50 %"), (0.1, "90 %")):
        dense = network(LARGE[:2], density, folder / "dense.onnx")
        size = dense.stat().st_size
        taken: dict[str, float] = {}
        beside: dict[str, float] = {}

        def timed(what: str, run: Any) -> None:
            start, child = time.process_time(), children()
            run()
            taken[what] = min(taken.get(what, np.inf), time.process_time() - start)  # noqa: B023
            beside[what] = min(beside.get(what, np.inf), children() - child)  # noqa: B023

        for _ in range(2):
            model = load(dense)
            timed("pack", lambda: save(rewritten(model, choose(model)[0]), folder / "p.onnx"))  # noqa: B023
            packed = load(folder / "p.onnx")
            keys = frozenset(k for k, t in packed.tensors.items() if t.recipe)
            back = lambda: save(rewritten(packed, choose(packed, form="dense", keys=keys)[0]), folder / "u.onnx")  # noqa: B023, E731
            timed("unpack", back)
            timed("pack, checked", lambda: pack(dense, folder / "p.onnx"))  # noqa: B023
            timed("unpack, checked", lambda: unpack(folder / "p.onnx", folder / "u.onnx"))
        rows.append(
            [name, *(f"{size / 1e6 / taken[k]:.0f}" for k in ("pack", "unpack", "pack, checked", "unpack, checked")),
             f"{beside['pack, checked']:.2f}", f"{beside['unpack, checked']:.2f}"]
        )  # fmt: skip
    head = ["MB of dense weights per second of one core", "pack", "unpack", "pack and check", "unpack and check",
            "onnxruntime beside, CPU s: pack", "unpack"]  # fmt: skip
    return table(head, rows)


def children() -> float:
    """CPU seconds of the processes that have ended."""
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--only", choices=["loads", "latency", "speed", "sizes", "machine"], help="this table alone")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    about: dict[str, Callable[[Path], str]] = {
        "loads": loads, "latency": latencies, "speed": speed, "sizes": sizes,
        "machine": lambda _: machine("onnxruntime", "onnx", "numpy"),
    }  # fmt: skip
    for marker, measure in about.items():
        if options.only not in (None, marker):
            continue
        with tempfile.TemporaryDirectory() as name:
            text = measure(Path(name))
        print(text, end="\n\n", flush=True)
        if options.write:
            write(options.write, f"packing {marker}", text)


if __name__ == "__main__":
    main()
