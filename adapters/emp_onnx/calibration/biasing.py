"""Where the bias of a product is: given to it, added behind it, or the mean of a normalization."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from emp_onnx.calibration.finding import Finder
from emp_onnx.calibration.maps import Bias
from emp_onnx.calibration.program import Program, Step

__all__ = ["behind", "flat", "given_bias", "grouped", "has", "later_bias"]



def has(step: Step, slot: int) -> bool:
    """Whether a step has this input."""
    return slot < len(step.inputs) and bool(step.inputs[slot])


def given_bias(finder: Finder, step: Step, slot: int, out: int) -> Bias | None:
    """The input of a step that is its bias, if it has one number for each output."""
    hit = finder.alone(step.inputs[slot])
    return flat(hit) if hit is not None and hit.index.size == out else None


def later_bias(finder: Finder, step: Step, out: int, axis: int) -> Bias | None:
    """The constant of an Add behind a step, if there is one for each output along `axis` (counted from the end)."""
    user = _only_reader(finder.program, step.outputs[0])
    if user is None or user.node.op != "Add" or user.node.domain:
        return None
    other = user.inputs[1] if user.inputs[0] == step.outputs[0] else user.inputs[0]
    hit = finder.alone(other)
    if hit is None or hit.index.size != out:
        return None
    shape = hit.index.shape
    if any(size != 1 for i, size in enumerate(shape) if i - len(shape) != axis):
        return None
    return flat(hit)


def behind(finder: Finder, step: Step, out: int) -> Bias | None:
    """The mean of a BatchNormalization behind a step, which is a bias with the sign turned.

    Its variance stays. Solved outputs vary a little less than those that were wanted, and dividing by their own
    variance would make them larger; but of all factors that they could be given, 1 has the least error already.
    """
    user = _only_reader(finder.program, step.outputs[0])
    if (
        user is None
        or user.node.op != "BatchNormalization"
        or user.inputs[0] != step.outputs[0]
        or user.node.number("training_mode")
    ):
        return None
    mean = finder.alone(user.inputs[3])
    return replace(flat(mean), sign=-1.0) if mean is not None and mean.index.size == out else None


def grouped(bias: Bias | None, groups: int) -> Bias | None:
    """A bias over groups of outputs."""
    return bias and replace(bias, index=bias.index.reshape(groups, -1), unit=_shaped(bias.unit, (groups, -1)))


def flat(bias: Bias) -> Bias:
    """A bias of one group."""
    return replace(bias, index=bias.index.reshape(1, -1), unit=_shaped(bias.unit, (1, -1)))


def _shaped(unit: Any, shape: tuple[int, int]) -> Any:
    return unit.reshape(shape) if isinstance(unit, np.ndarray) else unit


def _only_reader(program: Program, name: str) -> Step | None:
    users = program.readers.get(name, [])
    return users[0][0] if len(users) == 1 and name not in program.outputs else None
