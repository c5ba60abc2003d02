"""Least squares with few nonzero weights: arrays in, arrays out.

The loss of weights W of shape (groups, out, d) is `Σ (W − W₀) A (W − W₀)ᵀ`, summed over groups and rows: the error of
the outputs when A is the second moment of the inputs and W₀ the best dense solution. All rows of a group share A, so
every product below is one matrix product over all rows, whatever their masks.

Removing one weight and re-solving the rest of its row raises the loss by `w² / [A⁻¹]ⱼⱼ` (optimal brain surgeon: Hassibi
and Stork, NeurIPS 1992). Removing many at once is no sum of these, since they can stand in for one another. So
weights go a few at a time; after each step the others are solved again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Quadratic", "descend", "effort", "ladder", "largest", "solve"]

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]
SMALL = 48  # inputs up to which rows are solved one by one, exactly
STEPS = 24  # steps from dense to empty in which weights go
WORK = 6e11  # multiplications and additions that one way down may take
EXACT = 1e-10  # relative squared residual at which an iterative solution counts as one


@dataclass(eq=False)
class Quadratic:
    """The loss: A of shape (groups, d, d), positive definite, and its minimiser W₀ of shape (groups, out, d)."""

    a: Float
    best: Float

    @classmethod
    def ridge(cls, xx: Float, yx: Float, prior: Float, strength: float) -> Quadratic:
        """From moments: least squares of Y on X, pulled towards `prior`.

        The pull on each input is `strength` times its own second moment (and a tenth of the mean one): as if inputs had
        been seen that many more times, without what links them to each other. Inputs that are never there keep their
        prior. Where the matrix is singular to working precision even so, the strength is raised tenfold until it is
        not.
        """
        d = xx.shape[-1]
        diagonal = np.diagonal(xx, axis1=1, axis2=2)
        pull = 0.9 * diagonal + 0.1 * diagonal.mean(1, keepdims=True)
        pull = np.where(pull > 0, pull, 1.0)
        eye = np.eye(d)
        for _ in range(12):
            a = xx + strength * pull[:, :, None] * eye
            try:
                np.linalg.cholesky(a)
                solved = np.linalg.solve(a, (yx + strength * prior * pull[:, None]).swapaxes(1, 2))
            except np.linalg.LinAlgError:
                strength = max(strength * 10, 1e-8)
                continue
            return cls(a, np.asarray(solved.swapaxes(1, 2), np.float64))
        return cls(np.broadcast_to(eye, xx.shape).copy(), prior)

    def loss(self, w: Float) -> float:
        """Of weights."""
        gap = w - self.best
        return float(np.einsum("god,god->", gap @ self.a, gap))

    def rise(self) -> Float:
        """What removing a weight costs, per unit of its square: 1 / [A⁻¹]ⱼⱼ, of shape (groups, d)."""
        return 1 / np.diagonal(np.linalg.inv(self.a), axis1=1, axis2=2)


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


def solve(loss: Quadratic, mask: Mask, start: Float, *, rounds: int = 200) -> Float:
    """The weights of least loss that are zero outside the mask.

    Rows of few inputs are solved exactly; others by conjugate gradients from `start`, all rows together, until the
    residual is nothing or `rounds` are over (then they are better than `start`, and short of the best).
    """
    if loss.a.shape[-1] <= SMALL:
        return _rows(loss, mask)
    return np.stack([_gradients(a, b, m, s, rounds) for a, b, m, s in zip(loss.a, loss.best, mask, start, strict=True)])


def _rows(loss: Quadratic, mask: Mask) -> Float:
    groups, out, d = mask.shape
    target = loss.best @ loss.a
    eye = np.eye(d)
    found = np.empty((groups, out, d))
    step = max(1, (1 << 22) // max(out * d * d, 1))
    for i in range(0, groups, step):
        m = mask[i : i + step]
        both = m[..., :, None] & m[..., None, :]
        a = np.where(both, loss.a[i : i + step, None], eye)
        found[i : i + step] = np.linalg.solve(a, np.where(m, target[i : i + step], 0)[..., None])[..., 0]
    return np.where(mask, found, 0)


def _gradients(a: Float, best: Float, mask: Mask, start: Float, rounds: int) -> Float:
    w = np.where(mask, start, 0)
    diagonal = np.diagonal(a)
    residual = ((best - w) @ a) * mask
    scaled = residual / diagonal
    way = scaled.copy()
    now = np.einsum("od,od->o", residual, scaled)
    enough = EXACT * np.einsum("od,od->o", (best @ a) ** 2 / diagonal, mask.astype(np.float64))
    for _ in range(rounds):
        if (now <= enough).all():
            break
        pull = (way @ a) * mask
        bend = np.einsum("od,od->o", way, pull)
        length = np.divide(now, bend, out=np.zeros_like(now), where=bend > 0)[:, None]
        w += length * way
        residual -= length * pull
        np.divide(residual, diagonal, out=scaled)
        then = np.einsum("od,od->o", residual, scaled)
        way *= np.divide(then, now, out=np.zeros_like(now), where=now > 0)[:, None]
        way += scaled
        now = then
    return w


Choose = Callable[[Float, int], Mask]


def descend(
    loss: Quadratic, counts: Sequence[int], choose: Callable[[Float, int], Mask] = largest, *, rounds: int = 8
) -> Iterator[tuple[int, Mask, Float]]:
    """Remove weights step by step until `counts` stay, one count after the other, each smaller than the one before.

    Args:
        loss: what removing costs.
        counts: how many stay after each step.
        choose: from scores and a count to the mask that is kept; scores of what is already gone are −1.
        rounds: of conjugate gradients after each step; where rows are small they are solved exactly.

    Yields:
        count, mask and weights after each step.
    """
    rise, w = loss.rise()[:, None, :], loss.best
    mask = np.ones(w.shape, bool)
    for count in counts:
        scores = np.where(mask, w * w * rise, -1.0)
        mask = choose(scores, count)
        w = solve(loss, mask, w, rounds=rounds)
        yield count, mask, w


def effort(shape: tuple[int, int, int]) -> tuple[int, int]:
    """Into how many steps to cut the way down, and how many rounds of conjugate gradients to take after each: as many
    as help, and fewer for a layer so large that they would take minutes."""
    groups, out, d = shape
    rounds = WORK / (2.0 * groups * out * d * d)
    each = 8 if rounds >= 8 * STEPS else 4
    return int(min(STEPS, max(6, rounds // each))), each


def ladder(n: int, count: int, steps: int) -> list[int]:
    """Counts from `n` down to `count`: large steps first, small ones last (the schedule of gradual pruning)."""
    rungs = {round(n - (n - count) * (1 - (1 - i / steps) ** 3)) for i in range(1, steps + 1)}
    return sorted({max(rung, count) for rung in rungs} | {count}, reverse=True)
