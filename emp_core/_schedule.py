"""Schedules: a function of the training step, nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real

from ._errors import ArgumentError


def cubic_schedule(initial: float, final: float, *, begin: int, steps: int, every: int = 1) -> Callable[[int], float]:
    """Sparsity that rises fast, then slowly (Zhu and Gupta, arXiv 1710.01878).

    ``s_t = s_f + (s_i − s_f)·(1 − (t − t_0)/(n·Δt))³`` for ``t = t_0, t_0 + Δt, …, t_0 + n·Δt``; between these steps
    the last value holds, before ``t_0`` it is ``s_i``, after the end ``s_f``.

    Args:
        initial: sparsity s_i before the ramp, in [0, 1).
        final: sparsity s_f after it, in [0, 1).
        begin: step t_0 at which the ramp begins, ≥ 0.
        steps: number n of changes, ≥ 1.
        every: training steps Δt between changes, ≥ 1.

    Raises:
        ArgumentError: a parameter is out of range.

    >>> sparsity = cubic_schedule(0.0, 0.8, begin=10, steps=4, every=5)
    >>> [round(sparsity(t), 4) for t in (0, 10, 14, 15, 30, 99)]
    [0.0, 0.0, 0.0, 0.4625, 0.8, 0.8]
    """
    for name, value in (("initial", initial), ("final", final)):
        if not (isinstance(value, Real) and 0 <= value < 1):
            raise ArgumentError(f"{name} must be a sparsity in [0, 1), got {value!r}")
    return _ramp(float(initial), float(final), begin, steps, every)


def beta_schedule(initial: float, final: float, *, begin: int, steps: int, every: int = 1) -> Callable[[int], float]:
    """The same ramp in β: from an ``initial`` multiplier of the effective size to a ``final`` one, both > 0.

    >>> beta = beta_schedule(2.0, 1.0, begin=0, steps=10)
    >>> beta(0), beta(5), beta(10)
    (2.0, 1.125, 1.0)
    """
    for name, value in (("initial", initial), ("final", final)):
        if not (isinstance(value, Real) and math.isfinite(value) and value > 0):
            raise ArgumentError(f"{name} must be a finite number > 0, got {value!r}")
    return _ramp(float(initial), float(final), begin, steps, every)


def _ramp(initial: float, final: float, begin: int, steps: int, every: int) -> Callable[[int], float]:
    for name, value, least in (("begin", begin, 0), ("steps", steps, 1), ("every", every, 1)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ArgumentError(f"{name} must be an integer ≥ {least}, got {value!r}")

    begin, steps, every = int(begin), int(steps), int(every)

    def at(step: int) -> float:
        done = min(max((step - begin) // every, 0), steps)
        if done in (0, steps):  # the ends exactly, without rounding
            return final if done else initial
        return final + (initial - final) * (1 - done / steps) ** 3

    return at
