"""Least squares with few nonzero weights: arrays in, arrays out.

All rows of a group share the matrix A of the loss (see `loss.py`), so every product below is one matrix product over
all rows, whatever their masks.

Removing one weight and re-solving the rest of its row raises the loss by `w² / [A⁻¹]ⱼⱼ` (optimal brain surgeon: Hassibi
and Stork, NeurIPS 1992), if all the others can make good for it. The more of them are gone, and the fewer samples A was
seen on, the less they can; where none can, it costs `w²·Aⱼⱼ`. So the two are mixed, as `lean` says.

Removing many at once is no sum of these either, since they can stand in for one another. So weights go a few at a
time; after each step the others are solved again. In the end some of those that went come back for some that stayed,
as long as that helps.

Where errors of outputs are weighed by a metric, rows make up for one another, and are solved all together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.refit.loss import Quadratic

__all__ = ["LAST", "LEAN", "descend", "effort", "exchange", "fair", "ladder", "largest", "leaning", "solve"]

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]
SMALL = 48  # inputs up to which rows are solved one by one, exactly
STEPS, ROUNDS = 16, 4  # steps from dense to empty in which weights go, and rounds of conjugate gradients after each
MORE = 12  # rounds where rows are solved all together, which takes more of them
LEAN = 0.5  # 0: a removed weight costs what it does where all others make good for it; 1: where none does
LAST = 60  # rounds at the end, when the mask is chosen
SWEEPS, SHARE = 3, 0.03  # of exchange: how many, and the share of the weights that come back in the first of them
WORK = 6e11  # multiplications and additions that one way down may take
BLOCK = 1 << 20  # numbers of the rows that are iterated together at most
NEAR = 1e-8  # relative squared residual at which an iterative solution, in single precision, counts as one


def largest(scores: Float, count: int) -> Mask:
    """The mask of the `count` largest; of equal ones the first stay."""
    flat = scores.reshape(-1)
    out = np.zeros(flat.size, bool)
    if count >= flat.size:
        out[:] = True
    elif count > 0:
        edge = np.partition(flat, flat.size - count)[flat.size - count]
        np.greater(flat, edge, out=out)
        same = np.flatnonzero(flat == edge)
        out[same[: count - int(np.count_nonzero(out))]] = True
    return out.reshape(scores.shape)


def fair(widths: Sequence[int], floor: float) -> Callable[[Float, int], Mask]:
    """`largest`, where each of several parts along the inputs keeps at least `floor` of the mean density."""
    if len(widths) == 1:
        return largest

    def choose(scores: Float, count: int) -> Mask:
        scores, start = scores.copy(), 0
        for width in widths:
            part = scores[..., start : start + width]
            least = int(floor * count * part.size / scores.size)
            part[largest(part, least) & (part >= 0)] = np.inf
            start += width
        return largest(scores, count)

    return choose


def solve(loss: Quadratic, mask: Mask, start: Float, *, rounds: int = 200) -> Float:
    """The weights of least loss that are zero outside the mask.

    Rows of few inputs are solved exactly; others by conjugate gradients from `start`, all rows together, until the
    residual is nothing or `rounds` are over (then they are better than `start`, and short of the best).
    """
    if loss.metric is not None and loss.best.shape[1] > 1:
        return _together(loss, mask, start, rounds)
    if loss.best.shape[-1] <= SMALL:
        return _rows(loss, mask)
    groups, out, d = mask.shape
    found: Any = np.empty(mask.shape, np.float32)
    block = min(BLOCK, loss.block)
    step = max(1, block // d) if out * d > block else out
    for g in range(groups):
        for i in range(0, out, step):
            some = np.s_[g, i : i + step]
            first = start[some].astype(found.dtype, copy=False)
            found[some] = _gradients(loss, g, loss.wanted[some], first, mask[some], rounds)
    return np.asarray(found)


def _rows(loss: Quadratic, mask: Mask) -> Float:
    groups, out, d = mask.shape
    target = loss.target
    eye = np.eye(d)
    found = np.empty((groups, out, d))
    step = max(1, (1 << 22) // max(out * d * d, 1))
    for i in range(0, groups, step):
        m = mask[i : i + step]
        both = m[..., :, None] & m[..., None, :]
        a = np.where(both, loss.a[i : i + step, None], eye)
        found[i : i + step] = np.linalg.solve(a, np.where(m, target[i : i + step], 0)[..., None])[..., 0]
    return np.where(mask, found, 0)


def _gradients(loss: Quadratic, group: int, target: Any, start: Any, mask: Mask, rounds: int) -> Any:
    w = start * mask
    diagonal, mask = loss.diagonal[group].astype(w.dtype), mask.astype(w.dtype)
    residual = loss.times(w, group)
    np.subtract(target, residual, out=residual)
    residual *= mask
    scaled = residual / diagonal
    way = scaled.copy()
    now = np.einsum("od,od->o", residual, scaled)
    enough = NEAR * np.einsum("od,od->o", target * target / diagonal, mask)
    for _ in range(rounds):
        if (now <= enough).all():
            break
        pull = loss.times(way, group)
        pull *= mask
        bend = np.einsum("od,od->o", way, pull)
        length = np.divide(now, bend, out=np.zeros_like(now), where=bend > 0)[:, None]
        np.multiply(length, way, out=scaled)
        w += scaled
        pull *= length
        residual -= pull
        np.divide(residual, diagonal, out=scaled)
        then = np.einsum("od,od->o", residual, scaled)
        way *= np.divide(then, now, out=np.zeros_like(now), where=now > 0)[:, None]
        way += scaled
        now = then
    return w


def _together(loss: Quadratic, mask: Mask, start: Float, rounds: int) -> Float:
    """Conjugate gradients for all rows of a group at once."""
    found: Any = np.empty(mask.shape, np.float32)
    for g in range(len(mask)):
        metric, kept = loss.metric[g].astype(np.float32, copy=False), mask[g].astype(np.float32)  # type: ignore[index]
        diagonal = (np.diagonal(metric)[:, None] * loss.diagonal[g]).astype(np.float32)
        w = start[g].astype(np.float32) * kept
        residual = metric @ (loss.wanted[g] - loss.times(w, g)) * kept
        way = residual / diagonal
        now = float(np.vdot(residual, way))
        target = metric @ loss.wanted[g] * kept
        enough = NEAR * float(np.vdot(target, target / diagonal))
        for _ in range(rounds):
            if now <= enough:
                break
            pull = metric @ loss.times(way, g)
            pull *= kept
            bend = float(np.vdot(way, pull))
            if bend <= 0:  # nothing is left but rounding
                break
            length = np.float32(now / bend)
            w += length * way
            residual -= length * pull
            np.divide(residual, diagonal, out=pull)
            then = float(np.vdot(residual, pull))
            way *= np.float32(then / now)
            way += pull
            now = then
        found[g] = w
    return np.asarray(found)


Choose = Callable[[Float, int], Mask]


def descend(
    loss: Quadratic, counts: Sequence[int], choose: Callable[[Float, int], Mask] = largest, *,
    rounds: int = ROUNDS, last: int | None = None, lean: float = LEAN,
) -> Iterator[tuple[int, Mask, Float]]:  # fmt: skip
    """Remove weights step by step until `counts` stay, one count after the other, each smaller than the one before.

    Args:
        loss: what removing costs.
        counts: how many stay after each step.
        choose: from scores and a count to the mask that is kept; scores of what is already gone are −1.
        rounds: of conjugate gradients after each step; where rows are small they are solved exactly.
        last: rounds after the last step, if not as many.
        lean: see `Quadratic.worth`.

    Yields:
        count, mask and weights after each step.
    """
    w, mask = loss.best, np.ones(loss.best.shape, bool)
    worth = loss.worth(lean)[:, None, :] * loss.rows
    for i, count in enumerate(counts, 1):
        scores = w * w
        scores *= worth.astype(w.dtype, copy=False)
        scores[~mask] = -1
        mask = choose(scores, count)
        del scores
        w = solve(loss, mask, w, rounds=rounds if last is None or i < len(counts) else last)
        yield count, mask, w


def exchange(
    loss: Quadratic, mask: Mask, w: Float, choose: Callable[[Float, int], Mask] = largest, *,
    sweeps: int = SWEEPS, rounds: int = ROUNDS, lean: float = LEAN,
) -> tuple[Mask, Float]:  # fmt: skip
    """Let some weights that were removed come back, and as many others go: as many stay as before.

    Those come back that would lower the loss most by themselves, `g² / worth` with the gradient g; then those go that
    are worth least. Fewer with each sweep; the best that was seen is returned, so nothing gets worse.
    """
    if not sweeps:
        return mask, w
    count, worth = int(np.count_nonzero(mask)), (loss.worth(lean)[:, None, :] * loss.rows).astype(w.dtype)
    most = SHARE * 2 * min(count, mask.size - count)
    best = loss.loss(w), mask, w
    for i in range(sweeps):
        back = int(most * (sweeps - i) / sweeps)
        if not back:
            break
        pull = loss.counted((loss.wanted if w.dtype == loss.wanted.dtype else loss.target) - loss.whole(w))
        pull *= pull
        pull /= worth
        pull[mask] = -1
        more = mask | largest(pull, back)
        w = solve(loss, more, w, rounds=rounds)
        scores = w * w
        scores *= worth
        scores[~more] = -1
        mask = choose(scores, count)
        w = solve(loss, mask, w, rounds=rounds)
        now = loss.loss(w)
        if now < best[0]:
            best = now, mask, w
    return best[1], best[2]


def leaning(inputs: int, samples: int) -> float:
    """How far a weight's worth leans towards what it costs where no other makes good for it: the fewer samples were
    seen for each input, the less it counts how the inputs hung together in them.

    >>> leaning(100, 100), leaning(100, 9900)
    (0.5, 0.01)
    """
    return inputs / (inputs + samples)


def effort(shape: tuple[int, int, int], *, together: bool = False) -> tuple[int, int, int]:
    """Into how many steps to cut the way down, how many sweeps of exchange to follow, and how many rounds to solve for
    after each: as many as help, and fewer for a layer so large that they would take minutes.

    Args:
        shape: of its weights.
        together: whether rows are solved all together, under a metric.
    """
    groups, out, d = shape
    most = WORK / (2.0 * groups * out * d * (d + out * together))
    rounds = int(min(MORE, max(ROUNDS, most // STEPS))) if together else ROUNDS
    return int(min(STEPS, max(6, most // rounds))), int(min(SWEEPS, most // (4 * rounds))), rounds


def ladder(n: int, count: int, steps: int) -> list[int]:
    """Counts from `n` down to `count`: large steps first, small ones last (the schedule of gradual pruning)."""
    rungs = {round(n - (n - count) * (1 - (1 - i / steps) ** 3)) for i in range(1, steps + 1)}
    return sorted({max(rung, count) for rung in rungs} | {count}, reverse=True)
