"""What optimisers and callbacks that prune during training are told of their ramp, checked for all frameworks alike."""

from __future__ import annotations

import sys
from numbers import Real

from ._errors import ArgumentError
from ._schedule import cubic_schedule

__all__ = ["refuse_wrong_ramp"]


def refuse_wrong_ramp(
    *, sparsity: float | None, beta: float, initial: float, begin: int, steps: int, every: int
) -> None:
    """Refuse a ramp that cannot be, by the name of the option that is wrong.

    Args:
        sparsity: to reach, in [0, 1); None: that of the effective size.
        beta: multiplier of the effective size, finite and > 0.
        initial, begin, steps, every: as in `cubic_schedule`.

    Raises:
        ArgumentError: one of them is out of range.

    Examples:
        >>> refuse_wrong_ramp(sparsity=1.2, beta=1.0, initial=0.0, begin=0, steps=1, every=1)
        Traceback (most recent call last):
            ...
        emp_core._errors.ArgumentError: sparsity must be in [0, 1), or None, got 1.2
    """
    cubic_schedule(initial, 0.0, begin=begin, steps=steps, every=every)
    if sparsity is not None and not (isinstance(sparsity, Real) and 0 <= sparsity < 1):
        raise ArgumentError(f"sparsity must be in [0, 1), or None, got {sparsity!r}")
    if not (isinstance(beta, Real) and 0 < beta <= sys.float_info.max):
        raise ArgumentError(f"beta must be a finite number > 0, got {beta!r}")
