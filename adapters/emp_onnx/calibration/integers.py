"""Operations on whole numbers as the linear maps of floats that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.biasing import has
from emp_onnx.calibration.finding import Finder
from emp_onnx.calibration.maps import Found, Get, Site
from emp_onnx.calibration.products import gemm
from emp_onnx.calibration.program import Step

__all__ = ["stands_for", "whole_gemm"]

Array = NDArray[Any]


def stands_for(
    finder: Finder, step: Step, found: Found, make: Callable[[Finder, Step, Found], Site | str], op: str,
    sides: tuple[int, int], bias: int | None = None,
) -> Site | str:  # fmt: skip
    """An operation on whole numbers as the one on floats that it stands for.

    Each factor has its scale and zero point behind it; `sides` are the inputs of the left one and of the right one,
    `bias` that of a bias in steps of the product of both scales.
    """
    if len(found) != 1:
        return "both factors are weights"
    slot, hit = next(iter(found.items()))
    mine = sides.index(slot)
    other = sides[1 - mine]
    name, scale, point = step.inputs[other : other + 3]
    held = [finder.program.constants.get(value) for value in (scale, point, step.inputs[slot + 1])]
    if any(tensor is None for tensor in held) or any(tensor.size != 1 for tensor in held[:2] if tensor is not None):
        return f"a {step.node.op} whose scales are no constants, or vary over its input, is not refitted"
    factors = tuple(step.inputs[side] for side in sides)
    plain = Step(step.proto, step.node._replace(op=op, domain=""), factors, step.outputs, step.guard)
    site = make(finder, plain, {mine: hit})
    if isinstance(site, str):
        return site
    (problem,) = site.problems
    rows = problem.rows
    unit: Any = 1.0
    for tensor in (held[0], held[2]):
        unit = unit * (1.0 if tensor is None else finder.model.values(tensor.key).astype(np.float64).reshape(-1))

    def real(get: Get) -> Get:
        def value(wanted: str) -> Array | None:
            x, step_, zero = get(wanted), get(scale), get(point)
            if wanted != name or x is None or step_ is None or zero is None:
                return x
            return np.asarray((x.astype(np.float32) - zero.astype(np.float32)) * step_)

        return value

    given = finder.dequantised(step.inputs[bias]) if bias is not None and has(step, bias) else None
    groups, out, _ = problem.shape
    if given is not None and given.index.size == groups * out:
        units = np.broadcast_to(unit, groups * out).reshape(groups, out)
        moved = replace(given, index=given.index.reshape(groups, out), unit=units)
    else:
        moved = None
    site.problems = [
        replace(problem, rows=lambda get, seed, limit: rows(real(get), seed, limit), outs=None, bias=moved, same=None)
    ]
    site.step = step
    return site


def whole_gemm(finder: Finder, step: Step, found: Found) -> Site | str:
    """The site of a QGemm, or why it has none."""
    if any(attribute.name == "alpha" and attribute.f != 1 for attribute in step.proto.attribute):
        return "a QGemm whose alpha is not 1 is not refitted"
    return stands_for(finder, step, found, gemm, "Gemm", (0, 3), 6)
