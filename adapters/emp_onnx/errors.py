"""The errors of this adapter: one small tree, every leaf with the exit code the command line gives it.

```
emp_core.EmpError
└── OnnxError
    ├── UsageError         2  what was asked for makes no sense, or does not fit the model
    │   ├── PlanError      2  a plan that is damaged, or was made for another model
    │   ├── OutputError    2  the output cannot be written where it was asked for
    │   └── MissingExtraError   2  a package of the extra `onnx` is not installed
    ├── ModelError         3  the model is not supported, or cannot be read
    └── VerifyError        1  the result is not what was promised; nothing was written (in `verification.outcome`; also
                              the VerifyError of emp_core)
```

Every message is a sentence that names the parameter or the weight, what is allowed, and what came.
"""

from __future__ import annotations

from typing import ClassVar

from emp_core import EmpError
from emp_onnx.interrupt import check

__all__ = [
    "MissingExtraError",
    "ModelError",
    "OnnxError",
    "OutputError",
    "PlanError",
    "UsageError",
    "escape",
    "quote",
]


class OnnxError(EmpError):
    """Any error of this adapter; `exit_code` is what `emp` returns for it."""

    exit_code: ClassVar[int] = 3


class UsageError(OnnxError):
    """What was asked for makes no sense, or does not fit the model."""

    exit_code = 2


class PlanError(UsageError):
    """A plan that is damaged, or that was made for another model."""


class OutputError(UsageError):
    """The output cannot be written where it was asked for."""


class MissingExtraError(UsageError):
    """A package of the extra `onnx` is not installed; the message ends in the line that adds it."""

    def __init__(self, package: str) -> None:
        check()  # what interrupts an import may come out of it as an ImportError
        super().__init__(
            f"{package} is needed for this and is not installed; add it with: pip install 'effective-pruning[onnx]'"
        )


class ModelError(OnnxError):
    """The model is not supported, or cannot be read."""


def quote(text: object) -> str:
    """`text` in single quotes, with control characters and terminal escapes made visible.

    >>> quote("a\\x1b[31m\\nb")
    "'a\\\\x1b[31m\\\\nb'"
    """
    return "'" + escape(str(text)) + "'"


def escape(text: str) -> str:
    """`text` with every character that is not printable written as an escape."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in text
    )
