"""Draw docs/effective-size.svg and the table of README.md from the network of ``emp demo``.

    python docs/pictures.py            # writes both
    python docs/pictures.py --check    # writes nothing; exit code 1 when something is out of date

The picture has no background of its own and uses only middle tones, so it can be read on light and on dark pages.
"""

from __future__ import annotations

import sys
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

import emp_core
import emp_onnx
from emp_onnx.demo import run_demo

DOCS = Path(__file__).resolve().parent
PICTURE = DOCS / "effective-size.svg"
README = DOCS.parent / "README.md"
BEGIN, END = "<!-- demo table: begin -->", "<!-- demo table: end -->"
WEIGHT = "hidden.weight"

WIDTH, HEIGHT = 860, 330
TOP, BOTTOM = 64, 264
PLOT = 340  # width of either part
LEFT, RIGHT = 48, 486
INK, KEPT, CUT = "#768390", "#3b82d6", "#d97a2b"


class Panel:
    """One part of the picture: maps both axes from their own units to the page."""

    def __init__(self, left: float, top_value: float) -> None:
        self.left, self.top_value = left, top_value

    def x(self, share: float) -> float:
        """Return the place of a share of the weights, 0 to 1."""
        return self.left + PLOT * share

    def y(self, value: float) -> float:
        """Return the place of a value, 0 to the top value."""
        return BOTTOM - (BOTTOM - TOP) * value / self.top_value

    def path(self, x: Any, y: Any) -> str:
        """Return the points of a line."""
        return " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in zip(x, y, strict=True))

    def line(self, x: Any, y: Any, colour: str, extra: str = "") -> str:
        """Return a line through the points."""
        return f'<polyline points="{self.path(x, y)}" fill="none" stroke="{colour}" stroke-width="1.8" {extra}/>'

    def area(self, x: Any, y: Any, base: Any, colour: str, opacity: float) -> str:
        """Return the area between two lines."""
        points = f"{self.path(x, y)} {self.path(x[::-1], base[::-1])}"
        return f'<polygon points="{points}" fill="{colour}" fill-opacity="{opacity}"/>'

    def frame(self, title: str, ticks: list[tuple[float, str]]) -> list[str]:
        """Return the axes, their marks and the title."""
        parts = [text(self.left, 30, title, weight=600)]
        for value, label in ticks:
            parts.append(rule(self.left, self.y(value), self.left + PLOT, self.y(value), 0.25))
            parts.append(text(self.left - 8, self.y(value) + 4, label, "end", 11))
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            parts.append(text(self.x(share), BOTTOM + 18, f"{share:.0%}", "middle", 11))
        parts.append(rule(self.left, BOTTOM, self.left + PLOT, BOTTOM, 1))
        return parts


