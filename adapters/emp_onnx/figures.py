"""The rule, and the figures it gives: the plain data that plans and certificates are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from emp_core.plans import SCOPES, Figures, typed
from emp_onnx.errors import UsageError, quote

__all__ = ["SCOPES", "Figures", "Rule", "typed"]


@dataclass(frozen=True)
class Rule:
    """How many are kept, and which weights compete.

    Attributes:
        beta: multiplier of the effective size, > 0; None when `sparsity` is given.
        order: order of the Hill number that counts (2: the effective size), ≥ 0, or inf.
        sparsity: if given, exactly this share of every pool is removed instead, 0 ≤ sparsity < 1.
        scope: what competes: the weights of one `tensor`, one `row` (output or gate unit), or the whole `model`.
    """

    beta: float | None = 1.0
    order: float = 2.0
    sparsity: float | None = None
    scope: str = "tensor"

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise UsageError(f"scope must be one of {', '.join(SCOPES)}, got {quote(self.scope)}")
        if self.sparsity is not None:
            if self.beta not in (None, 1.0):
                raise UsageError(f"beta must be left alone when sparsity is given, got {self.beta}")
            object.__setattr__(self, "beta", None)
            object.__setattr__(self, "sparsity", _number("sparsity", self.sparsity))
            if not 0 <= self.sparsity < 1:
                raise UsageError(f"sparsity must be ≥ 0 and < 1, got {self.sparsity}")
            if self.order != 2:
                raise UsageError(f"order must be left alone when sparsity is given, got {self.order}")
        else:
            object.__setattr__(self, "beta", _number("beta", self.beta))
            if not (self.beta is not None and 0 < self.beta < math.inf):
                raise UsageError(f"beta must be > 0 and finite, got {self.beta}")
        object.__setattr__(self, "order", _number("order", self.order))
        if not self.order >= 0:
            raise UsageError(f"order must be ≥ 0, got {self.order}")

    def keeps(self) -> dict[str, Any]:
        """The options of `emp_core.select` that this rule stands for."""
        if self.sparsity is not None:
            return {"sparsity": self.sparsity}
        return {"order": self.order, "beta": self.beta}


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be a number, got {value!r}") from error
