"""Calibration and refit of a large transformer through the command: wall time, CPU time, and memory of all processes.

    python -m tests.benchmarks.transformer [--layers 12] [--width 768] [--vocabulary 20000] [--sequences 128]
        [--folder DIR] [--write docs/benchmarks.md]

The network is made here, with random weights, and exported by torch: tokens go through an embedding, blocks of causal
attention and a feed-forward part of four times the width, and a head of its own. Without options it has a hundred
million weights in its linear layers. `emp prune IN OUT --feeds DIR --refit --sparsity 0.5` is run once; its memory is
the largest sum of resident sizes of the command's processes, looked at twenty times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from ._report import machine, table, write

ROOT = Path(__file__).resolve().parents[2]
LENGTH, HEAD = 128, 64  # tokens of a sequence, width of an attention head


def make(folder: Path, layers: int, width: int, vocabulary: int, sequences: int) -> tuple[Path, Path]:
    """The exported model, and a folder with one `.npz` per sequence."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F  # noqa: N812

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)
            self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def heads(self, x: Tensor) -> Tensor:
            return x.reshape(x.shape[0], LENGTH, width // HEAD, HEAD).transpose(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.one(x)
            q, k, v = self.heads(self.query(h)), self.heads(self.key(h)), self.heads(self.value(h))
            scores = q @ k.transpose(2, 3) / HEAD**0.5 + torch.full((LENGTH, LENGTH), -1e4).triu(1)
            mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
            x = x + self.out(mixed)
            return x + self.down(F.gelu(self.up(self.two(x))))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(LENGTH, width)
            self.blocks = nn.Sequential(*(Block() for _ in range(layers)))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.norm(self.blocks(self.tokens(tokens) + self.places.weight)))

    torch.manual_seed(0)
    net = Net().eval()
    for item in (net.tokens, net.places):
        nn.init.normal_(item.weight)
    ids = torch.randint(vocabulary, (1, LENGTH))
    path = folder / "transformer.onnx"
    torch.onnx.export(
        net, (ids,), str(path), input_names=["tokens"], output_names=["logits"], dynamo=True, external_data=True,
        verbose=False,
    )  # fmt: skip
    feeds = folder / "feeds"
    feeds.mkdir()
    rng = np.random.default_rng(0)
    odds = 1 / np.arange(1, vocabulary + 1)  # as words are: few of them often
    for i in range(sequences):
        tokens = rng.choice(vocabulary, (1, LENGTH), p=odds / odds.sum())
        np.savez(feeds / f"{i:04}.npz", tokens=tokens.astype(np.int64))
    return path, feeds


def resident(root: int) -> int:
    """Bytes resident of a process and all below it."""
    parents: dict[int, list[int]] = {}
    for item in Path("/proc").iterdir():
        if item.name.isdigit():
            try:
                stat = (item / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(item.name))
    total, todo = 0, [root]
    while todo:
        one = todo.pop()
        todo += parents.get(one, [])
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    return total


def run(command: list[str]) -> tuple[float, float, int, str]:
    """Wall and CPU seconds of a command, its peak of resident memory, and what it says.

    Time in which all of this was stopped from outside, so that something else could be measured, is not counted.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall, peak = 0.0, 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "adapters")))}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        done = threading.Event()

        def watch() -> None:
            nonlocal peak, wall
            last = time.perf_counter()
            while not done.wait(0.05):
                peak = max(peak, resident(process.pid))
                now = time.perf_counter()
                wall, last = wall + min(now - last, 1.0), now

        thread = threading.Thread(target=watch)
        thread.start()
        said, _ = process.communicate()
        done.set()
        thread.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if process.returncode:
        raise SystemExit(f"emp ended with {process.returncode}: {said}")
    return wall, cpu, peak, said


def main() -> None:
    """Make, measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("layers", 12), ("width", 768), ("vocabulary", 20_000), ("sequences", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--folder", type=Path, help="where the model is made, and kept")
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        path, feeds = folder / "transformer.onnx", folder / "feeds"
        if not feeds.exists():
            path, feeds = make(folder, args.layers, args.width, args.vocabulary, args.sequences)
        command = [sys.executable, "-m", "emp_onnx.cli", "prune", str(path), str(folder / "thin.onnx")]
        command += ["--feeds", str(feeds), "--refit", "--sparsity", "0.5", "--json", "--verbose"]
        wall, cpu, peak, said = run(command)
    report = json.loads(said)
    weights = sum(item["n"] for item in report["weights"].values())
    kept = sum(item["k"] for item in report["weights"].values())
    row = [
        f"{args.layers} blocks of {args.width}, head of {args.vocabulary}", f"{weights / 1e6:.1f} M",
        f"{args.sequences} × {LENGTH}", f"{1 - kept / weights:.1%}", f"{wall / 60:.1f} min", f"{cpu / 120:.1f} min",
        f"{peak / 2**30:.2f} GiB", f"{report['measured']['error']:.3f}",
    ]  # fmt: skip
    header = ["network", "weights", "sequences", "sparsity", "wall", "CPU time / 2", "memory", "relative error"]
    text = table(header, [row]) + "\n\n" + machine("numpy", "scipy", "onnxruntime", "torch")
    print(text)
    if args.write:
        write(args.write, "transformer", text)


if __name__ == "__main__":
    main()
