"""What verification finds: every check, and the error of those who write nothing when one fails."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import emp_core
from emp_onnx.errors import OnnxError
from emp_onnx.runtime.compare import Behaviour

__all__ = ["Check", "Verification", "VerifyError", "check"]

MOST = 50  # faults of one check that are told


@dataclass(frozen=True)
class Check:
    """One thing checked: what, whether it holds, and if not, in what it fails."""

    what: str
    ok: bool
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verification:
    """The outcome.

    Attributes:
        checks: everything checked.
        behaviour: both models on the same feeds, or None when they were not run.
        not_run: why they were not run, else empty.
    """

    checks: tuple[Check, ...]
    behaviour: Behaviour | None = None
    not_run: str = ""

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    @property
    def faults(self) -> tuple[str, ...]:
        """Every fault found, as sentences."""
        return tuple(fault for check in self.checks for fault in check.faults)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"ok": self.ok, **asdict(self)}


class VerifyError(OnnxError, emp_core.VerifyError):
    """The result is not what was promised, so nothing was written; `verification` holds every check."""

    exit_code = 1

    def __init__(self, message: str, verification: Verification | None = None) -> None:
        super().__init__(message)
        self.verification = verification


def check(what: str, faults: Iterable[str], /) -> Check:
    """A check of which these are the faults, if any."""
    found = tuple(faults)
    return Check(what, not found, found[:MOST])
