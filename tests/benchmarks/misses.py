"""How well models are told apart by few rows, by the part of the error over which an answer counts as missed.

    python -m tests.benchmarks.misses [--write docs/notes/shrinking.md]

Scores and errors are drawn: two models, of which one changes at least a tenth fewer answers than the other among all
rows, are compared by 200 rows of them. Errors of one kind are those of two cuts alike, errors of two kinds those of,
say, fewer units and fewer layers.
"""

from __future__ import annotations

import argparse
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emp_onnx.shrink.fitting.distance import rows_missed
from tests.benchmarks._report import machine, table, write

ROWS, CLASSES, SHOWN, TIMES = 40000, 10, 200, 60
PARTS = (1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1)
SIZES = (0.3, 0.36), (0.3, 0.36, 0.45)  # of the errors of either model, by the scores' deviation
SCORES = ("even", "one high", "rows of all sizes")
ERRORS = ("even", "in few rows", "by the row's size")
Wide = NDArray[np.float64]


def drawn(kind: str, rng: np.random.Generator) -> Wide:
    """Scores (rows, classes) of one kind."""
    scores = rng.standard_normal((ROWS, CLASSES))
    if kind == "one high":
        scores[np.arange(ROWS), rng.integers(0, CLASSES, ROWS)] += 5
    if kind == "rows of all sizes":
        scores *= np.exp(0.7 * rng.standard_normal((ROWS, 1)))
    return scores


def wrong(scores: Wide, kind: str, size: float, rng: np.random.Generator) -> Wide:
    """The scores with errors of one kind."""
    error = rng.standard_normal(scores.shape)
    if kind == "in few rows":
        error *= np.where(rng.random((ROWS, 1)) < 0.1, 3.0, 0.3)
    if kind == "by the row's size":
        largest = np.abs(scores).max(1, keepdims=True)
        error *= largest / largest.mean()
    return scores + size * scores.std() * error


def missed(scores: Wide, other: Wide, part: float | None) -> float:
    """The share that is likely missed by one part of the error; None: that is missed."""
    if part is None:
        return float((scores.argmax(1) != other.argmax(1)).mean())
    return float(rows_missed(scores, other, spread=part)[0].mean())


def told(scores: Wide, kinds: tuple[str, str], rng: np.random.Generator) -> list[float]:
    """How often the better of two models is found, for each part and by counting."""
    found: list[list[bool]] = []
    ones, others = ([wrong(scores, kind, size, rng) for size in s] for kind, s in zip(kinds, SIZES, strict=True))
    for one in ones:
        for other in others:
            true = missed(scores, one, None), missed(scores, other, None)
            if abs(true[0] - true[1]) < 0.1 * max(true):
                continue
            for _ in range(TIMES):
                rows = rng.integers(0, ROWS, SHOWN)
                seen = [[missed(scores[rows], m[rows], part) for m in (one, other)] for part in (*PARTS, None)]
                found.append([(a < b) == (true[0] < true[1]) for a, b in seen])
    return [float(share) for share in np.mean(found, 0)] if found else []


def main() -> None:
    """Draw, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="FILE", type=Path)
    given = parser.parse_args()
    rng, rows = np.random.default_rng(0), []
    for kind in SCORES:
        scores = drawn(kind, rng)
        for kinds in combinations_with_replacement(ERRORS, 2):
            shares = told(scores, kinds, rng)
            if shares:
                rows.append([kind, " / ".join(dict.fromkeys(kinds)), *(f"{share:.2f}" for share in shares)])
    lowest = ["lowest of all", "", *(f"{min(float(row[i]) for row in rows):.2f}" for i in range(2, len(rows[0])))]
    text = table(["scores", "errors", *(f"part {part:g}" for part in PARTS), "counted"], [*rows, lowest])
    text += f"\n\n{machine('numpy')}"
    print(text)
    if given.write:
        write(given.write, "misses", text)


if __name__ == "__main__":
    main()
