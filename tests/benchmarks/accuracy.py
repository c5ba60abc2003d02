"""How much accuracy each rule keeps: real models, label-free calibration, scores on data never seen.

    python -m tests.benchmarks.accuracy [TASK ...] [--results FILE.json] [--write docs/accuracy.md] [--peer PYTHON]

Models, data and scores come from `../shared/eval/tasks.py`, which is no part of this repository: 200 calibration feeds
without labels, disjoint from what is scored. Results are added to FILE.json task by task, so a run can be continued;
`--write` puts the tables made from that file into the page, and the curves beside it as a picture. `--peer` is a Python
that has onnxsim: its Wanda and SparseGPT then run on the same feeds, in a process of their own, with their time and
memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import emp_onnx
from emp_onnx.budget.compare import RULES, _plain
from emp_onnx.refit.fitting import Fitting
from tests.benchmarks._report import machine, table, write
from tests.benchmarks.accuracy_picture import picture
from tests.benchmarks.evidence import load_tasks

FLOORS = {
    "mobilenetv2": (0.36, 0.815), "squeezenet": (0.40, 0.595), "cifar10_base": (0.67, 0.795),
    "cifar10_resnet": (0.42, 0.757), "cifar10_vit": (0.86, 0.610), "mnist_mlp": (0.60, 0.966),
    "mnist_tiny": (0.40, 0.987), "g2p": (0.40, 0.900), "tashkeel": (0.40, 0.925), "vad": (0.30, 0.985),
}  # fmt: skip
FEEDS = 200
COMMAND = "the command"
BUDGET, STRICT = "--max-drop 1%", "--max-drop 1% --drop-in agreement"
WAYS = {"the command, `--effort quick`": ("--effort", "quick")}
CURVES = ("magnitude, LAMP", "SparseGPT masks, solved", "OBS steps, measured error")
PARTS = ("quick", "budget", "strict", "fast", "rules")
PEERS = ("wanda", "sparsegpt")
ASKS, EQUAL = 5, 0.002  # how often a peer is asked for another sparsity, and how near it must come to the one wanted
PEER = Path(__file__).with_name("peer_onnxsim.py")

# a small process in between: what starts another counts as that one's peak until it has begun
LAUNCH = """
import json, os, subprocess, sys, tempfile, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
begun = time.monotonic()
with tempfile.TemporaryFile() as errors:
    process = subprocess.Popen(sys.argv[1:], stderr=errors)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - begun
    errors.seek(0)
    said = errors.read().decode(errors="replace")
row = {"cpu": used.ru_utime + used.ru_stime, "wall": wall, "peak": used.ru_maxrss * 1024}
json.dump(row | {"code": os.waitstatus_to_exitcode(status), "errors": said}, sys.stderr)
"""


def curve_of(floor: float) -> tuple[float, ...]:
    """Sparsities around the one asked for."""
    return tuple(round(s, 3) for s in (floor - (1 - floor) / 3, floor, floor + (1 - floor) / 3) if s > 0.05)


def run(name: str, task: Any, parts: Sequence[str], peer: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of one task: what they are of, and what was measured. A row whose name ends in @ is one point of a curve."""
    floor = FLOORS[name][0]
    feeds = list(task.feeds(FEEDS))
    yield "dense", {"sparsity": 0.0, "score": task.score(task.model)}
    with tempfile.TemporaryDirectory() as folder:
        if "quick" in parts:
            yield COMMAND, by_command(task, feeds, folder, "--sparsity", floor)
        if "budget" in parts:
            yield BUDGET, by_command(task, feeds, folder, "--max-drop", "1%")
        if "strict" in parts:
            yield STRICT, by_command(task, feeds, folder, "--max-drop", "1%", "--drop-in", "agreement")
        if "fast" in parts:
            for row, more in WAYS.items():
                yield row, by_command(task, feeds, folder, "--sparsity", floor, *more)
        if peer is not None:
            for method in PEERS:
                yield f"onnxsim {method}", of_peer(peer, method, task, feeds, floor, folder)
        if "rules" in parts:
            yield from rules(task, feeds, floor, Path(folder) / "out.onnx")


