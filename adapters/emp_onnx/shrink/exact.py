"""Units taken out without a refit: what they still say goes into biases of their readers; the rest stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np

from emp_onnx.shrink.cut import Masks, cut
from emp_onnx.shrink.fold import fold, muted, silent
from emp_onnx.shrink.plainer.constants import constant_channels
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.report import GroupRow
from emp_onnx.shrink.view import View

__all__ = ["dead", "exact"]


def dead(problem: Problem, proto: Any) -> tuple[Masks, Any, Any, list[GroupRow]]:
    """Units that say nothing or always the same, folded and cut; the reference is the model as it came."""
    told = constant_channels(problem.view, problem.trace)
    quiet = [silent(problem.view, problem.trace, g, problem.readers, told) for g in problem.groups]
    masks: dict[Any, Any] = {}
    rows = []
    for group, mask in zip(problem.groups, quiet, strict=True):
        gone = np.flatnonzero(mask)
        merged = _merged(masks, group.removed(gone))
        while gone.size and any(m.all() for m in merged.values()):  # one of them has to stay
            gone = gone[:-1]
            merged = _merged(masks, group.removed(gone))
        masks = merged
        rows.append(GroupRow(group.name, group.units, group.units - len(gone), None))
    fold(problem.view, problem.readers, masks, told)
    return masks, proto, cut(problem.view, problem.trace, masks), rows


def _merged(masks: Masks, more: Masks) -> dict[Any, Any]:
    return {axis: masks.get(axis, False) | more.get(axis, False) for axis in {**masks, **more}}


def exact(problem: Problem, masks: Masks) -> tuple[Any, Any]:
    """The masked model, and the one without what goes, which says the same.

    The weights that make a unit are zero in the masked model, its biases and shifts stay, and what it still says is
    folded into its readers. Where a reader cannot take that, all constants of the unit are zero.
    """
    view = View.of(muted(problem.view, masks, problem.readers, whole=False))
    told = constant_channels(view, problem.trace)
    loud: dict[Any, Any] = {}
    for group in problem.groups:
        gone = np.zeros(group.units, bool)
        for axis, labels in group.axes.items():
            if axis in masks and axis[0] in view.constants:
                hit = np.bincount(labels[(labels >= 0) & masks[axis]], minlength=group.units)
                gone |= hit == np.maximum(np.bincount(labels[labels >= 0], minlength=group.units), 1)
        bad = np.flatnonzero(gone & ~silent(view, problem.trace, group, problem.readers, told))
        loud = _merged(loud, {axis: mask & masks[axis] for axis, mask in group.removed(bad).items() if axis in masks})
    loud = {axis: mask for axis, mask in loud.items() if mask.any()}
    reference = muted(view, loud, problem.readers, whole=True)
    folded = View.of(muted(view, loud, problem.readers, whole=True))
    fold(folded, problem.readers, masks, constant_channels(folded, problem.trace))
    return reference, cut(folded, problem.trace, masks)
