"""How much accuracy each rule keeps: real models, label-free calibration, scores on data never seen.

    python -m tests.benchmarks.accuracy [TASK ...] [--results FILE.json] [--write docs/accuracy.md] [--peer PYTHON]

Models, data and scores come from `../shared/eval/tasks.py`, which is no part of this repository: 200 calibration feeds
without labels, disjoint from what is scored. Results are added to FILE.json task by task, so a run can be continued;
`--write` puts the tables made from that file into the page. `--peer` is a Python that has onnxsim: its Wanda and
SparseGPT then run on the same feeds, in a process of their own, with their time and memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import emp_onnx
from emp_onnx.budget.compare import RULES, _plain
from emp_onnx.budget.search import Budget
from emp_onnx.refit.fitting import Fitting
from emp_onnx.refit.prune import refit
from tests.benchmarks._report import machine, table, write
from tests.benchmarks.evidence import load_tasks

FLOORS = {
    "mobilenetv2": (0.36, 0.815), "squeezenet": (0.40, 0.595), "cifar10_base": (0.67, 0.795),
    "cifar10_resnet": (0.42, 0.757), "cifar10_vit": (0.86, 0.610), "mnist_mlp": (0.60, 0.966),
    "mnist_tiny": (0.40, 0.987), "g2p": (0.40, 0.900), "tashkeel": (0.40, 0.925), "vad": (0.30, 0.985),
}  # fmt: skip
FEEDS = 200
PEERS = ("wanda", "sparsegpt")
PEER = Path(__file__).with_name("peer_onnxsim.py")


def curve_of(floor: float) -> tuple[float, ...]:
    """Sparsities around the one asked for."""
    return tuple(round(s, 3) for s in (floor - (1 - floor) / 3, floor, floor + (1 - floor) / 3) if s > 0.05)


def run(name: str, task: Any, peer: str | None, quick: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of one task: rule, and what was measured."""
    floor = FLOORS[name][0]
    feeds = list(task.feeds(FEEDS))
    yield "dense", {"sparsity": 0.0, "score": task.score(task.model)}
    if quick:
        yield "OBS steps, measured error", by_command(task, feeds, floor)
        return
    start = time.process_time()
    model = emp_onnx.load(task.model)
    fitting = Fitting(model, feeds)
    layers = len(fitting.curves)
    print(name, layers, "layers", flush=True)
    measured = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"

        def scored(changed: Any) -> float:
            emp_onnx.save(model.replaced(dict(changed), {}), out)
            return float(task.score(out))

        for sparsity in curve_of(floor):
            keep = fitting.count(sparsity=sparsity)
            if sparsity == floor:
                for rule, masks in _plain(fitting, keep):
                    values = {k: np.where(m, model.values(k), model.values(k).dtype.type(0)) for k, m in masks.items()}
                    kept = sum(int(m.sum()) for m in masks.values())
                    yield rule, {"sparsity": 1 - kept / fitting.total, "score": scored(values)}
            for rule, (how, criterion, update) in RULES.items():
                if sparsity != floor and rule not in (
                    "magnitude, LAMP",
                    "SparseGPT masks, solved",
                    "OBS steps, measured error",
                ):
                    continue
                begun = time.process_time()
                thin = fitting.thin(keep, how=how, criterion=criterion, update=update)
                seconds = time.process_time() - begun + (measured if how == "error" else 0)
                label = rule if sparsity == floor else f"{rule} @"
                yield label, {"sparsity": thin.sparsity, "score": scored(thin.changed), "cpu": seconds}
        begun = time.process_time()
        report = refit(task.model, out, feeds=feeds, budget=Budget(drop=0.01))
        row = {"sparsity": report.point.sparsity, "score": float(task.score(out)), "cpu": time.process_time() - begun}
        yield "--max-drop 1%", row
        if peer is not None:
            for method in PEERS:
                yield f"onnxsim {method}", of_peer(peer, method, task, feeds, floor, folder)


