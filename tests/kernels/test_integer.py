"""8-bit weights and activations: the same integers as onnxruntime's own operations make, on every instruction set."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tests.kernels.native import Floats, Integer, integer_instruction_sets

Bytes = NDArray[np.int8]


def weight(rng: np.random.Generator, rows: int, columns: int, density: float) -> Bytes:
    dense = rng.integers(-128, 128, (rows, columns)).astype(np.int8)
    dense[rng.random(dense.shape) >= density] = 0
    return dense


def quantised(x: Floats) -> tuple[NDArray[np.int64], np.float32, int]:
    """What DynamicQuantizeLinear says."""
    low, high = min(np.float32(0), x.min(initial=0)), max(np.float32(0), x.max(initial=0))
    scale = np.float32(1) if low == high else np.float32((high - low) / np.float32(255))
    zero = int(np.rint(np.clip(np.float32(0) - low / scale, 0, 255)))
    return np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64), scale, zero


def expected(dense: Bytes, scale: Floats, x: Floats, bias: Floats, relu: bool) -> Floats:
    """In 64-bit integers, then float32 operations in the order of the standard ones."""
    codes, x_scale, zero = quantised(x)
    sums = (codes - zero) @ dense.T.astype(np.int64)
    y = sums.astype(np.float32) * (x_scale * scale) + bias
    out: Floats = np.maximum(y, np.float32(0)) if relu else y
    return out


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 140), columns=st.integers(1, 400), items=st.integers(0, 140),
    density=st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]), transposed=st.booleans(), relu=st.booleans(),
    each=st.booleans(), threads=st.integers(1, 4), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_the_sums_are_exact(
    rows: int, columns: int, items: int, density: float, transposed: bool, relu: bool, each: bool, threads: int,
    seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    dense = weight(rng, rows, columns, density)
    scale = (rng.random(rows if each and rows else 1) + 0.5).astype(np.float32)
    x = (rng.standard_normal((items, columns)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    bias = rng.standard_normal(rows).astype(np.float32)
    made = Integer(dense, scale, transposed=transposed)
    want = expected(dense, scale, x, bias, relu)
    for isa in integer_instruction_sets():
        assert np.array_equal(made(x, bias, relu=relu, isa=isa, threads=threads), want), isa


def test_every_instruction_set_has_a_name() -> None:
    assert integer_instruction_sets()[-1] == "portable"


@pytest.mark.parametrize("items", [1, 7, 30])
def test_activations_that_are_all_alike_and_extreme(items: int) -> None:
    rng = np.random.default_rng(0)
    dense = weight(rng, 33, 70, 0.5)
    scale = np.ones(1, np.float32)
    for value in (0.0, 1.0, -1.0, 3e38, 1e-35, -1e-35):
        x = np.full((items, 70), value, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            want = expected(dense, scale, x, np.zeros(33, np.float32), False)
        for isa in integer_instruction_sets():
            np.testing.assert_array_equal(Integer(dense, scale)(x, isa=isa), want)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e-45])
def test_activations_that_are_not_finite_do_no_harm(value: float) -> None:
    dense = weight(np.random.default_rng(0), 33, 70, 0.5)
    for items in (1, 30):
        x = np.ones((items, 70), np.float32)
        x[0, 3] = value
        for isa in integer_instruction_sets():
            assert Integer(dense, np.ones(1, np.float32))(x, isa=isa).shape == (items, 33)


@pytest.mark.parametrize("items", [1, 5, 64])
def test_the_same_numbers_as_onnxruntime(items: int) -> None:
    rng = np.random.default_rng(1)
    dense, x = weight(rng, 96, 128, 0.4), rng.standard_normal((items, 128)).astype(np.float32)
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=1),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [info("x", 1, ["n", 128])], [info("y", 1, ["n", 96])], [numpy_helper.from_array(dense.T, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    want = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    for isa in integer_instruction_sets():
        np.testing.assert_allclose(Integer(dense, np.ones(1, np.float32))(x, isa=isa), want, rtol=3e-7)