def rules(task: Any, feeds: list[Any], floor: float, out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every rule at the sparsity asked for, some also around it."""
    model = emp_onnx.load(task.model)
    fitting = Fitting(model, feeds)

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
            if sparsity == floor or rule in CURVES:
                thin = fitting.thin(keep, how=how, criterion=criterion, update=update)
                row = {"sparsity": thin.sparsity, "score": scored(thin.changed)}
                yield rule if sparsity == floor else f"{rule} @", row


def by_command(task: Any, feeds: list[Any], folder: str, *more: Any) -> dict[str, Any]:
    """The refit as a user runs it: the command, on feeds in files, some of which it keeps back for its report."""
    place, out = Path(folder) / "feeds", Path(folder) / "out.onnx"
    if not place.exists():
        place.mkdir()
        for i, feed in enumerate(feeds):
            np.savez(place / f"{i:04}.npz", **feed)
    words = [sys.executable, "-m", "emp_onnx", "prune", task.model, out, "--feeds", place, "--refit", "--quiet", *more]
    row = measured([str(word) for word in words])
    model = emp_onnx.load(out)
    weights = emp_onnx.find_weights(emp_onnx.load(task.model)).weights
    kept = sum(int(np.count_nonzero(model.values(w.name))) for w in weights)
    row |= {
        "sparsity": 1 - kept / sum(int(np.prod(w.shape)) for w in weights), "score": float(task.score(out)),
    }  # fmt: skip
    out.unlink()
    return row


def measured(words: list[str]) -> dict[str, Any]:
    """Run a command on one processor: CPU and wall seconds and peak bytes of its processes, starting and importing
    included. Compiled files are kept, as an installed package has them; the first run makes them.
    """
    settings = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-S", "-c", LAUNCH, *words], env=settings, capture_output=True, check=True)
    row: dict[str, Any] = json.loads(done.stderr)
    errors = row.pop("errors").strip().splitlines()
    if row.pop("code"):
        raise RuntimeError((errors or ["no output"])[-1][:200])
    return row


def of_peer(python: str, method: str, task: Any, feeds: list[Any], sparsity: float, folder: str) -> dict[str, Any]:
    """The same by onnxsim, in a process of its own, at the same sparsity of all weights together.

    It knows fewer layers than that, and counts by row or by block. So it is asked for other sparsities until the result
    has the one wanted, or is as near as it comes; the time is that of this one run alone.
    """
    place, out = Path(folder) / "feeds.npz", Path(folder) / "peer.onnx"
    np.savez(place, **{f"{i}|{k}": v for i, feed in enumerate(feeds) for k, v in feed.items()})
    weights = emp_onnx.find_weights(emp_onnx.load(task.model)).weights
    dense = sum(int(np.prod(w.shape)) for w in weights)
    best: dict[str, Any] = {}
    low, high, asked = 0.0, 1.0, sparsity
    for _ in range(ASKS):
        try:
            row = measured([*map(str, (python, "-I", PEER, method, task.model, place, out, asked))])
        except RuntimeError as error:
            return {"failed": str(error)}
        model = emp_onnx.load(out)
        found = emp_onnx.find_weights(model).weights
        row["sparsity"] = 1 - sum(int(np.count_nonzero(model.values(w.name))) for w in found) / dense
        if not best or abs(row["sparsity"] - sparsity) < abs(best["sparsity"] - sparsity):
            best = row | {"asked": asked, "score": float(task.score(out))}
        if abs(best["sparsity"] - sparsity) <= EQUAL:
            break
        if row["sparsity"] < sparsity:
            low = asked
        else:
            high = asked
        guess = asked * sparsity / max(row["sparsity"], 1e-9)
        asked = guess if low < guess < high else (low + high) / 2
    out.unlink()
    return best


def text(results: dict[str, Any]) -> str:
    """The tables."""
    names = [name for name in FLOORS if name in results]
    rows = []
    for name in names:
        found, (floor, least) = results[name], FLOORS[name]
        best = found.get(COMMAND, {})
        rows.append([
            f"`{name}`", _score(found["dense"]), f"{least:.3f} @ {floor:.0%}", _cell(best), _at(best, "cpu", 1),
            _cell(found.get(BUDGET, {})), _at(found.get(BUDGET, {}), "cpu", 1), _cell(found.get(STRICT, {})),
        ])  # fmt: skip
    columns = ["task", "dense", "asked", "`--sparsity`", "CPU seconds", f"`{BUDGET}`", "CPU seconds", f"`{STRICT}`"]
    parts = ["## Against the bars", table(columns, rows)]
    peers = [f"onnxsim {method}" for method in PEERS]
    known = [*RULES, *dict.fromkeys(r for n in names for r in results[n] if r.startswith("magnitude, ")), *peers]
    order = [rule for rule in dict.fromkeys(known) if not rule.endswith("@")]
    parts += ["## Rules at equal sparsity", table(
        ["rule", *(f"`{n}` {FLOORS[n][0]:.0%}" for n in names)],
        [[rule, *(_score(results[n].get(rule, {})) for n in names)] for rule in order],
    )]  # fmt: skip
    rows = []
    for name in names:
        for rule in CURVES:
            seen = [*results[name].get(f"{rule} @", []), results[name].get(rule, {})]
            seen = sorted((p for p in seen if p), key=lambda p: p["sparsity"])
            if seen:
                rows.append([f"`{name}`", rule, ", ".join(_cell(p) for p in seen)])
    parts += ["## Curves", table(["task", "rule", "score @ sparsity"], rows)]
    sides = [(n, row) for n in names if any(p in results[n] for p in peers) for row in (COMMAND, *WAYS, *peers)]
    if sides:
        parts += ["## The direct peer", table(
            ["task", "by", "score @ sparsity", "CPU seconds", "peak MiB"],
            [[f"`{n}`", row, _cell(results[n].get(row, {})), *(
                _at(results[n].get(row, {}), what, each) for what, each in (("cpu", 1), ("peak", 2**20))
            )] for n, row in sides],
        )]  # fmt: skip
        parts.append(
            "At the same sparsity of all weights, as near as the peer comes: it does not know all layers and counts by "
            "row or by block, so it is asked for more or less until the result has it. With its own settings."
        )
        failed = [
            f"- `{n}`, {row}: {results[n][row]['failed']}" for n, row in sides if "failed" in results[n].get(row, {})
        ]
        parts += ["\n".join(failed)] if failed else []
    parts.append(
        f"Measured on {machine('onnxruntime', 'numpy')} CPU time is of the whole process, its start and its imports "
        f"included, on one processor with one thread; memory is the largest of any of its processes."
    )
    return "\n\n".join(parts)


def _at(row: dict[str, Any], what: str, each: int) -> str:
    if what not in row:
        return "-"
    value = row[what] / each
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _score(row: dict[str, Any]) -> str:
    return f"{row['score']:.3f}" if "score" in row else "-"


def _cell(row: dict[str, Any]) -> str:
    return f"{row['score']:.3f} @ {row['sparsity']:.1%}" if "score" in row else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--results", default="accuracy.json")
    parser.add_argument("--peer")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}; none with --peer alone")
    parser.add_argument("--quick", action="store_true", help="the same as --only quick")
    parser.add_argument("--write")
    options = parser.parse_args()
    file = Path(options.results)
    tasks = load_tasks() if options.tasks else {}
    parts = ["quick"] if options.quick else [part for part in options.only.split(",") if part in PARTS]
    for name in options.tasks:
        found: dict[str, Any] = {}
        for rule, row in run(name, tasks[name], parts, options.peer):
            if rule.endswith("@"):
                found.setdefault(rule, []).append(row)
            else:
                found[rule] = row
            print(name, rule, row, flush=True)
            results = json.loads(file.read_text()) if file.exists() else {}  # others may have written meanwhile
            results[name] = results.get(name, {}) | found
            file.write_text(json.dumps(results, indent=1))
    results = json.loads(file.read_text()) if file.exists() else {}
    if options.write:
        page = Path(options.write)
        write(page, "accuracy", text(results))
        page.with_suffix(".svg").write_text(picture(results, FLOORS, CURVES, BUDGET), encoding="utf-8")
    else:
        print(text(results))


if __name__ == "__main__":
    sys.exit(main())
