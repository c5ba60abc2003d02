"""Gradients that the user hands over: one array per weight, by name, checked against the model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.errors import UsageError, quote
from emp_onnx.runtime.feeds import read_arrays
from emp_onnx.weights.find import Weight

__all__ = ["Gradients", "checked", "read_gradients"]

Array = NDArray[Any]
Gradients = Mapping[str, Array]


def read_gradients(path: str | os.PathLike[str], /) -> dict[str, Array]:
    """The arrays of an `.npz` file; its keys are names of weights.

    Raises:
        UsageError: no such file, or something else.
    """
    return read_arrays(path, "gradients")


def checked(gradients: Gradients, weights: Sequence[Weight], others: Sequence[str] = (), /) -> dict[str, Array]:
    """The gradients of these weights, by the name under which each is known.

    Args:
        gradients: by name of the weight, or of its initializer.
        weights: those that are pruned.
        others: names of weights that may be there and are not needed.

    Raises:
        UsageError: a name that is no weight's, a weight without gradient, another shape, or NaN: which, what is
            expected, what came.
    """
    known: dict[str, list[Weight]] = {}
    for weight in weights:
        for name in {weight.name, weight.tensor}:
            known.setdefault(name, []).append(weight)
    found: dict[str, Array] = {}
    for name, value in gradients.items():
        if name not in known:
            if name in others:
                continue
            some = ", ".join(quote(w.name) for w in weights[:8]) + (" …" if len(weights) > 8 else "")
            raise UsageError(f"gradients must be of weights of the model, got {quote(name)}; weights are: {some}")
        if len(known[name]) > 1:
            which = ", ".join(quote(w.name) for w in known[name])
            raise UsageError(f"gradients must say which weight is meant, got {quote(name)}, which may be {which}")
        weight, array = known[name][0], np.asarray(value)
        if array.shape != tuple(weight.shape):
            raise UsageError(
                f"gradients must have the shape of their weight: {quote(name)} is {tuple(weight.shape)}, "
                f"got {array.shape}"
            )
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise UsageError(f"gradients must be finite numbers, got others for {quote(name)}")
        found[weight.name] = array
    for weight in weights:
        if weight.name not in found:
            raise UsageError(
                f"gradients must hold every weight that is pruned, got none of {quote(weight.name)} "
                "(--exclude leaves it as it is)"
            )
    return found
