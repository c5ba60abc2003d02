"""emp_safetensors on a checkpoint of 2 GB: memory and speed, each run in a process of its own.

    python -m tests.benchmarks.checkpoints [--gb 2] [--folder /tmp] [--write docs/adapters/safetensors.md]

Speed is input bytes by CPU seconds of the whole process, import included: what one core does. Counting, writing, and
reading back to check are all in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from ._report import machine, table, write

WORK = """
import json, resource, sys
import emp_safetensors
report = emp_safetensors.prune(sys.argv[1], sys.argv[2], scope=sys.argv[3], threads=1)
used = resource.getrusage(resource.RUSAGE_SELF)
most = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(json.dumps([used.ru_utime + used.ru_stime, most * 1024, report.plan.total.k]))
"""


def make(path: Path, size: int, dtype: str) -> None:
    """A file of normal weights: layers of 64 MiB, written one by one."""
    width = {"F32": 4, "BF16": 2}[dtype]
    layers, side = max(1, size >> 26), 4096
    shape = [(1 << 26) // width // side, side]
    body = {
        f"layers.{i}.weight": {"dtype": dtype, "shape": shape, "data_offsets": [i << 26, (i + 1) << 26]}
        for i in range(layers)
    }
    text = json.dumps(body).encode()
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for i in range(layers):
            values = np.random.default_rng(i).standard_normal((1 << 26) // width, dtype=np.float32)
            stream.write(values.data if dtype == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16).data)


def measure(gb: float, folder: str | None) -> str:
    """The table."""
    rows = []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for dtype in ("F32", "BF16"):
            source, out = Path(place, "in.safetensors"), Path(place, "out.safetensors")
            make(source, int(gb * 2**30), dtype)
            size = source.stat().st_size
            for scope in ("tensor", "row", "model"):
                done = subprocess.run(
                    [sys.executable, "-c", WORK, str(source), str(out), scope],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                cpu, memory, k = json.loads(done.stdout)
                rows.append(
                    [
                        f"{dtype}, scope {scope}",
                        f"{size / 1e9:.2f} GB",
                        f"{k:,}",
                        f"{cpu:.1f} s",
                        f"{size / 1e6 / cpu:.0f} MB/s",
                        "≥ 300",
                        f"{memory / 1e6:.0f} MB",
                        "≤ 150",
                    ]
                )
    header = ["", "file", "kept", "CPU", "per core", "must be", "resident, most", "must be"]
    return table(header, rows) + "\n\n" + machine("numpy")


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--folder")
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    text = measure(args.gb, args.folder)
    print(text)
    if args.write:
        write(args.write, "checkpoints", text)


if __name__ == "__main__":
    main()
