"""What was fused, run and measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from emp_onnx.errors import escape, quote
from emp_onnx.texts.style import Style, finish, many, table

if TYPE_CHECKING:
    from emp_onnx.fused.bench import Measured
    from emp_onnx.fused.fuse import Fused

__all__ = ["Output", "bench_text", "fused_text", "run_text"]


def fused_text(fused: Sequence[Fused], out: str | os.PathLike[str], style: Style | None = None) -> str:
    """What `fuse` did with each use of a packed weight."""
    style = style or Style()
    lines = [[escape(item.weight), item.op or "-", escape(item.reason) or "-"] for item in fused]
    parts = [table(["packed weight", "part of", "left because"], lines, None, 3, style)] if lines else []
    count = sum(bool(item.op) for item in fused)
    parts.append(f"{count} of {many(len(lines), 'use')} of packed weights can run with kernels.")
    parts.append(f"Wrote {quote(out)}.")
    return finish(parts, style)


def bench_text(measured: Sequence[Measured], style: Style | None = None) -> str:
    """Latency of each model beside the first one, then what each costs to load and to hold."""
    style = style or Style()
    lines = [
        [
            escape(item.model), item.path, "as given" if timing.batch is None else str(timing.batch),
            str(timing.threads), f"{timing.median:.3f}", f"{timing.low:.3f}–{timing.high:.3f}", f"{timing.runs:,}",
            f"{timing.speed:.2f}×",
        ]
        for item in measured
        for timing in item.timings
    ]  # fmt: skip
    headers = ["model", "path", "batch", "threads", "median ms", "quartiles", "runs", "speed"]
    parts = [table(headers, lines, None, 2, style)]
    lines = [
        [
            escape(item.model), item.path, f"{item.file / 1e6:.1f}", f"{item.load:.0f}",
            f"{item.resident / 1e6:.1f}" if item.resident else "?",
        ]
        for item in measured
    ]  # fmt: skip
    parts.append(table(["model", "path", "file MB", "load ms", "resident MB"], lines, None, 2, style))
    parts.append("Speed: the first row's median of the same batch and threads divided by this one's.")
    return finish(parts, style)


@dataclass(frozen=True)
class Output:
    """What is shown of an output; its least, mean and largest number where they were asked for and there are any."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    figures: tuple[float, ...] = ()

    @classmethod
    def of(cls, name: str, value: Any, *, figures: bool) -> Output:
        """Of a value that onnxruntime gave: an array, or else a sequence or a map."""
        if not isinstance(value, np.ndarray):
            return cls(name, type(value).__name__, (len(value),) if isinstance(value, (list, dict)) else ())
        numbers = figures and value.size and value.dtype.kind in "fiub"
        found = tuple(float(f(value)) for f in (np.min, np.mean, np.max)) if numbers else ()
        return cls(name, value.dtype.name, value.shape, found)


def run_text(note: str, outputs: Sequence[Output], seconds: float, style: Style | None = None) -> str:
    """Which path was taken, and what came out."""
    style = style or Style()
    lines = [
        [
            escape(item.name), item.dtype, "×".join(map(str, item.shape)) or "scalar",
            *([f"{figure:.6g}" for figure in item.figures] or ["-"] * 3),
        ]
        for item in outputs
    ]  # fmt: skip
    parts = [f"Path: {escape(note)}."]
    parts.append(table(["output", "dtype", "shape", "least", "mean", "largest"], lines, None, 3, style))
    parts.append(f"Ran in {seconds * 1e3:.3f} ms.")
    return finish(parts, style)
