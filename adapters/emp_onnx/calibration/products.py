"""Products of matrices as linear maps: Gemm, MatMul and Einsum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.biasing import flat, has, later_bias
from emp_onnx.calibration.finding import Finder
from emp_onnx.calibration.maps import Bias, Found, Get, Problem, Site
from emp_onnx.calibration.places import Places
from emp_onnx.calibration.program import Step
from emp_onnx.calibration.unroll import positions

__all__ = ["einsum", "gemm", "matmul"]

Array = NDArray[Any]
Index = NDArray[np.int64]


def gemm(finder: Finder, step: Step, found: Found) -> Site | str:
    """The site of a Gemm, or why it has none."""
    if len(found) != 1:
        return "both factors are weights"
    slot, (key, index) = next(iter(found.items()))
    scale = {"alpha": 1.0, "beta": 1.0, **{a.name: a.f for a in step.proto.attribute if a.name in ("alpha", "beta")}}
    if not scale["alpha"]:
        return "a Gemm whose alpha is 0 is not refitted"
    flags = step.node.number("transA"), step.node.number("transB")
    name = step.inputs[1 - slot]
    if slot == 1:
        matrix, turned = (index if flags[1] else index.T), bool(flags[0])
        outs: Any = _last
    else:  # (W·X)ᵀ = Xᵀ·Wᵀ
        matrix, turned = (index.T if flags[0] else index), not flags[1]
        outs = None
    bias = None
    if slot == 1:
        if has(step, 2):
            hit = finder.alone(step.inputs[2])
            shape = None if hit is None else hit.index.shape
            if hit is not None and hit.index.size == len(matrix) and (not shape or shape[-1] == len(matrix)):
                bias = replace(flat(hit), sign=1 / scale["beta"]) if scale["beta"] else None
        else:
            bias = later_bias(finder, step, len(matrix), -1)
    return Site(step, (key,), (name,), [_matrix_problem(key, matrix, name, turned, outs, bias, scale["alpha"])])


def matmul(finder: Finder, step: Step, found: Found) -> Site | str:
    """The site of a MatMul, or why it has none; each matrix of a batch is a group."""
    if len(found) != 1:
        return "both factors are weights"
    slot, (key, index) = next(iter(found.items()))
    name, mine = step.inputs[1 - slot], slot == 1
    if index.ndim < 2:
        return "a vector is not refitted"
    if index.ndim > 2:
        return Site(step, (key,), (name,), [_batched(key, index, name, mine)])
    matrix = index.T if mine else index
    bias = later_bias(finder, step, len(matrix), -1 if mine else -2)
    return Site(step, (key,), (name,), [_matrix_problem(key, matrix, name, not mine, _last if mine else None, bias)])


def _batched(key: str, index: Index, name: str, mine: bool) -> Problem:
    """A batch of matrices, each a group with its own share of the other factor; `mine`: they are on the right."""
    batch = index.shape[:-2]
    own = [axis - len(batch) - 2 for axis, size in enumerate(batch) if size > 1]  # counted from the end
    groups = int(np.prod(batch))

    def grouped(y: Array) -> Array:
        """The batch in front; whatever else there is are samples."""
        y = np.broadcast_to(y, (*np.broadcast_shapes(y.shape[:-2], batch), *y.shape[-2:]))
        return np.moveaxis(y, own, range(len(own))).reshape(groups, -1, y.shape[-1])

    def taken(y: Array, seed: int, limit: int) -> Array:
        y = grouped(y if mine else np.swapaxes(y, -1, -2))
        some = positions(y.shape[1], limit, seed)
        return y if some is None else y[:, some]

    def rows(get: Get, seed: int, limit: int) -> Array:
        x = get(name)
        assert x is not None
        return taken(x, seed, limit)

    matrix = (np.swapaxes(index, -1, -2) if mine else index).reshape(groups, -1, index.shape[-2 if mine else -1])
    return Problem([(key, Places(matrix))], rows, taken)


def _matrix_problem(
    key: str, matrix: Index, name: str, turned: bool, outs: Any, bias: Bias | None, scale: float = 1.0
) -> Problem:
    same = ("matrix", name, turned, scale)
    return Problem([(key, Places(matrix[None]))], _matrix(name, turned, scale), outs, bias, same, not turned)


def _matrix(name: str, turned: bool, scale: float) -> Callable[[Get, int, int], Array]:
    """Rows of a matrix product: the last axis is summed over, or the last but one. What scales it scales them."""

    def rows(get: Get, seed: int, limit: int) -> Array:
        x = get(name)
        assert x is not None
        found = _last(np.swapaxes(x, -1, -2) if turned else x, seed, limit)
        return found if scale == 1 else found * np.float32(scale)

    return rows


def _last(y: Array, seed: int, limit: int) -> Array:
    flat = y.reshape(-1, y.shape[-1])
    some = positions(len(flat), limit, seed)
    return (flat if some is None else flat[some])[None]


def einsum(finder: Finder, step: Step, found: Found) -> Site | str:
    """The site of an Einsum, or why it has none; letters of all three terms are groups."""
    if len(found) != 1 or len(step.inputs) != 2:
        return "an Einsum of other than two factors, one of them a weight, is not refitted"
    slot, (key, index) = next(iter(found.items()))
    equation = str(step.node.attributes.get("equation", "")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if "." in equation or not arrow or len(terms) != 2:
        return "an Einsum with an ellipsis, or without an output term, is not refitted"
    mine, other, name = terms[slot], terms[1 - slot], step.inputs[1 - slot]
    summed = [c for c in mine if c in other and c not in right]
    shared = [c for c in mine if c in other and c in right]
    free = [c for c in mine if c not in other and c in right]
    rest = [c for c in other if c not in mine and c in right]
    plain = all(len(set(term)) == len(term) for term in (mine, other, right))
    if not plain or len(summed + shared + free) != len(mine) or len(summed + shared + rest) != len(other):
        return "an Einsum that sums over one factor alone, or repeats a letter, is not refitted"
    sizes = dict(zip(mine, index.shape, strict=True))
    many = [int(np.prod([sizes[c] for c in some], dtype=np.int64)) for some in (shared, free, summed)]
    matrix = index.transpose([mine.index(c) for c in (*shared, *free, *summed)]).reshape(many)

    def rows(get: Get, seed: int, limit: int) -> Array:
        x = get(name)
        assert x is not None
        x = x.transpose([other.index(c) for c in (*shared, *rest, *summed)]).reshape(many[0], -1, many[2])
        some = positions(x.shape[1], limit, seed)
        return x if some is None else x[:, some]

    return Site(step, (key,), (name,), [Problem([(key, Places(matrix))], rows)])
