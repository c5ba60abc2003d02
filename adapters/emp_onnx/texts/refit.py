"""What a refit did, curves, comparisons and statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence

from emp_onnx.budget.point import Point
from emp_onnx.calibration.statistics import Statistics
from emp_onnx.errors import escape, quote
from emp_onnx.refitting import RefitReport
from emp_onnx.texts.pruning import NO_FASTER, refused_lines, size_lines, verification_text
from emp_onnx.texts.style import Style, finish, table

__all__ = ["comparison_text", "curve_text", "refit_text", "statistics_text"]


EXPECTED = (
    "expected: the agreement that this lets expect on other inputs, from how near answers came to change, one standard "
    "error off. cost: what the changed answers cost in accuracy, going by how sure the dense model was of them."
)


def refit_text(report: RefitReport, style: Style | None = None) -> str:
    """What a refit did: per weight what is left, what was measured, the checks, and sizes."""
    style = style or Style()
    lines = []
    for name, w in report.weights.items():
        shape = "×".join(map(str, w.shape))
        lines.append(
            [escape(name), shape, f"{w.n:,}", f"{w.n_eff:,.1f}", f"{w.k:,}", f"{w.k / w.n:.2%}", f"{w.mass:.4f}"]
        )
    n, k = (sum(getattr(w, what) for w in report.weights.values()) for what in ("n", "k"))
    size = math.fsum(w.n_eff for w in report.weights.values())
    total = [f"total, {len(report.weights)} weights", "", f"{n:,}", f"{size:,.1f}", f"{k:,}", f"{k / n:.2%}", ""]
    how, point = report.how, report.point
    amount = (
        f"Σ⌊β·N_eff⌋, β = {how['beta']:g}" if "beta" in how
        else f"sparsity {how['sparsity']:g}, as asked" if "sparsity" in how
        else "the amount that the budget allows"
    )  # fmt: skip
    parts = [
        f"Kept: {amount}; spread by {how['allocate']}; chosen by {how['criterion']}; "
        f"{'then solved again' if how['solved'] else 'with the values that they had'}, "
        f"{'from statistics of' if 'from' in how else 'on'} {how['feeds']} feeds.",
        table(["weight", "shape", "n", "N_eff", "kept", "density", "retained"], lines, total, 2, style),
        "retained: the share of the original Σ|w| at the places that are kept. "
        + ("Kept weights hold new values, so no bound follows." if how["solved"] else "No bound is stated for them."),
    ]
    parts += refused_lines(report.refusals, True)
    if report.curve:
        parts += ["What was seen on the way, on feeds kept back:", curve_text(report.curve, style)]
        if point.expected is not None:
            parts.append(EXPECTED)
    parts.append(verification_text(report.verification, style))
    parts += [*size_lines(report.before, report.after), NO_FASTER, *map(escape, report.notes)]
    behaviour = report.verification.behaviour
    measured = "seeded random feeds" if behaviour is not None and behaviour.random else "feeds kept back"
    parts.append(
        f"Wrote {quote(report.out)}: {n - k:,} of {n:,} weights removed ({point.sparsity:.2%} sparsity), "
        f"{len(report.biases)} biases adjusted; on {measured} {point.agreement:.2%} of the answers "
        f"stayed the same, "
        f"relative error {point.error:.3g}."
    )
    return finish(parts, style)


def curve_text(points: Sequence[Point], style: Style | None = None) -> str:
    """Points as a table."""
    sure = any(p.expected is not None for p in points)
    many = len({p.feeds for p in points}) > 1
    columns = ["sparsity", *(["feeds"] if many else []), "agreement"]
    columns += [*(["expected", "cost"] if sure else []), "relative error"]
    columns += ["score"] if any(p.score is not None for p in points) else []
    columns += ["gzipped"] if any(p.size is not None for p in points) else []
    lines = []
    for p in points:
        line = [f"{p.sparsity:.2%}", *([f"{p.feeds:,}"] if many else []), f"{p.agreement:.2%}"]
        line += ["-" if x is None else f"{x:.2%}" for x in (p.expected, p.cost)] if sure else []
        line.append(f"{p.error:.4g}")
        line += [f"{p.score:.4f}" if p.score is not None else "-"] if "score" in columns else []
        line += [f"{p.size:,}" if p.size is not None else "-"] if "gzipped" in columns else []
        lines.append(line)
    return table(columns, lines, None, 0, style or Style())


def comparison_text(rows: Sequence[tuple[str, Point]], style: Style | None = None) -> str:
    """One line per rule."""
    score = any(p.score is not None for _, p in rows)
    lines = [
        [name, f"{p.sparsity:.2%}", f"{p.agreement:.2%}", f"{p.error:.4g}", *([f"{p.score:.4f}"] if score else [])]
        for name, p in rows
    ]  # fmt: skip
    columns = ["rule", "sparsity", "agreement", "relative error", *(["score"] if score else [])]
    return table(columns, lines, None, 1, style or Style())


def statistics_text(statistics: Statistics, style: Style | None = None) -> str:
    """What was calibrated: per linear map its weights, inputs and samples."""
    lines = []
    for item in statistics.inputs:
        groups, out, d = item.shape
        lines.append([", ".join(map(escape, item.keys)), f"{groups:,}", f"{out:,}", f"{d:,}", f"{item.count:,}"])
    parts = [table(["weights", "groups", "outputs", "inputs", "samples"], lines, None, 1, style or Style())]
    parts += [f"No statistics of {quote(name)}: {escape(why)}." for name, why in statistics.missing]
    if statistics.random:
        parts.append("NO FEEDS WERE GIVEN: these are statistics of seeded random numbers, not of data. Give --feeds.")
    return finish(parts, style or Style())
