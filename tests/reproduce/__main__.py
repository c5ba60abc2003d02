"""Run one of the reproductions, print its table, and write it where asked.

    python -m tests.reproduce fc [--write docs/reproductions.md] [--data FOLDER] [--threads 1] [--quick] [--kept FOLDER]
    python -m tests.reproduce vgg --device cuda [--write docs/reproductions.md] [--data FOLDER]

Names: fc, kan, pixels, gpt, gradual, sizes, vgg, rules, vit, gcn. Seeds are fixed. ``--quick`` takes a small part of
the data and a few steps: it shows that the script runs, and its figures mean nothing. ``--kept`` names a folder for
networks that more than one script trains; the CPU seconds of a run that found its network there are without it.
``--device cuda`` is for vgg and gpt: full-sized networks, and a table of their own.
"""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

from tests.benchmarks._report import machine, write

from ._data import Options

ON_DEVICES = ("vgg", "gpt")
NAMES = ("fc", "kan", "pixels", "gpt", "gradual", "sizes", "vgg", "rules", "vit", "gcn")


def main() -> None:
    """Parse, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--write", type=Path, help="page whose markers take the table")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kept", type=Path, help="folder for networks that more than one script trains")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    if args.device != "cpu" and args.name not in ON_DEVICES:
        parser.error(f"--device must be cpu for {args.name}, got {args.device}")
    import torch

    torch.set_num_threads(args.threads)
    start, clock = time.process_time(), time.perf_counter()
    options = Options(args.data, args.quick, args.write, args.kept, args.device)
    found = importlib.import_module(f"tests.reproduce.{args.name}").run(options)
    spent = f"{time.process_time() - start:.0f} CPU seconds"
    if args.device != "cpu":
        spent = f"{time.perf_counter() - clock:.0f} seconds on {options.place()}"
    text = f"{found}\n\n{spent}. {machine('numpy', 'torch')}"
    print(text)
    if args.write and not args.quick:
        write(args.write, f"reproduce {args.name}" + ("" if args.device == "cpu" else f" {args.device}"), text)


if __name__ == "__main__":
    main()
