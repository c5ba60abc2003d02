"""One look at a pruned weight: its figures, its hash if wanted, and how it differs from what it should be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_core.checksum import Checksum
from emp_onnx.files.model_io import Model
from emp_onnx.files.patch import Values
from emp_onnx.files.short import SHORT, batches
from emp_onnx.files.storage import pieces_of
from emp_onnx.weights.find import Weight
from emp_onnx.weights.kept import Pruned, Together, plain

__all__ = ["Seen", "look", "look_each"]

ROW = 4096


@dataclass
class Seen:
    """What one look found.

    Attributes:
        zeros: elements that are zero.
        hash: checksum of the values, or None if it was not asked for.
        summed: whether the next three were taken.
        l1, squares: Σ and Σ² of what is left.
        least: the least magnitude left that is not zero; inf if none is.
        removed: removed elements that are not what a removed element becomes.
        changed: kept elements whose bits are not the original's.
    """

    zeros: int = 0
    hash: str | None = None
    summed: bool = False
    l1: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    removed: int = 0
    changed: int = 0


def look(
    model: Model,
    weight: Weight,
    /,
    *,
    digest: bool = False,
    sums: bool = True,
    original: Model | None = None,
    patch: Pruned | None = None,
) -> Seen:
    """Read a weight once, piece by piece; beside the original, with what makes the pruned weight of it, if given.

    With `digest` its checksum is taken, with `sums` what of its figures is a sum or a least value.
    """
    seen, hasher, l1, squares = Seen(summed=sums), Checksum(), list[float](), list[float]()
    for start, stop in pieces_of(math.prod(weight.shape)):
        stored = model.piece(weight.name, start, stop)
        if original is not None and patch is not None:
            _compare(seen, original.piece(weight.name, start, stop), stored, patch, start)
        if digest:
            hasher.update(stored)
        scores = weight.zero.scores(stored, start)
        count = int(np.count_nonzero(scores != 0))
        seen.zeros += scores.size - count
        if sums and count:
            _sum(seen, scores, l1, squares)
    seen.l1, seen.squares = math.fsum(l1), math.fsum(squares)
    if digest:
        seen.hash = hasher.hexdigest()
    return seen


def look_each(model: Model, original: Model, patches: Sequence[Pruned], /) -> dict[str, Seen]:
    """A look, without hashes, at many short weights of plain floats beside the original, taken together.

    Weights that need more care are not in the result: long ones, quantised ones, those of rows, and all that differ.
    """
    out: dict[str, Seen] = {}
    groups: dict[np.dtype[Any], list[Pruned]] = {}
    for patch in patches:
        dtype = original.stored(patch.weight.name).dtype
        if plain(patch, dtype) and 0 < math.prod(patch.weight.shape) <= SHORT:
            groups.setdefault(dtype, []).append(patch)
    for group in groups.values():
        for some in batches(group, lambda patch: math.prod(patch.weight.shape)):
            out |= _together(model, original, some)
    return out


def _together(model: Model, original: Model, group: Sequence[Pruned]) -> dict[str, Seen]:
    names = [patch.weight.name for patch in group]
    there, after = Together.of(group, original.wholes(names)), np.concatenate(model.wholes(names))
    first = np.array(there.edges[:-1])
    wrong = np.logical_or.reduceat(_bits(there.after) != _bits(after), first)
    size = np.abs(after).astype(np.float64)
    figures = (
        np.add.reduceat((after == 0).astype(np.int64), first), np.add.reduceat(size, first),
        np.add.reduceat(size * size, first), np.minimum.reduceat(np.where(size > 0, size, np.inf), first),
    )  # fmt: skip
    return {
        patch.weight.name: Seen(zeros, None, True, l1, squares, some)
        for patch, bad, zeros, l1, squares, some in zip(
            group, wrong.tolist(), *(f.tolist() for f in figures), strict=True
        )
        if not bad
    }


def _sum(seen: Seen, scores: Values, l1: list[float], squares: list[float]) -> None:
    size = np.abs(scores)
    if size.dtype not in (np.float32, np.float64):
        size = size.astype(np.float32)
    wide = size.astype(np.float64)
    l1.append(float(np.einsum("i->", wide)))
    whole = wide.size & -ROW  # rows too short for a BLAS to start threads of its own
    rows = wide[:whole].reshape(-1, 1, ROW)
    squares += np.matmul(rows, rows.transpose(0, 2, 1)).reshape(-1).tolist()
    squares.append(float(np.einsum("i,i->", wide[whole:], wide[whole:])))
    bits = size.view(f"u{size.itemsize}")  # magnitudes order as their bits do; 0 less 1 is the largest
    least = np.subtract(bits, 1, out=bits).min() + bits.dtype.type(1)
    seen.least = min(seen.least, float(least.view(size.dtype)))


def _compare(seen: Seen, before: Values, after: Values, patch: Pruned, start: int) -> None:
    """Count what differs from the original, pruned."""
    wanted, bits = _bits(patch(start, before)), _bits(after)
    if np.array_equal(wanted, bits):
        return
    mask, wrong = patch.kept.mask(patch.weight.zero.scores(before, start), start), wanted != bits
    seen.removed += int(np.count_nonzero(wrong & ~mask))
    seen.changed += int(np.count_nonzero(wrong & mask))


def _bits(values: Values) -> NDArray[Any]:
    """The elements' bits, as whole numbers."""
    return values.view(f"<u{values.dtype.itemsize}")
