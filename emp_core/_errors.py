"""The errors that this package raises, drawn once.

    EmpError                  everything below; catch this one to catch all
    ├── ArgumentError         a parameter is outside what it allows        (also a ValueError)
    ├── MissingExtraError     an adapter's framework is not installed       (also an ImportError)
    ├── PoolError             the scores of a pool cannot be counted       (also a ValueError)
    └── VerifyError           what an adapter did is not what it promised

A message is one sentence: the parameter, what is allowed, what came.
"""

from __future__ import annotations


class EmpError(Exception):
    """Base of every error that ``emp_core`` and its adapters raise on purpose."""


class ArgumentError(EmpError, ValueError):
    """A parameter is outside what it allows."""


class PoolError(EmpError, ValueError):
    """A pool is empty, or holds NaN or ±inf; the message names the pool."""


class VerifyError(EmpError):
    """A pruned model is not what was promised; the message says in what. What was to be written was not."""


class MissingExtraError(EmpError, ImportError):
    """The framework of an adapter is not installed; the message ends in the line that adds it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is needed for this and is not installed; add it with: pip install 'effective-pruning[{extra}]'"
        )