def text(
    x: float, y: float, words: str, anchor: str = "start", size: int = 13, weight: int = 400, fill: str = INK
) -> str:
    """Return words at a place."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'fill="{fill}">{escape(words)}</text>'
    )


def rule(x1: float, y1: float, x2: float, y2: float, opacity: float, dash: str = "none") -> str:
    """Return a thin straight line."""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{INK}" '
        f'stroke-opacity="{opacity}" stroke-dasharray="{dash}"/>'
    )


def percent(share: float) -> str:
    """Return a share in percent, rounded to tenths."""
    return f"{share:.1%}".replace("100.0%", "100%")


def picture(weight: Any) -> str:
    """Return the picture as SVG."""
    size = np.sort(np.abs(np.asarray(weight, np.float64)).ravel())[::-1]
    n = size.size
    chosen = emp_core.select(size)
    nu, k, mass = float(chosen.n_eff), int(chosen.k), float(chosen.mass)
    density = k / n

    relative = size / size.mean()
    at = np.unique(np.linspace(0, n - 1, 241).astype(int))
    share = (at + 0.5) / n
    magnitudes = Panel(LEFT, 6.0)
    inside, outside = at < k, at >= k
    x_kept = np.append(share[inside], density)
    y_kept = np.append(np.minimum(relative[at[inside]], 6.0), relative[k - 1])
    x_cut = np.append(density, share[outside])
    y_cut = np.append(relative[k - 1], relative[at[outside]])
    parts = magnitudes.frame("|w|, largest first (1 = mean)", [(0, "0"), (2, "2"), (4, "4"), (6, "6")])
    parts += [
        magnitudes.area(x_kept, y_kept, np.zeros_like(y_kept), KEPT, 0.75),
        magnitudes.area(x_cut, y_cut, np.zeros_like(y_cut), CUT, 0.75),
        rule(magnitudes.x(density), TOP - 6, magnitudes.x(density), BOTTOM, 1, "4 3"),
        text(magnitudes.x(density) + 8, TOP + 22, f"N_eff = {nu:,.1f}"),
        text(magnitudes.x(density) + 8, TOP + 40, f"keep {k:,} of {n:,}", fill=KEPT, weight=600),
        text(magnitudes.x(density) + 8, TOP + 58, f"remove {n - k:,}", fill=CUT, weight=600),
    ]

    counts = np.unique(np.concatenate([np.linspace(1, n, 241).astype(int), [k]]))
    along = counts / n
    lower = np.array([emp_core.mass_lower_bound(nu, n=n, k=int(c)) for c in counts])
    upper = np.array([emp_core.mass_upper_bound(nu, n=n, k=int(c)) for c in counts])
    held = np.cumsum(size)[counts - 1] / size.sum()
    low, high = float(chosen.mass_lower), float(chosen.mass_upper)
    masses = Panel(RIGHT, 1.0)
    parts += masses.frame(
        "retained mass, by share of weights kept", [(0, "0"), (0.25, "25%"), (0.5, "50%"), (0.75, "75%"), (1, "100%")]
    )
    x = masses.x(density)
    parts += [
        masses.area(along, upper, lower, INK, 0.22),
        masses.line(along, held, KEPT),
        rule(x, TOP - 6, x, BOTTOM, 1, "4 3"),
        *(f'<circle cx="{x:.1f}" cy="{masses.y(m):.1f}" r="3.5" fill="{c}"/>' for m, c in ((low, INK), (high, INK))),
        f'<circle cx="{x:.1f}" cy="{masses.y(mass):.1f}" r="4.5" fill="{KEPT}"/>',
        text(x + 10, masses.y(high) - 8, f"at most {percent(high)}"),
        text(x + 10, masses.y(mass) + 18, f"measured {percent(mass)}", fill=KEPT, weight=600),
        text(x + 10, masses.y(low) + 18, f"at least {percent(low)},"),
        text(x + 10, masses.y(low) + 36, "whatever the weights are"),
    ]
    foot = f"share of the {n:,} weights of “{WEIGHT}” in the network of emp demo"
    parts.append(text(WIDTH / 2, HEIGHT - 22, foot, "middle", 12))
    words = (
        f"Left: the {n:,} magnitudes in descending order, cut at the effective size {nu:,.1f}; {k:,} are kept. "
        f"Right: they hold {percent(mass)} of the total magnitude, between the lower bound {percent(low)} "
        f"and the upper bound {percent(high)}."
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            'role="img" aria-labelledby="t d" font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif">',
            '<title id="t">Effective size cuts a layer of the demo network</title>',
            f'<desc id="d">{escape(words)}</desc>',
            *parts,
            "</svg>\n",
        ]
    )


def table(demo: Any) -> str:
    """Return the table of README.md: one line per weight, then the total; and the accuracy below it."""
    plan = demo.report.plan
    head = "| weight | n | N_eff | kept | density | lower bound | retained mass | upper bound |"
    rows = [head, "|---|--:|--:|--:|--:|--:|--:|--:|"]
    for name, one in [*((f"`{e.name}`", e) for e in plan.entries), ("all", plan.total)]:
        shares = " | ".join(percent(share) for share in (one.density, one.mass_lower, one.mass, one.mass_upper))
        rows.append(f"| {name} | {one.n:,} | {one.n_eff:,.1f} | {one.k:,} | {shares} |")
    rows += [
        "",
        f"Accuracy on {demo.digits} images it never saw: {percent(demo.before)} before, {percent(demo.after)} after.",
    ]
    return "\n".join(rows)


def made() -> dict[Path, str]:
    """Return what the files should hold."""
    model = emp_onnx.load(str(files("emp_onnx.demo") / "digits.onnx"))
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise SystemExit(f"README.md must hold the lines {BEGIN} and {END}")
    return {
        PICTURE: picture(model.values(WEIGHT)),
        README: f"{before}{BEGIN}\n{table(run_demo())}\n{END}{after}",
    }


def main(arguments: list[str]) -> int:
    """Write the files, or with ``--check`` name those that are out of date."""
    stale = 0
    for path, content in made().items():
        if "--check" not in arguments:
            path.write_text(content, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != content:
            print(f"{path.name} is out of date; run: python docs/pictures.py")
            stale = 1
    return stale


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
