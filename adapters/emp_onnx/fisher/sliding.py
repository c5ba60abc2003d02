"""Adjoints of what slides over its input: convolutions and pools."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.convolutions import auto_padded, window_of
from emp_onnx.calibration.unroll import Window, stuffed
from emp_onnx.fisher.adjoints import ADJOINTS, FIRST, Adjoint, Call, UnableError

__all__ = ["ALL"]

Array = NDArray[Any]
Pulls = Iterator[tuple[str, Array]]


def _conv(call: Call) -> Pulls:
    x, w = call.input(0), call.input(1)
    auto = str(call.step.node.attributes.get("auto_pad", "NOTSET"))
    window = auto_padded(window_of(call.step, w.shape[2:]), auto, x.shape[2:])
    yield call.step.inputs[0], _back(call, w, window, call.step.node.number("group", 1), call.pull, x.shape[2:])


def _back(call: Call, w: Array, window: Window, groups: int, pull: Array, sizes: Sequence[int]) -> Array:
    """A convolution of gradients with zeros between them, the kernel reversed."""
    out, rank = w.shape[0] // groups, len(sizes)
    turned = w.reshape(groups, out, *w.shape[1:]).swapaxes(1, 2).reshape(groups * w.shape[1], out, *w.shape[2:])
    turned = np.ascontiguousarray(np.flip(turned, tuple(range(2, 2 + rank))))
    pull = stuffed(pull, window.strides)
    before = [d * (k - 1) - b for d, k, (b, _) in zip(window.dilations, window.kernel, window.pads, strict=True)]
    after = [
        size - there + d * (k - 1) - b
        for size, there, d, k, b in zip(sizes, pull.shape[2:], window.dilations, window.kernel, before, strict=True)
    ]
    if min(before + after, default=0) < 0:  # pads beyond the kernel
        raise UnableError
    return call.other("Conv", pull, turned, group=groups, dilations=window.dilations, pads=(*before, *after))[0]


def _conv_transpose(call: Call) -> Pulls:
    x, w, node = call.input(0), call.input(1), call.step.node
    if "output_shape" in node.attributes or str(node.attributes.get("auto_pad", "NOTSET")) != "NOTSET":
        raise UnableError
    given = window_of(call.step, w.shape[2:])
    pads = [a for pair in zip(*given.pads, strict=True) for a in pair]
    found = call.other(
        "Conv", call.pull, w, group=node.number("group", 1), dilations=given.dilations, strides=given.strides, pads=pads
    )[0]
    if found.shape != x.shape:
        raise UnableError
    yield call.step.inputs[0], found


def _average(call: Call) -> Pulls:
    x, node = call.input(0), call.step.node
    kernel = node.numbers("kernel_shape")
    if kernel is None or node.number("ceil_mode", 0):
        raise UnableError
    auto = str(node.attributes.get("auto_pad", "NOTSET"))
    window = auto_padded(window_of(call.step, kernel), auto, x.shape[2:])
    counts = np.full(window.sizes(x.shape[2:]), math.prod(kernel), np.float32)
    if not node.number("count_include_pad", 0):
        inside = np.pad(np.ones(x.shape[2:], np.float32), window.pads)[None, None]
        taps = np.ones((1, 1, *kernel), np.float32)
        counts = call.other("Conv", inside, taps, strides=window.strides, dilations=window.dilations)[0][0, 0]
    ones = np.ones((x.shape[1], 1, *kernel), np.float32)
    yield call.step.inputs[0], _back(call, ones, window, x.shape[1], call.pull / counts, x.shape[2:])


def _largest(call: Call) -> Pulls:
    x, pull = call.input(0), call.pull
    words = ("kernel_shape", "pads", "strides", "dilations", "auto_pad", "ceil_mode")
    said = {word: call.step.node.attributes[word] for word in words if word in call.step.node.attributes}
    _, places = call.other("MaxPool", x, outputs=2, **said)
    found = np.bincount(places.reshape(-1), pull.reshape(-1), x.size)
    yield call.step.inputs[0], found.reshape(x.shape).astype(np.float32)


ALL: dict[str, Adjoint] = {
    **ADJOINTS,
    "Conv": Adjoint(_conv, FIRST, product=True),
    "ConvTranspose": Adjoint(_conv_transpose, FIRST, product=True),
    "AveragePool": Adjoint(_average, FIRST),
    "MaxPool": Adjoint(_largest, FIRST),
}
