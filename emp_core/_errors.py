"""The errors that this package raises, drawn once.

    EmpError                  everything below; catch this one to catch all
    ├── ArgumentError         a parameter is outside what it allows        (also a ValueError)
    └── PoolError             the scores of a pool cannot be counted       (also a ValueError)

A message is one sentence: the parameter, what is allowed, what came.
"""

from __future__ import annotations


class EmpError(Exception):
    """Base of every error that ``emp_core`` and its adapters raise on purpose."""


class ArgumentError(EmpError, ValueError):
    """A parameter is outside what it allows."""


class PoolError(EmpError, ValueError):
    """A pool is empty, or holds NaN or ±inf; the message names the pool."""
