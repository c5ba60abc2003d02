"""Plans, reports and verifications as text for people; tables need rich, nothing here prints."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from emp_onnx.errors import MissingExtraError, escape, quote
from emp_onnx.figures import Figures
from emp_onnx.packing.pack import Packing
from emp_onnx.plan import Plan
from emp_onnx.prune import Report, Sizes
from emp_onnx.runtime.compare import Behaviour
from emp_onnx.verification.outcome import Verification
from emp_onnx.weights.find import Refusal

if TYPE_CHECKING:
    from emp_onnx.runtime.bench import Measured
    from emp_onnx.runtime.engine import Engine
    from emp_onnx.runtime.fuse import Fused

__all__ = [
    "Style",
    "bench_text",
    "fused_text",
    "packing_text",
    "plan_text",
    "report_text",
    "run_text",
    "uses_text",
    "verification_text",
]

NO_FASTER = (
    "Zeros alone do not make onnxruntime faster: it computes with them as with any number. "
    "What they give at once is a smaller download (see gzipped)."
)
FIGURES = {
    "tensor": "lower ≤ retained ≤ upper: the bounds follow from n, N_eff and k alone and hold for any weights. "
    "The total weighs them by each weight's share of Σ|w|.",
    "row": "N_eff and kept are sums over rows (output units, gate units); lower, retained and upper are the rows' own, "
    "weighted by their share of Σ|w|; worst is the least that any row retains.",
    "model": "One pool for all weights: the total line is that pool. The other lines show each weight taken alone, "
    "with what the pool left it.",
}


@dataclass(frozen=True)
class Style:
    """How to draw: width in characters (None: as wide as the contents), colours, whether only ASCII can be shown."""

    width: int | None = None
    colour: bool = False
    ascii: bool = False

    @classmethod
    def of(cls, stream: IO[str]) -> Style:
        """The style for a stream: full contents without colours unless it is a terminal."""
        import shutil

        try:
            "β·Σ─≤".encode(getattr(stream, "encoding", None) or "utf-8")
            plain = False
        except (UnicodeEncodeError, LookupError):
            plain = True
        if not stream.isatty():
            return cls(None, False, plain)
        return cls(shutil.get_terminal_size().columns, "NO_COLOR" not in os.environ, plain)


def plan_text(plan: Plan, style: Style | None = None) -> str:
    """The plan as a table: per weight n, N_eff, kept, density, bounds, retained mass; totals; what was refused."""
    style, row = style or Style(), plan.rule.scope == "row"
    headers = ["weight", "op", "dtype", "shape", *(["rows"] if row else []), "n", "N_eff", "kept", "density"]
    headers += ["lower", "retained", "upper", *(["worst"] if row else [])]
    lines = []
    for e in plan.entries:
        kind = f"{e.dtype}, zero {e.zero}" if e.zero else e.dtype
        way = " → ".join((*e.path, e.op))
        head = [escape(e.name), escape(way), kind, "×".join(map(str, e.shape)), *([f"{e.pools:,}"] if row else [])]
        lines.append([*head, *_figures(e), *([f"{e.worst:.4f}"] if row else [])])
    parts = []
    if plan.entries:
        worst = [f"{min(e.worst for e in plan.entries):.4f}"] if row else []
        rows = [f"{sum(e.pools for e in plan.entries):,}"] if row else []
        name = "common pool" if plan.pool else "total"
        total = [f"{name}, {_many(len(plan.entries), 'weight')}", "", "", "", *rows, *_figures(plan.total), *worst]
        parts = [_rule_text(plan), _table(headers, lines, total, 4, style), FIGURES[plan.rule.scope]]
        if plan.rule.order != 2:
            parts.append(
                f"kept follows from the Hill number of order {plan.rule.order:g}; N_eff and the bounds are of order 2."
            )
    parts += _refused(plan.refusals, bool(plan.entries))
    return _finish(parts, style)


def uses_text(plan: Plan) -> str:
    """Every weight with all its uses, one to a line."""
    lines = ["Uses:"]
    for entry in plan.entries:
        lines += [f"    {quote(entry.name)}: {escape('; '.join(entry.uses))}"]
    return "\n".join(lines)


def report_text(report: Report, style: Style | None = None) -> str:
    """What `prune` did: the plan's table, the checks, the outputs compared, sizes, and what zeros do not give."""
    style = style or Style()
    parts = [plan_text(report.plan, style), verification_text(report.verification, style)]
    parts += [*_sizes(report.before, report.after), NO_FASTER, *map(escape, report.notes)]
    beside = f", with {', '.join(quote(file.name) for file in report.sidecars)} beside it" if report.sidecars else ""
    total = report.plan.total
    parts.append(
        f"Wrote {quote(report.out)}{beside}: {total.n - total.k:,} of {total.n:,} weights removed "
        f"({total.sparsity:.2%} sparsity), {total.mass:.2%} of their mass retained (guaranteed {total.mass_lower:.2%})."
    )
    return _finish(parts, style)


