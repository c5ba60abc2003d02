"""Which scores compete for one budget.

A scope lays scores out as pools. The strings "whole", "rows", "columns" and "model" stand for ``Whole()``, ``Rows()``,
``Columns()`` and ``Model()``; scopes with a parameter are given as objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _top
from ._errors import ArgumentError
from ._namespace import HOST, Given, as_mask, given, to_host, wide
from ._pools import DevicePools, HostPools, Pools, normal_axes, pools_along, refuse_empty
from ._rows import Counted
from ._stream import Stream

if TYPE_CHECKING:
    from ._device import DeviceStream

Mask = NDArray[np.bool_]


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
        if not self.shape or any(isinstance(b, bool) or not isinstance(b, int) or b < 1 for b in self.shape):
            raise ArgumentError(f"shape of Blocks must be integers ≥ 1, got {self.shape}")

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
        if isinstance(self.m, bool) or not isinstance(self.m, int) or self.m < 1:
            raise ArgumentError(f"m of Groups must be an integer ≥ 1, got {self.m!r}")
        if self.keep is not None and (
            isinstance(self.keep, bool) or not isinstance(self.keep, int) or not 1 <= self.keep <= self.m
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
        names, inverse = np.unique(labels, return_inverse=True)
        pools = LabelPools(source, inverse.reshape(-1), [f"group {n!s} of scores" for n in names], where, threads)
        return Laid(
            source,
            pools,
            (len(names),),
            lambda m: m.reshape(source.shape) if source.host is not None else source.xp.reshape(m, source.shape),
        )


def _constant(name: str, _: int) -> str:
    return name


class LabelPools:
    """Pools of any lengths, each a scattered part of the scores."""

    def __init__(
        self, source: Given, label: NDArray[np.intp], names: Sequence[str], where: Any, threads: int | None
    ) -> None:
        self.source = source
        self.order = np.argsort(label, kind="stable")
        self.ends = np.cumsum(np.bincount(label, minlength=len(names))).tolist()
        flat = source.host.reshape(-1) if source.host is not None else source.xp.reshape(source.array, (-1,))
        mask = None
        if where is not None:
            mask = np.broadcast_to(to_host(as_mask(where, "where").array), source.shape).reshape(-1)[self.order]
        self.members: list[Any] = []
        self.matrix = None
        start = 0
        for name, end in zip(names, self.ends, strict=True):
            index = self.order[start:end]
            part_mask = None if mask is None else mask[None, start:end]
            if source.host is not None:
                self.members.append(HostPools(flat[index][None], part_mask, partial(_constant, name), threads))
            else:
                values = source.xp.take(flat, source.back(index), axis=0)[None, :]
                self.members.append(
                    DevicePools(
                        source, values, None if part_mask is None else source.back(part_mask), partial(_constant, name)
                    )
                )
            start = end
        self.n = np.concatenate([np.empty(0, np.int64), *(m.n for m in self.members)])

    def count(self, beta: Fraction) -> Counted:
        """Effective size and keep count of every pool."""
        return Counted.join([m.count(beta) for m in self.members])

    def mask(self, k: NDArray[np.int64]) -> Any:
        """A flat mask of all scores."""
        out = np.empty(self.order.size, bool)
        masks = [to_host(m.mask(k[i : i + 1])).reshape(-1) for i, m in enumerate(self.members)]
        out[self.order] = np.concatenate([np.empty(0, bool), *masks])
        return out if self.source.host is not None else self.source.back(out)

    def share(self, mask: Any) -> NDArray[np.float64]:
        """Retained mass of every pool."""
        flat = to_host(mask).reshape(-1)[self.order]
        shares = [np.empty(0)]
        start = 0
        for m, end in zip(self.members, self.ends, strict=True):
            part = flat[None, start:end]
            shares.append(m.share(part if self.source.host is not None else self.source.back(part)))
            start = end
        return np.concatenate(shares)

    def select(self, beta: Fraction, k: NDArray[np.int64] | None = None) -> tuple[Counted, Any, NDArray[np.float64]]:
        """Count (or the one given), mask and retained mass."""
        counted = self.count(beta).keeping(k)
        mask = self.mask(counted.k)
        return counted, mask, self.share(mask)


@dataclass(frozen=True)
class Model(Scope):
    """All arrays of a mapping are one pool; the mask is a dict with the same names."""

    def lay(self, scores: Any, where: Any, threads: int | None) -> Laid:
        """Lay the arrays out one after the other, in the order of the mapping."""
        if not isinstance(scores, Mapping):
            raise ArgumentError(
                f"scores must be a mapping of names to arrays with scope model, got {type(scores).__name__}"
            )
        sources = {str(name): given(a, str(name)) for name, a in scores.items()}
        if where is not None and (not isinstance(where, Mapping) or set(map(str, where)) - set(sources)):
            raise ArgumentError("where must be a mapping with names of scores in scope model")
        chosen = {str(name): as_mask(w, f"where of {name}") for name, w in (where or {}).items()}
        for name, w in chosen.items():
            if w.shape != sources[name].shape:
                raise ArgumentError(f"where of {name} must have shape {sources[name].shape}, got {w.shape}")
        pools = ModelPools(sources, chosen, threads)
        first = next(iter(sources.values()), given(np.empty(0)))
        return Laid(first, pools, (), lambda masks: masks)


class ModelPools:
    """Many arrays as one pool, without a copy where the host can read them."""

    def __init__(self, sources: Mapping[str, Given], where: Mapping[str, Given], threads: int | None) -> None:
        self.sources = sources
        self.matrix = None
        self.stream: Stream | None = None
        self.device: DeviceStream | None = None
        if all(s.host is not None for s in sources.values()):
            self.stream = Stream(
                [s.host.reshape(-1) for s in sources.values() if s.host is not None],
                [to_host(where[name].host).reshape(-1) if name in where else None for name in sources],
                list(sources),
                threads,
            )
            self.n = np.array([self.stream.n])
            refuse_empty(self.n, lambda _: "the model")
        else:
            from ._device import DeviceStream  # only where there is a device

            first = next(s for s in sources.values() if s.host is None)
            xp = first.xp
            if any(s.xp is not xp for s in sources.values()):
                raise ArgumentError("scores must lie in one library and on one device with scope model")
            if len({str(getattr(s.array, "device", None)) for s in sources.values()}) > 1:
                raise ArgumentError("scores must lie in one library and on one device with scope model")
            with wide(first):
                self.device = DeviceStream(
                    first,
                    [xp.reshape(s.array, (-1,)) for s in sources.values()],
                    [_beside(where[name], first) if name in where else None for name in sources],
                    list(sources),
                )
            self.n = np.array([self.device.n])
            refuse_empty(self.n, lambda _: "the model")

    def joined(self) -> DevicePools:
        """The pool on a device in one piece, for what needs all of it at once."""
        assert self.device is not None
        held = self.device
        xp = held.xp
        where = None
        if any(w is not None for w in held.where):
            pairs = zip(held.where, held.parts, strict=True)
            where = xp.concat([xp.ones_like(p, dtype=xp.bool) if w is None else w for w, p in pairs])[None, :]
        flat = xp.concat([xp.astype(p, xp.float64) for p in held.parts])[None, :]
        return DevicePools(held.source, flat, where, lambda _: "the model")

    def _named(self, masks: list[Mask]) -> dict[str, Any]:
        return {name: s.back(m.reshape(s.shape)) for (name, s), m in zip(self.sources.items(), masks, strict=True)}

    def count(self, beta: Fraction) -> Counted:
        """Effective size and keep count."""
        if self.device is not None:
            with wide(self.device.source):
                return Counted.of([self.device.sums(beta)], beta)
        assert self.stream is not None
        return Counted.of([self.stream.count(beta)[0]], beta)

    def mask(self, k: NDArray[np.int64]) -> dict[str, Any]:
        """A mask per name."""
        if self.device is not None:
            with wide(self.device.source):
                masks = self.device.mask(int(k[0]))
            return {n: s.xp.reshape(m, s.shape) for (n, s), m in zip(self.sources.items(), masks, strict=True)}
        assert self.stream is not None
        return self._named(_top.top_mask(self.stream, int(k[0])))

    def share(self, mask: dict[str, Any]) -> NDArray[np.float64]:
        """Retained mass of the pool."""
        if self.device is not None:
            xp = self.device.xp
            with wide(self.device.source):
                return np.array([self.device.share([xp.reshape(m, (-1,)) for m in mask.values()])])
        assert self.stream is not None
        return np.array([self.stream.kept_share([to_host(m).reshape(-1) for m in mask.values()])])

    def select(self, beta: Fraction, k: NDArray[np.int64] | None = None) -> tuple[Counted, Any, NDArray[np.float64]]:
        """Count (or the one given), masks and retained mass."""
        if self.stream is not None:
            sums, _, masks, mass = _top.select(self.stream, beta, None if k is None else int(k[0]))
            return Counted.of([sums], beta).keeping(k), self._named(masks), np.array([mass])
        counted = self.count(beta).keeping(k)
        mask = self.mask(counted.k)
        return counted, mask, self.share(mask)


def _beside(mask: Given, source: Given) -> Any:
    """A flat mask in the library and on the device of the scores."""
    if mask.xp is source.xp:
        return source.xp.reshape(mask.array, (-1,))
    return source.back(np.ascontiguousarray(to_host(mask.array).reshape(-1)))


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
