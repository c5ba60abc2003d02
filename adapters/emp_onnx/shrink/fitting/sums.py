"""What a reader's result is added to: a fit in sequence makes up for the error of that as well.

Where a reader's result y = M·x + b goes into a sum s = y + r and nowhere else, it is s that goes on. In the shrunk
model another r′ stands beside it, and it is known when the reader is fitted, if all that makes it has been. So the aim
is not y but s − r′ = y + (r − r′): what the skip of a residual block lost, the block's last layer gives back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.shrink.fitting.readers import Reader
from emp_onnx.shrink.view import View

__all__ = ["Beside", "beside"]

KINDS = ("conv", "right", "rightt")  # whose results have one place for each place that they read


@dataclass(frozen=True)
class Beside:
    """What stands beside a reader's result in a sum.

    Attributes:
        dense, changed: its name in the dense model and in the changed one.
        as_rows: takes samples out of it, at the places of the reader's own samples.
        left: which of the outputs of the dense reader the changed one still has.
    """

    dense: str
    changed: str
    as_rows: Reader
    left: NDArray[np.bool_]

    def lost(self, dense: Mapping[str, Any], changed: Mapping[str, Any]) -> NDArray[Any] | None:
        """r − r′ on one feed; None where they are of different shapes."""
        axis, before = self.as_rows.axis, dense[self.dense]
        if before.ndim != changed[self.changed].ndim or before.shape[axis] != len(self.left):
            return None
        before = np.compress(self.left, before, axis)
        return before - changed[self.changed] if before.shape == changed[self.changed].shape else None


def beside(
    view: View, reader: Reader, origin: View, goal: Reader, left: NDArray[np.bool_], level: int,
    reach: Mapping[str, int],
) -> Beside | None:  # fmt: skip
    """What stands beside the result of a reader, if it is a tensor that no reader makes which is yet to be fitted.

    Args:
        view, reader: of the changed model. origin, goal: the same of the dense one.
        left: which outputs of the reader stay.
        level, reach: after how many fits the reader is fitted, and each tensor is as it will be.
    """
    here, there = _added(view, reader), _added(origin, goal)
    if here is None or there is None or here[0] != there[0] or reach.get(here[1], 0) > level:
        return None
    axis = 1 if reader.kind == "conv" else -1
    return Beside(there[1], here[1], replace(reader, kind="right", axis=axis), left)


def _added(view: View, reader: Reader) -> tuple[str, str] | None:
    """The sum that a reader's result goes into and nowhere else, and the other tensor in it."""
    if reader.kind not in KINDS:
        return None
    name = reader.op.outputs[0]
    for _ in range(2):  # perhaps after the sum that is its bias
        behind = view.readers.get(name, [])
        if len(behind) != 1 or name in view.outputs or name in view.captured or behind[0][0].type != "Add":
            return None
        op, slot = behind[0]
        other = op.inputs[1 - slot]
        if other not in view.constants:
            return op.outputs[0], other
        if other != reader.bias:
            return None
        name = op.outputs[0]
    return None
