"""What pruning attention weights costs: one layer's attention, plain and with the edges that the rule keeps.

python -m tests.benchmarks.attention [--write docs/tutorials/components.md]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from emp_core.attention import edges, prune_weights

from ._report import interleaved, machine, table, write


def measure() -> str:
    """The table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for tokens in (64, 256, 1024):
        q, k, v = (torch.randn(1, 8, tokens, 64) for _ in range(3))
        weights = (2 * q @ k.transpose(-2, -1) / 8).softmax(-1)
        times = interleaved(
            {
                "plain": lambda q=q, k=k, v=v: (2 * q @ k.transpose(-2, -1) / 8).softmax(-1) @ v,
                "pruned": lambda q=q, k=k, v=v: prune_weights((2 * q @ k.transpose(-2, -1) / 8).softmax(-1)) @ v,
            },
            3,
        )
        chosen = edges(weights)
        before, after = weights @ v, prune_weights(weights) @ v
        rows.append(
            [
                f"8 heads, {tokens} tokens",
                f"{1 - float(chosen.k.sum()) / weights.numel():.1%}",
                f"{float((after - before).norm() / before.norm()):.1%}",
                f"{times['plain'] * 1e3:.1f} ms",
                f"{times['pruned'] * 1e3:.1f} ms",
                f"{times['pruned'] / times['plain']:.0f} ×",
            ]
        )
    header = ["", "edges removed", "output moved by", "plain", "pruned", "ratio"]
    return table(header, rows) + "\n\nRandom queries and keys, one thread. " + machine("torch", "numpy")


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    text = measure()
    print(text)
    if args.write:
        write(args.write, "attention", text)


if __name__ == "__main__":
    main()
