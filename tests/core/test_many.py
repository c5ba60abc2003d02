"""Many short pools at once: counts and masks of `select` in each, and figures of the parts of one pool."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import emp_core
from emp_core import PoolError, select, select_each, select_stream
from tests.core.test_cut import KINDS, Lazy, scores

RULES: list[dict[str, float]] = [
    {}, {"beta": 0.3}, {"beta": 7.0}, {"order": 1.0}, {"order": math.inf}, {"order": 0}, {"sparsity": 0.37},
]  # fmt: skip


@st.composite
def pools(draw: st.DrawFn, most: int = 300) -> list[NDArray[Any]]:
    out = []
    for seed in range(draw(st.integers(0, 12))):
        kind, n = draw(st.sampled_from(KINDS)), draw(st.integers(1, most))
        with np.errstate(all="ignore"):
            array = scores(kind, n, seed, draw(st.sampled_from(["float16", "float32", "float64"])))
        array[~np.isfinite(array)] = 1
        out.append(array)
    return out


@settings(max_examples=150)
@given(pools(), st.sampled_from(RULES))
def test_each_is_selected_as_if_alone(arrays: list[NDArray[Any]], rule: dict[str, float]) -> None:
    cuts = select_each(arrays, **rule)
    assert len(cuts) == len(arrays)
    for cut, array in zip(cuts, arrays, strict=True):
        alone = select(array, **rule)
        assert (cut.n, cut.n_eff, cut.k, cut.beta, cut.order) == (
            array.size,
            alone.n_eff,
            alone.k,
            alone.beta,
            alone.order,
        )
        assert np.array_equal(cut.mask(array), alone.mask)
        for ours, theirs in (
            (cut.mass, alone.mass),
            (cut.mass_lower, alone.mass_lower),
            (cut.mass_upper, alone.mass_upper),
        ):
            assert ours == pytest.approx(theirs, rel=1e-12)
        assert cut.nonzero == np.count_nonzero(array[alone.mask])
        assert cut.l1 == pytest.approx(math.fsum(np.abs(array.astype(float)).tolist()), rel=1e-12)
        assert (cut.part_k, cut.part_nonzero, cut.part_mass) == ((cut.k,), (cut.nonzero,), (cut.mass,))


@settings(max_examples=100)
@given(pools(), st.sampled_from(RULES), st.booleans())
def test_what_is_kept_of_each_part_of_one_pool(arrays: list[NDArray[Any]], rule: dict[str, float], long: bool) -> None:
    if long:  # beyond what is taken in one piece
        arrays = [*arrays, scores("normal", 270_000, 3)]
    if not arrays:
        return
    cut = select_stream([Lazy(a) for a in arrays], **rule)
    start = 0
    for i, array in enumerate(arrays):
        size = np.abs(array.astype(np.float64))
        kept = np.where(cut.mask(array, start), size, 0)
        start += array.size
        assert cut.part_k[i] == np.count_nonzero(cut.mask(array, start - array.size))
        assert cut.part_nonzero[i] == np.count_nonzero(kept)
        assert cut.part_n_eff[i] == emp_core.effective_size(array)
        whole = math.fsum(size.tolist())
        assert cut.part_l1[i] == pytest.approx(whole, rel=1e-12)
        assert cut.part_mass[i] == pytest.approx(
            math.fsum(kept.tolist()) / whole if whole else 1.0, rel=1e-9, abs=1e-15
        )
    assert cut.k == sum(cut.part_k)
    assert cut.nonzero == sum(cut.part_nonzero)


def test_ties_at_zero_are_not_counted_as_more_than_zero() -> None:
    parts = [np.zeros(200_000, np.float32), np.r_[np.ones(50_000), np.zeros(150_000)].astype(np.float32)]
    cut = select_stream(parts, sparsity=0.5)
    assert (cut.threshold, cut.k, cut.nonzero) == (0.0, 200_000, 50_000)
    assert cut.part_k == (150_000, 50_000)
    assert cut.part_nonzero == (0, 50_000)
    assert select_stream(parts, sparsity=0.0).part_nonzero == (0, 50_000)


@pytest.mark.alone
def test_ten_thousand_pools_are_a_matter_of_a_moment() -> None:
    import time

    rng = np.random.default_rng(0)
    many = [rng.standard_normal(rng.integers(16, 257), dtype=np.float32) for _ in range(10_000)]
    start = time.process_time()
    cuts = select_each(many)
    spent = time.process_time() - start
    start = time.process_time()
    for array, cut in zip(many[:200], cuts[:200], strict=True):
        assert select(array).k == cut.k
    assert spent < 50 * (time.process_time() - start) / 4  # a quarter of what they take one by one


def test_pools_that_cannot_be_counted_are_named() -> None:
    with pytest.raises(PoolError, match="pool 1 must hold at least one score, got an empty pool"):
        select_each([np.ones(2), np.empty(0)])
    for bad, what in ((math.nan, "NaN"), (-math.inf, "an infinity")):
        with pytest.raises(PoolError, match=f"b must be finite, got {what} at flat index 3"):
            select_each([np.ones(9), np.array([1, 2, 3, bad]), np.ones(4)], names=["a", "b", "c"])
    with pytest.raises(emp_core.ArgumentError, match="sparsity fixes the count"):
        select_each([np.ones(2)], sparsity=0.5, beta=2)
    assert select_each([]) == []


def test_long_pools_among_short_ones() -> None:
    arrays = [scores("normal", 20_000, 1), scores("tied", 5, 2), scores("spiky", 300_000, 3)]
    for cut, array in zip(select_each(arrays), arrays, strict=True):
        assert np.array_equal(cut.mask(array), select(array).mask)
