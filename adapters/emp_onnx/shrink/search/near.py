"""More feeds, made from the ones given: inputs near them, on which the dense model says what is to be said.

A refit matches the dense model's own activations, so it needs no labels, and any input of the kind that the model is
used on serves. With few feeds their number is the limit; these are two ways to more that need to know nothing of
what the numbers mean:

- *moved*: shifted by up to an eighth along each axis that a convolution slides over, edges repeated, every second one
  mirrored along the last;
- *mixed*: λ·a + (1 − λ)·b of two feeds, λ even on (0, 1); where nothing is slid over;
- *varied* (`varied.py`): moved, drawn out, slanted, mixed, partly covered, channels louder or softer; for the last fit.

Whether they help is seen on feeds that are kept back, and not taken for granted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.mirrored import slid
from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.axes.rules.elementwise import BROADCAST, UNARY
from emp_onnx.shrink.fitting.distance import missed, watched
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.report import flops_of
from emp_onnx.shrink.search.fits import locally
from emp_onnx.shrink.view import View

__all__ = ["MOVED", "RUN", "chosen_near", "judging_near", "mixed", "moved", "near_to", "nearby", "with_near"]

MOVED, MIXED = "moved", "mixed"
MOST = {MOVED: 1200, MIXED: 2000}  # feeds in all
BYTES = 1 << 28  # of all of them
JUDGING = 300  # feeds that judge beside those kept back
COMPARED = 2.5e10  # multiplications of a model on those
LARGER = 0.8  # share of the first of two feeds that are mixed to judge by, at least
RUN = 2e6  # multiplications that take as long as what a run does beside them
ALIKE = frozenset({*UNARY, *BROADCAST, "BatchNormalization", "Clip", "Dropout"})  # number by number
REACH = 8  # a shift is at most so small a part of an axis


def nearby(view: View, feeds: Sequence[Feed], *, seed: int = 0, least: float = 0.0) -> dict[str, list[Feed]]:
    """By the name of the way, as many more feeds as are of use; no way that does not fit the model's inputs. `least`
    is the share of the first of two feeds that are mixed."""
    arrays = [{name: np.asarray(value) for name, value in feed.items()} for feed in feeds]
    size = sum(a.nbytes for a in arrays[0].values())
    way = MOVED if len(arrays[0]) == 1 and _slid(view, next(iter(arrays[0]))) else MIXED
    count = min(MOST[way], BYTES // max(size, 1)) - len(feeds)
    shapes = {tuple((name, a.shape, a.dtype.kind) for name, a in sorted(feed.items())) for feed in arrays}
    if count < len(feeds) or len(shapes) > 1 or len(feeds) < 2 or any(a.dtype.kind != "f" for a in arrays[0].values()):
        return {}
    rng = np.random.default_rng(seed)
    out: dict[str, list[Feed]] = {}
    if way == MOVED:
        out[MOVED] = [moved(arrays[i], rng) for i in rng.integers(0, len(feeds), count)]
    else:
        out[MIXED] = [mixed(arrays[i], arrays[j], rng, least) for i, j in rng.integers(0, len(feeds), (count, 2))]
    return out


def judging_near(problem: Problem, feeds: Sequence[Feed], way: str) -> list[Feed]:
    """More feeds near all of these, others than those fitted to, with which cuts are compared: as many as one
    comparison bears, by what the model multiplies on them.

    A mean of two classes has no answer that could be missed, so of two feeds that are mixed one is the larger part.
    """
    if not way:
        return []
    each = flops_of(problem.whole(), {})[0] + RUN
    return near_to(problem, feeds, way, seed=1, least=LARGER)[: min(JUDGING, int(COMPARED / each))]


def near_to(problem: Problem, feeds: Sequence[Feed], way: str, *, seed: int = 0, least: float = 0.0) -> list[Feed]:
    """More feeds in one way; none where `way` is empty. What was changed in a model does not change what it is fed."""
    return nearby(problem.whole().view, feeds, seed=seed, least=least)[way] if way else []


def chosen_near(problem: Problem, feeds: Sequence[Feed], held: Sequence[Feed]) -> str:
    """The way that does best on `held` when a third of every group goes; empty where each is seen to do harm.

    The problem must be measured on `feeds`; it is afterwards measured on those near them too, if these are used.
    """
    runner = watched(problem.dense, problem.threads)
    dense = [runner(feed) for feed in held]
    counts = [group.units // 3 for group in problem.groups]
    masks = problem.masks(counts)
    if not masks:
        return ""
    kept = problem.moments
    alone = missed(dense, locally(problem, masks), held, problem.threads)
    best: tuple[float, str, Any] | None = None
    for way, more in nearby(problem.view, feeds).items():
        problem.moments = _together((kept, len(feeds)), (problem.sums(more), len(more)))
        found = missed(dense, locally(problem, masks), held, problem.threads)
        if not found.worse(alone) and (best is None or found.total < best[0]):
            best = (found.total, way, problem.moments)
    problem.moments = kept
    if best is None:
        return ""
    problem.measured(best[2])
    return best[1]


def _together(*parts: tuple[dict[int, Any], int]) -> dict[int, Any]:
    """Moments of several lots of feeds as one, by how many there are."""
    whole = sum(count for _, count in parts)
    return {i: sum(found[i] * (count / whole) for found, count in parts) for i in parts[0][0]}


def with_near(problem: Problem, feeds: Sequence[Feed], way: str) -> list[Feed]:
    """Feeds and those near them; the feeds alone where `way` is empty."""
    return [*feeds, *near_to(problem, feeds, way)]


def mixed(one: Feed, other: Feed, rng: np.random.Generator, least: float = 0.0) -> dict[str, NDArray[Any]]:
    """A point between two feeds, the same share of each input; at least so much of the first.

    >>> out = mixed({"x": np.zeros(2, np.float32)}, {"x": np.ones(2, np.float32)}, np.random.default_rng(0))
    >>> out["x"].dtype.name, bool((out["x"] > 0).all() and (out["x"] < 1).all())
    ('float32', True)
    """
    share = rng.uniform(least, 1.0)
    return {name: np.asarray(share * a + (1 - share) * other[name]).astype(a.dtype) for name, a in one.items()}


def moved(feed: Feed, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """A feed shifted along every axis from the third on, edges repeated; every second one mirrored along the last.

    >>> out = moved({"x": np.arange(16.0).reshape(1, 1, 16)}, np.random.default_rng(1))
    >>> out["x"].shape
    (1, 1, 16)
    """
    out = {}
    for name, a in feed.items():
        a = np.asarray(a)
        for axis in range(2, a.ndim):
            size = a.shape[axis]
            shift = int(rng.integers(-(size // REACH), size // REACH + 1))
            a = np.take(a, np.clip(np.arange(size) + shift, 0, size - 1), axis)
        out[name] = np.ascontiguousarray(a[..., ::-1] if a.ndim > 2 and rng.uniform() < 0.5 else a)
    return out


def _slid(view: View, name: str) -> bool:
    """Whether convolutions slide over an input."""

    def readers(value: str) -> Iterator[tuple[str, int, str]]:
        return ((op.type, slot, op.outputs[0]) for op, slot in view.readers.get(value, ()))

    return slid(readers, name, ALIKE)
