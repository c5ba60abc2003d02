"""What a refit gives: a model with fewer weights, as the tensors that differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Thin"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Thin:
    """A model with fewer weights.

    Attributes:
        changed: new values of weights and biases, by key.
        masks: of weights; True = kept.
        notes: what a person should know.
    """

    changed: Mapping[str, Array]
    masks: Mapping[str, NDArray[np.bool_]]
    notes: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """Share of the weights that was removed."""
        n, kept = (sum(map(count, self.masks.values())) for count in (np.size, np.count_nonzero))
        return int(n - kept) / max(int(n), 1)
