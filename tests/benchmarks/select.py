"""``select`` on one large pool against what one would write otherwise, and its cost as the pool grows.

    python -m tests.benchmarks.select [--n 50000000] [--threads 2] [--most 1000000000] [--write docs/benchmarks.md]

Roofline: the scores must be read once (4 bytes each) and the mask written once (1 byte); copying the array reads and
writes 4 bytes each. So the least possible is about 0.6 of a copy. What is above it is arithmetic: magnitude, widening
to float64, three products, three comparisons per score.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import emp_core

from ._report import interleaved, machine, table, write


def by_partition(scores: Any) -> Any:
    """Magnitudes, float64 sums, floor, threshold, mask: five lines of NumPy (a rounded count, and all ties kept)."""
    s = np.abs(scores)
    total, squares = s.sum(dtype=np.float64), np.einsum("i,i->", s, s, dtype=np.float64)
    k = int(total * total / squares)
    return s >= np.partition(s, s.size - k)[s.size - k]


def by_partition_in_full(scores: Any) -> Any:
    """The same, with all that a selection says: exactly k kept, retained mass (the count is still the rounded one)."""
    s = np.abs(scores)
    total, squares = s.sum(dtype=np.float64), np.einsum("i,i->", s, s, dtype=np.float64)
    k = int(total * total / squares)
    threshold = np.partition(s, s.size - k)[s.size - k]
    mask = s >= threshold
    surplus = int(np.count_nonzero(mask)) - k
    if surplus:
        mask[np.flatnonzero(s == threshold)[-surplus:]] = False
    return mask, s.sum(where=mask, dtype=np.float64) / total


def by_argsort(scores: Any) -> Any:
    """The same by a full sort, as scikit-learn style code does it."""
    s = np.abs(scores)
    total, squares = s.sum(dtype=np.float64), np.einsum("i,i->", s, s, dtype=np.float64)
    mask = np.zeros(s.size, bool)
    mask[np.argsort(s)[s.size - int(total * total / squares) :]] = True
    return mask


def by_topk(threads: int) -> Callable[[Any], Any] | None:
    """The same through ``torch.topk``, on a tensor that shares the memory; None where PyTorch is absent."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)

    def run(scores: Any) -> Any:
        s = torch.from_numpy(scores).abs()
        k = int(s.sum(dtype=torch.float64) ** 2 / s.double().square().sum())
        mask = torch.zeros(s.numel(), dtype=torch.bool)
        mask[torch.topk(s, k, sorted=False).indices] = True
        return mask

    return run


def compare(n: int, threads: int, rounds: int) -> str:
    """The table against the others."""
    scores = np.random.default_rng(0).standard_normal(n, dtype=np.float32)
    ours: dict[str, Callable[[], Any]] = {
        "emp_core.select": lambda: emp_core.select(scores, threads=threads),
        "emp_core.select, one thread": lambda: emp_core.select(scores, threads=1),
        "copy": scores.copy,
        "np.partition": lambda: by_partition(scores),
        "np.partition, with retained mass": lambda: by_partition_in_full(scores),
    }
    seconds = interleaved(ours, rounds)
    slow: dict[str, Callable[[], Any]] = {"np.argsort": lambda: by_argsort(scores)}
    topk = by_topk(threads)
    if topk is not None:
        slow["torch.topk"] = lambda: topk(scores)
    seconds |= interleaved(slow, 2)
    base = seconds["emp_core.select"]
    chosen = emp_core.select(scores, threads=threads)
    by_hand = by_partition(scores)
    rows = []
    for name in ("emp_core.select", "emp_core.select, one thread", "copy", *list(ours)[3:], "np.argsort", "torch.topk"):
        if name not in seconds:
            rows.append([name, "not installed", "", ""])
            continue
        floor = {"copy": "≥ 0.125", "np.partition": "≥ 3", "np.argsort": "≥ 15", "torch.topk": "> 1"}.get(name, "")
        rows.append([name, f"{seconds[name] * 1e3:.0f} ms", f"{seconds[name] / base:.2f}", floor])
    extra = memory(scores, threads)
    same = "equal" if np.array_equal(chosen.mask, by_hand) else "not equal (the rounded count, or ties)"
    return (
        table(["", "time", "ratio to select", "must be"], rows)
        + f"\n\n{n:,} float32 scores from a normal distribution, {threads} threads. `select` takes "
        + f"{base / seconds['copy']:.1f}× the time of `scores.copy()`; memory beyond the mask: "
        + f"{extra / scores.nbytes:.1%} of the scores (at most 25 %). Masks of `select` and `np.partition`: {same}.\n\n"
        + machine("numpy", "torch")
    )


def memory(scores: Any, threads: int) -> int:
    """Peak bytes that one call allocates beyond its mask."""
    gc.collect()
    tracemalloc.start()
    emp_core.select(scores, threads=threads)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak - scores.size


def growth(most: int, threads: int) -> str:
    """Nanoseconds per score from 10³ to ``most``; what does not fit is counted in pieces through ``Moments``."""
    rows = []
    n = 1000
    while n <= most:
        if n <= 10**8:
            scores = np.random.default_rng(0).standard_normal(n, dtype=np.float32)
            repeats = max(1, 10**6 // n)
            seconds = min(_timed(lambda s=scores: emp_core.select(s, threads=threads), repeats) for _ in range(5))
            what = "select"
            k = emp_core.keep_count(scores)
        else:
            what, seconds, merged = "Moments, in pieces of 10⁷", 0.0, emp_core.Moments()
            for piece in range(n // 10**7):
                scores = np.random.default_rng(piece).standard_normal(10**7, dtype=np.float32)
                start = time.perf_counter()
                merged |= emp_core.Moments.of(scores, threads=threads)
                seconds += time.perf_counter() - start
            k = merged.keep_count()
        rows.append([f"{n:,}", what, f"{seconds / n * 1e9:.2f} ns", f"{seconds * 1e3:.3g} ms", f"{k:,}"])
        n *= 10
    return table(["n", "by", "per score", "in all", "k"], rows) + "\n\n" + machine("numpy")


def _timed(run: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=50_000_000)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--most", type=int, default=10**9, help="largest pool of the growth table; 0: leave it out")
    parser.add_argument("--write", type=Path, help="page whose markers take the tables")
    args = parser.parse_args()
    for marker, text in (
        ("select", compare(args.n, args.threads, args.rounds)),
        ("growth", growth(args.most, args.threads) if args.most else ""),
    ):
        if text:
            print(text, end="\n\n")
            if args.write:
                write(args.write, marker, text)


if __name__ == "__main__":
    main()
