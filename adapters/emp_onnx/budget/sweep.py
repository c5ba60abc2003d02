"""The whole curve: what is left of a model at every amount, as CSV, JSON and a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from emp_core import effective_size, mass_lower_bound
from emp_onnx.budget.picture import Line, draw
from emp_onnx.budget.point import Point, measure
from emp_onnx.errors import UsageError
from emp_onnx.refit.fitting import Fitting, Thin

__all__ = ["CURVE", "sweep", "to_csv", "to_json", "to_png"]

CURVE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
COLUMNS = ("sparsity", "mass", "bound", "agreement", "expected", "cost", "error", "score")


def sweep(
    fitting: Fitting, sparsities: Sequence[float] = CURVE, *,
    how: str = "error", criterion: str = "obs", update: bool = True,
    score: Callable[[Path], float] | None = None,
) -> list[Point]:  # fmt: skip
    """The model at each of these sparsities.

    Raises:
        UsageError: no sparsities, or one out of range.
    """
    if not sparsities:
        raise UsageError("sparsities must be at least one, got none")
    points = []
    for sparsity in sorted(set(sparsities)):
        keep = fitting.count(sparsity=sparsity)
        thin = fitting.thin(keep, how=how, criterion=criterion, update=update)
        mass, bound = _mass(fitting, thin)
        points.append(replace(measure(fitting, thin, score=score), mass=mass, bound=bound))
    return points


def _mass(fitting: Fitting, thin: Thin) -> tuple[float, float]:
    """The share of Σ|w| that is kept, and the least share that the largest of as many would keep."""
    total = kept = least = 0.0
    for weight in fitting.weights:
        size, mask = fitting.magnitudes(weight), thin.masks[weight.name]
        here, k = float(size.sum()), int(np.count_nonzero(mask))
        total += here
        kept += float(size[mask].sum())
        if here:
            least += here * float(mass_lower_bound(float(effective_size(size)), n=size.size, k=k))
    return (kept / total, least / total) if total else (1.0, 1.0)


def to_csv(points: Sequence[Point]) -> str:
    """A line per point; empty where something was not asked for."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for point in points:
        given = point.to_dict()
        writer.writerow(["" if given[name] is None else repr(given[name]) for name in COLUMNS])
    return out.getvalue()


def to_json(points: Sequence[Point]) -> str:
    """A list of objects, one per point."""
    return json.dumps([point.to_dict() for point in points], indent=1) + "\n"


def to_png(points: Sequence[Point]) -> bytes:
    """Agreement (blue), and the score if there is one (red), from 0 to 1 over the sparsity from 0 to 1."""
    lines = [Line([(p.sparsity, p.agreement) for p in points], (31, 119, 180), "AGREEMENT")]
    if all(p.score is not None for p in points):
        lines.append(Line([(p.sparsity, float(p.score or 0)) for p in points], (214, 39, 40), "SCORE"))
    return draw(lines, "SPARSITY")
