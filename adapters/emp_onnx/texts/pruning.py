"""Plans, reports of pruning, and verifications."""

from __future__ import annotations

from collections.abc import Sequence

from emp_onnx.errors import escape, quote
from emp_onnx.figures import Figures
from emp_onnx.plan import Plan
from emp_onnx.prune import Report, Sizes
from emp_onnx.runtime.compare import Behaviour
from emp_onnx.texts.style import Style, finish, many, table
from emp_onnx.verification.outcome import Verification
from emp_onnx.weights.find import Refusal

__all__ = ["NO_FASTER", "plan_text", "refused_lines", "report_text", "size_lines", "uses_text", "verification_text"]

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
        total = [f"{name}, {many(len(plan.entries), 'weight')}", "", "", "", *rows, *_figures(plan.total), *worst]
        parts = [_rule_text(plan), table(headers, lines, total, 4, style), FIGURES[plan.rule.scope]]
        if plan.rule.order != 2:
            parts.append(
                f"kept follows from the Hill number of order {plan.rule.order:g}; N_eff and the bounds are of order 2."
            )
    parts += refused_lines(plan.refusals, bool(plan.entries))
    return finish(parts, style)


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
    parts += [*size_lines(report.before, report.after), NO_FASTER, *map(escape, report.notes)]
    beside = f", with {', '.join(quote(file.name) for file in report.sidecars)} beside it" if report.sidecars else ""
    total = report.plan.total
    parts.append(
        f"Wrote {quote(report.out)}{beside}: {total.n - total.k:,} of {total.n:,} weights removed "
        f"({total.sparsity:.2%} sparsity), {total.mass:.2%} of their mass retained (guaranteed {total.mass_lower:.2%})."
    )
    return finish(parts, style)


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
    return finish(parts, style)


def _behaviour(seen: Behaviour, style: Style) -> str:
    kind = f"{many(seen.feeds, 'seeded random feed')} (your own say more)" if seen.random else many(seen.feeds, "feed")
    lines = []
    for o in seen.outputs:
        moved = "-" if o.relative is None else f"{o.relative:.3g}"
        same = "-" if o.top1 is None else f"{o.top1:.2%}"
        lines.append([escape(o.name), f"{o.max_abs:.3g}", moved, same])
    drawn = table(["output", "max |difference|", "relative", "top-1 the same"], lines, None, 1, style)
    return f"Outputs before and after, {kind}:\n{drawn}"


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


def refused_lines(refusals: Sequence[Refusal], pruned: bool, /) -> list[str]:
    """What was not pruned, by reason."""
    if not refusals:
        return [] if pruned else ["NOTHING CAN BE PRUNED: no operation here has a weight of a kind that is known."]
    groups: dict[str, list[str]] = {}
    for refusal in refusals:
        groups.setdefault(refusal.reason, []).append(quote(refusal.name))
    head = "Not pruned" if pruned else "NOTHING CAN BE PRUNED"
    lines = [f"{head} ({many(len(refusals), 'tensor')}):"]
    for reason, names in groups.items():
        some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        lines.append(f"    {len(names)} × {escape(reason)}: {some}")
    return ["\n".join(lines)]


def size_lines(before: Sizes, after: Sizes, /) -> list[str]:
    """Bytes before and after."""

    def pair(one: int | None, other: int | None) -> str:
        if one is None or other is None:
            return "not measured"
        return f"{one:,} before, {other:,} after" + (f" ({other / one:.1%})" if one else "")

    return [f"Bytes on disk: {pair(before.plain, after.plain)}.  Gzipped: {pair(before.gzipped, after.gzipped)}."]
