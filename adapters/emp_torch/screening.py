"""The F-statistic of activations over classes (arXiv 2502.07189), from sums over batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emp_core import ArgumentError

__all__ = ["ClassSums"]


@dataclass
class ClassSums:
    """Of one layer's inputs or outputs: one number per sample and unit (its mean over places), summed by class.

    Attributes:
        shift: near the mean of each unit; taken off before squares are summed, so that no digits cancel.
        counts: by class, the samples seen.
        totals: by class, Σ(a − shift) of each unit.
        squares: Σ(a − shift)² of each unit.
    """

    shift: Tensor
    counts: dict[Any, int]
    totals: dict[Any, Tensor]
    squares: Tensor

    @classmethod
    def of(cls, values: Tensor) -> ClassSums:
        """None yet; `values` are (samples, units) of the first batch."""
        shift = values.mean(0)
        return cls(shift, {}, {}, torch.zeros_like(shift))

    def add(self, values: Tensor, labels: Tensor) -> None:
        """A batch: (samples, units), and one class per sample."""
        centred = values - self.shift
        self.squares += centred.square().sum(0)
        for label in labels.unique().tolist():
            here = centred[labels == label]
            self.counts[label] = self.counts.get(label, 0) + len(here)
            self.totals[label] = self.totals.get(label, torch.zeros_like(self.shift)) + here.sum(0)

    def f_statistic(self) -> Tensor:
        """One number per unit; see `emp_core.criteria.f_statistic`, which takes all samples at once.

        Raises:
            ArgumentError: fewer than two classes, or no more samples than classes.
        """
        n, classes = sum(self.counts.values()), len(self.counts)
        if not 2 <= classes < n:
            raise ArgumentError(f"labels must have at least 2 classes and fewer than samples ({n}), got {classes}")
        explained = torch.stack([self.totals[c].square() / self.counts[c] for c in self.counts]).sum(0)
        between = explained - torch.stack(list(self.totals.values())).sum(0).square() / n
        within = (self.squares - explained).clamp(min=0)
        size = self.squares + n * self.shift.square()  # what rounding is measured against
        between = torch.where(between > 1e-14 * size, between / (classes - 1), torch.zeros_like(between))
        within = torch.where(within > 1e-14 * size, within / (n - classes), torch.zeros_like(within))
        most = torch.finfo(between.dtype).max / max(between.numel(), 1) / 4
        return torch.where(between > 0, (between / within).clamp(max=most), torch.zeros_like(between))
