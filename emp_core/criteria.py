"""Criteria: weights and statistics in, scores out. Plain functions on arrays of any library, elementwise.

A score says how much a component matters; how many components stay is the rule's part (:func:`emp_core.select`).
Computed in the dtype and on the device of the arguments.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._errors import ArgumentError
from ._namespace import is_standard, is_tensorflow, namespace

__all__ = ["gradient", "magnitude", "squared", "wanda"]


def magnitude(weights: Any, /) -> Any:
    """``|w|``.

    >>> magnitude([1.0, -2.0]).tolist()
    [1.0, 2.0]
    """
    _, w = _arrays(weights=weights)
    return abs(w)


def squared(weights: Any, /) -> Any:
    """``w²``: with these scores the effective size is the participation ratio of the energies.

    >>> squared([1.0, -2.0]).tolist()
    [1.0, 4.0]
    """
    _, w = _arrays(weights=weights)
    return w * w


def gradient(weights: Any, gradients: Any, /) -> Any:
    """``|w·g|``: the first-order change of the loss when a weight is removed. Both of one shape.

    >>> gradient([1.0, -2.0], [0.5, 0.25]).tolist()
    [0.5, 0.5]
    """
    _, w, g = _arrays(weights=weights, gradients=gradients)
    if tuple(w.shape) != tuple(g.shape):
        raise ArgumentError(f"gradients must have the shape of the weights {tuple(w.shape)}, got {tuple(g.shape)}")
    return abs(w * g)


def wanda(weights: Any, norms: Any, /, *, axis: int = -1) -> Any:
    """``|w|·‖x‖₂``: a weight matters as much as its input is large (Wanda).

    Args:
        weights: any shape.
        norms: ‖x‖₂ of each input feature over the calibration feeds, ≥ 0; 1-D, as long as ``weights`` along ``axis``.
        axis: the input axis of ``weights``.

    >>> wanda([[1.0, -2.0], [3.0, 4.0]], [10.0, 1.0]).tolist()
    [[10.0, 2.0], [30.0, 4.0]]
    """
    xp, w, x = _arrays(weights=weights, norms=norms)
    dims = len(w.shape)
    if not -dims <= axis < dims:
        raise ArgumentError(f"axis must be in [{-dims}, {dims}), got {axis}")
    if len(x.shape) != 1 or int(x.shape[0]) != int(w.shape[axis]):
        raise ArgumentError(f"norms must be 1-D with {int(w.shape[axis])} entries, got shape {tuple(x.shape)}")
    shape = [1] * dims
    shape[axis] = -1
    return abs(w) * xp.reshape(x, tuple(shape))


def _arrays(**arrays: Any) -> tuple[Any, ...]:
    """The namespace and the arrays; lists become NumPy arrays."""
    found = []
    for name, a in arrays.items():
        if not (is_tensorflow(a) or is_standard(a)):
            try:
                a = np.asarray(a)
            except (TypeError, ValueError):
                raise ArgumentError(f"{name} must be an array of real numbers, got {type(a).__name__}") from None
        if isinstance(a, (np.ndarray, np.generic)):
            a = np.asarray(a)
            if a.dtype.kind not in "fiubV":
                raise ArgumentError(f"{name} must be an array of real numbers, got dtype {a.dtype}")
        found.append(a)
    return namespace(*found), *found
