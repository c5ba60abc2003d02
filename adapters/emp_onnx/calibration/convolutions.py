"""Convolutions as linear maps: one sample for each position of the output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.biasing import behind, given_bias, grouped, has, later_bias
from emp_onnx.calibration.finding import Finder
from emp_onnx.calibration.maps import Found, Get, Problem, Site
from emp_onnx.calibration.places import Places
from emp_onnx.calibration.program import Step
from emp_onnx.calibration.unroll import Window, positions, stuffed, unroll

__all__ = ["auto_padded", "conv", "conv_transpose", "window_of"]

Array = NDArray[Any]


def conv(finder: Finder, step: Step, found: Found) -> Site | str:
    """The site of a Conv, or why it has none."""
    key, index = found[1]
    groups, shape = step.node.number("group", 1), index.shape
    if len(shape) < 3 or shape[0] % groups:
        return "its shape is not that of a kernel"
    given = window_of(step, shape[2:])
    auto = step.node.attributes.get("auto_pad", "NOTSET")
    name, out = step.inputs[0], shape[0]
    matrix = index.reshape(groups, out // groups, -1)

    def window(x: Array) -> Window:
        return auto_padded(given, str(auto), x.shape[2:])

    def rows(get: Get, seed: int, limit: int) -> Array:
        x = get(name)
        assert x is not None
        w = window(x)
        count = x.shape[0] * int(np.prod(w.sizes(x.shape[2:])))
        return unroll(x, w, groups, positions(count, limit, seed))

    bias = grouped(given_bias(finder, step, 2, out) if has(step, 2) else None, groups)
    if bias is None and not has(step, 2):
        bias = grouped(later_bias(finder, step, out, 1 - len(shape)) or behind(finder, step, out), groups)
    same = ("Conv", name, given, str(auto), groups)
    return Site(step, (key,), (name,), [Problem([(key, Places(matrix))], rows, _channels(groups), bias, same, True)])


def conv_transpose(finder: Finder, step: Step, found: Found) -> Site | str:
    """The site of a ConvTranspose, or why it has none: a Conv of its input with zeros between, the kernel reversed."""
    key, index = found[1]
    groups, kernel = step.node.number("group", 1), index.shape[2:]
    if "output_shape" in step.node.attributes or str(step.node.attributes.get("auto_pad", "NOTSET")) != "NOTSET":
        return "a ConvTranspose with output_shape or auto_pad is not refitted"
    given = window_of(step, kernel)
    extra = step.node.numbers("output_padding") or (0,) * len(kernel)
    pads = tuple(
        (d * (k - 1) - before, d * (k - 1) - after + more)
        for (before, after), d, k, more in zip(given.pads, given.dilations, kernel, extra, strict=True)
    )
    if any(b < 0 or a < 0 for b, a in pads):
        return "a ConvTranspose with pads beyond its kernel is not refitted"
    plain = Window(given.kernel, (1,) * len(kernel), given.dilations, pads)
    name = step.inputs[0]
    # (in, out/group, …) turned round: (group, out, in, …) with the kernel reversed
    turned = index.reshape(groups, index.shape[0] // groups, *index.shape[1:]).swapaxes(1, 2)
    turned = np.flip(turned, tuple(range(3, turned.ndim)))
    out = groups * index.shape[1]
    matrix = np.ascontiguousarray(turned).reshape(groups, index.shape[1], -1)

    def rows(get: Get, seed: int, limit: int) -> Array:
        x = get(name)
        assert x is not None
        x = stuffed(x, given.strides)
        count = x.shape[0] * int(np.prod(plain.sizes(x.shape[2:])))
        return unroll(x, plain, groups, positions(count, limit, seed))

    bias = grouped(
        given_bias(finder, step, 2, out) if has(step, 2) else later_bias(finder, step, out, 1 - index.ndim), groups
    )
    return Site(step, (key,), (name,), [Problem([(key, Places(matrix))], rows, _channels(groups), bias, None, True)])


def _channels(groups: int) -> Callable[[Array, int, int], Array]:
    def outs(y: Array, seed: int, limit: int) -> Array:
        flat = np.moveaxis(y, 1, 0).reshape(y.shape[1], -1)
        some = positions(flat.shape[1], limit, seed)
        flat = flat if some is None else flat[:, some]
        return flat.reshape(groups, -1, flat.shape[1]).transpose(0, 2, 1)

    return outs


def window_of(step: Step, kernel: Sequence[int]) -> Window:
    """How a step's kernel, of this size, moves over its input, but for what `auto_pad` says."""
    rank = len(kernel)
    pads = step.node.numbers("pads") or (0,) * (2 * rank)
    ones = (1,) * rank
    return Window(
        tuple(kernel), step.node.numbers("strides") or ones, step.node.numbers("dilations") or ones,
        tuple(zip(pads[:rank], pads[rank:], strict=True)),
    )  # fmt: skip


def auto_padded(window: Window, auto: str, spatial: Sequence[int]) -> Window:
    """The same with the pads that `auto_pad` asks for on an input of these sizes."""
    if auto in ("NOTSET", ""):
        return window
    pads = []
    for size, k, s, d in zip(spatial, window.kernel, window.strides, window.dilations, strict=True):
        total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size) if auto != "VALID" else 0
        less = total // 2
        pads.append((less, total - less) if auto == "SAME_UPPER" else (total - less, less))
    return Window(window.kernel, window.strides, window.dilations, tuple(pads))
