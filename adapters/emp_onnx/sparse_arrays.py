"""Weights as arrays of `scipy.sparse`, and back.

What is stored is what differs from 0 in its bits: −0.0 and every NaN are entries of their own. So the way there and
back keeps every bit, in each of the four formats: no sum is ever formed, where scipy's own conversions would add to
0.0. Of float16 and bfloat16, which scipy does not have, the arrays are of float32, which holds all their values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.errors import MissingExtraError, UsageError, quote
from emp_onnx.files.model_io import Model
from emp_onnx.packing.choose import choose
from emp_onnx.packing.counts import bits_of
from emp_onnx.packing.forms import FORMS
from emp_onnx.packing.rewrite import rewritten
from emp_onnx.weights.find import Weight, find_weights

__all__ = ["from_scipy", "to_scipy", "view_of"]

FORMATS = ("coo", "csr", "csc", "bsr")
HALVES = ("float16", "bfloat16")
RECURRENT = {"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"}
Values = NDArray[Any]


def view_of(weight: Weight) -> tuple[int, int]:
    """The rows and columns that a weight has as a matrix.

    | weight | rows | columns |
    |---|---|---|
    | of two dimensions | as stored | as stored |
    | W and R of LSTM, GRU, RNN: (directions, gates·hidden, inputs) | directions·gates·hidden | inputs |
    | Conv and all others | the first axis | all other axes, in order |
    """
    shape = weight.shape
    if weight.op in RECURRENT and len(shape) == 3:
        return shape[0] * shape[1], shape[2]
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def to_scipy(
    model: Model, /, *, format: str = "csr", names: Sequence[str] | None = None, blocksize: tuple[int, int] = (4, 4)
) -> dict[str, Any]:
    """The weights of a model as sparse arrays, by name; see `view_of` for their rows and columns.

    Args:
        model: from `load`.
        format: coo, csr, csc or bsr.
        names: only these weights; all, embedding tables too, if not given.
        blocksize: rows and columns of a block of bsr; where they do not divide a weight, blocks of 1 × 1.

    Raises:
        UsageError: a format that does not exist, or a name that is no weight.
        MissingExtraError: SciPy is not installed.

    Example:
        >>> from emp_onnx import demo, load
        >>> arrays = to_scipy(load(demo.MODEL))
        >>> sorted({type(array).__name__ for array in arrays.values()})
        ['csr_array']
    """
    if format not in FORMATS:
        raise UsageError(f"format must be one of {', '.join(FORMATS)}, got {quote(format)}")
    weights = {weight.name: weight for weight in find_weights(model, embeddings=True).weights}
    for name in names or ():
        if name not in weights:
            raise UsageError(f"names must be weights of the model, got {quote(name)}")
    out = {}
    for name in weights if names is None else names:
        values = _widened(name, model.values(name)).reshape(view_of(weights[name]))
        out[name] = _sparse(values, format, blocksize)
    return out


def from_scipy(
    model: Model, arrays: Mapping[str, Any], /, *, form: str = "dense", target: str = "onnxruntime"
) -> Model:
    """The model with these weights, each written back in its own shape; `save` writes it.

    Args:
        model: from `load`.
        arrays: sparse arrays of any scipy format, of the shape that `view_of` says and of the weight's type (float32
            for float16 and bfloat16, to which they are rounded).
        form: in what form these weights are stored: dense, coo, packed or auto (see `pack`).
        target: what must run the result, as in `pack`.

    Raises:
        UsageError: a name that is no weight, an array of another type or shape, or a form that does not exist.

    Example:
        >>> from emp_onnx import demo, load
        >>> model = load(demo.MODEL)
        >>> back = from_scipy(model, to_scipy(model))
        >>> all((back.values(name) == model.values(name)).all() for name in to_scipy(model))
        True
    """
    if form not in FORMS:
        raise UsageError(f"form must be one of {', '.join(FORMS)}, got {quote(form)}")
    weights = {weight.name: weight for weight in find_weights(model, embeddings=True).weights}
    values: dict[str, Values] = {}
    for name, array in arrays.items():
        if name not in weights:
            raise UsageError(f"arrays must be named after weights of the model, got {quote(name)}")
        dtype, view = model.stored(name).dtype, view_of(weights[name])
        wide = np.dtype(np.float32) if dtype.name in HALVES else dtype
        if tuple(array.shape) != view or array.dtype != wide:
            raise UsageError(f"array {quote(name)} must be {wide} of {view}, got {array.dtype} of {tuple(array.shape)}")
        values[name] = _narrowed(_dense(array, view), dtype).reshape(weights[name].shape)
    changed = model.replaced(values, {})
    if form == "dense" and all(model.tensors[name].storage not in ("packed", "sparse") for name in values):
        return changed
    chosen, _ = choose(changed, form=form, target=target, keys=frozenset(values))
    return rewritten(changed, chosen)


def _widened(name: str, values: Values) -> Values:
    """The values in a type that scipy has; a NaN keeps its payload."""
    kind = values.dtype.name
    if kind == "bfloat16":
        return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if kind == "float16":
        with np.errstate(invalid="ignore"):
            out = values.astype(np.float32)
        nan = np.isnan(values)
        bits = values.view(np.uint16)[nan].astype(np.uint32)
        out.view(np.uint32)[nan] = (bits & 0x8000) << 16 | 0x7F800000 | (bits & 0x3FF) << 13
        return out
    if values.dtype.kind not in "fiu" or values.dtype.itemsize > 8:
        raise UsageError(f"names must be weights of a type that scipy has, got {quote(name)}, which is {kind}")
    return values


def _narrowed(values: Values, dtype: np.dtype[Any]) -> Values:
    """The inverse of `_widened`."""
    if dtype.name not in HALVES:
        return values
    with np.errstate(invalid="ignore", over="ignore"):
        out = values.astype(dtype)
    nan = np.isnan(values)
    bits = values.view(np.uint32)[nan]
    if dtype.name == "bfloat16":
        payload, quiet = bits >> 16, np.uint32(0x40)
        empty = payload & 0x7F == 0
    else:
        payload, quiet = (bits >> 16 & 0x8000) | 0x7C00 | (bits >> 13 & 0x3FF), np.uint32(0x200)
        empty = payload & 0x3FF == 0
    out.view(np.uint16)[nan] = np.where(empty, payload | quiet, payload).astype(np.uint16)
    return out


def _sparse(dense: Values, format: str, blocksize: tuple[int, int]) -> Any:
    try:
        import scipy.sparse as sp  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise MissingExtraError("scipy") from error
    shape = dense.shape
    stored = bits_of(np.ascontiguousarray(dense)) != 0
    if format == "bsr":
        high, wide = blocksize if not any(d % b for d, b in zip(shape, blocksize, strict=True)) else (1, 1)
        grid = (shape[0] // high, shape[1] // wide)
        blocks = np.ascontiguousarray(dense).reshape(grid[0], high, grid[1], wide).swapaxes(1, 2)
        some = stored.reshape(grid[0], high, grid[1], wide).any(axis=(1, 3))
        rows, columns = np.nonzero(some)
        return sp.bsr_array((blocks[some], columns, _pointers(rows, grid[0])), shape=shape)
    if format == "csc":
        columns, rows = np.nonzero(stored.T)
        return sp.csc_array((dense[rows, columns], rows, _pointers(columns, shape[1])), shape=shape)
    rows, columns = np.nonzero(stored)
    data = dense[rows, columns]
    if format == "coo":
        return sp.coo_array((data, (rows, columns)), shape=shape)
    return sp.csr_array((data, columns, _pointers(rows, shape[0])), shape=shape)


def _pointers(major: NDArray[np.intp], many: int) -> NDArray[np.intp]:
    return np.concatenate([[0], np.cumsum(np.bincount(major, minlength=many))])


def _dense(array: Any, shape: tuple[int, int]) -> Values:
    out = np.zeros(shape, array.dtype)
    if array.format == "bsr":
        high, wide = array.blocksize
        rows = np.repeat(np.arange(len(array.indptr) - 1), np.diff(array.indptr))
        grid = out.reshape(shape[0] // high, high, shape[1] // wide, wide)
        if len(np.unique(rows * grid.shape[2] + array.indices)) == len(rows):
            grid[rows, :, array.indices, :] = array.data
            return out
        return np.asarray(array.toarray())
    if array.format in ("csr", "csc"):
        major = np.repeat(np.arange(len(array.indptr) - 1), np.diff(array.indptr))
        rows, columns = (major, array.indices) if array.format == "csr" else (array.indices, major)
        data = array.data
    else:
        found = array.tocoo()
        (rows, columns), data = found.coords, found.data
    if len(np.unique(rows.astype(np.int64) * shape[1] + columns)) != len(rows):
        return np.asarray(array.toarray())  # entries of one place are added, as scipy has it
    out[rows, columns] = data
    return out
