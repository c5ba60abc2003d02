"""Weights in fewer bits with float32 activations: the product of the weights as they are, whatever the processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.kernels.native import Floats, Narrow, library

KINDS = ("h", "b", "i")


def instruction_sets() -> list[str]:
    return [name for name in ("avx2", "portable") if library().emp_narrow_has(name.encode())]


def stored(kind: str, rng: np.random.Generator, shape: tuple[int, int], density: float) -> NDArray[Any]:
    """Random bits of that type, some of them extreme; zeros where they are pruned."""
    if kind == "i":
        made: NDArray[Any] = rng.integers(-128, 128, shape).astype(np.int8)
    else:
        plain = (rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 3, shape)).astype(np.float32)
        made = plain.astype(np.float16).view(np.uint16) if kind == "h" else (plain.view(np.uint32) >> 16).astype("<u2")
    made[rng.random(shape) >= density] = 0
    return made


def as_floats(kind: str, codes: NDArray[Any]) -> Floats:
    if kind == "i":
        return codes.astype(np.float32)
    if kind == "h":
        return codes.view(np.float16).astype(np.float32)
    wide = codes.astype(np.uint32) << 16
    out: Floats = wide.view(np.float32)
    return out


def near(got: Floats, weight: Floats, x: Floats, bias: Floats, relu: bool) -> None:
    """Within 1e-5 of the sum of magnitudes."""
    exact = x.astype(np.float64) @ weight.T.astype(np.float64) + bias
    room = 1e-5 * (np.abs(x).astype(np.float64) @ np.abs(weight.T).astype(np.float64) + np.abs(bias)) + 1e-37
    wanted = np.maximum(exact, 0) if relu else exact
    assert (np.abs(got - wanted) <= room).all()


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS), rows=st.integers(0, 70), columns=st.integers(1, 300), items=st.integers(0, 20),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]), transposed=st.booleans(), relu=st.booleans(), each=st.booleans(),
    threads=st.integers(1, 4), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_products(
    kind: str, rows: int, columns: int, items: int, density: float, transposed: bool, relu: bool, each: bool,
    threads: int, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    codes = stored(kind, rng, (rows, columns), density)
    scale = (rng.random(rows if each and rows else 1) + 0.5).astype(np.float32)
    x, bias = rng.standard_normal((items, columns)).astype(np.float32), rng.standard_normal(rows).astype(np.float32)
    made = Narrow(kind, codes, scale, transposed=transposed)
    weight = as_floats(kind, codes) * (scale[:, None] if scale.size > 1 else scale)
    for isa in instruction_sets():
        near(made(x, bias, relu=relu, isa=isa, threads=threads), weight, x, bias, relu)


@pytest.mark.parametrize("kind", ["h", "b"])
def test_every_number_of_sixteen_bits(kind: str) -> None:
    """Each alone, so that nothing is added: subnormal, infinite and NaN too. -0 is what a pruned 0 is: 0."""
    codes = np.arange(1 << 16, dtype="<u2").reshape(-1, 1)
    want = as_floats(kind, codes)[:, 0]
    for isa in instruction_sets():
        for items in (1, 8):
            got = Narrow(kind, codes, np.ones(1, np.float32))(np.ones((items, 1), np.float32), isa=isa)
            for row in got:
                np.testing.assert_array_equal(row, want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("items", [1, 9])
def test_a_pruned_weight_times_what_is_not_finite(kind: str, value: float, items: int) -> None:
    rng = np.random.default_rng(0)
    codes = stored(kind, rng, (40, 70), 0.5)
    x = rng.standard_normal((items, 70)).astype(np.float32)
    x[0, 5] = value
    with np.errstate(invalid="ignore"):
        want = x @ as_floats(kind, codes).T
    for isa in instruction_sets():
        got = Narrow(kind, codes, np.ones(1, np.float32))(x, isa=isa)
        assert np.array_equal(np.isnan(got), np.isnan(want))
        assert np.array_equal(np.isinf(got), np.isinf(want))


def test_parts_that_disagree_are_refused() -> None:
    codes = stored("i", np.random.default_rng(0), (4, 8), 0.5)
    with pytest.raises(ValueError, match="must have one scale, or one for each of its 4 outputs, got 3"):
        Narrow("i", codes, np.ones(3, np.float32))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(0, 2**25), (2**25, 0)])
def test_a_side_is_bounded_where_no_mask_vouches_for_it(shape: tuple[int, int], transposed: bool) -> None:
    """Else a shape without elements is gone through, side by side, for as long as it says."""
    with pytest.raises(ValueError, match=r"must have at most 2\^24 outputs and inputs, got "):
        Narrow("i", np.zeros(shape, np.int8), np.ones(1, np.float32), transposed=transposed)
