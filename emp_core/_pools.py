"""Scores in one canonical form, a matrix whose rows are the pools, and the way each kind of array computes it.

``HostPools`` looks at memory in place: one long pool goes through ``_stream``, many short ones through ``_rows``.
``DevicePools`` lets the caller's library compute where the scores are; only sums (a few numbers per 65 536 scores)
come to the host, where the count is decided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import _top
from ._chunks import fits_float32
from ._errors import ArgumentError, PoolError
from ._exact import CHUNK, WHOLE, refuse_rounded
from ._namespace import Given, as_mask, given, is_long, is_narrow, to_host, wide
from ._rows import Counted, count_rows, mask_rows, parts
from ._stream import Stream

if TYPE_CHECKING:
    from ._device import DeviceStream

Mask = NDArray[np.bool_]
SLAB = 1 << 18  # scores of short pools taken at once on the host
DEVICE_SLAB = 1 << 25  # and on a device
DEVICE_LONG = 1 << 20  # scores of a pool that is taken by itself there, although there are several


class Pools(Protocol):
    """What every kind of array can do with its pools, one figure per pool, masks as matrices."""

    n: NDArray[np.int64]
    matrix: Any

    def count(self, beta: Fraction) -> Counted: ...
    def mask(self, k: NDArray[np.int64]) -> Any: ...
    def share(self, mask: Any) -> NDArray[np.float64]: ...
    def select(
        self, beta: Fraction, k: NDArray[np.int64] | None = None
    ) -> tuple[Counted, Any, NDArray[np.float64]]: ...


class HostPools:
    """Pools in host memory: ``matrix`` (pools, length), ``where`` alike or None."""

    def __init__(
        self, matrix: NDArray[Any], where: Mask | None, name: Callable[[int], str], threads: int | None = None
    ) -> None:
        self.matrix, self.where, self.name, self.threads = matrix, where, name, threads
        self.rows, self.length = matrix.shape
        self.n = np.full(self.rows, self.length) if where is None else np.count_nonzero(where, axis=1).astype(np.int64)
        self.long = self.rows == 1 or self.length > CHUNK // 4
        refuse_empty(self.n, name)

    def streams(self) -> list[Stream]:
        """Each pool by itself."""
        where: Sequence[Mask | None] = [None] * self.rows if self.where is None else list(self.where)
        return [
            Stream([row], [w], [self.name(i)], self.threads)
            for i, (row, w) in enumerate(zip(self.matrix, where, strict=True))
        ]

    def slabs(self) -> list[slice]:
        """Rows in groups that fit a cache."""
        step = max(1, SLAB // max(1, self.length))
        return [slice(i, i + step) for i in range(0, self.rows, step)]

    def magnitude(self, rows: slice) -> NDArray[Any]:
        """Magnitudes of some rows in a working dtype; −1 outside the pool; not finite is an error that names the
        pool."""
        source = self.matrix[rows]
        dtype = np.float32 if fits_float32(source) else np.float64
        out = Stream([np.ravel(source)], [None], ["scores"], 1).magnitudes().reshape(source.shape)
        if self.where is not None:
            out = np.where(self.where[rows], out, dtype(-1))
        finite = np.isfinite(out)
        if not finite.all():
            i, j = (int(x[0]) for x in np.nonzero(~finite))
            what = "NaN" if np.isnan(out[i, j]) else "an infinity"
            raise PoolError(f"{self.name(rows.start + i)} must be finite, got {what} at index {j} of the pool")
        return out

    def count(self, beta: Fraction) -> Counted:
        """Effective size and keep count of every pool."""
        if self.long:
            return Counted.of([s.count(beta)[0] for s in self.streams()], beta)
        single = fits_float32(self.matrix)
        pieces = [
            count_rows(
                np, np.maximum(self.magnitude(s), 0, dtype=np.float64), np.asarray, self.n[s], beta, single=single
            )
            for s in self.slabs()
        ]
        return Counted.join(pieces)

    def mask(self, k: NDArray[np.int64]) -> Mask:
        """Exactly k[i] True in row i."""
        out = np.empty(self.matrix.shape, bool)
        if self.long:
            for row, stream, ki in zip(out, self.streams(), k.tolist(), strict=True):
                row[...] = _top.top_mask(stream, ki)[0]
        else:
            for s in self.slabs():
                out[s] = mask_rows(np, self.magnitude(s), k[s, None])
        return out

    def share(self, mask: Mask) -> NDArray[np.float64]:
        """Retained mass of every pool."""
        if self.long:
            return np.array([s.kept_share([m]) for s, m in zip(self.streams(), mask, strict=True)], np.float64)
        pieces = [np.empty(0)]
        for s in self.slabs():
            a = np.maximum(self.magnitude(s), 0, dtype=np.float64)
            pieces.append(share_rows(np, a, mask[s], np.asarray, single=fits_float32(self.matrix)))
        return np.concatenate(pieces)

    def select(self, beta: Fraction, k: NDArray[np.int64] | None = None) -> tuple[Counted, Mask, NDArray[np.float64]]:
        """Count (or the one given), mask and retained mass at once."""
        if self.rows == 1:
            sums, _, masks, mass = _top.select(self.streams()[0], beta, None if k is None else int(k[0]))
            return Counted.of([sums], beta).keeping(k), masks[0][None], np.array([mass])
        counted = self.count(beta).keeping(k)
        mask = self.mask(counted.k)
        return counted, mask, self.share(mask)


class DevicePools:
    """Pools that only their own library can read."""

    def __init__(self, source: Given, matrix: Any, where: Any, name: Callable[[int], str]) -> None:
        self.source, self.xp, self.matrix, self.where, self.name = source, source.xp, matrix, where, name
        self.rows, self.length = int(matrix.shape[0]), int(matrix.shape[1])
        self.n = np.full(self.rows, self.length)
        if where is not None:
            with wide(source):
                self.n = to_host(self.xp.sum(self.xp.astype(where, self.xp.int64), axis=1)).astype(np.int64)
        self.single = is_narrow(self.xp, matrix.dtype)
        self.long = self.length > (CHUNK if self.rows == 1 else DEVICE_LONG)
        refuse_empty(self.n, name)

    def like(self, a: NDArray[Any]) -> Any:
        """A small host array beside the scores."""
        return self.source.back(np.ascontiguousarray(a))

    def magnitude(self, rows: slice, columns: slice = slice(None)) -> Any:
        """Float64 magnitudes of some scores, 0 outside the pool; what is not finite, or would be rounded, is an error
        that names the pool."""
        xp = self.xp
        a = xp.abs(xp.astype(self.matrix[rows, columns], xp.float64))
        if self.where is not None:
            a = xp.where(self.where[rows, columns], a, xp.zeros_like(a))
        if not bool(xp.all(xp.isfinite(a))):
            bad = to_host(xp.any(~xp.isfinite(a), axis=1))
            raise PoolError(f"{self.name(rows.start + int(np.argmax(bad)))} must be finite, got NaN or an infinity")
        if is_long(xp, self.matrix.dtype) and bool(xp.any(a >= WHOLE)):
            held = to_host(self.matrix[rows, columns])
            if self.where is not None:
                held = np.where(to_host(self.where[rows, columns]), held, np.zeros_like(held))
            for i, row in enumerate(held, rows.start):
                refuse_rounded(row, self.name(i))
        return a

    def alone(self, i: int) -> DeviceStream:
        """One pool by itself."""
        from ._device import DeviceStream  # only where there is a device

        where = None if self.where is None else self.where[i, :]
        return DeviceStream(self.source, [self.matrix[i, :]], [where], [self.name(i)])

    def slabs(self) -> list[slice]:
        """Rows in groups that a device takes at once."""
        step = max(1, DEVICE_SLAB // max(1, self.length))
        return [slice(i, min(i + step, self.rows)) for i in range(0, self.rows, step)]

    def count(self, beta: Fraction) -> Counted:
        """Effective size and keep count of every pool."""
        with wide(self.source):
            if self.length > CHUNK:
                return Counted.of([self.alone(i).sums(beta) for i in range(self.rows)], beta)
            return Counted.join(
                [
                    count_rows(self.xp, self.magnitude(s), self.like, self.n[s], beta, single=self.single)
                    for s in self.slabs()
                ]
            )

    def mask(self, k: NDArray[np.int64]) -> Any:
        """Exactly k[i] True in row i."""
        xp = self.xp
        with wide(self.source):
            if self.rows == 0:
                return xp.zeros_like(self.matrix, dtype=xp.bool)
            if self.long:
                return xp.stack([self.alone(i).mask(ki)[0] for i, ki in enumerate(k.tolist())])
            found = []
            for s in self.slabs():
                a = self.magnitude(s)
                if self.where is not None:
                    a = xp.where(self.where[s, :], a, -xp.ones_like(a))
                found.append(mask_rows(xp, a, self.like(k[s, None])))
            return found[0] if len(found) == 1 else xp.concat(found, axis=0)

    def share(self, mask: Any) -> NDArray[np.float64]:
        """Retained mass of every pool."""
        xp = self.xp
        with wide(self.source):
            if self.long:
                return np.array([self.alone(i).share([mask[i, :]]) for i in range(self.rows)], np.float64)
            pieces = [np.empty(0)]
            for s in self.slabs():
                a = self.magnitude(s)
                peak = xp.max(a, axis=1, keepdims=True)
                a = a / xp.where(peak > 0, peak, xp.ones_like(peak))
                kept = to_host(xp.sum(xp.where(mask[s, :], a, xp.zeros_like(a)), axis=1))
                total = to_host(xp.sum(a, axis=1))
                pieces.append(np.where(total > 0, np.minimum(kept / np.where(total > 0, total, 1), 1.0), 1.0))
            return np.concatenate(pieces)

    def select(self, beta: Fraction, k: NDArray[np.int64] | None = None) -> tuple[Counted, Any, NDArray[np.float64]]:
        """Count (or the one given), mask and retained mass."""
        counted = self.count(beta).keeping(k)
        mask = self.mask(counted.k)
        return counted, mask, self.share(mask)


def share_rows(xp: Any, a: Any, mask: Any, like: Any, *, single: bool) -> NDArray[np.float64]:
    """Retained mass of each row of ``a`` (≥ 0): sums by one fold, so that equal scores give k/n."""
    if not int(a.shape[0]):
        return np.empty(0)
    whole = parts(xp, a, like, single=True)
    kept = parts(xp, xp.where(mask, a, xp.zeros_like(a)), like, single=True)
    total, part = (p.total[0] + p.total[1] for p in (whole, kept))
    scale = np.ldexp(1.0, np.maximum(kept.exponent - whole.exponent, -2000))
    return np.where(total > 0, np.minimum(part * scale / np.where(total > 0, total, 1.0), 1.0), 1.0)


def refuse_empty(n: NDArray[np.int64], name: Callable[[int], str]) -> None:
    """A pool of nothing has no effective size."""
    if (n == 0).any():
        raise PoolError(f"{name(int(np.argmin(n)))} must hold at least one score, got an empty pool")


def pools_along(
    scores: Any, axis: int | tuple[int, ...] | None, where: Any, *, threads: int | None = None, name: str = "scores"
) -> tuple[Given, Pools, tuple[int, ...], tuple[int, ...], Callable[[Any], Any]]:
    """The pools that lie along ``axis`` (None: all of it is one pool).

    Returns the recognised array, the pools, the shape of their figures without and with kept axes, and a function that
    brings a mask matrix back to the shape of the scores.
    """
    source = given(scores, name)
    mask = None if where is None else as_mask(where, "where")
    shape = source.shape
    axes = normal_axes(axis, len(shape))
    rest = tuple(d for d in range(len(shape)) if d not in axes)
    outer = tuple(shape[d] for d in rest)
    kept = tuple(1 if d in axes else shape[d] for d in range(len(shape)))
    rows, length = math.prod(outer), math.prod(shape[d] for d in axes)
    order = rest + axes
    inverse = tuple(int(i) for i in np.argsort(order)) if order else ()

    def label(i: int) -> str:
        return (
            name
            if rows == 1 and axis is None
            else f"pool {tuple(int(x) for x in np.unravel_index(i, outer))} of {name}"
        )

    if source.host is not None:
        matrix = source.host.transpose(order).reshape(rows, length)
        chosen = None
        if mask is not None:
            chosen = to_host(mask.host if mask.host is not None else mask.array)
            chosen = _broadcast(chosen, shape).transpose(order).reshape(rows, length)
        pools: Pools = HostPools(matrix, chosen, label, threads)

        def restore(m: Any) -> Any:
            return m.reshape([shape[d] for d in order]).transpose(inverse)
    else:
        xp = source.xp
        matrix = (
            xp.reshape(xp.permute_dims(source.array, order), (rows, length))
            if shape
            else xp.reshape(source.array, (1, 1))
        )
        chosen = None
        if mask is not None:
            chosen = mask.array if mask.xp is xp else source.back(to_host(mask.array))
            chosen = (
                xp.reshape(xp.permute_dims(xp.broadcast_to(chosen, shape), order), (rows, length))
                if shape
                else xp.reshape(chosen, (1, 1))
            )
        pools = DevicePools(source, matrix, chosen, label)

        def restore(m: Any) -> Any:
            return (
                xp.permute_dims(xp.reshape(m, tuple(shape[d] for d in order)), inverse) if shape else xp.reshape(m, ())
            )

    return source, pools, outer, kept, restore


def _broadcast(a: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        return np.broadcast_to(a, shape)
    except ValueError:
        raise ArgumentError(f"where must broadcast to the shape of the scores {shape}, got {a.shape}") from None


def normal_axes(axis: int | tuple[int, ...] | None, ndim: int) -> tuple[int, ...]:
    """Axes as distinct numbers in [0, ndim)."""
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, tuple) else (axis,)
    for a in axes:
        if isinstance(a, bool) or not isinstance(a, (int, np.integer)) or not -ndim <= a < ndim:
            raise ArgumentError(f"axis must be integers in [{-ndim}, {ndim}), got {axis}")
    found = tuple(int(a) % ndim for a in axes)
    if len(set(found)) != len(found):
        raise ArgumentError(f"axis must name each axis once, got {axis}")
    return found
