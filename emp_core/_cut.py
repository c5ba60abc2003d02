"""Selection over scores that are read a stretch at a time: no mask is made, only the threshold that decides it.

What is kept is everything above the threshold, and of the scores equal to it those up to one place. Two numbers, from
which the mask of any stretch follows; so a pool of any length takes a few megabytes. Counts, figures and masks are
those of :func:`select`, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _top
from ._chunks import Part, named_parts
from ._each import SHORT, sums_each
from ._effective import checked_beta
from ._errors import ArgumentError, PoolError
from ._exact import CHUNK
from ._found import Found, Kept, Mask, float_of, magnitudes, mask_of
from ._hill import checked_order, hill_of_stream
from ._large import large
from ._namespace import refuse_unreal
from ._patterns import Kind, kind_of
from ._patterns import cut as cut_patterns
from ._rows import Counted
from ._select import bounds, checked_sparsity, checked_threads
from ._stream import Stream
from .quick import quick


@quick
@dataclass(frozen=True)
class Cut:
    """What is kept of one pool, as a rule for every score, and the figures that say why.

    Attributes:
        n: scores in the pool.
        n_eff: effective size, in [1, n].
        k: scores kept, in [1, n].
        beta, order: as asked for; ``beta`` is None when a sparsity was.
        mass, mass_lower, mass_upper: retained mass and its bounds.
        threshold: scores of a larger magnitude are kept.
        last: of those of exactly this magnitude the ones whose place in the pool is at most this.
        l1: Σ|s|.
        nonzero: of the kept, those that are not zero.
        part_n_eff: the effective size of each part taken alone.
        part_l1: Σ|s| of each part.
        part_k: what is kept of each part.
        part_mass: what share of its own Σ|s| each part retains.
        part_nonzero: `nonzero` of each part.
    """

    n: int
    n_eff: float
    k: int
    beta: float | None
    order: float
    mass: float
    mass_lower: float
    mass_upper: float
    threshold: float
    last: int
    l1: float
    nonzero: int
    part_n_eff: tuple[float, ...]
    part_l1: tuple[float, ...]
    part_k: tuple[int, ...]
    part_mass: tuple[float, ...]
    part_nonzero: tuple[int, ...]

    @property
    def density(self) -> float:
        """k/n."""
        return self.k / self.n

    @property
    def sparsity(self) -> float:
        """1 − k/n."""
        return (self.n - self.k) / self.n

    def mask(self, piece: NDArray[Any], /, start: int = 0) -> Mask:
        """What is kept of a stretch of the pool, whose first score has the place ``start``.

        >>> cut = select_stream([np.array([2.0, -1.0, 1.0, 0.5])], sparsity=0.5)
        >>> cut.mask(np.array([-1.0, 1.0]), 1).tolist()
        [True, False]
        """
        refuse_unreal(piece.dtype, "piece")
        return mask_of(magnitudes(piece), start, self.threshold, self.last)


def select_stream(
    parts: Sequence[Part],
    /,
    *,
    beta: float = 1.0,
    order: float = 2,
    sparsity: float | None = None,
    names: Sequence[str] | None = None,
    threads: int | None = None,
) -> Cut:
    """:func:`select` for a pool that is not in memory: its parts are read a stretch at a time, two or three times.

    Args:
        parts: flat scores, one after the other: NumPy arrays, or anything with ``size`` and ``dtype`` that gives
            a NumPy array when it is sliced (``part[start:stop]``), as memory-mapped files and HDF5 data sets do.
            Slicing must be safe from several threads.
        beta, order, sparsity: as for :func:`select`.
        names: what an error calls each part.
        threads: most threads; None: one per processor. The result does not depend on it.

    Returns:
        A :class:`Cut`: the figures of :func:`select`, and the mask of any stretch. Of long pools of 16-bit numbers,
        whose magnitudes are counted one by one, figures are correctly rounded, those of :func:`select` nearly so.

    Raises:
        PoolError: the pool is empty or holds NaN or ±inf; the message names the part.
        ArgumentError: a parameter is outside what it allows.

    >>> cut = select_stream([np.array([4.0, -3.0, 0.5]), np.array([0.5, 0.0, 0.0])])
    >>> cut.k, cut.threshold
    (2, 3.0)
    """
    rule = rule_of(beta, order, sparsity)
    checked_threads(threads)
    stream = Stream(parts, [None] * len(parts), named_parts(parts, names, "part"), threads)
    if not stream.n:
        raise PoolError("scores must hold at least one score, got an empty pool")
    fixed = None
    if rule.share is not None:
        fixed = max(1, stream.n - round(rule.share * stream.n))
    elif rule.order != 2:
        fixed = _order_count(stream, rule.beta, rule.order)
    kind = None if stream.length <= 4 * CHUNK else kind_of(stream)
    if kind is not None:
        found = _counted(stream, kind, rule.beta, fixed)
    else:
        found = _small(stream, rule.beta, fixed) if stream.length <= 4 * CHUNK else large(stream, rule.beta, fixed)
    counted = Counted.of([found.sums], rule.beta).keeping(np.array([found.k]))
    lower, upper = bounds(counted)
    sizes, kept = _each(stream, found), found.kept
    return Cut(
        stream.n, float(counted.n_eff[0]), found.k, rule.said, rule.order,
        found.mass, float(lower[0]), float(upper[0]), found.threshold, found.last,
        float_of(found.sums), sum(kept.nonzero), tuple(size for size, _ in sizes), tuple(l1 for _, l1 in sizes),
        tuple(kept.k), tuple(kept.mass), tuple(kept.nonzero),
    )  # fmt: skip


class RuleOf(NamedTuple):
    """A rule, checked: multiplier, order, and the share to remove or None."""

    beta: Fraction
    order: float
    share: Fraction | None

    @property
    def said(self) -> float | None:
        """The multiplier that a result names: none where a share was asked for."""
        return float(self.beta) if self.share is None else None


def rule_of(beta: float, order: float, sparsity: float | None) -> RuleOf:
    """The rule that these stand for.

    Raises:
        ArgumentError: one is outside what it allows, or two contradict each other.
    """
    rule = RuleOf(checked_beta(beta), checked_order(order), checked_sparsity(sparsity))
    if rule.share is not None and (rule.beta != 1 or rule.order != 2):
        raise ArgumentError(
            f"sparsity fixes the count, so beta and order must be left alone, got beta={beta}, order={order}"
        )
    return rule


def _order_count(stream: Stream, beta: Fraction, q: float) -> int:
    size, n = hill_of_stream(stream, q), stream.n
    if stream.sums().zero:
        return n
    k = math.floor(beta * int(size)) if q == 0 else math.floor(min(float(beta) * size * (1 + 1e-12), 2.0**62))
    return min(max(k, 1), n)


def _each(stream: Stream, found: Found) -> list[tuple[float, float]]:
    """Effective size and Σ|s| of each part taken alone."""
    if found.each is not None:
        return [(sums.n_eff(), float_of(sums)) for sums in found.each]
    if len(stream.parts) == 1:
        return [(found.sums.n_eff(), float_of(found.sums))]
    out, parts = [(0.0, 0.0)] * len(stream.parts), found.held or stream.parts
    short = [i for i, part in enumerate(parts) if part.size <= SHORT]
    names = [stream.names[i] for i in short]
    for i, figures in zip(short, sums_each([parts[i] for i in short], names), strict=True):
        out[i] = figures
    for i, part in enumerate(parts):
        if part.size > SHORT:
            alone = Stream([part], [None], [stream.names[i]], stream.threads)
            if found.pieces is None:
                sums = alone.sums()
            else:
                mine = found.pieces.part(i)
                sums = alone._settled([found.pieces.totals[mine]], [found.pieces.squares[mine]])
            out[i] = sums.n_eff(), float_of(sums)
    return out


def _small(stream: Stream, beta: Fraction, fixed: int | None) -> Found:
    """A pool that fits the cache: its masks are made, and the cut read from them."""
    held = [np.asarray(part[0 : part.size]) for part in stream.parts]
    memory = Stream(held, stream.where, stream.names, stream.threads, stream.dtype)
    sums, k, masks, mass = _top.select(memory, beta, fixed)
    magnitude, mask = memory.magnitudes(), np.concatenate(masks)
    threshold, last = 0.0, stream.n
    if k < stream.n:
        least = magnitude[mask].min()
        same = magnitude == least
        threshold = float(least)
        if not mask[same].all():
            last = int(np.flatnonzero(same & mask)[-1])
    if len(held) == 1:
        kept = Kept([k], [mass], [int(np.count_nonzero(magnitude[mask]))])
        return Found(sums, k, threshold, last, mass, kept)
    kept, start = Kept([], [], []), 0
    for part, chosen in zip(held, masks, strict=True):
        size = np.where(chosen, magnitude[start : start + part.size], 0)
        kept.k.append(int(np.count_nonzero(chosen)))
        kept.nonzero.append(int(np.count_nonzero(size)))
        kept.mass.append(_ratio(size, magnitude[start : start + part.size]))
        start += part.size
    return Found(sums, k, threshold, last, mass, kept, held=held)


def _ratio(kept: NDArray[Any], whole: NDArray[Any]) -> float:
    """Σ of the one over Σ of the other, of magnitudes so few that they can be scaled; 1 when all are zero."""
    peak = float(whole.max(initial=0))
    if not peak or not math.isfinite(peak):
        return 1.0
    exponent = -math.frexp(peak)[1]
    parts = [math.fsum(np.ldexp(a.astype(np.float64), exponent).tolist()) for a in (kept, whole)]
    return min(1.0, parts[0] / parts[1])


def _counted(stream: Stream, kind: Kind, beta: Fraction, fixed: int | None) -> Found:
    """A pool of 16-bit numbers."""
    found = cut_patterns(stream, kind, beta, fixed)
    kept = Kept([p.k for p in found.parts], [p.mass for p in found.parts], [p.nonzero for p in found.parts])
    return Found(found.sums, found.k, found.threshold, found.last, found.mass, kept, each=[p.sums for p in found.parts])
