"""Memory that was freed goes back to the system."""

from __future__ import annotations

import sys
from contextlib import suppress

__all__ = ["give_back", "large_apart"]

THRESHOLD, TRIM = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of the GNU C library
LARGE = 1 << 23  # bytes of a block that lies apart from all others


def give_back() -> None:
    """Have the C library give back the pages that it keeps between what is in use: after a pass over feeds these are
    as many as the statistics themselves. Where it cannot, nothing happens."""
    if sys.platform != "linux":
        return
    import ctypes

    with suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)


def large_apart() -> None:
    """Have the C library keep large blocks apart from all others, for the whole process: only so do they go back when
    they are freed. Left to itself it learns from the first ones that went to put the next among small blocks, and what
    lies between holes stays: one command took from 0.4 to 1 GB in runs that were alike. Where it cannot, nothing
    happens."""
    if sys.platform != "linux":
        return
    import ctypes

    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(THRESHOLD, LARGE)
        library.mallopt(TRIM, 2 * LARGE)
