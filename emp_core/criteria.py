"""Criteria: weights and statistics in, scores out. Plain functions on arrays of any library, elementwise.

A score says how much a component matters; how many components stay is the rule's part (:func:`emp_core.select`).
Computed in the dtype and on the device of the arguments.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._errors import ArgumentError
from ._namespace import is_standard, is_tensorflow, namespace

__all__ = ["gradient", "magnitude", "obs", "output_error", "squared", "taylor", "wanda"]


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
    return abs(w) * _along(xp, w, x, axis, "norms")


def obs(weights: Any, inverse: Any, /, *, axis: int = -1) -> Any:
    """``w² / [H⁻¹]ⱼⱼ``: how much the squared error of the outputs rises when a weight is removed and all others of
    its row are solved again (twice the saliency of the optimal brain surgeon: Hassibi and Stork, NeurIPS 1992).

    Args:
        weights: any shape.
        inverse: the diagonal of the inverse of H, the second moments of the inputs (with whatever ridge makes it
            invertible), > 0; 1-D, as long as ``weights`` along ``axis``.
        axis: the input axis of ``weights``.

    >>> obs([[1.0, -2.0]], [0.5, 2.0]).tolist()
    [[2.0, 2.0]]
    """
    xp, w, h = _arrays(weights=weights, inverse=inverse)
    return w * w / _along(xp, w, h, axis, "inverse")


def output_error(rises: Any, energy: float, /) -> Any:
    """Rises of a squared error as shares of the energy of a layer's outputs, which can be compared across layers.

    Args:
        rises: per weight, of one layer (as :func:`obs` gives them), ≥ 0.
        energy: the mean of Σ y² over the layer's outputs, ≥ 0; with 0 nothing can be lost, and all scores are 0.

    >>> output_error([2.0, 1.0], 4.0).tolist()
    [0.5, 0.25]
    """
    xp, r = _arrays(rises=rises)
    if not energy >= 0:
        raise ArgumentError(f"energy must be ≥ 0, got {energy}")
    return r / energy if energy else xp.zeros_like(r)


def taylor(weights: Any, gradients: Any, /) -> Any:
    """``(w·g)²``: the squared first-order change of the loss (Molchanov et al., arXiv 1906.10771). Both of one shape.

    >>> taylor([1.0, -2.0], [0.5, 0.25]).tolist()
    [0.25, 0.25]
    """
    change = gradient(weights, gradients)
    return change * change


def _along(xp: Any, w: Any, x: Any, axis: int, name: str) -> Any:
    """A 1-D array in a form that broadcasts along one axis of the weights."""
    dims = len(w.shape)
    if not -dims <= axis < dims:
        raise ArgumentError(f"axis must be in [{-dims}, {dims}), got {axis}")
    if len(x.shape) != 1 or int(x.shape[0]) != int(w.shape[axis]):
        raise ArgumentError(f"{name} must be 1-D with {int(w.shape[axis])} entries, got shape {tuple(x.shape)}")
    shape = [1] * dims
    shape[axis] = -1
    return xp.reshape(x, tuple(shape))


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
