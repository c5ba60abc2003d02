"""How far a model's outputs are from those of the dense one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.axes.trace import Runner
from emp_onnx.shrink.fitting.said import Said

Wide = NDArray[np.float64]
CHOICES = ("ArgMax", "ArgMin", "TopK", "Hardmax", "Softmax", "LogSoftmax", "Sigmoid")
PASSING = ("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Flatten")

__all__ = ["Missed", "agreement", "ancestors", "missed", "misses", "output_error", "rows_missed", "watched"]

SPREAD = 0.4  # of the error of a score: over so much of a lead an answer goes from missed to right
SHAPE = 0.05  # weight of the error of scores beside that of answers: it tells models apart that miss nothing


def watched(model: Any, threads: int = 1) -> Runner:
    """A model that also returns the floats behind outputs that are whole numbers: these show no small change."""
    return Runner(model, ancestors(model), threads=threads)


def output_error(dense: Sequence[dict[str, Any]], model: Any, feeds: Sequence[Feed], threads: int = 1) -> float:
    """‖difference‖² / ‖dense about its mean‖² over all floating outputs, the mean over outputs."""
    runner = watched(model, threads)
    names = [n for n, v in dense[0].items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"]
    moved, size = dict.fromkeys(names, 0.0), dict.fromkeys(names, 1e-30)
    for feed, before in zip(feeds, dense, strict=True):
        after = runner(feed)
        for name in names:
            a, b = before[name].astype(np.float64), after[name].astype(np.float64)
            if a.shape != b.shape:
                return np.inf
            moved[name] += float(np.square(a - b).sum())
            size[name] += float(np.square(a - a.mean()).sum())
    errors = [moved[n] / size[n] for n in names]
    return float(np.mean(errors)) if errors else 0.0


@dataclass(frozen=True)
class Missed:
    """How likely each of the dense model's answers is to be missed, and the error of scores, as a share."""

    rows: Wide
    left: float

    @property
    def total(self) -> float:
        """One number of both: the mean, and a little of the error, which tells apart what misses nothing."""
        return float(self.rows.mean()) + SHAPE * self.left

    def worse(self, other: Missed) -> bool:
        """Whether this is worse than another on the same feeds by more than chance: one standard error, and no less
        than half an answer."""
        gap = self.rows - other.rows
        return bool(gap.mean() > max(float(gap.std()) / len(gap) ** 0.5, 0.5 / len(gap)))


def missed(dense: Sequence[dict[str, Any]], model: Any, feeds: Sequence[Feed], threads: int = 1) -> Missed:
    """How many of the dense model's answers are likely to be missed, over all outputs that are class scores.

    Scores may be moved or stretched as a whole without another answer, and a fit to few feeds does shrink them; so it
    is not their error that counts, but the lead of the dense model's class over all others, by a part of the error
    that is left in one score: 1 / (1 + exp(lead / (SPREAD · error))) for each row. What few rows do not show, since no
    answer changes, leads do. The part is small, since the leads have the error in them already: by the whole of it,
    scores that lie close together count as missed where no answer changes. Where no output is class scores,
    `output_error` stands for all of it.
    """
    runner = watched(model, threads)
    rows: dict[str, list[tuple[Wide, Wide]]] = {}
    said = Said(model, dense[0], feeds[0])
    for feed, before in zip(feeds, dense, strict=True):
        after = runner(feed, [*before])
        for name, values in before.items():
            one = said.rows(name, values)
            other = said.rows(name, after[name]) if one is not None else None
            if one is not None and other is not None:
                if one.shape != other.shape:
                    return Missed(np.ones(1), np.inf)
                rows.setdefault(name, []).append((one.astype(np.float64), other.astype(np.float64)))
    found = [rows_missed(*(np.concatenate(part) for part in zip(*pairs, strict=True))) for pairs in rows.values()]
    if not found:
        return Missed(np.zeros(1), output_error(dense, model, feeds, threads) / SHAPE)
    return Missed(np.concatenate([one for one, _ in found]), float(np.mean([left for _, left in found])))


def misses(dense: Sequence[dict[str, Any]], model: Any, feeds: Sequence[Feed], threads: int = 1) -> float:
    """The same as one number."""
    return missed(dense, model, feeds, threads).total


def rows_missed(dense: Wide, other: Wide, *, spread: float = SPREAD) -> tuple[Wide, float]:
    """The same of scores (rows, classes), and the error that is left, as a share; `spread`: the part of the error."""
    if not (np.isfinite(dense).all() and np.isfinite(other).all()):
        return np.ones(len(dense)), 1.0
    at = np.arange(len(dense)), dense.argmax(1)
    a, b = dense - dense.mean(1, keepdims=True), other - other.mean(1, keepdims=True)
    size = float(np.square(a).sum()) or 1.0
    b = b * (max(float((a * b).sum()), 0.0) / max(float(np.square(b).sum()), 1e-300))
    left = float(np.square(a - b).sum())
    own = b[at]
    b[at] = -np.inf
    error = spread * (left / a.size) ** 0.5
    lead = (own - b.max(1)) / max(error, 1e-6 * (size / a.size) ** 0.5)
    return 1 / (1 + np.exp(np.clip(lead, -50, 50))), left / size


def agreement(dense: Sequence[dict[str, Any]], model: Any, feeds: Sequence[Feed]) -> float | None:
    """The share of rows of class scores whose largest entry is that of the dense model; None where no output is one."""
    runner = watched(model)
    said = Said(model, dense[0], feeds[0]) if dense else None
    same = total = 0
    for feed, before in zip(feeds, dense, strict=True):
        after = runner(feed)
        for name, a in before.items():
            b = after[name]
            if not isinstance(a, np.ndarray) or a.shape != b.shape or a.ndim < 1:
                continue
            if a.dtype.kind == "f" and said is not None:
                one, other = said.rows(name, a), said.rows(name, b)
                if one is not None and other is not None:
                    same += int((one.argmax(1) == other.argmax(1)).sum())
                    total += len(one)
            elif a.dtype.kind in "iu":
                same += int((a == b).sum())
                total += a.size
    return same / total if total else None


def ancestors(model: Any) -> list[str]:
    """What some outputs were made from, and shows more: scores behind whole numbers, and behind probabilities.

    A tie may fall either way by rounding, and a probability near 1 hides what a score shows.
    """
    makers = {o: node for node in model.graph.node for o in node.output}
    found: list[str] = []
    for out in model.graph.output:
        node = makers.get(out.name)
        last = ""
        while node is not None and node.input and node.op_type in (*CHOICES, *PASSING):
            if node.op_type in CHOICES:
                last = node.input[0]
            node = makers.get(node.input[0])
        if last:
            found.append(last)
    return [name for name in dict.fromkeys(found) if name in makers]
