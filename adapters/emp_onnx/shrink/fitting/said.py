"""Rows of class scores in what a model says, along the axis that its graph gives them (see `calibration/along.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from emp_onnx.calibration.along import Made, channels, class_axis, laid, scores_along
from emp_onnx.calibration.outputs import classes
from emp_onnx.runtime.feeds import Feed

__all__ = ["Said"]


class Said:
    """Where the classes lie in the values of a model.

    Args:
        model: a protobuf that makes the values; the dense one, or one that was made of it.
        dense: what the dense model says on a feed.
        feed: that feed.
    """

    def __init__(self, model: Any, dense: Mapping[str, Any], feed: Feed) -> None:
        kept = {n: v for n, v in dense.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f" and v.ndim > 2}
        self.along: dict[str, int | None] = {}
        if not kept:  # mostly: then no graph has to be read
            return
        made = _makers(model)
        version = next((item.version for item in model.opset_import if not item.domain), 1)
        for name, value in kept.items():
            axis = class_axis(lambda n: made.get(n), name, value.ndim, version)
            self.along[name] = scores_along(value, axis, channels(feed))

    def rows(self, name: str, value: Any) -> Any:
        """Class scores as (rows, classes); None where a value is no class scores."""
        if not isinstance(value, np.ndarray):
            return None
        return classes(laid(value, self.along[name]) if name in self.along else value)


def _makers(model: Any) -> dict[str, Made]:
    fixed = {item.name for item in model.graph.initializer}
    found: dict[str, Made] = {}
    for node in model.graph.node:
        if node.op_type == "Constant":
            fixed.update(node.output)
            continue
        named = {item.name: item for item in node.attribute if item.name in ("axis", "perm")}
        source = next((n for n in node.input if n and n not in fixed), "")
        axis = named["axis"].i if "axis" in named else None
        perm = tuple(named["perm"].ints) if "perm" in named else None
        found.update((name, Made(node.op_type, source, axis, perm)) for name in node.output if name)
    return found
