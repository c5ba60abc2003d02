"""Criteria: weights and statistics in, scores out. Plain functions on arrays of any library.

A score says how much a component matters; how many components stay is the rule's part (:func:`emp_core.select`).
Computed on the device of the arguments, in float32 or wider, so that nothing wraps or overflows that the arguments
hold: numbers of 16 bits and less in float32, integers and booleans in float64, all others in their own dtype.
Magnitudes of 16 bits stay what they are. Where there is no float64 (JAX without 64 bits, Apple's GPUs), integers are
taken in float32, which holds those up to 2**24; elsewhere integers must lie within ±2**53.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ._errors import ArgumentError
from ._exact import WHOLE, refuse_rounded
from ._namespace import BFLOAT16, cast, is_standard, is_tensorflow, is_traced, namespace, to_host

__all__ = [
    "combined",
    "f_statistic",
    "gradient",
    "heads",
    "kan_edges",
    "kan_nodes",
    "magnitude",
    "obs",
    "output_error",
    "squared",
    "taylor",
    "wanda",
]


def magnitude(weights: Any, /) -> Any:
    """``|w|``.

    >>> magnitude([1.0, -2.0]).tolist()
    [1.0, 2.0]
    """
    _, w = _arrays(least=16, weights=weights)
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
    return taylor(weights, gradients)


def taylor(weights: Any, gradients: Any, /, *, axis: int | tuple[int, ...] | None = None) -> Any:
    """``|Σ w·g|`` over ``axis``: the first-order change of the loss when all weights along it are removed at once.

    Args:
        weights, gradients: of one shape.
        axis: what one score stands for is summed over these axes; None: each weight by itself (as :func:`gradient`).

    >>> taylor([[1.0, -2.0], [3.0, 4.0]], [[0.5, 0.25], [1.0, 1.0]], axis=1).tolist()
    [0.0, 7.0]
    """
    xp, w, g = _arrays(weights=weights, gradients=gradients)
    if tuple(w.shape) != tuple(g.shape):
        raise ArgumentError(f"gradients must have the shape of the weights {tuple(w.shape)}, got {tuple(g.shape)}")
    return abs(w * g) if axis is None else abs(xp.sum(w * g, axis=axis))


def heads(query: Any, key: Any, value: Any, output: Any, /, *, norm: float = 2) -> Any:
    """One score per attention head: the Ln norm of all that it owns of the four weights together.

    Args:
        query, output: (heads, numbers): what each head owns.
        key, value: the same, or with fewer rows, each of which is shared by equally many heads that follow each other.
        norm: n ≥ 1.

    >>> heads([[3.0], [0.0]], [[0.0], [0.0]], [[0.0], [0.0]], [[4.0], [1.0]]).tolist()
    [5.0, 1.0]
    """
    xp, q, k, v, o = _arrays(query=query, key=key, value=value, output=output)
    if not (isinstance(norm, (int, float)) and 1 <= norm < float("inf")):
        raise ArgumentError(f"norm must be ≥ 1 and finite, got {norm!r}")
    count = int(q.shape[0]) if len(q.shape) == 2 else 0
    total: Any = None
    for name, part in (("query", q), ("key", k), ("value", v), ("output", o)):
        rows = int(part.shape[0]) if len(part.shape) == 2 else 0
        if not rows or count % rows or (name == "output" and rows != count):
            raise ArgumentError(f"{name} must have two axes, the first one of heads, got shape {tuple(part.shape)}")
        sums = xp.sum(abs(part) ** norm, axis=1)
        if rows != count:
            sums = xp.reshape(xp.stack([sums] * (count // rows), axis=1), (count,))
        total = sums if total is None else total + sums
    return total ** (1 / norm)


def kan_edges(base: Any, spline: Any, /, *, axis: int | tuple[int, ...] = -1, norm: float = 1) -> Any:
    """One score per edge of a Kolmogorov–Arnold layer: the Ln norm of its base weight and its spline coefficients.

    Args:
        base: base weights, one per edge, any layout; None where a layer has no base part.
        spline: coefficients, in the layout of ``base`` with ``axis`` more.
        axis: of the coefficients of one edge.
        norm: n ≥ 1.

    >>> kan_edges([[1.0, 0.0]], [[[2.0, -1.0], [0.0, 3.0]]]).tolist()
    [[4.0, 3.0]]
    """
    xp, c = _arrays(spline=spline)
    if not (isinstance(norm, (int, float)) and 1 <= norm < float("inf")):
        raise ArgumentError(f"norm must be ≥ 1 and finite, got {norm!r}")
    sums = xp.sum(abs(c) ** norm, axis=axis)
    if base is not None:
        _, b = _arrays(base=base)
        if tuple(b.shape) != tuple(sums.shape):
            raise ArgumentError(f"base must have one weight per edge, shape {tuple(sums.shape)}, got {tuple(b.shape)}")
        sums = sums + abs(b) ** norm
    return sums if norm == 1 else sums ** (1 / norm)


def kan_nodes(incoming: Any, outgoing: Any, /, *, output_axis: int = 0, both: str = "min") -> Any:
    """One score per hidden node of a Kolmogorov–Arnold network, from the scores of its edges.

    A node matters only if something reaches it and something leaves it: the smaller of its largest incoming and its
    largest outgoing edge (Liu et al., arXiv 2404.19756, keep a node where both exceed a threshold, which is the same).

    Args:
        incoming: (nodes, inputs) scores of the layer before; with ``output_axis=1`` (inputs, nodes).
        outgoing: (outputs, nodes) scores of the layer after; with ``output_axis=1`` (nodes, outputs).
        output_axis: where each layer has its outputs.
        both: "min", or "max" for the larger of the two, as the code of the paper on effective pruning has it.

    >>> kan_nodes([[5.0, 1.0], [0.0, 0.1]], [[2.0, 9.0]]).tolist()
    [2.0, 0.1]
    """
    xp, a, b = _arrays(incoming=incoming, outgoing=outgoing)
    if both not in ("min", "max"):
        raise ArgumentError(f"both must be min or max, got {both!r}")
    if output_axis not in (0, 1):
        raise ArgumentError(f"output_axis must be 0 or 1, got {output_axis!r}")
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[output_axis] != b.shape[1 - output_axis]:
        raise ArgumentError(
            f"incoming and outgoing must be matrices that share their nodes, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    into, out = xp.max(abs(a), axis=1 - output_axis), xp.max(abs(b), axis=output_axis)
    larger = into > out
    return xp.where(larger, out, into) if both == "min" else xp.where(larger, into, out)


def f_statistic(activations: Any, labels: Any, /) -> Any:
    """One-way analysis of variance: how far classes differ in each component's activation, against the spread inside.

    ``F = [Σ_c n_c(ā_c − ā)²/(K−1)] / [Σ_c Σ_i (a_ci − ā_c)²/(n−K)]``. It does not change when a component is scaled,
    so a connection ``w·a`` has the F of its source ``a``: combined with magnitude (:func:`combined`) connections
    differ.

    Args:
        activations: (samples, …): one number per sample and component.
        labels: one class per sample, integers or strings; at least two classes, and fewer than samples.

    Returns:
        NumPy float64, of the shape of one sample. 0 where nothing varies; where classes differ and nothing varies
        inside, the largest float64 divided by the number of components, so that sums stay finite.

    >>> f_statistic([[0.0, 1.0], [1.0, 1.0], [4.0, 1.0], [5.0, 1.0]], [0, 0, 1, 1]).tolist()
    [32.0, 0.0]
    """
    a = np.asarray(_decoded(to_host(activations)), np.float64)
    named, inverse = np.unique(to_host(labels), return_inverse=True)
    n, classes = a.shape[0] if a.ndim else 0, len(named)
    if a.ndim < 1 or inverse.shape != (n,):
        raise ArgumentError(f"labels must have one class per sample ({n}), got shape {inverse.shape}")
    if not 2 <= classes < n:
        raise ArgumentError(f"labels must have at least 2 classes and fewer than samples ({n}), got {classes}")
    if not np.isfinite(a).all():
        raise ArgumentError("activations must be finite, got NaN or an infinity")
    flat = a.reshape(n, -1)
    flat = np.ldexp(flat, -np.frexp(np.abs(flat).max(axis=0))[1])  # at most 1, without rounding
    counts = np.bincount(inverse, minlength=classes).astype(np.float64)
    means = np.stack([flat[inverse == c].mean(axis=0) for c in range(classes)])
    between = (counts[:, None] * (means - flat.mean(axis=0)) ** 2).sum(axis=0) / (classes - 1)
    within = ((flat - means[inverse]) ** 2).sum(axis=0) / (n - classes)
    tiny = 1e-28  # squares of rounding: relative, since activations are scaled to at most 1
    most = np.finfo(np.float64).max / max(flat.shape[1], 1) / 4
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        f = np.where(between > tiny, np.minimum(between / np.where(within > tiny, within, 0.0), most), 0.0)
    return f.reshape(a.shape[1:])


def combined(scores: Any, other: Any, /, *, share: float = 0.5) -> Any:
    """``(1 − λ)·|s|/Σ|s| + λ·|t|/Σ|t|``: two criteria, each by its share of its own mass.

    Args:
        scores, other: of shapes that broadcast to the first one's: (out, in) weights and one F per input, say.
        share: λ in [0, 1], the weight of the other.

    >>> combined([3.0, 1.0], [0.0, 1.0], share=0.5).tolist()
    [0.375, 0.625]
    """
    xp, s, t = _arrays(scores=scores, other=other)
    if not (isinstance(share, (int, float)) and 0 <= share <= 1):
        raise ArgumentError(f"share must be in [0, 1], got {share!r}")
    s = abs(s)
    try:
        t = xp.broadcast_to(abs(t), tuple(s.shape))
    except (ValueError, RuntimeError, TypeError):
        raise ArgumentError(
            f"other must broadcast to the shape of the scores {tuple(s.shape)}, got {tuple(t.shape)}"
        ) from None
    one, two = xp.sum(s), xp.sum(t)
    one, two = (xp.where(total > 0, total, xp.ones_like(total)) for total in (one, two))
    return (1 - share) * (s / one) + share * (t / two)


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


def _arrays(*, least: int = 32, **arrays: Any) -> tuple[Any, ...]:
    """The namespace and the arrays as floats of at least so many bits; lists become NumPy arrays."""
    found = []
    for name, a in arrays.items():
        if not (is_tensorflow(a) or is_standard(a)):
            try:
                a = np.asarray(a)
            except (TypeError, ValueError):
                raise ArgumentError(f"{name} must be an array of real numbers, got {type(a).__name__}") from None
        if isinstance(a, (np.ndarray, np.generic)):
            a = _decoded(np.asarray(a))
            if a.dtype.kind not in "fiub" and not _kind(a)[0]:
                raise ArgumentError(f"{name} must be an array of real numbers, got dtype {a.dtype}")
        found.append(a)
    xp = namespace(*found)
    return xp, *(_floats(xp, a, name, least) for name, a in zip(arrays, found, strict=True))


def _floats(xp: Any, a: Any, name: str, least: int) -> Any:
    """An array as floats that hold its numbers, of at least so many bits."""
    kind, bits = _kind(a)
    if "float" in kind:
        return a if bits >= least else _cast(xp, a, xp.float32)
    if not kind:
        return a
    wide = _cast(xp, a, _widest(xp, a))
    if bits == 64 and not is_traced(a) and _any_at_least(xp, wide, WHOLE):
        refuse_rounded(to_host(a), name)
    return wide


def _kind(a: Any) -> tuple[str, int]:
    """What an array of any library holds, by the name of its dtype, and in how many bits; else nothing."""
    name = getattr(a.dtype, "name", None) or str(a.dtype)
    known = re.search(r"(?<![a-z])(bfloat|float|uint|int|bool)(\d*)", str(name))
    return (known[1], int(known[2] or 8)) if known else ("", 0)


def _widest(xp: Any, a: Any) -> Any:
    """The widest floats that there are where an array lies."""
    if xp.__name__.startswith("jax"):
        return xp.result_type(float)  # float64 where 64 bits are switched on
    return xp.float32 if getattr(getattr(a, "device", None), "type", None) == "mps" else xp.float64


def _any_at_least(xp: Any, a: Any, limit: int) -> bool:
    some = abs(a) >= limit
    return bool(np.asarray(some).any()) if is_tensorflow(a) else bool(xp.any(some))


def _cast(xp: Any, a: Any, dtype: Any) -> Any:
    return xp.cast(a, dtype) if is_tensorflow(a) else cast(xp, a, dtype)


def _decoded(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """bfloat16 that came as bits under its name, as numbers."""
    if a.dtype != BFLOAT16:
        return a
    wide: np.ndarray[Any, Any] = (a.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return wide
