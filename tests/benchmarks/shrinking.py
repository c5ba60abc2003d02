"""Structured pruning on real models: latency against score, and what becomes of other people's files.

    python -m tests.benchmarks.shrinking [--write docs/shrinking.md] [--tasks a,b] [--shares 0.9,0.8] [--corpus]

Tasks come from `../shared/eval/tasks.py`, which is no part of this repository: scores on labelled data that was not
used to calibrate. Latency is that of one run in onnxruntime, one thread, the dense and the shrunk model in turn, the
least of many.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import emp_onnx
from emp_onnx.shrink import shrink
from emp_onnx.shrink.axes.trace import made_up
from emp_onnx.shrink.exact import exact
from emp_onnx.shrink.latency import latencies, together
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.proof import prove
from tests.benchmarks._report import machine, table, write

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
# times as fast, and points of the score that may be lost
FLOORS = {
    "cifar10_base": (1.5, 1.5), "cifar10_resnet": (1.5, 1.5), "mnist_mlp": (3.0, 1.0), "cifar10_vit": (1.4, 1.5),
    "squeezenet": (1.35, 2.0), "mobilenetv2": (1.25, 2.0), "g2p": (1.3, 1.5), "tashkeel": (1.3, 1.5),
}  # fmt: skip
FEEDS = {"squeezenet": 100, "tashkeel": 8}  # the larger models, to be done in minutes; 200 otherwise


def tasks() -> dict[str, Any]:
    """The tasks, none where they are not there."""
    path = SHARED / "eval" / "tasks.py"
    if not path.exists():
        return {}
    spec = importlib.util.spec_from_file_location("emp_shared_tasks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return dict(module.TASKS)


def curve(name: str, task: Any, count: int, folder: Path, shares: tuple[float, ...] = ()) -> list[list[str]]:
    """One row per target: speed at batch 1 and 16, score, parameters."""
    feeds = list(task.feeds(count))[:count]
    dense = task.score(task.model)
    speed, points = FLOORS[name]
    rows = []
    for share in dict.fromkeys((*shares, round(1 / speed, 3))):
        start = time.perf_counter()
        try:
            report = shrink(task.model, folder / "out.onnx", feeds=feeds, refit=True, target_latency=share, threads=2)
        except emp_onnx.OnnxError as error:
            rows.append([name, f"{share:.2f}×", "-", "-", f"{dense:.4f}", "-", "-", str(error).split(", got")[0]])
            continue
        before, after = latencies([onnx.load(task.model), onnx.load(report.out)], feeds[:2], seconds=2.0)
        score = task.score(report.out)
        meets = before / after >= speed and score >= dense - points / 100
        large = _batched(task.model, report.out, feeds)
        rows.append([
            name, f"{share:.2f}×", f"{before / after:.2f}", large, f"{dense:.4f}", f"{score:.4f}",
            f"{report.parameters[1] / report.parameters[0]:.0%}", "reached" if meets else "",
        ])  # fmt: skip
        print(*rows[-1], f"{time.perf_counter() - start:.0f} s", flush=True)
    return rows


def _batched(one: Path, other: Path, feeds: list[dict[str, np.ndarray]]) -> str:
    """How many times as fast at batch 16, where the model leaves the batch open."""
    model = onnx.load(one)
    feed = together(model, feeds[0], 16)
    if feed is None:
        return "fixed"
    before, after = latencies([model, onnx.load(other)], [feed], seconds=2.0)
    return f"{before / after:.2f}"


def fate(path: Path) -> tuple[str, str]:
    """What becomes of a file when half of every group goes."""
    try:
        model = onnx.load(path)
        feeds = made_up(model, seed=0)
    except Exception as error:  # whatever onnx or onnxruntime says of other people's files
        return "does not run on made-up feeds", type(error).__name__
    try:
        problem = Problem.of(model, feeds, biases=True)
    except emp_onnx.OnnxError as error:
        return "refused", str(error)
    masks: dict[Any, Any] = {}
    problem.curves = [problem.by_norm(group) for group in problem.groups]
    counts = [0] * len(problem.groups)
    for i, group in enumerate(problem.groups):
        counts[i] = group.units // 2
        if problem.masks(counts) is None:
            counts[i] = 0
    masks = dict(problem.masks(counts) or {})
    if not masks:
        reasons = Counter(reason.split(" (axis")[0] for reason in problem.reasons.values())
        return "unchanged", reasons.most_common(1)[0][0] if reasons else "no weights of more than one channel"
    reference, shrunk = exact(problem, masks)
    proof = prove(reference, shrunk, problem.trace.feeds)
    return ("shrunk and proven", "") if proof.holds else ("NOT PROVEN, nothing written", proof.problem)


def corpus() -> str:
    """The counts over all files."""
    rows, reasons = [], Counter[str]()
    kinds = (
        "shrunk and proven",
        "unchanged",
        "refused",
        "does not run on made-up feeds",
        "NOT PROVEN, nothing written",
        "FAULT",
    )
    for name in ("models", "corpus"):
        files = sorted((SHARED / name).glob("*.onnx"))
        counts: Counter[str] = Counter()
        for path in files:
            try:
                kind, why = fate(path)
            except Exception as error:
                kind, why = "FAULT", f"{type(error).__name__}: {error}"
            counts[kind] += 1
            if kind in ("unchanged", "refused"):
                reasons[_general(why)] += 1
            if kind in kinds[4:]:
                print(path.name, kind, why, flush=True)
        rows.append([name, str(len(files)), *(str(counts[kind]) for kind in kinds)])
    first = table(["files from", "files", *kinds], rows)
    second = table(["most frequent reason", "files"], [[reason, str(n)] for reason, n in reasons.most_common(16)])
    return f"{first}\n\n{second}"


def _general(reason: str) -> str:
    import re

    return re.sub(r" '[^']*'", "", reason).replace("|", "/").split(", got")[0][:100]


def kept(file: Path | None, marker: str, measured: list[str]) -> list[list[str]]:
    """Rows that stand in a document already, of tasks that are not measured now."""
    if file is None or not file.exists():
        return []
    block = file.read_text(encoding="utf-8").partition(f"<!-- {marker}: begin -->")[2].partition("<!--")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines() if line[:2] == "| "]
    return [row for row in rows[1:] if row[0] not in measured]


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.shrinking", description=__doc__.split("\n")[0])
    parser.add_argument("--write", metavar="FILE", type=Path)
    parser.add_argument("--tasks", metavar="NAMES", help="only these, with commas")
    parser.add_argument("--feeds", type=int, help="how many (default: 200, fewer for the larger models)")
    parser.add_argument("--shares", metavar="NUMBERS", default="", help="targets on latency beside that of the aim")
    parser.add_argument("--corpus", action="store_true", help="the counts over other people's files, and no tasks")
    options = parser.parse_args(argv)
    if not SHARED.exists():
        print(f"shrinking: {SHARED} is not there", file=sys.stderr)
        return 2
    shares = tuple(float(share) for share in options.shares.split(",") if share)
    foot = machine("onnx", "onnxruntime", "numpy")
    if options.corpus:
        text, marker = f"{corpus()}\n\n{foot}", "corpus"
    else:
        heads = [
            "task",
            "target latency",
            "times as fast, batch 1",
            "batch 16",
            "dense score",
            "score",
            "parameters",
            "floor",
        ]
        rows, known, marker = [], tasks(), "tasks"
        with tempfile.TemporaryDirectory() as folder:
            asked = options.tasks.split(",") if options.tasks else list(FLOORS)
            others = kept(options.write, marker, asked)
            for name in asked:
                rows += curve(name, known[name], options.feeds or FEEDS.get(name, 200), Path(folder), shares)
                every = sorted([*others, *rows], key=lambda row: list(FLOORS).index(row[0]))
                text = f"{table(heads, every)}\n\n{foot}"
                if options.write:  # what was measured stays, should a later task be interrupted
                    write(options.write, marker, text)
    print(text)
    if options.write:
        write(options.write, marker, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
