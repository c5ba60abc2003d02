"""Gelu behind a product becomes part of the node however it is spelled, and is the one by erf, not that by tanh."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from emp_onnx.fused.fuse import fuse
from tests.kernels.native import Floats, build, instruction_sets, library
from tests.kernels.test_ort import model, packed, session, weight

SPELLINGS = ["gate of x, then half", "half of x", "half of the gate", "half first", "one operation"]


@pytest.fixture(autouse=True)
def _built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMP_KERNELS_LIBRARY", str(next(build().glob("libemp_kernels.*"))))


def applied(x: Floats, isa: str) -> Floats:
    made = x.copy()
    done = library().emp_gelu(isa.encode(), made.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(made.size))
    assert done == 0, isa
    return made


def exact(x: Floats) -> list[float]:
    return [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x.astype(np.float64)]


@pytest.mark.parametrize("isa", instruction_sets())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(x=st.lists(st.floats(-(2.0**99), 2.0**99, width=32) | st.floats(-6, 6, width=32), max_size=70))
def test_gelu_of_any_number(isa: str, x: list[float]) -> None:
    values = np.array(x, np.float32)
    assert np.all(np.abs(applied(values, isa) - exact(values)) <= 4e-7 * np.abs(values) + 1e-30)


@pytest.mark.parametrize("isa", instruction_sets())
def test_what_is_not_finite(isa: str) -> None:
    got = applied(np.array([np.nan, np.inf, -np.inf], np.float32), isa)
    assert np.isnan(got[0])
    assert got[1] == np.inf
    assert np.isnan(got[2])  # -inf * 0, as the operations one by one have it


def spelled(how: str, x: str, root: str = "root") -> list[onnx.NodeProto]:
    """Gelu of `x`, called y."""
    if how == "one operation":
        return [helper.make_node("Gelu", [x], ["y"])]
    by_factor = how in ("half of x", "half first")
    gate = [
        helper.make_node("Mul" if by_factor else "Div", [x, "inverse" if by_factor else root], ["s"]),
        helper.make_node("Erf", ["s"], ["e"]), helper.make_node("Add", ["one", "e"], ["gate"]),
    ]  # fmt: skip
    first, second = {
        "gate of x, then half": ((x, "gate"), ("first", "half")), "half of x": ((x, "half"), ("first", "gate")),
        "half of the gate": (("gate", "half"), (x, "first")), "half first": (("half", x), ("gate", "first")),
    }[how]  # fmt: skip
    return [*gate, helper.make_node("Mul", list(first), ["first"]), helper.make_node("Mul", list(second), ["y"])]


def graph(how: str, op: str, *, root: float = math.sqrt(2), kept: bool = False) -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    node, parts = packed(weight(rng, 64, 48), "w", "Mask")
    numbers = {"root": root, "inverse": 1 / root, "one": 1.0, "half": 0.5}
    parts += [numpy_helper.from_array(np.float32(value), name) for name, value in numbers.items()]
    parts.append(numpy_helper.from_array(rng.standard_normal(48).astype(np.float32), "b"))
    nodes = [node, helper.make_node(op, ["x", "w", *(["b"] if op == "Gemm" else [])], ["p"])]
    made = model([*nodes, *spelled(how, "p")], parts, ["n", 64], "Mask")
    for imported in made.opset_import:
        imported.version = 20 if imported.domain == "" else imported.version
    for function in made.functions:
        for imported in function.opset_import:
            imported.version = 20 if imported.domain == "" else imported.version
    if kept:
        made.graph.output.append(helper.make_tensor_value_info("p", onnx.TensorProto.FLOAT, ["n", 48]))
    return made


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
@pytest.mark.parametrize("how", SPELLINGS)
def test_each_spelling_becomes_part_of_the_product(how: str, op: str) -> None:
    before, after = graph(how, op), onnx.ModelProto()
    after.CopyFrom(before)
    assert [item.op for item in fuse(after, every=True)] == [f"{op}GeluMask"]
    assert len(after.graph.node) == 1
    onnx.checker.check_model(after, full_check=True)
    for items in (0, 1, 40):
        x = np.random.default_rng(items).standard_normal((items, 64)).astype(np.float32)
        expected = session(before, kernels=False).run(None, {"x": x})[0]
        np.testing.assert_allclose(session(after, kernels=False).run(None, {"x": x})[0], expected, rtol=1e-5, atol=1e-6)
        got = session(after, kernels=True, threads=2).run(None, {"x": x})[0]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("how", SPELLINGS[:4])
def test_what_is_not_gelu_stays(how: str) -> None:
    assert [item.op for item in fuse(graph(how, "MatMul", root=1.5), every=True)] == ["MatMulMask"]


@pytest.mark.parametrize("how", SPELLINGS)
def test_a_product_that_is_asked_for_itself_stays(how: str) -> None:
    assert [item.op for item in fuse(graph(how, "MatMul", kept=True), every=True)] == ["MatMulMask"]
