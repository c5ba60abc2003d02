"""Which scores compete for one budget.

A scope lays scores out as pools. The strings "whole", "rows", "columns" and "model" stand for ``Whole()``, ``Rows()``,
``Columns()`` and ``Model()``; scopes with a parameter are given as objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._errors import ArgumentError
from ._joined import ModelPools
from ._namespace import HOST, Given, as_mask, given, to_host
from ._pools import DevicePools, HostPools, Pools, normal_axes, pools_along
from ._scattered import LabelPools


class Laid(NamedTuple):
    """Scores laid out as pools: figures have shape ``outer``; ``restore`` brings a mask back to the scores' shape."""

    source: Given
    pools: Pools
    outer: tuple[int, ...]
    restore: Callable[[Any], Any]


@dataclass(frozen=True)
class Scope:
    """Base of all scopes."""

    def lay(self, scores: Any, where: Any, threads: int | None) -> Laid:
        """Lay ``scores`` out as pools."""
        raise NotImplementedError

    def within(self, ndim: int) -> tuple[int, ...] | None:
        """The axes that lie within a pool, where the scope is that simple; an ArgumentError elsewhere."""
        raise ArgumentError(f"scope must be whole, rows or columns under jax.jit, got {self}")

    def limit(self, n: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Keep counts that the scope itself fixes; None where the rule decides."""
        return None


@dataclass(frozen=True)
class Whole(Scope):
    """All scores of the array are one pool."""

    def lay(self, scores: Any, where: Any, threads: int | None) -> Laid:
        """Lay ``scores`` out as one pool."""
        source, pools, outer, _, restore = pools_along(scores, None, where, threads=threads)
        return Laid(source, pools, outer, restore)

    def within(self, ndim: int) -> tuple[int, ...] | None:
        """All axes."""
        return None


@dataclass(frozen=True)
class Rows(Scope):
    """For each index along ``axis`` (an axis or several), all scores with that index are one pool."""

    axis: int | tuple[int, ...] = 0

    def lay(self, scores: Any, where: Any, threads: int | None) -> Laid:
        """Lay ``scores`` out, one pool per index."""
        source = given(scores)
        if not source.shape:
            raise ArgumentError("scope rows and columns need scores with at least one axis, got a single number")
        source, pools, outer, _, restore = pools_along(source, self.within(len(source.shape)), where, threads=threads)
        return Laid(source, pools, outer, restore)

    def within(self, ndim: int) -> tuple[int, ...]:
        """All axes but ``axis``."""
        outside = normal_axes(self.axis, ndim)
        return tuple(d for d in range(ndim) if d not in outside)


@dataclass(frozen=True)
class Columns(Rows):
    """For each index along the last axis, all scores with that index are one pool."""

    axis: int | tuple[int, ...] = -1


@dataclass(frozen=True)
class Blocks(Scope):
    """Rectangles of this shape over the last axes are one pool each; those at a ragged border are smaller."""

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        sides = self.shape if isinstance(self.shape, (tuple, list)) else ()
        if not sides or any(isinstance(b, bool) or not isinstance(b, Integral) or b < 1 for b in sides):
            raise ArgumentError(f"shape of Blocks must be a tuple of integers ≥ 1, got {self.shape}")
        object.__setattr__(self, "shape", tuple(int(b) for b in sides))

    def lay(self, scores: Any, where: Any, threads: int | None) -> Laid:
        """Lay ``scores`` out, one pool per block; figures have one value per block."""
        source = given(scores)
        shape, blocks = source.shape, self.shape
        if len(blocks) > len(shape):
            raise ArgumentError(f"shape of Blocks must have at most {len(shape)} axes as the scores do, got {blocks}")
        lead = shape[: len(shape) - len(blocks)]
        tail = shape[len(lead) :]
        counts = tuple(-(-d // b) for d, b in zip(tail, blocks, strict=True))
        missing = tuple(c * b - d for c, b, d in zip(counts, blocks, tail, strict=True))
        inside = None if where is None else as_mask(where, "where")
        xp: Any = HOST if source.host is not None else source.xp
        array = source.host if source.host is not None else source.array
        mask = None
        if inside is not None:
            raw = inside.host if inside.host is not None else inside.array
            mask = xp.broadcast_to(to_host(raw) if source.host is not None else raw, shape)
        elif any(missing):
            mask = xp.ones(shape, dtype=xp.bool) if source.host is not None else xp.ones_like(array, dtype=xp.bool)
        split = [d for pair in zip(counts, blocks, strict=True) for d in pair]
        m = len(lead)
        order = (*range(m), *range(m, m + len(split), 2), *range(m + 1, m + len(split), 2))
        inverse = tuple(int(i) for i in np.argsort(order))
        rows, length = math.prod(lead) * math.prod(counts), math.prod(blocks)

        def arrange(a: Any) -> Any:
            for d, extra in enumerate(missing):
                if extra:
                    pad = list(a.shape)
                    pad[m + d] = extra
                    zeros = (
                        np.zeros(pad, a.dtype)
                        if source.host is not None
                        else xp.zeros(tuple(pad), dtype=a.dtype, device=a.device)
                    )
                    a = xp.concat([a, zeros], axis=m + d)
            return xp.reshape(xp.permute_dims(xp.reshape(a, (*lead, *split)), order), (rows, length))

        def name(i: int) -> str:
            return f"block {tuple(int(x) for x in np.unravel_index(i, (*lead, *counts)))} of scores"

        def restore(a: Any) -> Any:
            arranged = [(*lead, *split)[i] for i in order]
            a = xp.reshape(
                xp.permute_dims(xp.reshape(a, tuple(arranged)), inverse),
                (*lead, *(c * b for c, b in zip(counts, blocks, strict=True))),
            )
            return a[tuple(slice(0, d) for d in shape)]

        matrix, chosen = arrange(array), None if mask is None else arrange(mask)
        pools: Pools = (
            HostPools(matrix, chosen, name, threads)
            if source.host is not None
            else DevicePools(source, matrix, chosen, name)
        )
        return Laid(source, pools, (*lead, *counts), restore)


@dataclass(frozen=True)
class Groups(Scope):
    """Each ``m`` scores in a row of the last axis are one pool; with ``keep``, exactly so many of each stay ("2:4").

    A shorter group at the end of the axis keeps at most what it has.
    """

    m: int
    keep: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.m, bool) or not isinstance(self.m, Integral) or self.m < 1:
            raise ArgumentError(f"m of Groups must be an integer ≥ 1, got {self.m!r}")
        if self.keep is not None and (
            isinstance(self.keep, bool) or not isinstance(self.keep, Integral) or not 1 <= self.keep <= self.m
        ):
            raise ArgumentError(f"keep of Groups must be an integer between 1 and m = {self.m}, got {self.keep!r}")

    def lay(self, scores: Any, where: Any, threads: int | None) -> Laid:
        """Lay ``scores`` out, one pool per group."""
        return Blocks((self.m,)).lay(scores, where, threads)

    def limit(self, n: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """``keep`` of each group."""
        return None if self.keep is None else np.minimum(n, self.keep)


@dataclass(frozen=True, eq=False)
class Labels(Scope):
    """Scores that carry the same label are one pool; figures come in the order of the sorted labels.

    ``labels`` (integers or strings) has the shape of the scores, or broadcasts to it.
    """

    labels: Any

    def lay(self, scores: Any, where: Any, threads: int | None) -> Laid:
        """Lay ``scores`` out, one pool per label."""
        source = given(scores)
        try:
            labels = np.broadcast_to(to_host(self.labels), source.shape).reshape(-1)
        except ValueError:
            raise ArgumentError(
                f"labels must broadcast to the shape of the scores {source.shape}, got {np.shape(self.labels)}"
            ) from None
        try:
            names, inverse = np.unique(labels, return_inverse=True)
        except TypeError:  # of objects that have no order
            raise ArgumentError(f"labels must be integers or strings, got dtype {labels.dtype}") from None
        pools = LabelPools(source, inverse.reshape(-1), [f"group {n!s} of scores" for n in names], where, threads)
        return Laid(
            source,
            pools,
            (len(names),),
            lambda m: m.reshape(source.shape) if source.host is not None else source.xp.reshape(m, source.shape),
        )


@dataclass(frozen=True)
class Model(Scope):
    """All arrays of a mapping are one pool; the mask is a dict with the same names."""

    def lay(self, scores: Any, where: Any, threads: int | None) -> Laid:
        """Lay the arrays out one after the other, in the order of the mapping."""
        if not isinstance(scores, Mapping):
            raise ArgumentError(
                f"scores must be a mapping of names to arrays with scope model, got {type(scores).__name__}"
            )
        sources = {name: given(a, str(name)) for name, a in scores.items()}
        if any(source.traced for source in sources.values()):
            self.within(0)
        if where is not None and (not isinstance(where, Mapping) or set(where) - set(sources)):
            raise ArgumentError("where must be a mapping with names of scores in scope model")
        chosen = {name: as_mask(w, f"where of {name}") for name, w in (where or {}).items()}
        for name, w in chosen.items():
            if w.shape != sources[name].shape:
                raise ArgumentError(f"where of {name} must have shape {sources[name].shape}, got {w.shape}")
        pools = ModelPools(sources, chosen, threads)
        first = next(iter(sources.values()), given(np.empty(0)))
        return Laid(first, pools, (), lambda masks: masks)


SCOPES: dict[str, Scope] = {"whole": Whole(), "rows": Rows(), "columns": Columns(), "model": Model()}


def scope_of(scope: str | Scope) -> Scope:
    """The scope that a string names."""
    if isinstance(scope, Scope):
        return scope
    if isinstance(scope, str) and scope in SCOPES:
        return SCOPES[scope]
    raise ArgumentError(
        f"scope must be one of {', '.join(SCOPES)}, or Rows, Columns, Blocks, Groups, Labels, got {scope!r}"
    )
