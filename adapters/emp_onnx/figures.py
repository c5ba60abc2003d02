"""The rule, and the figures it gives: the core's, with the errors of this adapter."""

from __future__ import annotations

from dataclasses import dataclass

from emp_core import ArgumentError
from emp_core.figures import SCOPES, Figures, typed
from emp_core.figures import Rule as CoreRule
from emp_onnx.errors import UsageError

__all__ = ["SCOPES", "Figures", "Rule", "typed"]


@dataclass(frozen=True)
class Rule(CoreRule):
    """How many are kept, and which weights compete.

    Attributes:
        beta: multiplier of the effective size, > 0; None when `sparsity` is given.
        order: order of the Hill number that counts (2: the effective size), ≥ 0, or inf.
        sparsity: if given, exactly this share of every pool is removed instead, 0 ≤ sparsity < 1.
        scope: what competes: the weights of one `tensor`, one `row` (output or gate unit), or the whole `model`.

    Raises:
        UsageError: one is outside what it allows, or two contradict each other.
    """

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ArgumentError as error:
            raise UsageError(str(error)) from error
