"""What is added to a product, as in residual networks, becomes part of its node: any shape that fits, no other."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from emp_onnx.files.reader import DOMAIN
from emp_onnx.fused.fuse import fuse
from tests.kernels.native import Linear, build, instruction_sets
from tests.kernels.test_ort import fused, model, of_rank, packed, same, session, weight


@pytest.fixture(autouse=True)
def _built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMP_KERNELS_LIBRARY", str(next(build().glob("libemp_kernels.*"))))


@pytest.mark.parametrize("isa", instruction_sets())
@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(0, 90), columns=st.integers(0, 90), items=st.integers(0, 90), relu=st.booleans(),
    biased=st.booleans(), threads=st.integers(1, 4), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_a_sum_on_the_way_out_is_the_sum_afterwards(
    isa: str, rows: int, columns: int, items: int, relu: bool, biased: bool, threads: int, seed: int
) -> None:
    """To the last bit: a product, a bias and what is added are summed in this order."""
    rng = np.random.default_rng(seed)
    linear, x = Linear.of(weight(rng, rows, columns)), rng.standard_normal((items, columns)).astype(np.float32)
    bias = rng.standard_normal(rows).astype(np.float32) if biased else None
    added = rng.standard_normal((items, rows)).astype(np.float32)
    expected = linear(x, bias, isa=isa) + added
    got = linear(x, bias, isa=isa, added=added, relu=relu, threads=threads)
    assert np.array_equal(got, np.maximum(expected, 0) if relu else expected)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("items", [1, 3, 40])
def test_what_is_not_finite_in_either_is_so_in_the_sum(isa: str, items: int) -> None:
    rng = np.random.default_rng(items)
    dense, x = weight(rng, 33, 40), rng.standard_normal((items, 40)).astype(np.float32)
    added = rng.standard_normal((items, 33)).astype(np.float32)
    added[0, 5], added[0, 6], x[-1, 7] = np.nan, np.inf, np.inf
    with np.errstate(invalid="ignore"):
        expected = x @ dense.T + added
    got = Linear.of(dense)(x, isa=isa, added=added)
    assert np.array_equal(np.isnan(got), np.isnan(expected))
    assert np.array_equal(np.isinf(got), np.isinf(expected))


def block(
    op: str, *, bias: bool, relu: bool, dims: list[Any] | None = None, constant: bool = False, first: bool = False
) -> onnx.ModelProto:
    """A product of x; what is added is x itself, or the negative of numbers of this shape, or these themselves."""
    rng = np.random.default_rng(5)
    node, parts = packed(weight(rng, 48, 48), "w", "Mask")
    parts.append(numpy_helper.from_array(rng.standard_normal(48).astype(np.float32), "b"))
    nodes = [node]
    if op == "Gemm":
        nodes.append(helper.make_node("Gemm", ["x", "w", *(["b"] if bias else [])], ["p"]))
    else:
        nodes.append(helper.make_node("MatMul", ["x", "w"], ["m" if bias else "p"]))
        nodes += [helper.make_node("Add", ["m", "b"], ["p"])] if bias else []
    other = "x"
    if dims is not None:
        other = "s"
        parts.append(numpy_helper.from_array(rng.standard_normal(dims).astype(np.float32), "s"))
        if not constant:
            nodes.append(helper.make_node("Neg", ["s"], ["t"]))
            other = "t"
    nodes.append(helper.make_node("Add", [other, "p"] if first else ["p", other], ["a" if relu else "y"]))
    nodes += [helper.make_node("Relu", ["a"], ["y"])] if relu else []
    made = model(nodes, parts, ["n", 48], "Mask")
    return of_rank(made, max(2, len(dims or [])))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_what_is_added_to_a_product_is_part_of_its_node(op: str, bias: bool, relu: bool, first: bool) -> None:
    before = block(op, bias=bias, relu=relu, first=first)
    after, name = fused(before)
    kind = "MatMulAdd" if op == "MatMul" and bias else op
    assert name == f"{kind}Residual{'Relu' if relu else ''}Mask"
    assert [node.op_type for node in after.graph.node] == [name]
    for items in (0, 1, 3, 40):
        same(before, after, np.random.default_rng(items).standard_normal((items, 48)).astype(np.float32))


@pytest.mark.parametrize("dims", [[3, 48], [1, 48], [48], [3, 1], [1], [], [2, 3, 48], [2, 1, 1], [4, 2, 1, 48]])
@pytest.mark.parametrize("relu", [False, True])
def test_what_is_added_may_have_any_shape_that_fits(dims: list[int], relu: bool) -> None:
    before = block("MatMul", bias=True, relu=relu, dims=dims)
    after, name = fused(before)
    assert name == f"MatMulAddResidual{'Relu' if relu else ''}Mask"
    for items in (1, 3):
        same(before, after, np.random.default_rng(0).standard_normal((items, 48)).astype(np.float32))


def test_a_sum_that_cannot_be_ends_in_a_sentence() -> None:
    after, _ = fused(block("MatMul", bias=False, relu=False, dims=[7, 48]))
    with pytest.raises(Exception, match=r"what is added must fit the shape \[3, 48\], got \[7, 48\]"):
        session(after, kernels=True).run(None, {"x": np.ones((3, 48), np.float32)})


@pytest.mark.parametrize("dims", [[1, 1, 48], [3, 48], [1]])
def test_constants_of_other_shapes_than_a_bias_stay(dims: list[int]) -> None:
    before = block("MatMul", bias=False, relu=False, dims=dims, constant=True)
    after, name = fused(before)
    assert name == "MatMulMask"
    same(before, after, np.random.default_rng(0).standard_normal((3, 48)).astype(np.float32))


def test_a_product_added_to_itself_stays() -> None:
    rng = np.random.default_rng(5)
    node, parts = packed(weight(rng, 48, 48), "w", "Mask")
    nodes = [node, helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "p"], ["y"])]
    before = model(nodes, parts, ["n", 48], "Mask")
    after, name = fused(before)
    assert name == "MatMulMask"
    same(before, after, rng.standard_normal((3, 48)).astype(np.float32))


def test_two_products_that_are_added_become_two_nodes() -> None:
    """Whichever comes first takes the sum, where what it adds is there."""
    rng = np.random.default_rng(5)
    nodes: list[onnx.NodeProto] = []
    parts: list[onnx.TensorProto] = []
    for name in ("v", "w"):
        node, more = packed(weight(rng, 48, 48), name, "Mask")
        nodes.append(node)
        parts += more
    nodes += [helper.make_node("MatMul", ["x", name], [f"{name}x"]) for name in ("v", "w")]
    nodes.append(helper.make_node("Add", ["vx", "wx"], ["y"]))
    before = model(nodes, parts, ["n", 48], "Mask")
    after = onnx.ModelProto()
    after.CopyFrom(before)
    assert sorted(item.op for item in fuse(after, every=True)) == ["MatMulMask", "MatMulResidualMask"]
    onnx.checker.check_model(after, full_check=True)
    assert [node.op_type for node in after.graph.node if node.domain == DOMAIN] == ["MatMulMask", "MatMulResidualMask"]
    same(before, after, rng.standard_normal((9, 48)).astype(np.float32))


def test_no_gelu_is_taken_behind_a_sum() -> None:
    before = block("MatMul", bias=True, relu=False)
    for imported in (*before.opset_import, *(item for function in before.functions for item in function.opset_import)):
        imported.version = 20 if imported.domain == "" else imported.version
    before.graph.node[-1].output[0] = "g"
    before.graph.node.append(helper.make_node("Gelu", ["g"], ["y"]))
    after, name = fused(before)
    assert name == "MatMulAddResidualMask"
    assert [node.op_type for node in after.graph.node] == ["MatMulAddResidualMask", "Gelu"]
    same(before, after, np.random.default_rng(0).standard_normal((20, 48)).astype(np.float32))