def packing_text(packing: Packing, style: Style | None = None) -> str:
    """What `pack` or `unpack` did: form and bytes of each tensor and why, the checks, sizes."""
    style = style or Style()
    headers = ["tensor", "dtype", "shape", "form", "why", "density", "bytes before", "after", "share"]
    lines = [
        [
            escape(row.name), row.dtype, "×".join(map(str, row.shape)), row.form, escape(row.why), f"{row.density:.2%}",
            f"{row.before:,}", f"{row.after:,}", f"{row.after / row.before:.1%}" if row.before else "-",
        ]
        for row in packing.rows
    ]  # fmt: skip
    before, after = sum(row.before for row in packing.rows), sum(row.after for row in packing.rows)
    parts = []
    if lines:
        share = f"{after / before:.1%}" if before else "-"
        total = [f"total, {_many(len(lines), 'tensor')}", "", "", "", "", "", f"{before:,}", f"{after:,}", share]
        parts.append(_table(headers, lines, total, 5, style))
    else:
        parts.append("There was nothing to store otherwise.")
    parts.append(verification_text(packing.verification, style))
    parts += [
        f"Bytes on disk: {packing.before:,} before, {packing.after:,} after ({packing.after / packing.before:.1%})."
    ]
    parts += map(escape, packing.notes)
    beside = f", with {', '.join(quote(file.name) for file in packing.sidecars)} beside it" if packing.sidecars else ""
    parts.append(f"Wrote {quote(packing.out)}{beside}.")
    return _finish(parts, style)


def fused_text(fused: Sequence[Fused], out: str | os.PathLike[str], style: Style | None = None) -> str:
    """What `fuse` did with each use of a packed weight."""
    style = style or Style()
    lines = [[escape(item.weight), item.op or "-", escape(item.reason) or "-"] for item in fused]
    parts = [_table(["packed weight", "part of", "left because"], lines, None, 3, style)] if lines else []
    count = sum(bool(item.op) for item in fused)
    parts.append(f"{count} of {_many(len(lines), 'use')} of packed weights can run with kernels.")
    parts.append(f"Wrote {quote(out)}.")
    return _finish(parts, style)


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
    parts = [_table(headers, lines, None, 2, style)]
    lines = [
        [
            escape(item.model), item.path, f"{item.file / 1e6:.1f}", f"{item.load:.0f}",
            f"{item.resident / 1e6:.1f}" if item.resident else "?",
        ]
        for item in measured
    ]  # fmt: skip
    parts.append(_table(["model", "path", "file MB", "load ms", "resident MB"], lines, None, 2, style))
    parts.append("Speed: the first row's median of the same batch and threads divided by this one's.")
    return _finish(parts, style)


def run_text(engine: Engine, outputs: Sequence[tuple[str, Any]], seconds: float, style: Style | None = None) -> str:
    """Which path was taken, and what came out."""
    style = style or Style()
    lines = []
    for name, value in outputs:
        numbers = value.size and value.dtype.kind in "fiub"
        figures = [f"{float(f(value)):.6g}" for f in (np.min, np.mean, np.max)] if numbers else ["-"] * 3
        lines.append([escape(name), value.dtype.name, "×".join(map(str, value.shape)) or "scalar", *figures])
    parts = [f"Path: {escape(engine.note)}."]
    parts.append(_table(["output", "dtype", "shape", "least", "mean", "largest"], lines, None, 3, style))
    parts.append(f"Ran in {seconds * 1e3:.3f} ms.")
    return _finish(parts, style)


def verification_text(verification: Verification, style: Style | None = None) -> str:
    """Every check, and how far outputs moved."""
    style = style or Style()
    parts = []
    for check in verification.checks:
        parts.append(f"[{'ok' if check.ok else 'FAILED'}] {check.what}")
        parts += [f"    {escape(fault)}" for fault in check.faults]
    if verification.behaviour:
        parts.append(_behaviour(verification.behaviour, style))
    elif verification.not_run:
        parts.append(f"Behaviour was not compared: {escape(verification.not_run)}.")
    return _finish(parts, style)


