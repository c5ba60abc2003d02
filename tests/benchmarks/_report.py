"""What every benchmark shares: interleaved timing, the machine in words, tables written between markers."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def interleaved(candidates: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The least seconds of each candidate; all run in turn, round by round, so that a slow spell hits all alike."""
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            result = run()
            best[name] = min(best[name], time.perf_counter() - start)
            del result
    return best


def machine(*distributions: str) -> str:
    """Processor, cores, versions: one line for the foot of a table."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text())
        flags = " with AVX-512" if "avx512f" in info.read_text() else ""
        processor = (found.group(1).strip() if found else processor) + flags
    versions = []
    for name in distributions:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    return f"{processor}, {os.cpu_count()} processors, Python {platform.python_version()}, {', '.join(versions)}."


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def write(file: Path, marker: str, text: str) -> None:
    """Replace what stands between ``<!-- marker: begin -->`` and ``<!-- marker: end -->``."""
    before = file.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {marker}: begin -->\n)(?:.*?\n)??(<!-- {marker}: end -->)", re.S)
    if not pattern.search(before):
        raise SystemExit(f"{file} must hold the markers of {marker}")
    file.write_text(pattern.sub(lambda m: m.group(1) + text + "\n" + m.group(2), before), encoding="utf-8")
