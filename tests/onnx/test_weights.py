"""Every place where a weight may be: found, or refused with the true reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from onnx import TensorProto, helper

from emp_onnx import Layout, Model, UsageError, find_weights
from emp_onnx.layout import layout_of
from tests.onnx.builders import Case, cases, gemm, model, tensor, value

RNG = np.random.default_rng(0)


def w(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def refusals(proto: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    return {r.name: (r.code, r.reason) for r in find_weights(Model(proto)).refusals}


def names(proto: onnx.ModelProto) -> list[str]:
    return [weight.name for weight in find_weights(Model(proto)).weights]


def one(
    node: onnx.NodeProto, *inits: TensorProto, nodes: tuple[onnx.NodeProto, ...] = (), **more: object
) -> onnx.ModelProto:
    return model([*nodes, node], [value("x", ["N", 4])], [value("y", None)], inits, **more)  # type: ignore[arg-type]


@given(cases())
def test_all_weights_of_generated_models_are_found_with_the_right_units(case: Case) -> None:
    found = find_weights(Model(case.model))
    assert {item.name for item in found.weights} == set(case.weights)
    assert not found.refusals
    for item in found.weights:
        assert item.layout is not None
        array = np.arange(case.weights[item.name].size).reshape(item.layout.view)
        units: dict[object, set[int]] = {}
        for flat, index in enumerate(np.ndindex(*case.weights[item.name].shape)):
            units.setdefault(case.unit[item.name](index), set()).add(flat)
        lead = np.moveaxis(array, item.layout.axes, range(len(item.layout.axes)))
        rows = lead.reshape(int(np.prod(lead.shape[: len(item.layout.axes)])), -1)
        assert sorted(map(sorted, units.values())) == sorted(sorted(row.tolist()) for row in rows)


@pytest.mark.parametrize(
    ("op", "slot", "shape", "attributes", "reason"),
    [
        ("MatMul", 1, (5,), {}, "one-dimensional"),
        ("MatMul", 1, (), {}, "scalar"),
        ("Gemm", 1, (2, 3, 4), {}, "3 dimensions"),
        ("LSTM", 1, (2, 3), {}, "this has 2"),
        ("ConvTranspose", 1, (5, 2, 3, 3), {"group": 2}, "do not divide"),
        ("ConvTranspose", 1, (5, 2, 3, 3), {"group": 0}, "do not divide"),
    ],
)
def test_a_shape_that_does_not_fit_its_operation_has_a_reason(
    op: str, slot: int, shape: tuple[int, ...], attributes: dict[str, int], reason: str
) -> None:
    assert reason in str(layout_of(op, slot, shape, attributes))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_other_dtypes_are_refused_by_name(dtype: type) -> None:
    proto = one(helper.make_node("MatMul", ["x", "w"], ["y"]), tensor("w", np.ones((4, 2), dtype)))
    assert refusals(proto) == {"w": ("dtype", f"{np.dtype(dtype)} weights are not pruned yet")}


def test_a_constant_node_is_refused_also_behind_a_transpose() -> None:
    constant = helper.make_node("Constant", [], ["c"], value=tensor("", w(2, 4)))
    flip = helper.make_node("Transpose", ["c"], ["t"])
    direct = one(helper.make_node("Gemm", ["x", "c"], ["y"], transB=1), nodes=(constant,))
    behind = one(helper.make_node("MatMul", ["x", "t"], ["y"]), nodes=(constant, flip))
    assert refusals(direct) == {"c": ("constant", "held by a Constant node: not pruned yet")}
    assert refusals(behind) == {"c": ("constant", "held by a Constant node, behind Transpose: not pruned yet")}


def test_a_weight_behind_other_operations_is_refused_with_the_way_it_takes() -> None:
    nodes = (helper.make_node("Identity", ["w"], ["i"]), helper.make_node("Transpose", ["i"], ["t"]))
    proto = one(helper.make_node("MatMul", ["x", "t"], ["y"]), tensor("w", w(2, 4)), nodes=nodes)
    assert refusals(proto) == {"w": ("behind", "reaches MatMul through Identity and Transpose: not pruned yet")}


def test_quantised_weights_are_refused_as_such() -> None:
    dq = helper.make_node("DequantizeLinear", ["q", "s"], ["d"])
    inits = (tensor("q", np.ones((4, 2), np.int8)), tensor("s", np.float32(0.1)))
    proto = one(helper.make_node("MatMul", ["x", "d"], ["y"]), *inits, nodes=(dq,))
    assert refusals(proto)["q"][1].startswith("quantised (int8), reaches MatMul through DequantizeLinear")
    integer = one(helper.make_node("MatMulInteger", ["x", "q"], ["y"]), inits[0])
    assert refusals(integer) == {"q": ("later", "quantised weights are not pruned yet")}


def test_activations_are_neither_weights_nor_refused() -> None:
    nodes = (helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("Relu", ["t"], ["u"]))
    assert find_weights(Model(one(helper.make_node("MatMul", ["x", "u"], ["y"]), nodes=nodes))).refusals == ()


def test_sparse_and_empty_and_one_dimensional_weights_are_refused() -> None:
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0]), tensor("i", np.array([3], np.int64)), [4, 2]
    )
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert refusals(one(node, sparse_initializer=[sparse]))["w"][0] == "sparse"
    assert refusals(one(node, tensor("w", w(4, 0))))["w"][0] == "empty"
    assert refusals(one(node, tensor("w", w(4))))["w"] == ("rank", "one-dimensional: it has no output units")


def test_tied_weights_are_found_once_with_every_use() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], "a", transB=1),
        helper.make_node("Gemm", ["h", "w"], ["y"], "b", transB=1),
    ]
    proto = model(nodes, [value("x", ["N", 4])], [value("y", None)], [tensor("w", w(4, 4))])
    (weight,) = find_weights(Model(proto)).weights
    assert weight.uses == ("Gemm 'a' input 1", "Gemm 'b' input 1")
    assert weight.layout == Layout((4, 4), (0,))


def test_uses_that_disagree_about_the_output_leave_no_layout() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], "a", transB=1),
        helper.make_node("MatMul", ["h", "w"], ["y"], "b"),
    ]
    proto = model(nodes, [value("x", ["N", 4])], [value("y", None)], [tensor("w", w(4, 4))])
    (weight,) = find_weights(Model(proto)).weights
    assert weight.layout is None


def test_a_weight_that_something_else_reads_is_refused() -> None:
    gather = helper.make_node("Gather", ["w", "ids"], ["e"], "embed")
    head = helper.make_node("MatMul", ["x", "w"], ["y"], "head")
    proto = model(
        [gather, head],
        [value("x", ["N", 4]), value("ids", ["N"], TensorProto.INT64)],
        [value("y", None), value("e", None)],
        [tensor("w", w(4, 2))],
    )
    assert refusals(proto)["w"][0] == "shared"
    assert "input 0 of Gather 'embed'" in refusals(proto)["w"][1]
    bias = one(helper.make_node("Gemm", ["x", "w", "w"], ["y"]), tensor("w", w(4, 4)))
    assert refusals(bias)["w"][0] == "shared"


def test_a_weight_that_is_also_an_output_is_refused() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    proto = model([node], [value("x", ["N", 4])], [value("y", None), value("w", [4, 2])], [tensor("w", w(4, 2))])
    assert refusals(proto) == {"w": ("output", "it is also an output of the graph")}


@pytest.mark.parametrize("ir", [3, 8])
def test_initializers_listed_as_inputs_are_weights(ir: int) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    inputs = [value("x", ["N", 4]), value("w", [4, 2])]
    assert names(model([node], inputs, [value("y", None)], [tensor("w", w(4, 2))], ir=ir)) == ["w"]


def test_repeated_names_are_refused() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert refusals(one(node, tensor("w", w(4, 2)), tensor("w", w(4, 2))))["w"][0] == "repeated"


def branch(name: str, weight: str, *inits: TensorProto) -> onnx.GraphProto:
    node = helper.make_node("MatMul", ["x", weight], [f"{name}_y"], f"{name}_mm")
    return helper.make_graph([node], name, [], [value(f"{name}_y", None)], list(inits))


def conditional(then: onnx.GraphProto, other: onnx.GraphProto, *inits: TensorProto) -> onnx.ModelProto:
    node = helper.make_node("If", ["c"], ["y"], "choice", then_branch=then, else_branch=other)
    inputs = [value("x", ["N", 4]), value("c", [], TensorProto.BOOL)]
    return model([node], inputs, [value("y", None)], list(inits))


def test_weights_in_bodies_are_refused_and_outer_weights_used_in_bodies_are_found() -> None:
    proto = conditional(branch("a", "w"), branch("b", "v", tensor("v", w(4, 2))), tensor("w", w(4, 2)))
    found = find_weights(Model(proto))
    assert [(item.name, item.uses) for item in found.weights] == [("w", ("MatMul 'a_mm' input 1",))]
    assert refusals(proto) == {
        "v": ("body", "it lives in the body 'else_branch' of If 'choice', and those are not pruned yet")
    }


def test_a_name_that_a_body_defines_again_is_another_tensor() -> None:
    proto = conditional(branch("a", "w", tensor("w", w(4, 2))), branch("b", "w"), tensor("w", w(4, 2)))
    found = find_weights(Model(proto))
    assert [item.uses for item in found.weights] == [("MatMul 'b_mm' input 1",)]
    assert [item.uses for item in found.refusals] == [("MatMul 'a_mm' input 1",)]


def test_weights_handed_to_local_functions_are_refused() -> None:
    inner = helper.make_node("MatMul", ["a", "b"], ["c"])
    function = helper.make_function("local", "Dense", ["a", "b"], ["c"], [inner], [helper.make_opsetid("", 13)])
    proto = one(
        helper.make_node("Dense", ["x", "w"], ["y"], domain="local"), tensor("w", w(4, 2)), functions=[function]
    )
    assert refusals(proto)["w"][0] == "function"


@pytest.mark.parametrize(
    ("domain", "op"), [("", "Gather"), ("", "Einsum"), ("com.microsoft", "FusedMatMul"), ("com.microsoft", "Attention")]
)
def test_known_operations_that_are_left_alone_say_so(domain: str, op: str) -> None:
    inputs = {"Gather": ["w", "x"], "Einsum": ["x", "w"]}.get(op, ["x", "w"])
    proto = one(helper.make_node(op, inputs, ["y"], domain=domain), tensor("w", w(4, 2)))
    assert refusals(proto)["w"][0] == "later"


def test_an_operation_of_another_domain_with_a_known_name_is_not_known() -> None:
    proto = one(helper.make_node("MatMul", ["x", "w"], ["y"], domain="other"), tensor("w", w(4, 2)))
    assert find_weights(Model(proto)).weights == ()
    assert names(one(helper.make_node("MatMul", ["x", "w"], ["y"], domain="ai.onnx"), tensor("w", w(4, 2)))) == ["w"]


def two() -> Model:
    nodes = [
        helper.make_node("MatMul", ["x", "layer.0[a]"], ["h"], "/enc/MatMul"),
        helper.make_node("MatMul", ["h", "layer.1"], ["y"], "/dec/MatMul"),
    ]
    inits = [tensor("layer.0[a]", w(4, 4)), tensor("layer.1", w(4, 8))]
    return Model(model(nodes, [value("x", ["N", 4])], [value("y", None)], inits))


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, {"layer.0[a]", "layer.1"}),
        ({"include": ["layer.1"]}, {"layer.1"}),
        ({"include": ["layer.0[a]"]}, {"layer.0[a]"}),
        ({"include": ["/enc/*"]}, {"layer.0[a]"}),
        ({"exclude": ["*"]}, set()),
        ({"include": ["layer*"], "exclude": ["/dec/*"]}, {"layer.0[a]"}),
        ({"min_size": 17}, {"layer.1"}),
        ({"min_size": 16}, {"layer.0[a]", "layer.1"}),
    ],
)
def test_choosing(options: dict[str, object], left: set[str]) -> None:
    found = find_weights(two(), **options)  # type: ignore[arg-type]
    assert {item.name for item in found.weights} == left
    assert {item.name for item in found.refusals} == {"layer.0[a]", "layer.1"} - left
    assert {item.code for item in found.refusals} <= {"option"}


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_an_error_that_names_what_there_is(option: str) -> None:
    with pytest.raises(
        UsageError, match=rf"{option} must match a weight, got 'zz'; there are: 'layer.0\[a\]', 'layer.1'"
    ):
        find_weights(two(), **{option: ["zz"]})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="min_size must be ≥ 0, got -1"):
        find_weights(two(), min_size=-1)


def test_order_is_that_of_first_use_not_of_storage() -> None:
    case = gemm(RNG)
    case.model.graph.initializer.insert(0, tensor("z", w(3, 3)))
    case.model.graph.node.append(helper.make_node("MatMul", ["y", "z"], ["out"]))
    assert names(case.model) == ["w", "z"]
