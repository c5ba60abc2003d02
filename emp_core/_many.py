"""Selection in each of many short pools, all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._chunks import named_parts
from ._cut import Cut, rule_of, select_stream
from ._each import SHORT, Rows, laid, totals
from ._errors import PoolError
from ._hill import order_count
from ._rows import Counted
from ._select import bounds


def select_each(
    pools: Sequence[NDArray[Any]],
    /,
    *,
    beta: float = 1.0,
    order: float = 2,
    sparsity: float | None = None,
    names: Sequence[str] | None = None,
) -> list[Cut]:
    """:func:`select` in each of many pools by itself; thousands of short ones take little longer than one of their
    length.

    Args:
        pools: flat NumPy arrays of any lengths and dtypes.
        beta, order, sparsity: as for :func:`select`.
        names: what an error calls each pool.

    Returns:
        A :class:`Cut` for each. Counts and masks are those of :func:`select`, and so is ``n_eff``; masses and bounds
        may differ from them in the last digits.

    Raises:
        PoolError: a pool is empty or holds NaN or ±inf; the message names it.
        ArgumentError: a parameter is outside what it allows.

    >>> [cut.k for cut in select_each([np.array([4.0, -3.0, 0.5]), np.ones(3)])]
    [2, 3]
    """
    rule = rule_of(beta, order, sparsity)
    called = named_parts(pools, names, "pool")
    for pool, name in zip(pools, called, strict=True):
        if not pool.size:
            raise PoolError(f"{name} must hold at least one score, got an empty pool")
    out: dict[int, Cut] = {}
    short = [i for i, pool in enumerate(pools) if pool.size <= SHORT]
    for rows in laid([pools[i] for i in short], [called[i] for i in short]):
        mine = rows._replace(which=[short[i] for i in rows.which])
        fixed = None
        if rule.share is not None:
            fixed = np.array([max(1, n - round(rule.share * n)) for n in rows.n.tolist()], np.int64)
        elif rule.order != 2:
            fixed = order_count(mine.pools(called), rule.beta, rule.order)
        counted, mask, mass = mine.pools(called).select(rule.beta, fixed)
        out.update(zip(mine.which, _cuts(mine, counted, mask, mass, rule.said, rule.order), strict=True))
    for i, pool in enumerate(pools):
        if i not in out:
            out[i] = select_stream([pool], beta=beta, order=order, sparsity=sparsity, names=[called[i]])
    return [out[i] for i in range(len(pools))]


def _cuts(
    rows: Rows, counted: Counted, mask: NDArray[np.bool_], mass: NDArray[np.float64], beta: float | None, order: float
) -> list[Cut]:
    """The threshold of each row, and the place of its last tie that stays."""
    size, n = rows.magnitude, rows.n
    least = np.min(size, axis=1, where=mask, initial=np.inf)
    same = size == least[:, None]
    partly = (same & ~mask).any(axis=1)
    place = np.where(partly, size.shape[1] - 1 - np.argmax((same & mask)[:, ::-1], axis=1), n)
    whole = counted.k >= n
    threshold = np.where(whole, 0, least).astype(np.float64)
    nonzero = np.count_nonzero(mask & (size > 0), axis=1)
    figures = (n, counted.n_eff, counted.k, mass, *bounds(counted), threshold, np.where(whole, n, place), nonzero)
    return [
        Cut(n, size, k, beta, order, held, lower, upper, cut, last, l1, some, (size,), (l1,), (k,), (held,), (some,))
        for n, size, k, held, lower, upper, cut, last, some, l1 in zip(
            *(f.tolist() for f in figures), totals(rows), strict=True
        )
    ]
