"""Products with packed weights against the dense product in double precision."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.native import Floats, Linear, instruction_sets, pack


def sparse(rng: np.random.Generator, *shape: int, density: float) -> Floats:
    dense = rng.standard_normal(shape).astype(np.float32)
    dense[rng.random(shape) >= density] = 0
    return dense


def close(got: Floats, x: Floats, weight: Floats, bias: Floats | None, relu: bool) -> None:
    """Relative 1e-5 of what the sum of magnitudes is: the bound that any order of additions keeps."""
    with np.errstate(invalid="ignore"):
        exact = x.astype(np.float64) @ weight.astype(np.float64).T + (0.0 if bias is None else bias)
        scale = np.abs(x).astype(np.float64) @ np.abs(weight).astype(np.float64).T + (
            0.0 if bias is None else np.abs(bias)
        )
    if relu:
        exact = np.where(exact < 0, 0, exact)
    assert np.array_equal(np.isnan(got), np.isnan(exact))
    finite = np.isfinite(exact)
    assert np.array_equal(got[~finite & ~np.isnan(exact)], exact[~finite & ~np.isnan(exact)])
    assert np.all(np.abs(got[finite] - exact[finite]) <= 1e-5 * scale[finite] + 1e-30)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Floats, Floats, Floats | None, bool]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, columns = draw(st.integers(0, 150)), draw(st.integers(0, 300))
    items = draw(st.sampled_from([0, 1, 1, 1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 31, 33, 64, 100, 127, 129, 260]))
    weight = sparse(rng, rows, columns, density=draw(st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0])))
    if rows:
        weight[rng.random(rows) < draw(st.sampled_from([0.0, 0.0, 0.5]))] = 0  # empty rows
        weight[rng.random(rows) < draw(st.sampled_from([0.0, 0.0, 0.2]))] = 1  # full rows
    x = rng.standard_normal((items, columns)).astype(np.float32)
    bias = rng.standard_normal(rows).astype(np.float32) if draw(st.booleans()) else None
    return weight, x, bias, draw(st.booleans())


@pytest.mark.parametrize("isa", instruction_sets())
@settings(max_examples=150, deadline=None)
@given(problem=problems(), transposed=st.booleans(), threads=st.integers(1, 8))
def test_equal_to_the_dense_product(
    isa: str, problem: tuple[Floats, Floats, Floats | None, bool], transposed: bool, threads: int
) -> None:
    weight, x, bias, relu = problem
    got = Linear.of(weight, transposed=transposed)(x, bias, relu=relu, isa=isa, threads=threads)
    close(got, x, weight, bias, relu)


@pytest.mark.parametrize("isa", instruction_sets())
@settings(max_examples=40, deadline=None)
@given(problem=problems(), items=st.lists(st.sampled_from([1, 2, 3, 5, 20]), min_size=1, max_size=5))
def test_values_that_lie_transposed_may_be_needed_in_any_order(
    isa: str, problem: tuple[Floats, Floats, Floats | None, bool], items: list[int]
) -> None:
    weight = problem[0]
    moved, plain = Linear.of(weight, transposed=True), Linear.of(weight)
    for count in items:
        x = np.random.default_rng(count).standard_normal((count, weight.shape[1])).astype(np.float32)
        np.testing.assert_array_equal(moved(x, isa=isa), plain(x, isa=isa))


@pytest.mark.parametrize("isa", instruction_sets())
@settings(max_examples=80, deadline=None)
@given(problem=problems(), seed=st.integers(0, 2**32))
def test_what_is_not_finite_spreads_as_in_the_dense_product(
    isa: str, problem: tuple[Floats, Floats, Floats | None, bool], seed: int
) -> None:
    weight, x, bias, relu = problem
    rng = np.random.default_rng(seed)
    for value in (np.nan, np.inf, -np.inf):
        x[rng.random(x.shape) < 0.003] = value
    close(Linear.of(weight)(x, bias, relu=relu, isa=isa), x, weight, bias, relu)


@pytest.mark.parametrize("density", [0.03, 0.2, 0.5])
@pytest.mark.parametrize(("rows", "columns"), [(1037, 300), (33, 2300)])
def test_more_rows_and_columns_than_a_part_holds(rows: int, columns: int, density: float) -> None:
    """One arrangement of the weights, made for the first instruction set, serves the others."""
    rng = np.random.default_rng(0)
    weight = sparse(rng, rows, columns, density=density)
    weight[rows // 2], weight[rows // 3] = 1, 0
    linear = Linear.of(weight)
    for isa in instruction_sets():
        for items in (7, 50, 150):
            x = rng.standard_normal((items, columns)).astype(np.float32)
            close(linear(x, isa=isa, threads=2), x, weight, None, False)


@pytest.mark.parametrize("isa", instruction_sets())
def test_every_way_is_taken_and_right(isa: str) -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for density in (0.02, 0.15, 0.3, 0.9):
        weight = sparse(rng, 96, 1024, density=density)
        linear = Linear.of(weight)
        for items in (1, 2, 5, 8, 12, 16, 40, 200):
            x = rng.standard_normal((items, 1024)).astype(np.float32)
            close(linear(x, isa=isa, threads=2), x, weight, None, False)
            seen.add(linear.way(items, isa))
    assert seen - {"pick"} == {"dot", "gather", "tile"}
    cpuinfo = Path("/proc/cpuinfo")
    if isa == "avx512" and cpuinfo.exists() and "avx512_vbmi2" in cpuinfo.read_text():
        assert "pick" in seen


@pytest.mark.parametrize("isa", instruction_sets())
@settings(max_examples=40, deadline=None)
@given(columns=st.integers(1, 300), full=st.integers(0, 2), seed=st.integers(0, 2**32), threads=st.integers(1, 4))
def test_one_item_where_some_rows_are_nearly_full(isa: str, columns: int, full: int, seed: int, threads: int) -> None:
    """Of 64 weights none, some, more than 16, 32 and 48 are kept, and the whole is sparse enough to be picked."""
    rng = np.random.default_rng(seed)
    weight = sparse(rng, 17, columns, density=0.1)
    weight[:full] = rng.standard_normal((full, columns))
    weight[full, columns // 2 :] = rng.standard_normal(columns - columns // 2)
    x = rng.standard_normal((1, columns)).astype(np.float32)
    bias = rng.standard_normal(17).astype(np.float32)
    close(Linear.of(weight)(x, bias, relu=True, isa=isa, threads=threads), x, weight, bias, True)
    x[0, seed % columns] = np.inf
    with np.errstate(invalid="ignore"):
        close(Linear.of(weight)(x, isa=isa), x, weight, None, False)


def test_more_columns_than_lists_can_name() -> None:
    rng = np.random.default_rng(1)
    weight = sparse(rng, 5, 70_000, density=0.01)
    for items in (1, 40):
        x = rng.standard_normal((items, 70_000)).astype(np.float32)
        assert Linear.of(weight).way(items) == "dot"
        close(Linear.of(weight)(x), x, weight, None, False)


def test_signed_zeros_and_special_weights_count_as_nonzeros() -> None:
    weight = np.array([[-0.0, np.inf, 0.0], [np.nan, 0.0, 2.0], [0.0, 0.0, 0.0]], np.float32)
    x = np.array([[1.0, 2.0, 3.0]], np.float32)
    got = Linear.of(weight)(x)[0]
    assert got[0] == np.inf
    assert np.isnan(got[1])
    assert got[2] == 0


def test_unaligned_buffers() -> None:
    rng = np.random.default_rng(2)
    weight = sparse(rng, 64, 200, density=0.4)
    mask, values = pack(weight)
    for shift in (1, 4, 13):
        odd_mask = np.zeros(mask.size + shift, np.uint8)[shift:]
        odd_mask[:] = mask
        odd_values = np.zeros(values.size + shift, np.float32)[shift:]
        odd_values[:] = values
        linear = Linear(64, 200, odd_mask, odd_values)
        for items in (1, 6, 50):
            x = np.zeros(items * 200 + shift, np.float32)[shift:].reshape(items, 200)
            x[:] = rng.standard_normal((items, 200))
            y = np.zeros(items * 64 + shift, np.float32)[shift:].reshape(items, 64)
            close(linear(x, out=y), x, weight, None, False)


def test_the_same_result_whatever_the_threads_and_at_the_same_time() -> None:
    rng = np.random.default_rng(3)
    weight = sparse(rng, 300, 700, density=0.4)
    linear = Linear.of(weight)
    for items in (1, 7, 100):
        x = rng.standard_normal((items, 700)).astype(np.float32)
        expected = linear(x)
        with ThreadPoolExecutor(8) as pool:
            for got in pool.map(lambda threads, x=x: linear(x, threads=threads), [1, 2, 3, 4, 5, 6, 7, 8] * 3):
                assert np.array_equal(got, expected)


@pytest.mark.parametrize(
    ("rows", "columns", "mask", "values", "sentence"),
    [
        (2, 8, 1, 0, "must have a mask of 2 bytes, got 1"),
        (2, 8, 3, 0, "must have a mask of 2 bytes, got 3"),
        (2, 8, 2, 3, "must have as many values as bits set in its mask (16), got 3"),
        (2, 8, 2, 17, "must have at most as many values as elements, got 17"),
        (-1, 8, 2, 0, "must have a shape of at most 2^40 elements, got -1 x 8"),
        (2**31, 2**31, 2, 0, "must have a shape of at most 2^40 elements, got 2147483648 x 2147483648"),
        (2**25, 0, 0, 0, "must have at most 2^24 outputs and inputs, got 33554432 and 0"),
        (0, 2**33, 0, 0, "must have at most 2^24 outputs and inputs, got 0 and 8589934592"),
        (2**62, 8, 2, 0, "must have a shape of at most 2^40 elements, got 4611686018427387904 x 8"),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_malformed_weights_are_refused(
    rows: int, columns: int, mask: int, values: int, sentence: str, transposed: bool
) -> None:
    with pytest.raises(ValueError, match="must have") as caught:
        Linear(rows, columns, np.full(mask, 255, np.uint8), np.ones(values, np.float32), transposed=transposed)
    assert str(caught.value) == sentence