def by_command(task: Any, feeds: list[Any], sparsity: float) -> dict[str, Any]:
    """The refit as a user runs it: the command, on feeds in files, a tenth of which it keeps back for its report."""
    with tempfile.TemporaryDirectory() as folder:
        place, out = Path(folder) / "feeds", Path(folder) / "out.onnx"
        place.mkdir()
        for i, feed in enumerate(feeds):
            np.savez(place / f"{i:04}.npz", **feed)
        words = ["prune", task.model, out, "--feeds", place, "--refit", "--sparsity", sparsity]
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run([sys.executable, "-m", "emp_onnx", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
        after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - begun
        model = emp_onnx.load(out)
        weights = emp_onnx.find_weights(emp_onnx.load(task.model)).weights
        kept = sum(int(np.count_nonzero(model.values(w.name))) for w in weights)
        return {
            "sparsity": 1 - kept / sum(int(np.prod(w.shape)) for w in weights), "score": float(task.score(out)),
            "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, "wall": seconds,
        }  # fmt: skip


def of_peer(python: str, method: str, task: Any, feeds: list[Any], sparsity: float, folder: str) -> dict[str, Any]:
    """The same by onnxsim, in a process of its own."""
    place, out = Path(folder) / "feeds.npz", Path(folder) / "peer.onnx"
    np.savez(place, **{f"{i}|{k}": v for i, feed in enumerate(feeds) for k, v in feed.items()})
    done = subprocess.run(
        [*map(str, (python, "-I", PEER, method, task.model, place, out, sparsity))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode or not out.exists():
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    model = emp_onnx.load(out)
    weights = emp_onnx.find_weights(model).weights
    kept = sum(int(np.count_nonzero(model.values(w.name))) for w in weights)
    dense = sum(int(np.prod(w.shape)) for w in emp_onnx.find_weights(emp_onnx.load(task.model)).weights)
    row |= {"score": float(task.score(out)), "sparsity": 1 - kept / dense}
    out.unlink()
    return row


def text(results: dict[str, Any]) -> str:
    """The tables."""
    parts = []
    rows = []
    for name, (floor, least) in FLOORS.items():
        found = results.get(name)
        if not found:
            continue
        best, drop = found.get("OBS steps, measured error", {}), found.get("--max-drop 1%", {})
        cpu = f"{best['cpu']:.0f} s" if "cpu" in best else "-"
        rows.append([
            f"`{name}`", _score(found["dense"]), f"{least:.3f} @ {floor:.0%}", _cell(best), cpu, _cell(drop),
        ])  # fmt: skip
    parts += ["## Against the bars", table(["task", "dense", "asked", "refit", "CPU time", "`--max-drop 1%`"], rows)]
    names = [name for name in FLOORS if name in results]
    rules = list(
        dict.fromkeys(
            rule
            for name in names
            for rule in results[name]
            if not rule.endswith("@") and rule not in ("dense", "peak", "--max-drop 1%")
        )
    )
    parts += ["## Rules at equal sparsity", table(
        ["rule", *(f"`{n}` {FLOORS[n][0]:.0%}" for n in names)],
        [[rule, *(_score(results[n].get(rule, {})) for n in names)] for rule in rules],
    )]  # fmt: skip
    rows = []
    for name in names:
        for rule in ("magnitude, LAMP", "SparseGPT masks, solved", "OBS steps, measured error"):
            seen = [*results[name].get(f"{rule} @", []), results[name].get(rule, {})]
            seen = sorted((p for p in seen if p), key=lambda p: p["sparsity"])
            rows.append([f"`{name}`", rule, ", ".join(_cell(p) for p in seen)])
    parts += ["## Curves", table(["task", "rule", "score @ sparsity"], rows)]
    peers = [(n, m, results[n][f"onnxsim {m}"]) for n in names for m in PEERS if f"onnxsim {m}" in results[n]]
    if peers:
        parts += ["## The direct peer", table(
            ["task", "onnxsim's method", "score @ sparsity", "CPU seconds", "peak MiB"],
            [[f"`{n}`", m, _cell(r), *(_at(r, what, each) for what, each in (("cpu", 1), ("peak", 2**20)))]
             for n, m, r in peers],
        )]  # fmt: skip
        failed = [f"- `{n}`, {m}: {r['failed']}" for n, m, r in peers if "failed" in r]
        parts += ["\n".join(failed)] if failed else []
    parts.append(f"Measured on {machine('onnxruntime', 'numpy')} CPU time is of the whole process, all threads.")
    return "\n\n".join(parts)


def _at(row: dict[str, Any], what: str, each: int) -> str:
    return f"{row[what] / each:.0f}" if what in row else "-"


def _score(row: dict[str, Any]) -> str:
    return f"{row['score']:.3f}" if "score" in row else "-"


def _cell(row: dict[str, Any]) -> str:
    return f"{row['score']:.3f} @ {row['sparsity']:.1%}" if "score" in row else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--results", default="accuracy.json")
    parser.add_argument("--peer")
    parser.add_argument(
        "--quick", action="store_true", help="only the dense model, and the command at the bar's sparsity"
    )
    parser.add_argument("--write")
    options = parser.parse_args()
    file = Path(options.results)
    results = json.loads(file.read_text()) if file.exists() else {}
    tasks = load_tasks() if options.tasks else {}
    for name in options.tasks:
        found: dict[str, Any] = {}
        for rule, row in run(name, tasks[name], options.peer, options.quick):
            if rule.endswith("@"):
                found.setdefault(rule, []).append(row)
            else:
                found[rule] = row
            print(name, rule, row, flush=True)
        found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        results[name] = found
        file.write_text(json.dumps(results, indent=1))
    if options.write:
        write(Path(options.write), "accuracy", text(results))
    else:
        print(text(results))


if __name__ == "__main__":
    sys.exit(main())
