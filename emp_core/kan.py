"""Kolmogorov–Arnold networks: hidden nodes by the rule, and their removal, for any layout of arrays.

Scores of edges and nodes are :func:`emp_core.criteria.kan_edges` and :func:`emp_core.criteria.kan_nodes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._errors import ArgumentError
from ._namespace import given, namespace, to_host

__all__ = ["remove_nodes"]


def remove_nodes(
    incoming: Mapping[str, Any], outgoing: Mapping[str, Any], keep: Any, /, *, axes: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of two layers without the hidden nodes between them that are not kept.

    Args:
        incoming: arrays of the layer before, by name, each with an axis of nodes.
        outgoing: arrays of the layer after.
        keep: booleans, one per node.
        axes: by name, where the nodes lie in each array; names of arrays that have no such axis are absent, and they
            stay.

    Returns:
        The smaller arrays of both layers, in their library.

    Raises:
        ArgumentError: an array has another number of nodes, no node is kept, or a name of ``axes`` is in both layers.

    >>> import numpy as np
    >>> before, after = {"base": np.ones((3, 5))}, {"out": np.ones((2, 3))}
    >>> a, b = remove_nodes(before, after, [True, False, True], axes={"base": 0, "out": 1})
    >>> a["base"].shape, b["out"].shape
    ((2, 5), (2, 2))
    """
    mask = to_host(given(keep, "keep").array).reshape(-1)
    if mask.dtype != bool or not mask.any():
        raise ArgumentError("keep must be booleans, at least one of them True, got none or something else")
    for name in axes:
        if name not in incoming and name not in outgoing:
            raise ArgumentError(f"axes must be of given arrays, got {name!r}")
        if name in incoming and name in outgoing:  # nodes lie along different axes of the two layers
            raise ArgumentError(f"axes must name an array of one layer, got {name!r}, which both layers have")

    def smaller(arrays: Mapping[str, Any]) -> dict[str, Any]:
        out = dict(arrays)
        for name, axis in axes.items():
            if name not in arrays:
                continue
            a = arrays[name]
            if not -len(a.shape) <= axis < len(a.shape) or int(a.shape[axis]) != mask.size:
                raise ArgumentError(f"{name} must have {mask.size} nodes along axis {axis}, got shape {tuple(a.shape)}")
            index = given(a, name).back(mask.nonzero()[0])
            out[name] = namespace(a).take(a, index, axis=axis)
        return out

    return smaller(incoming), smaller(outgoing)
