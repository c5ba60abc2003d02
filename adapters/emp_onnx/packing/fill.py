"""The bytes of a form's parts, made from a tensor's elements in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from emp_onnx.files.functions import EARLY, GROUP, cut_in
from emp_onnx.files.gaps import gap_codes, split
from emp_onnx.files.model_io import Model
from emp_onnx.files.storage import pieces_of
from emp_onnx.packing.counts import stored_mask
from emp_onnx.packing.forms import Form, Survey, rounded

__all__ = ["fill_parts"]

Put = Callable[[int, Any], None]


def fill_parts(model: Model, key: str, form: Form, found: Survey, at: Sequence[int], put: Put) -> None:
    """Call `put` with all bytes of all parts, of which each begins where `at` says."""
    size, item = found.counts.size, found.fill.dtype.itemsize
    pieces = ((start, rounded(model.piece(key, start, stop), found.fill)) for start, stop in pieces_of(size))
    if form.kind == "dense":
        for start, values in pieces:
            put(at[0] + start * item, values.view(np.uint8).data)
        return
    if form.kind == "coo":
        _coo(form, found, at, put, pieces)
        return
    width, stored = form.width, 0
    parts = cut_in(form.kind)
    # for each part the element it begins with, and where its mask and its values go
    firsts = enumerate(found.counts.cuts[:parts])
    begins = {first: (at[i], at[parts + i]) for i, first in firsts} or {0: (at[0], at[-1])}
    place = mask_at = begun = 0
    if form.kind == EARLY:
        put(at[2], np.array(model.tensors[key].shape, "<i8").view(np.uint8).data)
    codes = _Codes(form, at, put) if form.kind.startswith("UnpackGaps") else None
    for start, values in _cut(pieces, list(begins)):
        mask = stored_mask(values, found.fill)
        if start in begins:
            begun, (mask_at, place) = start, begins[start]
            put(place, np.full(width, found.fill).view(np.uint8).data)
            place += width * item
        if width > 1:
            mask, values = np.asarray(mask.reshape(-1, width).any(axis=1)), values.reshape(-1, width)
        if codes is not None:
            codes.add(mask, start)
        else:
            put(mask_at + (start - begun) // width // 8, np.packbits(mask, bitorder="little").data)
        if form.kind == EARLY:
            groups = np.add.reduceat(mask, np.arange(0, mask.size, 8 * GROUP), dtype=np.int64)
            starts = (stored + np.cumsum(groups) - groups).astype("<i4")
            put(at[1] + start // (8 * GROUP) * 4, starts.view(np.uint8).data)
            stored += int(groups.sum())
        some = values[mask]
        put(place, some.reshape(-1).view(np.uint8).data)
        place += some.nbytes
    if codes is not None:
        codes.end()


def _cut(pieces: Iterable[tuple[int, Any]], at: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """The same stretches, cut further at these places."""
    for start, values in pieces:
        ends = [place - start for place in at if start < place < start + values.size]
        for first, last in pairwise([0, *ends, values.size]):
            yield start + first, values[first:last]


def _coo(form: Form, found: Survey, at: Sequence[int], put: Put, pieces: Any) -> None:
    done = 0
    for start, values in pieces:
        mask = stored_mask(values, found.fill)
        places = (np.flatnonzero(mask) + start).astype(f"<i{form.width // 8}")
        some = values[mask]
        put(at[0] + done * form.width // 8, places.view(np.uint8).data)
        put(at[1] + done * some.itemsize, some.view(np.uint8).data)
        done += some.size


class _Codes:
    """Codes of gaps, written four at a time."""

    def __init__(self, form: Form, at: Sequence[int], put: Put) -> None:
        self.bits, self.at, self.put = int(form.kind[-1]), list(at[:-1]), put
        self.last, self.rest = -1, np.empty(0, np.uint8)

    def add(self, mask: Any, start: int) -> None:
        """The codes of a stretch."""
        new, self.last = gap_codes(mask, start, self.last, self.bits)
        codes = np.concatenate([self.rest, new])
        whole = codes.size - codes.size % 4
        self.rest = codes[whole:]
        self._write(codes[:whole])

    def end(self) -> None:
        """What is left."""
        self._write(self.rest)

    def _write(self, codes: Any) -> None:
        if codes.size:
            for i, plane in enumerate(split(codes, self.bits)):
                self.put(self.at[i], plane.data)
                self.at[i] += plane.size
