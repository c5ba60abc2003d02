"""What packing did."""

from __future__ import annotations

from emp_onnx.errors import escape, quote
from emp_onnx.packing.pack import Packing
from emp_onnx.texts.pruning import verification_text
from emp_onnx.texts.style import Style, finish, many, table

__all__ = ["packing_text"]


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
        total = [f"total, {many(len(lines), 'tensor')}", "", "", "", "", "", f"{before:,}", f"{after:,}", share]
        parts.append(table(headers, lines, total, 5, style))
    else:
        parts.append("There was nothing to store otherwise.")
    parts.append(verification_text(packing.verification, style))
    parts += [
        f"Bytes on disk: {packing.before:,} before, {packing.after:,} after ({packing.after / packing.before:.1%})."
    ]
    parts += map(escape, packing.notes)
    beside = f", with {', '.join(quote(file.name) for file in packing.sidecars)} beside it" if packing.sidecars else ""
    parts.append(f"Wrote {quote(packing.out)}{beside}.")
    return finish(parts, style)
