"""Gelu behind a product becomes part of the node however it is spelled, by erf and by tanh, each as what it is."""

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
from tests.kernels.native import Floats, Linear, build, instruction_sets, library
from tests.kernels.test_ort import model, packed, session, weight

TAILS = ["gate of x, then half", "half of x", "half of the gate", "half first"]
CUBES = ["power", "x times its square", "its square times x"]
SPELLINGS = {
    "erf": [("erf", tail) for tail in TAILS] + [("whole", "none")],
    "tanh": [(cube, TAILS[i % 4]) for i, cube in enumerate(CUBES * 2)] + [("whole", "tanh"), ("fast", "")],
}
ALL = [(kind, how) for kind, spellings in SPELLINGS.items() for how in spellings]
NAMES = {"erf": "Gelu", "tanh": "GeluTanh"}
WITHIN = {"erf": 2e-7, "tanh": 3e-7}  # as cells.hpp promises, of |x|


@pytest.fixture(autouse=True)
def _built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMP_KERNELS_LIBRARY", str(next(build().glob("libemp_kernels.*"))))


def applied(x: Floats, isa: str, kind: str) -> Floats:
    made = x.copy()
    pointer = made.ctypes.data_as(ctypes.c_void_p)
    assert library().emp_gelu(isa.encode(), int(kind == "tanh"), pointer, ctypes.c_int64(made.size)) == 0, isa
    return made


def exact(x: Floats, kind: str) -> list[float]:
    if kind == "erf":
        return [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x.astype(np.float64)]
    root = math.sqrt(2 / math.pi)
    return [v * (1 + math.tanh(root * (v + 0.044715 * v * v * v))) / 2 for v in x.astype(np.float64)]


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("isa", instruction_sets())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(x=st.lists(st.floats(-(2.0**99), 2.0**99, width=32) | st.floats(-6, 6, width=32), max_size=70))
def test_gelu_of_any_number(isa: str, kind: str, x: list[float]) -> None:
    values = np.array(x, np.float32)
    bound = WITHIN[kind] * np.abs(values) + 1e-44  # the smallest numbers have few bits
    assert np.all(np.abs(applied(values, isa, kind) - exact(values, kind)) <= bound)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("isa", instruction_sets())
def test_gelu_of_many_numbers(isa: str, kind: str) -> None:
    values = np.linspace(-9, 9, 200_001, dtype=np.float32)
    got = applied(values, isa, kind)
    assert np.all(np.abs(got - exact(values, kind)) <= WITHIN[kind] * np.abs(values))
    assert np.all(got[values >= 5.6] >= values[values >= 5.6])  # all of it far out, and nothing on the other side
    assert not got[values <= -5.6].any()


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("isa", instruction_sets())
def test_what_is_not_finite(isa: str, kind: str) -> None:
    got = applied(np.array([np.nan, np.inf, -np.inf], np.float32), isa, kind)
    assert np.isnan(got[0])
    assert got[1] == np.inf
    assert np.isnan(got[2])  # -inf * 0, as the operations one by one have it


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("isa", instruction_sets())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 90), items=st.integers(1, 90), added=st.booleans(), biased=st.booleans(),
    threads=st.integers(1, 4), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_a_product_with_gelu_is_gelu_of_the_product(
    isa: str, kind: str, rows: int, items: int, added: bool, biased: bool, threads: int, seed: int
) -> None:
    """Wherever it is done: on the way out, or afterwards."""
    rng = np.random.default_rng(seed)
    linear, x = Linear.of(weight(rng, rows, 40)), rng.standard_normal((items, 40)).astype(np.float32)
    bias = rng.standard_normal(rows).astype(np.float32) if biased else None
    more = rng.standard_normal((items, rows)).astype(np.float32) if added else None
    plain = linear(x, bias, isa=isa, added=more)
    got = linear(x, bias, isa=isa, added=more, gelu=kind, threads=threads)
    assert np.all(np.abs(got.ravel() - exact(plain.ravel(), kind)) <= 6e-7 * np.abs(plain.ravel()))


