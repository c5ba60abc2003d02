"""Selection without masks: counts, figures and masks of `select`, bit for bit, whatever the pool is cut into."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import emp_core
from emp_core import PoolError, select, select_stream
from emp_core.certificates import BFLOAT16

KINDS = ("normal", "tied", "wide", "spiky", "zeros", "equal", "tiny")


class Lazy:
    """Scores that are made when they are looked at; nothing longer than `most` may be asked for."""

    def __init__(self, array: NDArray[Any], most: int = 1 << 19) -> None:
        self.array, self.most = array, most

    @property
    def size(self) -> int:
        return self.array.size

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def __getitem__(self, stretch: slice) -> NDArray[Any]:
        found: NDArray[Any] = self.array[stretch].copy()
        assert found.size <= self.most
        return found


def scores(kind: str, n: int, seed: int, dtype: str = "float32") -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    made = {
        "normal": lambda: rng.standard_normal(n),
        "tied": lambda: rng.integers(-3, 4, n),
        "wide": lambda: rng.standard_normal(n) * 10.0 ** rng.integers(-30, 30, n),
        "spiky": lambda: np.where(rng.random(n) < 1e-3, 1e6, 1e-3) * rng.standard_normal(n),
        "zeros": lambda: np.zeros(n),
        "equal": lambda: np.full(n, -0.1),
        "tiny": lambda: rng.standard_normal(n) * 1e-40,
    }[kind]()
    return np.asarray(made).astype(dtype)


def same(cut: emp_core.Cut, chosen: emp_core.Selection) -> bool:
    figures = ("n", "n_eff", "k", "beta", "order", "mass", "mass_lower", "mass_upper")
    return all(getattr(cut, name) == getattr(chosen, name) for name in figures)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [300_000, 2_300_000])
@pytest.mark.parametrize("rule", [{}, {"sparsity": 0.5}, {"sparsity": 0.9999}])
def test_long_pools(kind: str, n: int, threads: int, rule: dict[str, float]) -> None:
    array = scores(kind, n, 7)
    cut = select_stream([Lazy(array[: n // 3]), Lazy(array[n // 3 :])], threads=threads, **rule)
    chosen = select({"a": array[: n // 3], "b": array[n // 3 :]}, scope="model", **rule)
    mask = np.concatenate(list(chosen.mask.values()))
    assert same(cut, chosen)
    for start in range(0, n, 99_991):
        assert np.array_equal(cut.mask(array[start : start + 99_991], start), mask[start : start + 99_991])


@settings(max_examples=60)
@given(
    st.sampled_from(KINDS), st.integers(1, 3000), st.integers(0, 99),
    st.sampled_from(["float16", "float32", "float64"]),
    st.sampled_from([{}, {"beta": 0.3}, {"order": 1.0}, {"order": math.inf}, {"order": 0}, {"sparsity": 0.37}]),
    st.integers(1, 500),
)  # fmt: skip
def test_short_pools(kind: str, n: int, seed: int, dtype: str, rule: dict[str, float], step: int) -> None:
    with np.errstate(all="ignore"):
        array = scores(kind, n, seed, dtype)
    array[~np.isfinite(array)] = 1
    cut, chosen = select_stream([array], **rule), select(array, **rule)
    assert same(cut, chosen)
    pieces = [cut.mask(array[i : i + step], i) for i in range(0, n, step)]
    assert np.array_equal(np.concatenate(pieces), chosen.mask)


def test_figures_of_the_parts() -> None:
    parts = [scores("normal", 400_000, 1), scores("spiky", 70_000, 2), scores("normal", 9, 3)]
    cut = select_stream([Lazy(part) for part in parts])
    assert cut.part_n_eff == tuple(emp_core.effective_size(part) for part in parts)
    assert cut.part_l1 == pytest.approx([float(np.abs(part).sum(dtype=float)) for part in parts], rel=1e-12)
    assert cut.l1 == pytest.approx(sum(cut.part_l1), rel=1e-12)


def test_parts_of_two_types() -> None:
    parts = [scores("normal", 50_000, 1, "float64"), scores("normal", 50_000, 2, "float32")]
    cut = select_stream(parts, sparsity=0.25)
    chosen = select({"a": parts[0], "b": parts[1]}, scope="model", sparsity=0.25)
    assert np.array_equal(cut.mask(parts[0]), chosen.mask["a"])
    assert np.array_equal(cut.mask(parts[1], 50_000), chosen.mask["b"])


@pytest.mark.parametrize("n", [5, 70_000, 300_000])
def test_masks_of_bfloat16_bits(n: int) -> None:
    """In that form values lie in safetensors files."""
    wide = scores("tied" if n == 5 else "normal", n, 1)
    bits = (wide.view(np.uint32) >> 16).astype(np.uint16).view(BFLOAT16)
    values = (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    expected = select(values, sparsity=0.4)
    for cut in (select_stream([bits], sparsity=0.4), emp_core.select_each([bits], sparsity=0.4)[0]):
        assert cut.k == expected.k
        assert np.array_equal(cut.mask(bits), expected.mask)
        assert np.array_equal(cut.mask(bits[::2]), select_stream([bits], sparsity=0.4).mask(values[::2]))


def test_pools_that_cannot_be_counted() -> None:
    with pytest.raises(PoolError, match="empty pool"):
        select_stream([np.empty(0)])
    bad = scores("normal", 300_000, 1)
    bad[250_000] = math.nan
    with pytest.raises(PoolError, match="w must be finite, got NaN at flat index 250000"):
        select_stream([Lazy(bad)], names=["w"])
    with pytest.raises(emp_core.ArgumentError, match="sparsity fixes the count"):
        select_stream([bad], sparsity=0.5, order=1)


class Made:
    """Scores that are made when they are looked at: a few values, each many times."""

    dtype = np.dtype(np.float32)

    def __init__(self, size: int) -> None:
        self.size = size

    def __getitem__(self, stretch: slice, /) -> Any:
        start, stop, _ = stretch.indices(self.size)
        return (np.arange(start, stop) % 7).astype(np.float32)


def test_ties_throughout_take_no_memory() -> None:
    """No bracket holds: the threshold is counted out, digit by digit, and what was counted is not kept."""
    peaks = []
    for size in (1 << 20, 1 << 23):
        tracemalloc.start()
        cut = emp_core.select_stream([Made(size)], threads=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        n = np.bincount(np.arange(size) % 7, minlength=7)
        l1, squares = int(n @ np.arange(7)), int(n @ np.arange(7) ** 2)
        assert (cut.k, cut.threshold) == (l1 * l1 // squares, 2.0)
    assert peaks[1] < peaks[0] + (16 << 20)


@pytest.mark.parametrize(
    ("part", "what"),
    [
        (np.array([30j, 1, 1, 1]), "must be real numbers of at most 64 bits, got dtype complex128"),
        (np.ones(3, np.longdouble), "must be real numbers of at most 64 bits, got dtype"),
        (np.array(["a"]), "must be real numbers of at most 64 bits, got dtype <U1"),
        (np.ones((3, 4)), "must be flat, with one axis, got 2 axes"),
        (np.float64(1), "must be flat, with one axis, got 0 axes"),
        ([1.0, 2.0], "must be a flat NumPy array, or have a size, a dtype and slices as one has, got list"),
    ],
    ids=lambda x: str(x)[:12],
)
def test_parts_that_are_no_flat_real_numbers(part: Any, what: str) -> None:
    """`select` refuses such numbers too; nothing of them is lost without a word."""
    with pytest.raises(emp_core.ArgumentError, match=f"part 1 {what}"):
        select_stream([np.ones(2), part])
    with pytest.raises(emp_core.ArgumentError, match=f"b {what}"):
        emp_core.select_each([np.ones(2), part], names=["a", "b"])
    with pytest.raises(emp_core.ArgumentError, match=f"w {what}"):
        emp_core.select_rows(part, 2, name="w")
    if getattr(part, "ndim", 0) == 1:
        with pytest.raises(emp_core.ArgumentError, match=f"piece {what}"):
            select_stream([np.ones(2)]).mask(part)


def test_a_name_for_each_part() -> None:
    for call, what in ((select_stream, "part"), (emp_core.select_each, "pool")):
        with pytest.raises(emp_core.ArgumentError, match=f"names must be one for each {what}, 2, got 1"):
            call([np.ones(2), np.ones(2)], names=["a"])
    for length in (2.0, None, 0):
        with pytest.raises(emp_core.ArgumentError, match=f"length must divide the 2 scores, got {length}"):
            emp_core.select_rows(np.ones(2), length)  # type: ignore[arg-type]
