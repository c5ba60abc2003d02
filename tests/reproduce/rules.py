"""How-many rules and where-rules at equal sparsity, on FC5 (MNIST) and the character GPT; one plot, one table.

Every rule gives each layer a count, by one parameter that is turned until the whole network has the wanted sparsity;
within a layer the largest magnitudes stay. So what is compared is only how sparsity is spread.

- *EMP*, tensor: ⌊β·N_eff⌋. *Hill 1*: ⌊β·exp(entropy)⌋.
- *SAP* (PQ index, p = ½, q = 1): ⌊β·d(1 − I)⌋ = ⌊β·(Σ√|w|)²/Σ|w|⌋, the effective size of √|w|. With p = 1, q = 2 SAP's
  bound is the effective size of |w| itself, hence EMP.
- *Gini*: ⌊β·d(1 − G)⌋. *Mass*: the least k that retains a given share of Σ|w|.
- *Uniform*: one sparsity for all. *ERK*: density ∝ (in + out)/(in·out). *LAMP*: w²/Σ of all w² that are not smaller in
  its layer, one threshold. *Model*: one threshold on |w|. *Row*: ⌊β·N_eff⌋ of each output row.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import emp_torch
from emp_core import effective_size, hill_number, select
from tests.benchmarks._report import table

from . import _gpt, fc
from ._data import Options, Split, accuracy, mnist

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
Weights = dict[str, NDArray[np.float32]]
Masks = dict[str, NDArray[np.bool_]]


def gini(w: NDArray[np.float32]) -> float:
    """Gini index of magnitudes."""
    s = np.sort(np.abs(w).ravel()).astype(np.float64)
    n = s.size
    return float(2 * np.dot(np.arange(1, n + 1), s) / (n * s.sum()) - (n + 1) / n)


SIZES: dict[str, Callable[[NDArray[np.float32]], float]] = {
    "EMP, tensor": lambda w: float(effective_size(w)),
    "Hill 1": lambda w: float(hill_number(w, order=1)),
    "SAP (PQ ½, 1)": lambda w: float(effective_size(np.sqrt(np.abs(w)))),
    "Gini": lambda w: w.size * (1 - gini(w)),
}


def bisected(count: Callable[[float], int], wanted: int, low: float, high: float) -> float:
    """The parameter at which a growing count is nearest to what is wanted."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if count(middle) < wanted else (low, middle)
    return high


def masks_of(rule: str, weights: Weights, wanted: int) -> Masks:
    """What a rule keeps when it keeps so many in all."""
    ordered = {name: np.sort(np.abs(w).ravel())[::-1] for name, w in weights.items()}
    if rule == "model":
        n = sum(w.size for w in weights.values())
        return dict(select(weights, scope="model", sparsity=1 - wanted / n).mask)
    if rule == "LAMP":
        scores = {}
        for name, w in weights.items():
            squares = w.ravel().astype(np.float64) ** 2
            order = np.argsort(squares)[::-1]
            out = np.empty(w.size)
            out[order] = squares[order] / np.cumsum(squares[order])
            scores[name] = out.reshape(w.shape)
        n = sum(w.size for w in weights.values())
        return dict(select(scores, scope="model", sparsity=1 - wanted / n).mask)
    if rule == "EMP, row":

        def rows(beta: float) -> Masks:
            return {name: select(w, scope="rows", beta=beta).mask for name, w in weights.items()}

        return rows(bisected(lambda b: sum(int(m.sum()) for m in rows(b).values()), wanted, 1e-3, 4.0))
    if rule == "mass":
        sums = {name: np.cumsum(s.astype(np.float64)) for name, s in ordered.items()}

        def by(share: float) -> dict[str, int]:
            return {name: max(1, int(np.searchsorted(c, share * c[-1]))) for name, c in sums.items()}
    else:
        if rule == "uniform":
            sizes = {name: float(w.size) for name, w in weights.items()}
        elif rule == "ERK":
            sizes = {name: float(sum(w.shape)) for name, w in weights.items()}
        else:
            sizes = {name: SIZES[rule](w) for name, w in weights.items()}

        def by(share: float) -> dict[str, int]:
            return {name: min(weights[name].size, max(1, math.floor(share * size))) for name, size in sizes.items()}

    k = by(bisected(lambda x: sum(by(x).values()), wanted, 0.0, 1.0 if rule == "mass" else 1e5))
    return {name: select(w, sparsity=1 - k[name] / w.size).mask for name, w in weights.items()}