def spelled(how: tuple[str, str], x: str) -> list[onnx.NodeProto]:
    """Gelu of `x`, called y."""
    first, tail = how
    if first == "whole":
        return [helper.make_node("Gelu", [x], ["y"], approximate=tail)]
    if first == "fast":
        return [helper.make_node("FastGelu", [x], ["y"], domain="com.microsoft")]
    node = helper.make_node
    if first == "erf":
        by_factor = tail.startswith("half")
        scaled = node("Mul", ["inverse", x], ["s"]) if by_factor else node("Div", [x, "root"], ["s"])
        chain = [scaled, node("Erf", ["s"], ["e"])]
    else:
        square = [node("Mul", [x, x], ["square"])]
        cube = {
            "power": [node("Pow", [x, "three"], ["c"])],
            "x times its square": [*square, node("Mul", [x, "square"], ["c"])],
            "its square times x": [*square, node("Mul", ["square", x], ["c"])],
        }[first]  # fmt: skip
        chain = [
            *cube, node("Mul", ["c", "cubic"], ["bent"]), node("Add", [x, "bent"], ["inner"]),
            node("Mul", ["slope", "inner"], ["s"]), node("Tanh", ["s"], ["e"]),
        ]  # fmt: skip
    one, other = {
        "gate of x, then half": ((x, "gate"), ("first", "half")), "half of x": ((x, "half"), ("first", "gate")),
        "half of the gate": (("gate", "half"), (x, "first")), "half first": (("half", x), ("gate", "first")),
    }[tail]  # fmt: skip
    return [
        *chain,
        node("Add", ["one", "e"], ["gate"]),
        node("Mul", list(one), ["first"]),
        node("Mul", list(other), ["y"]),
    ]


def graph(how: tuple[str, str], op: str, *, wrong: str = "", kept: bool = False) -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    node, parts = packed(weight(rng, 64, 48), "w", "Mask")
    numbers = {
        "root": math.sqrt(2), "inverse": math.sqrt(0.5), "one": 1.0, "half": 0.5, "three": 3.0, "cubic": 0.044715,
        "slope": math.sqrt(2 / math.pi),
    }  # fmt: skip
    numbers |= {name: value * 1.1 for name, value in numbers.items() if name == wrong}
    parts += [numpy_helper.from_array(np.float32(value), name) for name, value in numbers.items()]
    parts.append(numpy_helper.from_array(rng.standard_normal(48).astype(np.float32), "b"))
    nodes = [node, helper.make_node(op, ["x", "w", *(["b"] if op == "Gemm" else [])], ["p"])]
    made = model([*nodes, *spelled(how, "p")], parts, ["n", 64], "Mask")
    if how[0] == "fast":
        made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    for imported in made.opset_import:
        imported.version = 20 if imported.domain == "" else imported.version
    for function in made.functions:
        for imported in function.opset_import:
            imported.version = 20 if imported.domain == "" else imported.version
    if kept:
        made.graph.output.append(helper.make_tensor_value_info("p", onnx.TensorProto.FLOAT, ["n", 48]))
    return made


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
@pytest.mark.parametrize(("kind", "how"), ALL)
def test_each_spelling_becomes_part_of_the_product(kind: str, how: tuple[str, str], op: str) -> None:
    before, after = graph(how, op), onnx.ModelProto()
    after.CopyFrom(before)
    assert [item.op for item in fuse(after, every=True)] == [f"{op}{NAMES[kind]}Mask"]
    assert len(after.graph.node) == 1
    onnx.checker.check_model(after, full_check=True)
    for items in (0, 1, 40):
        x = np.random.default_rng(items).standard_normal((items, 64)).astype(np.float32)
        expected = session(before, kernels=False).run(None, {"x": x})[0]
        plain = session(after, kernels=False).run(None, {"x": x})[0]
        np.testing.assert_allclose(plain, expected, rtol=1e-5, atol=2e-6)
        got = session(after, kernels=True, threads=2).run(None, {"x": x})[0]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("how", "wrong"),
    [(("erf", tail), "inverse" if tail.startswith("half") else "root") for tail in TAILS]
    + [(("power", TAILS[0]), number) for number in ("three", "cubic", "slope", "one", "half")]
    + [((CUBES[1], TAILS[0]), "cubic")],
)
def test_what_is_not_gelu_stays(how: tuple[str, str], wrong: str) -> None:
    assert [item.op for item in fuse(graph(how, "MatMul", wrong=wrong), every=True)] == ["MatMulMask"]


@pytest.mark.parametrize("how", [how for _, how in ALL])
def test_a_product_that_is_asked_for_itself_stays(how: tuple[str, str]) -> None:
    assert [item.op for item in fuse(graph(how, "MatMul", kept=True), every=True)] == ["MatMulMask"]


@pytest.mark.parametrize("inner", ["c", "bent", "inner", "s", "e", "gate"])
def test_gelu_of_which_a_part_is_used_elsewhere_stays(inner: str) -> None:
    made = graph(("power", TAILS[0]), "MatMul")
    made.graph.output.append(helper.make_tensor_value_info(inner, onnx.TensorProto.FLOAT, ["n", 48]))
    assert [item.op for item in fuse(made, every=True)] == ["MatMulMask"]


def test_gelu_with_a_bias_of_its_own_stays() -> None:
    made = graph(("fast", ""), "MatMul")
    next(node for node in made.graph.node if node.op_type == "FastGelu").input.append("b")
    assert [item.op for item in fuse(made, every=True)] == ["MatMulMask"]
