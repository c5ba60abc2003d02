"""The errors of this adapter.

```
emp_core.EmpError
├── ArgumentError       2  what was asked for makes no sense, or does not fit the checkpoint
├── CheckpointError     3  the checkpoint is damaged, or not supported
└── VerifyError         1  (of the core) the result is not what was promised; nothing was written
```
"""

from __future__ import annotations

from emp_core import EmpError, VerifyError

__all__ = ["CheckpointError", "VerifyError", "quote"]


class CheckpointError(EmpError):
    """The checkpoint is damaged, or not supported."""


def quote(text: object) -> str:
    """`text` in single quotes, control characters made visible, at most 200 characters."""
    plain = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii")
        for c in str(text)[:200]
    )
    return f"'{plain}'"