RULES = (*SIZES, "mass", "uniform", "ERK", "LAMP", "EMP, row", "model")


def curve(model: nn.Module, weights: Weights, score: Callable[[nn.Module], float]) -> dict[str, list[float]]:
    """The score of every rule at every sparsity."""
    n, found = sum(w.size for w in weights.values()), {rule: list[float]() for rule in RULES}
    for sparsity in SPARSITIES:
        for rule in RULES:
            masks = masks_of(rule, weights, round((1 - sparsity) * n))
            smaller = copy.deepcopy(model)
            with torch.no_grad():
                for w in emp_torch.find_weights(smaller).weights:
                    if w.name in masks:
                        w.parameter.mul_(torch.from_numpy(np.ascontiguousarray(masks[w.name])))
            found[rule].append(score(smaller))
    return found


def run(options: Options) -> str:
    """The table; the plot beside the page."""
    plain = mnist(options)
    split = Split((plain.x - fc.MEAN) / fc.SPREAD, plain.y, (plain.x_test - fc.MEAN) / fc.SPREAD, plain.y_test)
    model = fc.trained("FC5", split, options)
    first = curve(model, _named(model, ""), lambda m: accuracy(m, split.x_test, split.y_test))
    data = _gpt.text(options)
    gpt = _gpt.trained(data, options)
    test = data.test[:20_000]
    second = curve(gpt, _named(gpt, "blocks"), lambda m: _gpt.perplexity(m, test))
    rows = []
    for rule in RULES:
        cells = [f"{v:.1f}" for v in first[rule]] + [f"{v:.2f}" if v < 1000 else f"{v:.1e}" for v in second[rule]]
        rows.append([rule, *cells])
    if options.page is not None:
        plot(first, second, options.page.parent / "rules.svg")
    header = ["", *(f"FC5 {100 * s:g} %" for s in SPARSITIES), *(f"GPT {100 * s:g} %" for s in SPARSITIES)]
    dense = accuracy(model, split.x_test, split.y_test), _gpt.perplexity(gpt, test)
    return table(header, rows) + f"\n\nDense: FC5 {dense[0]:.2f} % right, GPT perplexity {dense[1]:.3f}."


def _named(model: nn.Module, prefix: str) -> Weights:
    return {
        w.name: w.value.detach().numpy() for w in emp_torch.find_weights(model).weights if w.name.startswith(prefix)
    }


def plot(first: dict[str, list[float]], second: dict[str, list[float]], path: Path) -> None:
    """Two panels of lines."""
    colours = (
        "#0b62a4",
        "#7fb3d5",
        "#148f77",
        "#b7950b",
        "#ca6f1e",
        "#7d3c98",
        "#943126",
        "#566573",
        "#1f618d",
        "#17202a",
    )
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 330" font-family="sans-serif" font-size="12">']
    for panel, (found, title) in enumerate(((first, "FC5, % right"), (second, "GPT, log₂ perplexity"))):
        left, top, wide, high = 50 + panel * 370, 30, 300, 250
        values = {r: [math.log2(v) for v in vs] if panel else vs for r, vs in found.items()}
        low, most = min(map(min, values.values())), max(map(max, values.values()))
        parts.append(f'<text x="{left}" y="18">{title}</text>')
        parts.append(f'<rect x="{left}" y="{top}" width="{wide}" height="{high}" fill="none" stroke="#999"/>')
        for i, s in enumerate(SPARSITIES):
            parts.append(f'<text x="{left + wide * i / 4 - 12:.0f}" y="{top + high + 16}">{100 * s:g} %</text>')
        for text, y in ((most, top), (low, top + high)):
            parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{text:.1f}</text>')
        for (_, vs), colour in zip(values.items(), colours, strict=True):
            points = " ".join(
                f"{left + wide * i / 4:.1f},{top + high * (most - v) / (most - low or 1):.1f}" for i, v in enumerate(vs)
            )
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    for i, (rule, colour) in enumerate(zip(first, colours, strict=True)):
        parts.append(f'<rect x="790" y="{36 + 22 * i}" width="12" height="3" fill="{colour}"/>')
        parts.append(f'<text x="806" y="{42 + 22 * i}">{rule}</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")
