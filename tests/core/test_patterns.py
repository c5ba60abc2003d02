"""Long pools of 16-bit numbers, whose magnitudes are counted: the counts and masks of `select`, exact figures."""

from __future__ import annotations

import importlib
import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emp_core import Cut, PoolError, select, select_stream
from tests.core.test_cut import KINDS, Lazy, scores
from tests.core.test_row_cuts import as_bfloat16

CUT: Any = importlib.import_module("emp_core._cut")
ROOM: Any = importlib.import_module("emp_core._patterns")
RULES: list[dict[str, float]] = [
    {},
    {"beta": 0.3},
    {"beta": 7.0},
    {"order": 1.0},
    {"sparsity": 0.37},
    {"sparsity": 0.9},
]


def pool(kind: str, dtype: str, n: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """As stored, and as numbers."""
    with np.errstate(all="ignore"):
        values = scores(kind, n, seed, "float16" if dtype == "float16" else "float32")
    values[~np.isfinite(values)] = 1
    return (values, values.astype(np.float32)) if dtype == "float16" else as_bfloat16(values)


def mask(cut: Cut, numbers: NDArray[Any]) -> NDArray[np.bool_]:
    """What the cut keeps."""
    return cut.mask(numbers, 0)


@settings(max_examples=120)
@given(st.data(), st.sampled_from(KINDS), st.sampled_from(["float16", "bfloat16"]), st.sampled_from(RULES))
def test_counting_patterns_selects_the_same(data: st.DataObject, kind: str, dtype: str, rule: dict[str, float]) -> None:
    n = data.draw(st.integers(1, 400))
    held, numbers = pool(kind, dtype, n, data.draw(st.integers(0, 99)))
    edges = sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=3))})
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    before = CUT.CHUNK, ROOM.CHUNK, ROOM.kind_of
    CUT.CHUNK, ROOM.CHUNK, CUT.kind_of = 0, data.draw(st.integers(1, 99)), lambda s: ROOM.KINDS[s.parts[0].dtype]
    try:
        cut = select_stream([Lazy(held[p]) for p in parts], **rule)
    finally:
        CUT.CHUNK, ROOM.CHUNK, CUT.kind_of = before
    chosen = select(numbers, **rule)
    assert (cut.n, cut.k) == (chosen.n, chosen.k)
    assert np.array_equal(mask(cut, numbers), chosen.mask)
    size, kept = np.abs(numbers.astype(np.float64)), chosen.mask
    total, squares = (sum(map(Fraction, some.tolist()), Fraction(0)) for some in (size, size * size))
    assert cut.n_eff == (float(total**2 / squares) if total else n)
    assert cut.l1 == float(total)
    assert cut.mass == (float(sum(map(Fraction, size[kept].tolist()), Fraction(0)) / total) if total else 1)
    assert (cut.mass_lower, cut.mass_upper) == pytest.approx((chosen.mass_lower, chosen.mass_upper), rel=1e-12)
    assert cut.nonzero == np.count_nonzero(size[kept])
    for i, p in enumerate(parts):
        l1 = math.fsum(size[p].tolist())
        assert cut.part_k[i] == np.count_nonzero(kept[p])
        assert cut.part_l1[i] == pytest.approx(l1, rel=1e-15)
        assert cut.part_n_eff[i] == pytest.approx(select(numbers[p]).n_eff, rel=1e-12)
        assert cut.part_mass[i] == pytest.approx(math.fsum(size[p][kept[p]].tolist()) / l1 if l1 else 1, rel=1e-12)
        assert cut.part_nonzero[i] == np.count_nonzero(size[p][kept[p]])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["normal", "tied", "equal"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_long_pools_are_counted(kind: str, dtype: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    held, numbers = pool(kind, dtype, 400_000, 7)
    monkeypatch.setattr(CUT, "large", None)  # it is not needed
    for rule in ({}, {"sparsity": 0.9}):
        cut = select_stream([Lazy(held[:130_000]), Lazy(held[130_000:])], threads=threads, **rule)
        chosen = select(numbers, **rule)
        assert cut.k == chosen.k
        assert np.array_equal(mask(cut, numbers), chosen.mask)
        assert cut.mass == pytest.approx(chosen.mass, rel=1e-13)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_error_names_the_part(bad: float) -> None:
    values = np.ones(300_000, np.float16)
    values[290_001] = bad
    with pytest.raises(PoolError, match=r"second must be finite, got (NaN|an infinity) at flat index 90001"):
        select_stream([values[:200_000], values[200_000:]], names=["first", "second"])
