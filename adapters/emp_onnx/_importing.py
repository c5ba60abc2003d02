"""Whether to look for garbage while the package is imported: what that makes, stays."""

from __future__ import annotations

import gc

__all__ = ["done"]

_before = gc.isenabled()
gc.disable()  # to look through modules half made took a twentieth of the import


def done() -> None:
    """Everything is imported: garbage is looked for as before, but not first of all in all that has been imported."""
    if not gc.get_freeze_count():  # else somebody's frozen objects would thaw
        gc.freeze()
        gc.unfreeze()  # both together make everything old without a look at it
    if _before:
        gc.enable()
