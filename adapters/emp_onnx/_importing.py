"""Whether to look for garbage while the package is imported: what that makes, stays."""

from __future__ import annotations

import gc

__all__ = ["done"]

_before = gc.isenabled()
gc.disable()  # to look through modules half made took a twentieth of the import


def done() -> None:
    """Everything is imported: garbage is looked for as before."""
    if _before:
        gc.enable()
