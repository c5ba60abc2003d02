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
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Quadratic", "descend", "effort", "ladder", "largest", "polish", "solve"]

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]
SMALL = 48  # inputs up to which rows are solved one by one, exactly
STEPS = 24  # steps from dense to empty in which weights go
WORK = 6e11  # multiplications and additions that one way down may take
EXACT = 1e-10  # relative squared residual at which an iterative solution counts as one
FACTORED = 256  # inputs from which a matrix is factored once for all that is asked of it
SINGLE = 1 << 28  # multiplications of one product from which iterations are in single precision
NEAR = 1e-8  # and their residual that is near enough, far above that precision
BLOCK = 1 << 20  # numbers of the rows that are iterated together


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
        diagonal = np.diagonal(xx, axis1=1, axis2=2)
        pull = 0.9 * diagonal + 0.1 * diagonal.mean(1, keepdims=True)
        pull = np.where(pull > 0, pull, 1.0)
        for _ in range(12):
            a = xx.copy()
            np.einsum("gii->gi", a)[...] += strength * pull
            try:
                made = cls(a, prior)
                made.best = made._solved(yx + strength * prior * pull[:, None])
            except np.linalg.LinAlgError:
                strength = max(strength * 10, 1e-8)
                continue
            return made
        return cls(np.broadcast_to(np.eye(xx.shape[-1]), xx.shape).copy(), prior)

    def _solved(self, target: Float) -> Float:
        """X of X·A = target.

        Raises:
            LinAlgError: A is not positive definite.
        """
        if self.a.shape[-1] < FACTORED:
            np.linalg.cholesky(self.a)
            return np.asarray(np.linalg.solve(self.a, target.swapaxes(1, 2)).swapaxes(1, 2), np.float64)
        from scipy.linalg import cho_solve

        pairs = zip(self._factors, target, strict=True)
        return np.stack([cho_solve((factor, True), t.T, check_finite=False).T for factor, t in pairs])

    @cached_property
    def _factors(self) -> list[Float]:
        """The lower Cholesky factor of each group."""
        from scipy.linalg import cholesky

        return [cholesky(a, lower=True, check_finite=False) for a in self.a]

    @cached_property
    def target(self) -> Float:
        """W₀·A."""
        return self.best @ self.a

    @cached_property
    def single(self) -> NDArray[np.float32]:
        """A in single precision."""
        return self.a.astype(np.float32)

    def loss(self, w: Float) -> float:
        """Of weights."""
        gap = w - self.best
        return float(np.einsum("god,god->", gap @ self.a, gap))

    @cached_property
    def rise(self) -> Float:
        """What removing a weight costs, per unit of its square: 1 / [A⁻¹]ⱼⱼ, of shape (groups, d)."""
        if self.a.shape[-1] < FACTORED:
            return 1 / np.diagonal(np.linalg.inv(self.a), axis1=1, axis2=2)
        from scipy.linalg.lapack import dtrtri

        inverses = (dtrtri(factor, lower=1)[0] for factor in self._factors)
        return np.stack([1 / np.einsum("ij,ij->j", inverse, inverse) for inverse in inverses])


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
    groups, out, d = mask.shape
    single = out * d * d >= SINGLE
    found = np.empty(mask.shape, np.float32 if single else np.float64)
    step = max(1, BLOCK // d) if out * d > BLOCK else out
    for g in range(groups):
        a = loss.single[g] if single else loss.a[g]
        for i in range(0, out, step):
            some = np.s_[g, i : i + step]
            target, first = (part[some].astype(found.dtype, copy=False) for part in (loss.target, start))
            found[some] = _gradients(a, target, first, mask[some], rounds)
    return found


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


def _gradients(a: Any, target: Any, start: Any, mask: Mask, rounds: int) -> Any:
    w = np.where(mask, start, a.dtype.type(0))
    diagonal = np.diagonal(a)
    residual = (target - w @ a) * mask
    scaled = residual / diagonal
    way = scaled.copy()
    now = np.einsum("od,od->o", residual, scaled)
    near = EXACT if a.dtype == np.float64 else NEAR
    enough = near * np.einsum("od,od->o", target * target / diagonal, mask.astype(a.dtype))
    for _ in range(rounds):
        if (now <= enough).all():
            break
        pull = way @ a
        pull *= mask
        bend = np.einsum("od,od->o", way, pull)
        length = np.divide(now, bend, out=np.zeros_like(now), where=bend > 0)[:, None]
        w += length * way
        pull *= length
        residual -= pull
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
    w, mask = loss.best, np.ones(loss.best.shape, bool)
    for count in counts:
        scores = w * w
        scores *= loss.rise[:, None, :].astype(w.dtype, copy=False)
        scores[~mask] = -1
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


def polish(shape: tuple[int, int, int]) -> int:
    """How many rounds to take at the end, when the mask is chosen."""
    groups, out, d = shape
    return int(min(60, max(20, WORK / (2.0 * groups * out * d * d))))


def ladder(n: int, count: int, steps: int) -> list[int]:
    """Counts from `n` down to `count`: large steps first, small ones last (the schedule of gradual pruning)."""
    rungs = {round(n - (n - count) * (1 - (1 - i / steps) ** 3)) for i in range(1, steps + 1)}
    return sorted({max(rung, count) for rung in rungs} | {count}, reverse=True)
