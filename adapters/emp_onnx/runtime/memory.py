"""Memory that was freed goes back to the system."""

from __future__ import annotations

import sys
from contextlib import suppress

__all__ = ["give_back"]


def give_back() -> None:
    """Have the C library give back the pages that it keeps between what is in use: after a pass over feeds these are
    as many as the statistics themselves. Where it cannot, nothing happens."""
    if sys.platform != "linux":
        return
    import ctypes

    with suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