def _behaviour(seen: Behaviour, style: Style) -> str:
    kind = (
        f"{_many(seen.feeds, 'seeded random feed')} (your own say more)" if seen.random else _many(seen.feeds, "feed")
    )
    lines = []
    for o in seen.outputs:
        moved = "-" if o.relative is None else f"{o.relative:.3g}"
        same = "-" if o.top1 is None else f"{o.top1:.2%}"
        lines.append([escape(o.name), f"{o.max_abs:.3g}", moved, same])
    table = _table(["output", "max |difference|", "relative", "top-1 the same"], lines, None, 1, style)
    return f"Outputs before and after, {kind}:\n{table}"


def _figures(f: Figures) -> list[str]:
    return [
        f"{f.n:,}", f"{f.n_eff:,.1f}", f"{f.k:,}", f"{f.density:.2%}", f"{f.mass_lower:.4f}", f"{f.mass:.4f}",
        f"{f.mass_upper:.4f}",
    ]  # fmt: skip


def _rule_text(plan: Plan) -> str:
    rule = plan.rule
    if rule.sparsity is not None:
        how = f"sparsity {rule.sparsity:g}, as asked"
    elif rule.order == 2:
        how = f"kept = ⌊β·N_eff⌋, β = {rule.beta:g}"
    else:
        how = f"kept = ⌊β·D⌋, D the Hill number of order {rule.order:g}, β = {rule.beta:g}"
    return f"Rule: {how}; criterion: magnitude; scope: {rule.scope}."


def _refused(refusals: Sequence[Refusal], pruned: bool) -> list[str]:
    if not refusals:
        return [] if pruned else ["NOTHING CAN BE PRUNED: no operation here has a weight of a kind that is known."]
    groups: dict[str, list[str]] = {}
    for refusal in refusals:
        groups.setdefault(refusal.reason, []).append(quote(refusal.name))
    head = "Not pruned" if pruned else "NOTHING CAN BE PRUNED"
    lines = [f"{head} ({_many(len(refusals), 'tensor')}):"]
    for reason, names in groups.items():
        some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        lines.append(f"    {len(names)} × {escape(reason)}: {some}")
    return ["\n".join(lines)]


def _sizes(before: Sizes, after: Sizes) -> list[str]:
    def pair(one: int | None, other: int | None) -> str:
        if one is None or other is None:
            return "not measured"
        return f"{one:,} before, {other:,} after" + (f" ({other / one:.1%})" if one else "")

    return [f"Bytes on disk: {pair(before.plain, after.plain)}.  Gzipped: {pair(before.gzipped, after.gzipped)}."]


def _table(
    headers: Sequence[str], lines: Iterable[Sequence[str]], total: Sequence[str] | None, left: int, style: Style
) -> str:
    """A table; the first `left` columns are text, the others numbers."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise MissingExtraError("rich") from error
    shape: Any = box.ASCII2 if style.ascii else box.SIMPLE_HEAD
    table = Table(box=shape, show_footer=total is not None, footer_style="bold", header_style="bold", pad_edge=False)
    for i, header in enumerate(headers):
        footer = Text(total[i]) if total else ""
        table.add_column(
            Text(header), footer, justify="left" if i < left else "right", no_wrap=i >= left, overflow="fold",
            min_width=8 if i == 0 else None,
        )  # fmt: skip
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    # never narrower than the numbers need: a terminal wraps lines, it must not lose figures
    width = max(style.width or 0, 110) if style.width else 10_000
    console = Console(
        file=io.StringIO(), width=width, force_terminal=style.colour, no_color=not style.colour, legacy_windows=False,
        color_system="standard" if style.colour else None,
    )  # fmt: skip
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _finish(parts: Sequence[str], style: Style) -> str:
    text = "\n".join(parts)
    if not style.ascii:
        return text
    for letter, plain in (
        ("β", "beta"),
        ("Σ", "sum "),
        ("≤", "<="),
        ("×", "x"),
        ("·", "*"),
        ("⌊", "floor("),
        ("⌋", ")"),
        ("→", "->"),
    ):
        text = text.replace(letter, plain)
    return text.encode("ascii", "replace").decode()
