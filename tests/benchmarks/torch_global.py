"""``effective_global`` against ``torch.nn.utils.prune.global_unstructured``: time and memory on 100 M weights.

    python -m tests.benchmarks.torch_global [--millions 100] [--rounds 2] [--write docs/adapters/torch.md]

Each run is a process of its own, so that the most memory it held is its own. Both prune the same model to the same
sparsity, the one that EMP reads from the weights, and must arrive at the same mask.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from ._report import machine, table, write

WORK = """
import hashlib, json, resource, sys, time
import torch
from torch import nn
from torch.nn.utils import prune
torch.set_num_threads(int(sys.argv[3]))
torch.manual_seed(0)
count, side = int(sys.argv[2]), 2048
model = nn.Sequential(*[nn.Linear(side, side, bias=False) for _ in range(max(1, count * 10**6 // side**2))])
for layer in model:
    nn.init.normal_(layer.weight)
pairs = [(layer, "weight") for layer in model]
import emp_core, emp_torch
k = emp_core.keep_count(torch.ones(3))
def most():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")) / 1024
def now():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS:")) / 1024
open("/proc/self/clear_refs", "w").write("5")
before, start, cpu = now(), time.perf_counter(), time.process_time()
if sys.argv[1] == "ours":
    emp_torch.effective_global(pairs, threads=int(sys.argv[3]))
else:
    amount = int(sys.argv[4])
    prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=amount)
seconds, used, extra, held = time.perf_counter() - start, time.process_time() - cpu, most() - before, now() - before
digest = hashlib.sha256()
left = 0
for layer in model:
    mask = layer.weight_mask.bool()
    left += int(mask.sum())
    digest.update(mask.numpy().tobytes())
n = sum(layer.weight_orig.numel() for layer in model)
print(json.dumps([seconds, used, extra, held, n, left, digest.hexdigest()]))
"""


def once(which: str, millions: int, threads: int, amount: int = 0) -> list:  # type: ignore[type-arg]
    """One run."""
    done = subprocess.run(
        [sys.executable, "-c", WORK, which, str(millions), str(threads), str(amount)], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: list = json.loads(done.stdout)  # type: ignore[type-arg]
    return found


def measure(millions: int, rounds: int, threads: int) -> str:
    """The table."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(once("ours", millions, threads))
        n, left = ours[-1][4:6]
        theirs.append(once("torch", millions, threads, n - left))
    same = len({run[6] for run in ours + theirs}) == 1
    best = [[min(run[i] for run in runs) for i in range(4)] for runs in (ours, theirs)]
    names = ("seconds", "CPU seconds", "most extra memory", "extra memory held after")
    floors = ("≥ 8 ×", "", "≥ 4 ×", "")
    rows = []
    for i, name in enumerate(names):
        cells = [f"{best[j][i]:.2f} s" if i < 2 else f"{best[j][i]:,.0f} MB" for j in (0, 1)]
        rows.append([name, *cells, f"{best[1][i] / best[0][i]:.1f} ×", floors[i]])
    header = ["", "effective_global", "prune.global_unstructured", "ratio", "must be"]
    return (
        table(header, rows)
        + f"\n\n{n:,} float32 weights in layers of 2048 × 2048, {left:,} kept, {threads} threads, "
        + f"least of {rounds} runs each. "
        + f"Masks are {'equal' if same else 'NOT EQUAL'}.\n\n"
        + machine("torch", "numpy")
    )


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    text = measure(args.millions, args.rounds, args.threads)
    print(text)
    if args.write:
        write(args.write, "torch", text)


if __name__ == "__main__":
    main()
