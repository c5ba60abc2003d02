"""The refit itself: layer after layer, from the inputs to the outputs.

Each layer is fitted to what the dense network wanted of it, with the inputs that the pruned network gives it: so it
also makes good what the layers before it got wrong. A recurrent cell is fitted twice, the second time with the hidden
states that it has itself after the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_core.criteria import gradient
from emp_onnx.calibration.maps import Problem, Site
from emp_onnx.calibration.network import Network
from emp_onnx.calibration.own import Found, merge
from emp_onnx.calibration.taking import Totals
from emp_onnx.progress import Watch
from emp_onnx.refit.curves import RIDGES, TRIED, Curve, quadratic, stand_ins
from emp_onnx.refit.grid import Grid, onto
from emp_onnx.refit.loss import Quadratic
from emp_onnx.refit.solve import LAST, descend, effort, exchange, fair, ladder, largest, leaning, solve

__all__ = ["Fitted", "fit"]

Array = NDArray[Any]
Float = NDArray[np.float64]
Single = NDArray[np.float32]
Mask = NDArray[np.bool_]


STEPS, ROUNDS, LASTLY = 3, 2, 5  # with little effort: steps, rounds after each, and after the last
PART = 0.5  # of the mean density that each of several weights of one map keeps at least (a cell's inputs, its memory)
MANY = 8  # samples for each input from which it hardly matters how strong the ridge is
TRIAL = 6  # rounds after which solutions with different ridges are compared


@dataclass
class Fitted:
    """New values of tensors, by key, the masks of weights that were refitted, and how many samples a layer had."""

    changed: dict[str, Array] = field(default_factory=dict)
    masks: dict[str, Mask] = field(default_factory=dict)
    few: list[tuple[str, int, int]] = field(default_factory=list)


def fit(
    network: Network, curves: Sequence[Curve], keep: Sequence[int], *,
    criterion: str = "obs", update: bool = True, start: Mapping[str, Array] | None = None, watch: Watch | None = None,
    gradients: Mapping[str, Array] | None = None, known: Mapping[int, Found] | None = None,
    quick: bool = False, metrics: Mapping[int, Single] | None = None,
) -> Fitted:  # fmt: skip
    """Choose and solve every layer in turn.

    Args:
        network: the model.
        curves: its layers, with the ridge of each.
        keep: how many weights each keeps.
        criterion: `obs` (in steps, each followed by a new solution), or once by `magnitude`, `wanda`, or block by block
            as `sparsegpt` does, or by |w·g| as `gradient`.
        update: whether kept weights and biases are solved again.
        start: tensors changed before.
        watch: told how many bytes of weights are done.
        gradients: by key of weight.
        known: moments by the id of their problem: then the network is not run, and each layer is solved by itself.
        quick: with little effort.
        metrics: how much errors of outputs count, by the id of their problem (see `fisher.metric`), for `obs`.
    """
    done = Fitted(dict(start or {}))
    counts = {id(curve.problem): (k, curve.ridge) for curve, k in zip(curves, keep, strict=True)}
    runs = [] if known is not None else [network.runner(), network.runner(done.changed)]
    seen = set[str]()
    for level in range(network.levels):
        for run in runs:
            run.level(level, network.wanted(level))
        shared: dict[object, list[Totals]] = {}
        for site in network.at(level + 1):
            mine = [problem for problem in site.problems if id(problem) in counts]
            if not mine or seen & set(site.keys):
                continue
            for again in range(2 if site.again and update and known is None else 1):
                sums: list[list[Found]]
                if known is not None:
                    sums = [[known[id(p)]] if id(p) in known else [] for p in site.problems]
                else:
                    dense, thin = runs
                    sums = network.moments(site, dense, thin, done.changed, part=network.half, parts=2, shared=shared)
                new = dict(done.changed)
                for problem, parts in zip(site.problems, sums, strict=True):
                    found = [part for part in parts if part.count]
                    if id(problem) in counts and found:
                        g = None if gradients is None else network.matrix(problem, gradients)
                        seen.update(key for key, _ in problem.parts)
                        asked = counts[id(problem)]
                        f = (metrics or {}).get(id(problem))
                        _one(network, site, problem, found, asked, criterion, update, new, done, again, g, quick, f)
                done.changed.update(new)
            if watch is not None:
                watch.add(sum(problem.size * 4 for problem in mine))
    return done


def _one(
    network: Network, site: Site, problem: Problem, parts: Sequence[Found], asked: tuple[int, float],
    criterion: str, update: bool,
    new: dict[str, Array], done: Fitted, again: int, gradients: Float | None, quick: bool, metric: Single | None,
) -> None:  # fmt: skip
    count, ridge = asked
    n, d = int(np.prod(problem.shape)), problem.shape[2]
    sums, count = parts[0] if len(parts) == 1 else merge(parts[0], parts[1]), min(count, n)
    if update and sums.count < MANY * d and len(parts) > 1:
        ridge = _tuned(problem, network.matrix(problem), parts, count)
    loss = quadratic(problem, network.matrix(problem), sums, ridge)
    if criterion == "obs" and update:
        loss = loss.weighed(metric)
        mask, w = np.ones(loss.best.shape, bool), loss.best
        if count < n:
            mask, w = _removed(loss, n, count, problem, leaning(d, sums.count), quick)
    else:
        w0 = network.matrix(problem)
        if criterion == "gradient" and gradients is not None:
            mask = largest(gradient(w0, gradients), count)
        else:
            mask = _choose(criterion, Quadratic(loss.a, w0), w0, count)
        w = solve(loss, mask, w0, rounds=100) if update else w0 * mask
    grid = network.grid(problem) if update else None
    if grid is not None:
        w = onto(loss, mask, w, Grid(*grid))
    shift = None
    if update and problem.bias is not None:
        x, y = sums.x / sums.count, sums.y / sums.count
        shift = y - (w @ x[..., None])[..., 0]
    new.update(network.changed_by(problem, w, shift, new))
    start = 0
    for key, places in problem.parts:
        kept = done.masks.setdefault(key, np.ones(network.model.tensors[key].shape, bool))
        places.put(kept.reshape(-1), mask[..., start : start + places.shape[2]])
        _zero(network, new, key, kept)
        start += places.shape[2]
    own = sums.count * (len(network.feeds) - network.copied) // max(len(network.feeds), 1)
    if own < d and not again:
        done.few.append((site.keys[0], own, d))


def _removed(loss: Quadratic, n: int, count: int, problem: Problem, lean: float, quick: bool) -> tuple[Mask, Float]:
    """What stays of a problem's n weights, and its values."""
    choose = fair([places.shape[2] for _, places in problem.parts], PART)
    if quick:  # what others can make good for is not asked: to invert a matrix takes longer than all steps
        *_, (_, mask, w) = descend(loss, ladder(n, count, STEPS), choose, rounds=ROUNDS, last=LASTLY, lean=1)
        return mask, w
    steps, sweeps, rounds = effort(problem.shape, together=loss.metric is not None)
    *_, (_, mask, w) = descend(loss, ladder(n, count, steps), choose, rounds=rounds, lean=lean)
    mask, w = exchange(loss, mask, w, choose, sweeps=sweeps, rounds=rounds, lean=lean)
    return mask, solve(loss, mask, w, rounds=LAST)


