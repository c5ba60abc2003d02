"""Pools that lie scattered over an array: the scores that carry one label."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._namespace import Given, as_mask, to_host
from ._pools import DevicePools, HostPools
from ._rows import Counted


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
