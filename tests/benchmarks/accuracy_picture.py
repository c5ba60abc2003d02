"""The curves of `accuracy` as a picture: for each task what each rule keeps of the score at each sparsity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["picture"]

ACROSS = 4  # panels
WIDE, HIGH, GAP, LEFT, TOP = 190, 130, 44, 46, 78
INK = "#768390"
LOST = 0.10  # of the score: what lies lower is drawn at the lower edge
COLOURS = ("#d97a2b", "#8a63d2", "#3b82d6")
Row = Mapping[str, Any]


def picture(
    results: Mapping[str, Mapping[str, Any]], floors: Mapping[str, tuple[float, float]], rules: Sequence[str], drop: str
) -> str:
    """As SVG, without a background and in middle tones, for light pages and dark ones.

    Args:
        results: by task and rule, as the benchmark saves them.
        floors: by task the sparsity and the score that are asked for.
        rules: those whose curves are drawn.
        drop: the row of the budget.
    """
    names = [name for name in floors if name in results]
    rows = -(-len(names) // ACROSS)
    width, height = LEFT + ACROSS * (WIDE + GAP), TOP + rows * (HIGH + 58)
    parts = [_legend(rules)]
    for i, name in enumerate(names):
        x, y = LEFT + i % ACROSS * (WIDE + GAP), TOP + i // ACROSS * (HIGH + 58)
        parts += _panel(x, y, name, results[name], floors[name], rules, drop)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-labelledby="t d" font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif">',
        '<title id="t">Score kept at each sparsity, by task and rule</title>',
        '<desc id="d">One panel for each task. Across: the share of weights removed. Up: the score, from ten points '
        "below the dense model's to one above. A cross: what is asked for. A ring: what --max-drop 1% chose.</desc>",
        *parts, "</svg>\n",
    ])  # fmt: skip


def _panel(
    x: float, y: float, name: str, found: Mapping[str, Any], floor: tuple[float, float], rules: Sequence[str], drop: str
) -> Iterable[str]:
    dense = float(found["dense"]["score"])

    def at(row: Row) -> tuple[float, float]:
        lost = min(max(dense - float(row["score"]), -0.01), LOST)
        return x + WIDE * float(row["sparsity"]), y + HIGH * (lost + 0.01) / (LOST + 0.01)

    yield _text(x, y - 10, name, weight=600)
    yield _text(x + WIDE, y - 10, f"dense {dense:.3f}", "end", 11)
    for lost in (0.0, 0.05, 0.10):
        _, level = at({"score": dense - lost, "sparsity": 0})
        yield _line(x, level, x + WIDE, level, 0.6 if not lost else 0.2)
        yield _text(x - 5, level + 4, "0" if not lost else f"−{100 * lost:.0f}", "end", 10)
    for share in (0, 0.25, 0.5, 0.75, 1):
        yield _line(x + WIDE * share, y + HIGH, x + WIDE * share, y + HIGH + 4, 0.6)
        yield _text(x + WIDE * share, y + HIGH + 16, f"{share:.0%}", "middle", 10)
    for rule, colour in zip(rules, COLOURS, strict=False):
        seen = [*found.get(f"{rule} @", []), *([found[rule]] if rule in found else [])]
        points = [at(row) for row in sorted((found["dense"], *seen), key=lambda row: float(row["sparsity"]))]
        if len(points) > 1:
            line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
            yield from (f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.4" fill="{colour}"/>' for a, b in points[1:])
    a, b = at({"sparsity": floor[0], "score": floor[1]})
    yield f'<path d="M{a - 4:.1f} {b - 4:.1f}l8 8m0 -8l-8 8" stroke="{INK}" stroke-width="1.6"/>'
    if "score" in found.get(drop, {}):
        a, b = at(found[drop])
        yield f'<circle cx="{a:.1f}" cy="{b:.1f}" r="5" fill="none" stroke="{COLOURS[-1]}" stroke-width="1.8"/>'


def _legend(rules: Sequence[str]) -> str:
    parts, x = [], float(LEFT)
    for rule, colour in zip(rules, COLOURS, strict=False):
        parts.append(f'<line x1="{x}" y1="18" x2="{x + 22}" y2="18" stroke="{colour}" stroke-width="2.4"/>')
        parts.append(_text(x + 28, 22, rule))
        x += 46 + 7 * len(rule)
    parts.append(f'<circle cx="{x + 6}" cy="18" r="5" fill="none" stroke="{COLOURS[-1]}" stroke-width="1.8"/>')
    parts.append(_text(x + 18, 22, "--max-drop 1%"))
    x += 130
    parts.append(f'<path d="M{x} 14l8 8m0 -8l-8 8" stroke="{INK}" stroke-width="1.6"/>')
    parts.append(_text(x + 16, 22, "asked for"))
    parts.append(_text(LEFT, 40, "points of score lost, by the share of all weights that was removed", size=11))
    return "\n".join(parts)


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 13, weight: int = 400) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'fill="{INK}">{escape(words)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, opacity: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{INK}" stroke-opacity="{opacity}"/>'
    )
