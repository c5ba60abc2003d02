"""A product whose outputs are sorted by heads, as attention has them, is the plain one, reshaped and transposed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from emp_onnx.fused.fuse import fuse
from tests.kernels.native import Linear, build, instruction_sets
from tests.kernels.test_ort import fused, model, of_rank, packed, same, session, weight

ORDERS = ([0, 2, 1, 3], [0, 2, 3, 1])


@pytest.fixture(autouse=True)
def _built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMP_KERNELS_LIBRARY", str(next(build().glob("libemp_kernels.*"))))


@pytest.mark.parametrize("isa", instruction_sets())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sequences=st.integers(0, 4), tokens=st.integers(0, 70), heads=st.integers(1, 5), size=st.integers(1, 40),
    across=st.booleans(), biased=st.booleans(), threads=st.integers(1, 4), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_the_same_numbers_elsewhere(
    isa: str, sequences: int, tokens: int, heads: int, size: int, across: bool, biased: bool, threads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    linear = Linear.of(weight(rng, heads * size, 30))
    x = rng.standard_normal((sequences, tokens, 30)).astype(np.float32)
    bias = rng.standard_normal(heads * size).astype(np.float32) if biased else None
    plain = linear(x.reshape(-1, 30), bias, isa=isa).reshape(sequences, tokens, heads, size)
    got = linear.by_heads(x, bias, heads, across=across, isa=isa, threads=threads)
    if got is None:
        assert linear.way(sequences * tokens, isa) != "tile"
    else:
        assert np.array_equal(got, plain.transpose(ORDERS[across]))


@pytest.mark.parametrize("isa", instruction_sets())
def test_what_is_not_finite_is_left_to_the_plain_way(isa: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 20, 30)).astype(np.float32)
    x[1, 3, 4] = np.inf
    assert Linear.of(weight(rng, 48, 30)).by_heads(x, None, 3, across=False, isa=isa) is None


def attention(
    dims: list[int], order: list[int], *, bias: bool = True, x: list[Any] | None = None, allowzero: int = 0
) -> onnx.ModelProto:
    """The projection of x to 48 outputs, sorted by heads."""
    rng = np.random.default_rng(5)
    node, parts = packed(weight(rng, 40, 48), "w", "Mask")
    parts.append(numpy_helper.from_array(rng.standard_normal(48).astype(np.float32), "b"))
    parts.append(numpy_helper.from_array(np.array(dims, np.int64), "dims"))
    nodes = [node, helper.make_node("MatMul", ["x", "w"], ["m"])]
    nodes += [helper.make_node("Add", ["m", "b"], ["p"])] if bias else []
    zero = {"allowzero": allowzero} if allowzero else {}
    nodes.append(helper.make_node("Reshape", ["p" if bias else "m", "dims"], ["r"], **zero))
    nodes.append(helper.make_node("Transpose", ["r"], ["y"], perm=order))
    made = model(nodes, parts, x or ["n", "t", 40], "Mask")
    return of_rank(made, len(order))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("first", [[0, 0], [-1, 10], [0, -1], [2, 10], [2, 0], [4, 5], [-1, 1]])
def test_what_sorts_by_heads_is_part_of_the_node(first: list[int], order: list[int], bias: bool) -> None:
    """Also where Reshape splits the items in another way than they came."""
    before = attention([*first, 3, 16], order, bias=bias)
    after, name = fused(before)
    assert name == f"MatMul{'Add' if bias else ''}HeadsMask"
    assert [node.op_type for node in after.graph.node] == [name]
    same(before, after, np.random.default_rng(0).standard_normal((2, 10, 40)).astype(np.float32))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 3), (0, 4), (2, 0), (1, 128), (3, 50)])
def test_few_items_and_many(shape: tuple[int, int], order: list[int]) -> None:
    before = attention([0, 0, 3, 16], order)
    after, _ = fused(before)
    same(before, after, np.random.default_rng(0).standard_normal((*shape, 40)).astype(np.float32))


def test_a_product_of_two_axes() -> None:
    before = attention([-1, 5, 3, 16], [0, 2, 1, 3], x=["n", 40])
    after, name = fused(before)
    assert name == "MatMulAddHeadsMask"
    same(before, after, np.random.default_rng(0).standard_normal((20, 40)).astype(np.float32))


@pytest.mark.parametrize("order", ORDERS)
def test_infinity_spreads_as_in_the_dense_product(order: list[int]) -> None:
    before = attention([0, 0, 3, 16], order)
    after, _ = fused(before)
    x = np.random.default_rng(0).standard_normal((2, 20, 40)).astype(np.float32)
    x[1, 3, 4] = np.inf
    expected = session(before, kernels=False).run(None, {"x": x})[0]
    got = session(after, kernels=True).run(None, {"x": x})[0]
    assert np.array_equal(np.isnan(got), np.isnan(expected))
    assert np.array_equal(np.isinf(got), np.isinf(expected))


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 1, 3], [0, 3, 1, 2]])
def test_other_orders_stay(order: list[int]) -> None:
    assert fused(attention([0, 0, 3, 16], order))[1] == "MatMulAddMask"


@pytest.mark.parametrize("dims", [[0, 5, 6, 16], [0, 10, -1, 16], [0, 10, 3, -1], [0, 10, 0, 16]])
def test_what_does_not_make_all_outputs_of_an_item_heads_stays(dims: list[int]) -> None:
    made = attention(dims, [0, 2, 1, 3])
    (told,) = fuse(made, every=True)
    assert told.op == "MatMulAddMask"


def test_what_reshape_is_told_by_the_model_itself_stays() -> None:
    made = attention([0, 0, 3, 16], [0, 2, 1, 3])
    (dims,) = (tensor for tensor in made.graph.initializer if tensor.name == "dims")
    made.graph.initializer.remove(dims)
    made.graph.input.append(helper.make_tensor_value_info("dims", onnx.TensorProto.INT64, [4]))
    assert [item.op for item in fuse(made, every=True)] == ["MatMulAddMask"]


def test_zeros_that_mean_none_stay() -> None:
    made = attention([0, 0, 3, 16], [0, 2, 1, 3], allowzero=1)
    assert [item.op for item in fuse(made, every=True)] == ["MatMulAddMask"]


@pytest.mark.parametrize("value", ["m", "p", "r"])
def test_a_value_on_the_way_that_is_asked_for_stays(value: str) -> None:
    made = attention([0, 0, 3, 16], [0, 2, 1, 3])
    rank = 4 if value == "r" else 3
    made.graph.output.append(helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, [None] * rank))
    (told,) = fuse(made, every=True)
    assert told.op == ("MatMulMask" if value == "m" else "MatMulAddMask")


def test_items_that_do_not_fit_end_in_a_sentence() -> None:
    after, _ = fused(attention([0, 7, 3, 16], [0, 2, 1, 3]))
    with pytest.raises(Exception, match=r"the product of shape \[2, 10, 48\] must fit the heads \[0, 7, 3, 16\]"):
        session(after, kernels=True).run(None, {"x": np.ones((2, 10, 40), np.float32)})


@pytest.mark.parametrize(
    ("name", "numbers", "sentence"),
    [
        ("heads", [0, 0, 3, 17], r"must have four numbers of heads, the last two of which make its 48 outputs"),
        ("heads", [0, 0, 48], r"must have four numbers of heads"),
        ("heads", [-1, -1, 3, 16], r"must have four numbers of heads"),
        ("heads", [0, -2, 3, 16], r"must have four numbers of heads"),
        ("heads", [0, 0, 2**62, 2**62], r"must have four numbers of heads"),
        ("perm", [0, 1, 2, 3], r"must have the perm \[0, 2, 1, 3\] or \[0, 2, 3, 1\], got \[0, 1, 2, 3\]"),
        ("perm", [0, 2, 1], r"must have the perm"),
    ],
)
def test_attributes_that_disagree_are_refused_when_the_session_is_made(
    name: str, numbers: list[int], sentence: str
) -> None:
    after, _ = fused(attention([0, 0, 3, 16], [0, 2, 1, 3]))
    (attribute,) = (item for item in after.graph.node[0].attribute if item.name == name)
    attribute.ints[:] = numbers
    after.ClearField("functions")  # which would refuse some of these itself
    with pytest.raises(Exception, match=sentence):
        session(after, kernels=True)
