"""The way past a layer: what an Add behind it adds to its output, whose errors the layer can make good.

On its way to the Add the output may be kept within bounds: by a Relu, or by a Clip, which files that were once
quantised have everywhere, and which quantised ones have in effect. Where the dense output lies within, an error of the
other side can be made good by moving it; where it lies beyond, it would have to move far before anything of that shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from emp_onnx.calibration.biasing import has
from emp_onnx.calibration.maps import Past, Site
from emp_onnx.calibration.program import Step

__all__ = ["find_past"]

Array = NDArray[Any]
Bounds = tuple[float, float]
WAY = 6  # steps that are looked at from a layer to the Add
TWO = ("Add", "Max", "Min")


def find_past(site: Site, value: Callable[[str], Array], /) -> Past | None:
    """What is added to a site's output; None if nothing is that was there before.

    Args:
        site: the site.
        value: gives a value of its program that follows from constants.
    """
    program, name = site.program, site.step.outputs[0] if site.step.outputs else ""
    ends: Bounds = (-math.inf, math.inf)
    added = 0
    for _ in range(WAY):
        users = program.readers.get(name, [])
        if len(users) != 1 or name in program.outputs:
            return None
        step, slot = users[0]
        other = step.inputs[1 - slot] if step.node.op in TWO and len(step.inputs) == 2 else ""
        if step.node.domain or len(step.outputs) != 1:
            return None
        if step.node.op == "Add" and other not in program.fixed:
            level = max((s.level for s in program.makers.get(other, ())), default=0)
            return Past(other, *ends) if level < site.step.level else None
        if step.node.op == "Add":
            added += 1
            if ends != (-math.inf, math.inf):  # they would be others for each channel
                return None
        elif step.node.op != "Identity":
            found = _bounds(step, slot, other, site, value)
            if found is None or not _whole(site, added):
                return None
            ends = max(ends[0], found[0]), min(ends[1], found[1])
        name = step.outputs[0]
    return None


def _whole(site: Site, added: int) -> bool:
    """Whether an output is known up to here: what its weights make and, if anything, the bias that they are solved
    with; `added` are the constants that were added behind the step."""
    given = has(site.step, 2)
    return added + given == 0 or (added + given == 1 and all(p.bias is not None for p in site.problems))


def _bounds(step: Step, slot: int, other: str, site: Site, value: Callable[[str], Array]) -> Bounds | None:
    """Those that a step keeps its input within; None if it is no such step, or they are not one number each."""
    fixed = site.program.fixed
    if step.node.op == "Relu":
        return 0.0, math.inf
    if step.node.op in ("Max", "Min") and other in fixed:
        end = _number(value(other))
        return None if end is None else (end, math.inf) if step.node.op == "Max" else (-math.inf, end)
    if step.node.op != "Clip" or slot or any(name and name not in fixed for name in step.inputs[1:]):
        return None
    told = {a.name: math.nan if a.ref_attr_name else a.f for a in step.proto.attribute}  # up to operator set 10
    low = _number(value(step.inputs[1])) if has(step, 1) else told.get("min", -math.inf)
    high = _number(value(step.inputs[2])) if has(step, 2) else told.get("max", math.inf)
    return None if low is None or high is None or math.isnan(low) or math.isnan(high) else (low, high)


def _number(values: Array) -> float | None:
    return float(values.reshape(())) if values.size == 1 else None