def _tuned(problem: Problem, w0: Float, halves: Sequence[Found], count: int) -> float:
    """The ridge with which one half of the feeds foretells best what the dense network wants on the other half, as some
    outputs tell.

    It is looked for again here, since what the layers before got wrong is noise that the dense network did not have.
    """
    some = stand_ins(w0.shape[1], TRIED)
    count = max(1, count * some.size // w0.shape[1])
    w0, fit, test = w0[:, some], halves[0].rows(some), halves[1].rows(some)
    least, best = np.inf, RIDGES[0]
    mask: Mask | None = None
    for ridge in RIDGES:
        loss = quadratic(problem, w0, fit, ridge)
        if mask is None:
            mask = largest(w0 * w0 * loss.diagonal[:, None], count)
        miss = test.miss(solve(loss, mask, loss.best, rounds=TRIAL), problem.bias is not None)
        if miss >= least:
            break
        least, best = miss, ridge
    return best


def _zero(network: Network, new: dict[str, Array], key: str, kept: Mask) -> None:
    """Removed is +0.0, or the zero point, whatever arithmetic made of it."""
    new[key] = network.filled(key, new[key], kept)


def _choose(criterion: str, loss: Quadratic, w: Float, count: int) -> Mask:
    if criterion == "magnitude":
        return largest(np.abs(w), count)
    if criterion == "wanda":
        return largest(np.abs(w) * np.sqrt(loss.diagonal)[:, None], count)
    if criterion == "sparsegpt":
        return _by_blocks(loss, count)
    return largest(w * w * loss.rise[:, None], count)


def _by_blocks(loss: Quadratic, count: int, width: int = 128) -> Mask:
    """SparseGPT's masks (Frantar and Alistarh, arXiv 2301.00774): blocks of inputs from the first to the last, each
    pruned to the same density by w²/[H⁻¹]ⱼⱼ of what lies ahead, its error passed on to these."""
    groups, out, d = loss.best.shape
    w, mask = loss.best.copy(), np.ones(loss.best.shape, bool)
    root = np.linalg.cholesky(np.linalg.inv(loss.a)).swapaxes(1, 2)
    done = 0
    for start in range(0, d, width):
        stop = min(d, start + width)
        along = np.diagonal(root, axis1=1, axis2=2)[:, None, start:stop]
        here = round(count * stop / d) - done
        done += here
        mask[..., start:stop] = largest((w[..., start:stop] / along) ** 2, here)
        errors = np.zeros((groups, out, stop - start))
        for j in range(start, stop):
            errors[..., j - start] = np.where(mask[..., j], 0, w[..., j]) / root[:, None, j, j]
            w[..., j:stop] -= errors[..., j - start, None] * root[:, None, j, j:stop]
        w[..., stop:] -= errors @ root[:, start:stop, stop:]
    return mask
