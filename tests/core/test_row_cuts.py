"""Rows that are read a stretch at a time: counts and masks of `select` in each row."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emp_core import ArgumentError, PoolError, RowCuts, select, select_rows
from emp_core.certificates import BFLOAT16
from tests.core.test_cut import KINDS, Lazy, scores

ROOM: Any = importlib.import_module("emp_core._row_cuts")
RULES: list[dict[str, float]] = [
    {}, {"beta": 0.3}, {"beta": 7.0}, {"order": 1.0}, {"order": math.inf}, {"order": 0}, {"sparsity": 0.37},
]  # fmt: skip


def as_bfloat16(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """The bits under their name, and the numbers that they are."""
    bits = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return bits.view(BFLOAT16), (bits.astype(np.uint32) << 16).view(np.float32)


def masks(cuts: RowCuts, values: NDArray[Any]) -> NDArray[np.bool_]:
    """What the thresholds keep."""
    size, place = np.abs(values.astype(np.float64)), np.arange(cuts.length)
    least = cuts.threshold[:, None]
    return np.asarray((size > least) | ((size == least) & (place <= cuts.last[:, None])))


@settings(max_examples=200)
@given(st.data(), st.sampled_from(RULES))
def test_rows_are_selected_as_if_in_memory(data: st.DataObject, rule: dict[str, float]) -> None:
    rows, length, kind = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 70)), data.draw(st.sampled_from(KINDS))
    dtype = data.draw(st.sampled_from(["float16", "bfloat16", "float32", "float64", "int32"]))
    with np.errstate(all="ignore"):
        values = scores(kind, rows * length, data.draw(st.integers(0, 99)), "float32" if dtype[0] in "bi" else dtype)
        held = values
        held[~np.isfinite(held)] = 1
        if dtype == "int32":
            held = values = np.clip(values * 9, -(2**20), 2**20).astype(np.int32)
        if dtype == "bfloat16":
            held, values = as_bfloat16(values)
    if data.draw(st.booleans()):
        held[:length], values[:length] = held[0], values[0]  # a row of equal scores
    before = ROOM.CHUNK, ROOM.SLAB
    ROOM.CHUNK, ROOM.SLAB = data.draw(st.sampled_from([before[0], 40])), data.draw(st.integers(1, 200))
    try:
        cuts = select_rows(Lazy(held), length, **rule)
    finally:
        ROOM.CHUNK, ROOM.SLAB = before
    there = select(values.reshape(rows, length), scope="rows", **rule)
    assert cuts.k.tolist() == there.k.tolist()
    assert np.array_equal(masks(cuts, values.reshape(rows, length)), there.mask)
    assert cuts.n_eff == pytest.approx(there.n_eff, rel=1e-11)
    assert cuts.mass == pytest.approx(there.mass, rel=1e-11)
    assert cuts.l1 == pytest.approx(np.abs(values.reshape(rows, length).astype(float)).sum(axis=1), rel=1e-11)
    assert cuts.mass_lower == pytest.approx(there.mass_lower, rel=1e-9)
    assert cuts.mass_upper == pytest.approx(there.mass_upper, rel=1e-9)
    some = cuts.l1 > 0  # of nothing but zeros, everything is retained whatever is kept
    assert (cuts.mass >= cuts.mass_lower * (1 - 1e-11)).all()
    assert (cuts.mass <= cuts.mass_upper * (1 + 1e-11))[some].all()


def test_rows_longer_than_a_piece_of_a_sum() -> None:
    values = np.random.default_rng(0).standard_normal((5, 9000), dtype=np.float32)
    values[1] = 0
    cuts, there = select_rows(values.reshape(-1), 9000), select(values, scope="rows")
    assert cuts.k.tolist() == there.k.tolist()
    assert np.array_equal(masks(cuts, values), there.mask)
    assert cuts.k[1] == 9000
    assert cuts.mass[1] == 1


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -np.nan])
def test_an_error_names_the_row(dtype: str, bad: float) -> None:
    values = np.ones((4, 3), np.float32)
    values[2, 1] = bad
    held = as_bfloat16(values)[0] if dtype == "bfloat16" else values.astype(dtype)
    what = "NaN" if np.isnan(bad) else "an infinity"
    with pytest.raises(PoolError, match=rf"row 2 of the weight must be finite, got {what} at index 1 of the row"):
        select_rows(held.reshape(-1), 3, name="the weight")


def test_what_is_refused() -> None:
    for length in (0, -1, 4):
        with pytest.raises(ArgumentError, match="length must divide the 6 scores, got"):
            select_rows(np.ones(6), length)
    with pytest.raises(ArgumentError, match="beta must be"):
        select_rows(np.ones(6), 3, beta=0)
    assert select_rows(np.empty(0), 3).k.size == 0
