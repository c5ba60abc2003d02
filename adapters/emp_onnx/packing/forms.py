"""Which form a tensor is stored in: what each would cost in bytes, and which of them the target runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.files.functions import EARLY, EARLY_OPSET, GROUP, LEAST_OPSET, cut_in, cuts
from emp_onnx.files.graph import Tensor
from emp_onnx.files.model_io import Model
from emp_onnx.files.sparse import fits
from emp_onnx.files.storage import pieces_of
from emp_onnx.packing.counts import BLOCKS, GAPS, Counts, stored_mask

__all__ = ["DTYPES", "FORMS", "TARGETS", "Form", "Survey", "forms", "parted", "rounded", "survey"]

FORMS = ("auto", "dense", "coo", "packed")
TARGETS = ("onnxruntime", "onnxruntime-web", "checker-strict")
DTYPES = {"float32", "float16", "bfloat16", "float64", "int8", "uint8"}
NO_GAPS = {"bfloat16"}  # onnxruntime has no Expand for it
FOLDED = 1 << 28  # elements up to which onnxruntime folds: at most 1 GiB of whole numbers of 32 bits
PARTED = {1 << 18: "UnpackParts4", 1 << 22: "UnpackParts8"}  # elements from which a mask is unpacked in parts, by what
NODE = 160  # bytes that a node and the headers of its inputs take, without names


@dataclass(frozen=True)
class Form:
    """A form, and what it costs.

    Attributes:
        kind: dense, coo, or the function that unpacks it.
        width: elements in a block, or bits of an index; else 1.
        parts: bytes of each part: mask or codes, then values; of a dense tensor its numbers.
        codes: how many codes of gaps there are.
        stored: how many elements or blocks are stored.
    """

    kind: str
    width: int
    parts: tuple[int, ...]
    codes: int = 0
    stored: int = 0

    @property
    def bytes(self) -> int:
        """All parts together."""
        return sum(self.parts)

    @property
    def words(self) -> str:
        """For people."""
        if self.kind == "UnpackBlocks":
            return f"mask of blocks of {self.width}"
        if self.kind.startswith("UnpackGaps"):
            return f"gaps of {self.kind[-1]} bits"
        if self.kind == "coo":
            return f"coo, int{self.width}"
        return "mask" if self.kind.startswith(("UnpackMask", "UnpackParts", EARLY)) else self.kind


@dataclass(frozen=True)
class Survey:
    """What was found out about a tensor: the fill (what most elements are, or 0), and the counts."""

    fill: NDArray[Any]
    counts: Counts

    @property
    def density(self) -> float:
        """The share of elements that are stored."""
        return self.counts.stored / self.counts.size if self.counts.size else 1.0


def survey(model: Model, tensor: Tensor, *, half: bool = False) -> Survey:
    """Look at every element once (twice, of integers: for those the fill is what occurs most); `half`: as float16."""
    dtype, size = model.stored(tensor.key).dtype, tensor.size
    fill = np.zeros((), np.float16 if half else dtype)
    if dtype in (np.int8, np.uint8) and size:
        seen = np.zeros(256, np.int64)
        for start, stop in pieces_of(size):
            seen += np.bincount(model.piece(tensor.key, start, stop).view(np.uint8), minlength=256)
        fill = seen.argmax().astype(np.uint8).view(dtype)
    counts = Counts(cuts=tuple(cuts(tensor.shape, cut_in(parted(tensor)))) if parted(tensor) else ())
    for start, stop in pieces_of(size):
        counts.add(stored_mask(rounded(model.piece(tensor.key, start, stop), fill), fill))
    return Survey(np.asarray(fill), counts)


def rounded(values: NDArray[Any], fill: NDArray[Any]) -> NDArray[Any]:
    """The values in the type of the fill, which is theirs, or float16 where they are rounded to that."""
    return values if values.dtype == fill.dtype else values.astype(fill.dtype)


def parted(tensor: Tensor) -> str:
    """What unpacks a mask of this tensor in parts; "" where it has too few elements, or rows do not end with bytes."""
    n, rows = tensor.size, tensor.shape[0] if tensor.shape else 1
    function = max(((least, name) for least, name in PARTED.items() if n >= least), default=(0, ""))[1]
    parts = cut_in(function)
    whole = n // rows % 8 == 0 and rows >= parts if rows else False
    return function if function and (whole or (rows % parts == 0 and n % (8 * parts) == 0)) else ""


def forms(
    tensor: Tensor, found: Survey, target: str, *, compact: bool = False, opset: int = 17, cut: bool = True
) -> Iterator[Form]:
    """Every form that can hold this tensor, in a model of this opset, and that the target runs; the dense one first.

    Values are cut into parts where `cut`, and else stand in one place. Indices of the coo form have 64 bits; `compact`:
    the fewest of 16, 32 and 64 that hold all of them.
    """
    n, item, counts = tensor.size, found.fill.dtype.itemsize, found.counts
    yield Form("dense", 1, (n * item,))
    # the full checker misreads sparse initializers, and the web build has none
    if target == "onnxruntime" and not found.fill.view(f"u{item}").any() and fits(n, counts.stored):
        index = _bits(n) if compact else 64
        yield Form("coo", index, (counts.stored * index // 8, counts.stored * item), 0, counts.stored)
    if not n or n > FOLDED or tensor.dtype not in DTYPES or opset < EARLY_OPSET:
        return
    if opset < LEAST_OPSET:
        groups = -(-n // (8 * GROUP))
        early = (groups * GROUP, groups * 4, 8 * len(tensor.shape), (counts.stored + 1) * item)
        yield Form(EARLY, 1, early, 0, counts.stored)
        return
    values = (counts.stored + 1) * item
    function = parted(tensor) if counts.parts or not cut else ""
    if function and cut:
        masks = (last // 8 - first // 8 for first, last in pairwise(counts.cuts))
        stored = ((many + 1) * item for many in counts.parts)
        yield Form(function, 1, (*masks, *stored), 0, counts.stored)
    else:
        four = function and n % 32 == 0 and tensor.shape[0] % 4 == 0
        yield Form("UnpackMask4" if four else "UnpackMask", 1, (-(-n // 8), values), 0, counts.stored)
    if not counts.dense and tensor.dtype not in NO_GAPS:
        for bits in GAPS:
            many = counts.codes[bits]
            parts = (-(-many // 2), -(-many // 4)) if bits == 6 else (-(-many * bits // 8),)
            yield Form(f"UnpackGaps{bits}", 1, (*parts, values), many, counts.stored)
    for width in BLOCKS:
        if n % width == 0:
            many = counts.blocks[width]
            yield Form("UnpackBlocks", width, (-(-n // width // 8), (many + 1) * width * item), 0, many)


def _bits(n: int) -> int:
    """The fewest bits of an index into n elements."""
    return next(bits for bits in (16, 32, 64) if n <= 1 << (bits - 1))


def entropy_bound(n: int, stored: int, item: int) -> float:
    """Bytes below which no code for such masks can go on average: n·H(density) bits, and the values themselves.

    >>> round(entropy_bound(1024, 512, 4))
    2176
    """
    d = stored / n if n else 0.0
    bits = 0.0 if d in (0.0, 1.0) else -n * (d * math.log2(d) + (1 - d) * math.log2(1 - d))
    return bits / 8 + stored * item
