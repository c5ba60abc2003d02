"""Constants of a model under change: new ones, under names that nothing has yet, and other values of those there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["add_constant", "free", "set_constant"]


def free(base: str, taken: set[str]) -> str:
    """A name that is not taken, and is from now on.

    >>> taken = {"w"}
    >>> free("w", taken), free("w", taken), sorted(taken)
    ('w_', 'w__', ['w', 'w_', 'w__'])
    """
    while base in taken:
        base += "_"
    taken.add(base)
    return base


def add_constant(model: Any, name: str, values: NDArray[Any]) -> str:
    """Give a model, in place, a constant under a free name; the name."""
    import onnx

    tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)
    model.graph.initializer.append(tensor)
    if model.ir_version < 4:  # every initializer is an input too, in files of that time
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, values.shape))
    return name


def set_constant(model: Any, name: str, values: NDArray[Any]) -> None:
    """Give a constant of a model, in place, other values, perhaps of another shape."""
    import onnx

    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
    for info in model.graph.input:  # see `add_constant`
        if info.name == name:
            info.CopyFrom(onnx.helper.make_tensor_value_info(name, tensor.data_type, values.shape))
