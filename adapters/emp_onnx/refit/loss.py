"""The loss that a layer's weights are chosen and solved by: of many samples by their second moments, of few by
themselves.

The loss of weights W of shape (groups, out, d) is `Σ (W − W₀) A (W − W₀)ᵀ`, summed over groups and rows: the error of
the outputs when A is the second moment of the inputs and W₀ the best dense solution. Where errors of outputs are
weighed by a metric F, it is `tr F (W − W₀) A (W − W₀)ᵀ`. Where there are fewer samples than half the inputs, A is never
made: products with the samples are less work and less memory.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FACTORED", "Few", "Quadratic", "pull", "root"]

Float = NDArray[np.float64]
Single = NDArray[np.float32]
FACTORED = 256  # inputs from which a matrix is factored once for all that is asked of it
BLOCK = 64  # size of a triangle that is inverted as it is
ROWS, COLUMNS = 96, 512  # of samples that are divided at once: a copy of all would be as large as they are


@dataclass(eq=False)
class Quadratic:
    """The loss: A of shape (groups, d, d), positive definite, and its minimiser W₀ of shape (groups, out, d)."""

    a: Float
    best: Float
    block = 1 << 30  # numbers of the rows that are iterated together, where memory is short
    metric = None  # of outputs, (groups, out, out); None where each counts alike, by itself

    def weighed(self, metric: Float | Single | None) -> Quadratic:
        """The same loss with another metric."""
        made = copy(self)
        made.metric = metric  # type: ignore[assignment]
        return made

    def counted(self, gap: Any) -> Any:
        """F·G: what errors of outputs come to, (groups, out, …)."""
        return gap if self.metric is None else self.metric.astype(gap.dtype, copy=False) @ gap

    @property
    def rows(self) -> Any:
        """What an error of each output counts by itself: of shape (groups, out, 1), or 1."""
        return 1.0 if self.metric is None else np.einsum("goo->go", self.metric)[..., None]

    @classmethod
    def ridge(cls, xx: Float, yx: Float, prior: Float, strength: float) -> Quadratic:
        """From moments: least squares of Y on X, pulled towards `prior`.

        The pull on each input is `strength` times its own second moment (and a tenth of the mean one): as if inputs had
        been seen that many more times, without what links them to each other. Inputs that are never there keep their
        prior. Where the matrix is singular to working precision even so, the strength is raised tenfold until it is
        not.
        """
        apart = pull(np.diagonal(xx, axis1=1, axis2=2))
        for _ in range(12):
            a = xx.copy()
            np.einsum("gii->gi", a)[...] += strength * apart
            try:
                made = cls(a, prior)
                made.best = made._solved(yx + strength * prior * apart[:, None])
            except np.linalg.LinAlgError:
                strength = max(strength * 10, 1e-8)
                continue
            return made
        return cls(np.broadcast_to(np.eye(xx.shape[-1]), xx.shape).copy(), prior)

    @classmethod
    def around(cls, xx: Float, best: Float, strength: float) -> Quadratic:
        """With `best` as the minimiser, and each input seen `strength` times more by itself."""
        a = xx.astype(np.float64)
        np.einsum("gii->gi", a)[...] += strength * pull(np.diagonal(xx, axis1=1, axis2=2))
        return cls(a, best)

    def _solved(self, target: Float) -> Float:
        """X of X·A = target.

        Raises:
            LinAlgError: A is not positive definite.
        """
        if self.a.shape[-1] < FACTORED:
            np.linalg.cholesky(self.a)
            return np.asarray(np.linalg.solve(self.a, target.swapaxes(1, 2)).swapaxes(1, 2), np.float64)
        pairs = zip(self._roots, target, strict=True)
        return np.stack([(t @ one.T) @ one for one, t in pairs])

    @cached_property
    def _roots(self) -> list[Float]:
        """Of each group the inverse R of the lower Cholesky factor: A⁻¹ = RᵀR."""
        return [root(a.copy()) for a in self.a]

    @cached_property
    def target(self) -> Float:
        """W₀·A."""
        return np.asarray(self.whole(self.best), np.float64)

    @cached_property
    def wanted(self) -> Single:
        """W₀·A in single precision."""
        return self.target.astype(np.float32)

    def beside(self, fixed: Float) -> Quadratic:
        """The loss of the rest of the weights where some are fixed: zero where the rest is free, and beside it zero."""
        made = copy(self)
        made.target = self.target - self.whole(np.asarray(fixed, np.float64))
        made.wanted = made.target.astype(np.float32)
        return made

    @cached_property
    def _single(self) -> Single:
        return self.a.astype(np.float32)

    @cached_property
    def diagonal(self) -> Float:
        """Of A, (groups, d)."""
        return np.diagonal(self.a, axis1=1, axis2=2)

    def times(self, w: Any, group: int) -> Any:
        """W·A of some rows of a group, (rows, d), in single precision where these are."""
        return w @ (self._single if w.dtype == np.float32 else self.a)[group]

    def whole(self, w: Any) -> Any:
        """W·A, (groups, out, d), in single precision where W is."""
        return np.asarray(w @ (self._single if w.dtype == np.float32 else self.a))

    def loss(self, w: Float) -> float:
        """Of weights."""
        gap = (w - self.best).astype(w.dtype, copy=False)
        return float(np.einsum("god,god->go", self.counted(self.whole(gap)), gap).sum(dtype=np.float64))

    @cached_property
    def rise(self) -> Float:
        """What removing a weight costs, per unit of its square: 1 / [A⁻¹]ⱼⱼ, of shape (groups, d)."""
        if self.a.shape[-1] < FACTORED:
            return 1 / np.diagonal(np.linalg.inv(self.a), axis1=1, axis2=2)
        return np.stack([1 / np.einsum("ij,ij->j", one, one) for one in self._roots])

    def worth(self, lean: float) -> Float:
        """What a weight is worth per unit of its square, of shape (groups, d): `rise`, leaning towards Aⱼⱼ."""
        found: Float = self.diagonal if lean == 1 else self.rise ** (1 - lean) * self.diagonal**lean
        return found


class Few(Quadratic):
    """The same from few samples of one group: A = XᵀX + diag(weight), X of shape (n, d), n well below d."""

    def __init__(self, x: Float, weight: Float, best: Float) -> None:
        self.x, self.weight, self.best = x, weight, best

    @classmethod
    def fit(cls, x: Float, y: Float, prior: Float, strength: float) -> Few:
        """Least squares of Y (n, out) on X, both already divided by √n, pulled as `Quadratic.ridge` does; strength > 0.

        By the matrix inversion lemma only an n × n matrix is factored: with P the pull times its strength and W₀ the
        prior, `W = W₀ + (Y − X·W₀ᵀ)ᵀ (1 + X P⁻¹ Xᵀ)⁻¹ X P⁻¹`.
        """
        apart = pull(np.einsum("nd,nd->d", x, x)[None])[0]
        made = cls(x, strength * apart, prior)
        gap = (y - x @ prior[0].T).T
        found, share = np.empty(prior.shape[1:]), np.linalg.solve(made._inner, gap.T).T
        for i in range(0, x.shape[1], COLUMNS):
            some = np.s_[:, i : i + COLUMNS]
            np.matmul(share, x[some] / made.weight[some[1]], out=found[some])
        made.best = prior + found[None]
        return made

    @classmethod
    def around(cls, x: Float, best: Float, strength: float) -> Few:
        """See `Quadratic.around`."""
        return cls(x, strength * pull(np.einsum("nd,nd->d", x, x)[None])[0], best)

    @cached_property
    def _inner(self) -> Float:
        """1 + X diag(weight)⁻¹ Xᵀ."""
        found = np.eye(len(self.x))
        for i in range(0, len(found), ROWS):
            found[i : i + ROWS] += (self.x[i : i + ROWS] / self.weight) @ self.x.T
        return found

    @cached_property
    def a(self) -> Float:  # type: ignore[override]
        """A itself, for those who cannot do without."""
        return (self.x.T @ self.x + np.diag(self.weight))[None]

    @cached_property
    def _halves(self) -> tuple[Single, Single]:
        return self.x.astype(np.float32), self.weight.astype(np.float32)

    @cached_property
    def diagonal(self) -> Float:
        """Of A, (1, d)."""
        found: Float = (np.einsum("nd,nd->d", self.x, self.x) + self.weight)[None]
        return found

    def times(self, w: Any, group: int) -> Any:
        """W·A of some rows."""
        return self.whole(w)

    def whole(self, w: Any) -> Any:
        """W·A."""
        x, weight = self._halves if w.dtype == np.float32 else (self.x, self.weight)
        return (w @ x.T) @ x + w * weight

    @cached_property
    def rise(self) -> Float:
        """1 / [A⁻¹]ⱼⱼ, by the matrix inversion lemma."""
        lower = np.linalg.cholesky(self._inner)
        part = np.linalg.solve(lower, self.x / self.weight)
        found: Float = 1 / (1 / self.weight - np.einsum("nd,nd->d", part, part))[None]
        return found


def pull(diagonal: Float) -> Float:
    """How strongly each input is held where it was: its own second moment, and a tenth of the mean one."""
    found = 0.9 * diagonal + 0.1 * diagonal.mean(1, keepdims=True)
    return np.where(found > 0, found, 1.0)


def root(a: Any) -> Any:
    """The inverse R of the lower Cholesky factor of a matrix, A⁻¹ = RᵀR, in place of it: by halves, so that nearly all
    of it is matrix products.

    Raises:
        LinAlgError: it is not positive definite.

    >>> root(np.array([[4.0, 2.0], [2.0, 17.0]])).tolist()
    [[0.5, 0.0], [-0.125, 0.25]]
    """
    d = len(a)
    if d <= BLOCK:
        a[...] = np.tril(np.linalg.inv(np.linalg.cholesky(a)))
        return a
    half = d // 2
    first = root(a[:half, :half])
    below = a[half:, :half] @ first.T
    a[half:, half:] -= below @ below.T
    last = root(a[half:, half:])
    np.matmul(last, below @ first, out=below)
    a[half:, :half] = -below
    a[:half, half:] = 0
    return a
