"""A report as text for people."""

from __future__ import annotations

from emp_onnx.errors import escape, quote
from emp_onnx.shrink.report import ShrinkReport
from emp_onnx.texts.style import Style, table

__all__ = ["shrink_text"]


def shrink_text(report: ShrinkReport, style: Style | None = None) -> str:
    """Groups, walls, the proof, sizes and latency."""
    style = style or Style()
    lines = [
        [
            escape(row.name),
            f"{row.units:,}",
            "-" if row.n_eff is None else f"{row.n_eff:,.1f}",
            f"{row.kept:,}",
            f"{row.kept / row.units:.0%}",
        ]
        for row in report.groups
    ]
    units, kept = sum(r.units for r in report.groups), sum(r.kept for r in report.groups)
    total = [f"total, {len(report.groups)} groups", f"{units:,}", "", f"{kept:,}", f"{kept / max(units, 1):.0%}"]
    parts = [table(["group", "units", "N_eff", "kept", "share"], lines, total, 1, style)]
    if report.walls:
        parts.append("What stays, and why (axes of weights):")
        parts += [f"    {count} × {escape(reason)}" for reason, count in report.walls[:12]]
        if len(report.walls) > 12:
            parts.append(f"    and {len(report.walls) - 12} more reasons")
    kind = "random feeds" if report.random else "feeds"
    parts.append(
        f"[ok] shrunk equals masked on {report.proof.feeds} {kind}: largest difference {report.proof.worst:.2g} of an "
        f"output's size, {report.proof.allowed:.2g} allowed"
    )
    parts.append(
        _pair("Parameters", *report.parameters)
        + "  "
        + _pair("Bytes", *report.bytes)
        + "  "
        + _pair("Multiply-adds", *report.flops)
    )
    before, after = report.micros
    parts.append(
        f"Latency, one thread: {before:,.0f} µs before, {after:,.0f} µs after ({before / after:.2f} times as fast)."
    )
    same = "" if report.agreement is None else f", top-1 the same in {report.agreement:.2%}"
    parts.append(f"Outputs against the dense model, on {kind} kept back: relative error {report.error:.3g}{same}.")
    parts += [escape(note) for note in report.notes]
    beside = f", with {', '.join(quote(f.name) for f in report.sidecars)} beside it" if report.sidecars else ""
    parts.append(f"Wrote {quote(report.out)}{beside}: {report.removed:,} of {units:,} units removed.")
    return "\n".join(parts)


def _pair(what: str, before: float, after: float) -> str:
    return f"{what}: {before:,.0f} → {after:,.0f} ({after / before:.0%})." if before else f"{what}: {after:,.0f}."
