"""Many arrays as one pool."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _top
from ._errors import ArgumentError
from ._namespace import Given, to_host, wide
from ._pools import DevicePools, refuse_empty
from ._rows import Counted
from ._stream import Stream

if TYPE_CHECKING:
    from ._device import DeviceStream

Mask = NDArray[np.bool_]


class ModelPools:
    """Many arrays as one pool, without a copy where the host can read them."""

    def __init__(self, sources: Mapping[Any, Given], where: Mapping[Any, Given], threads: int | None) -> None:
        self.sources = sources
        self.matrix = None
        self.stream: Stream | None = None
        self.device: DeviceStream | None = None
        if all(s.host is not None for s in sources.values()):
            self.stream = Stream(
                [s.host.reshape(-1) for s in sources.values() if s.host is not None],
                [to_host(where[name].host).reshape(-1) if name in where else None for name in sources],
                list(map(str, sources)),
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
                    list(map(str, sources)),
                )
            self.n = np.array([self.device.n])
            refuse_empty(self.n, lambda _: "the model")

    def joined(self) -> DevicePools:
        """The pool on a device in one piece, for what needs all of it at once."""
        assert self.device is not None
        held = self.device
        held.refuse_not_finite()
        xp = held.xp
        where = None
        if any(w is not None for w in held.where):
            pairs = zip(held.where, held.parts, strict=True)
            where = xp.concat([xp.ones_like(p, dtype=xp.bool) if w is None else w for w, p in pairs])[None, :]
        flat = xp.concat([xp.astype(p, xp.float64) for p in held.parts])[None, :]
        return DevicePools(held.source, flat, where, lambda _: "the model")

    def _named(self, masks: list[Mask]) -> dict[Any, Any]:
        return {name: s.back(m.reshape(s.shape)) for (name, s), m in zip(self.sources.items(), masks, strict=True)}

    def count(self, beta: Fraction) -> Counted:
        """Effective size and keep count."""
        if self.device is not None:
            with wide(self.device.source):
                return Counted.of([self.device.sums(beta)], beta)
        assert self.stream is not None
        return Counted.of([self.stream.count(beta)[0]], beta)

    def mask(self, k: NDArray[np.int64]) -> dict[Any, Any]:
        """A mask per name."""
        if self.device is not None:
            with wide(self.device.source):
                masks = self.device.mask(int(k[0]))
            return {n: s.xp.reshape(m, s.shape) for (n, s), m in zip(self.sources.items(), masks, strict=True)}
        assert self.stream is not None
        return self._named(_top.top_mask(self.stream, int(k[0])))

    def share(self, mask: dict[Any, Any]) -> NDArray[np.float64]:
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
