"""The checksum of a weight's values: SHA-256 over the CRC-32 of each stretch of 256 KiB.

CRC-32 costs a quarter of SHA-256, and SHA-256 over all of a weight took longer than pruning it. A change is found:
one of up to 32 bits in a row with certainty, any other with a chance of 1 − 2**-32 in each stretch. Against somebody
who wants to deceive neither would help, since the checksums lie in the same file.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["STRETCH", "Checksum", "checksum"]

STRETCH = 1 << 18  # bytes


class Checksum:
    """The checksum of values that come piece by piece: as they are stored, little-endian, in order.

    Example:
        >>> whole, parts = Checksum(), Checksum()
        >>> whole.update(np.arange(100_000))
        >>> for part in np.split(np.arange(100_000), [3, 40_000]):
        ...     parts.update(part)
        >>> whole.hexdigest() == parts.hexdigest()
        True
    """

    def __init__(self) -> None:
        self._outer, self._inner, self._held = hashlib.sha256(), 0, 0

    def update(self, values: NDArray[Any], /) -> None:
        """The values that come next."""
        view = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        while view:
            some = view[: STRETCH - self._held]
            self._inner = zlib.crc32(some, self._inner)
            self._held, view = self._held + len(some), view[len(some) :]
            if self._held == STRETCH:
                self._outer.update(self._inner.to_bytes(4, "little"))
                self._inner = self._held = 0

    def hexdigest(self) -> str:
        """64 digits."""
        outer = self._outer.copy()
        if self._held:
            outer.update(self._inner.to_bytes(4, "little"))
        return outer.hexdigest()


def checksum(values: NDArray[Any], /) -> str:
    """The checksum of all values at once.

    Example:
        >>> import hashlib, zlib
        >>> values = np.arange(3, dtype=np.float32)
        >>> crc = zlib.crc32(values.tobytes()).to_bytes(4, "little")
        >>> checksum(values) == hashlib.sha256(crc).hexdigest()
        True
    """
    made = Checksum()
    made.update(values)
    return made.hexdigest()
