"""Every place where a weight may be: found, or refused with the true reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from onnx import TensorProto, helper

from emp_onnx import Layout, Model, ModelError, UsageError, apply, find_weights, plan, verify
from emp_onnx.weights.layout import canonical, layout_of
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


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.bool_, np.int8])
def test_whole_numbers_that_are_not_quantised_are_refused_by_name(dtype: type) -> None:
    proto = one(helper.make_node("MatMul", ["x", "w"], ["y"]), tensor("w", np.ones((4, 2), dtype)))
    code, reason = refusals(proto)["w"]
    assert code == "dtype"
    assert reason.startswith(f"{np.dtype(dtype)} weights")


def test_the_way_to_a_use_is_told() -> None:
    constant = helper.make_node("Constant", [], ["c"], value=tensor("", w(2, 4)))
    flip = helper.make_node("Transpose", ["c"], ["t"])
    (found,) = find_weights(Model(one(helper.make_node("MatMul", ["x", "t"], ["y"]), nodes=(constant, flip)))).weights
    assert (found.key, found.path, found.shape) == ("c", ("Transpose",), (2, 4))
    assert found.layout == Layout((2, 4), (0,))


@pytest.mark.parametrize("op", ["Slice", "Concat", "Split"])
def test_gates_that_are_cut_and_put_together_again_keep_their_rows(op: str) -> None:
    """As PyTorch writes an LSTM: slices of the weight along its rows, in another order, with an axis put before."""
    ends = [tensor(f"e{i}", np.array([i], np.int64)) for i in (0, 4, 8)]
    cut = [
        helper.make_node("Slice", ["w", "e0", "e4", "e0"], ["a"]),
        helper.make_node("Slice", ["w", "e4", "e8", "e0"], ["b"]),
    ]
    if op == "Split":
        cut = [helper.make_node("Split", ["w"], ["a", "b"], axis=0)]
    if op == "Concat":
        cut = [helper.make_node("Identity", ["w"], ["a"]), helper.make_node("Identity", ["w"], ["b"])]
    size = 4 if op == "Concat" else 8
    nodes = (
        *cut,
        helper.make_node("Concat", ["b", "a"], ["c"], axis=0),
        helper.make_node("Unsqueeze", ["c", "e0"], ["u"]),
    )
    node = helper.make_node("RNN", ["x", "u", "r"], ["y"], hidden_size=8)
    proto = model(
        [*nodes, node], [value("x", [3, 1, 4]), value("r", [1, 8, 8])], [value("y", None)],
        [tensor("w", w(size, 4)), *ends],
    )  # fmt: skip
    (found,) = find_weights(Model(proto)).weights
    assert found.layout is not None
    assert canonical(found.layout) == ((size, True), (4, False))
    assert len(found.uses) == 1


def test_rows_are_not_known_where_a_cut_goes_through_them() -> None:
    nodes = (helper.make_node("Split", ["w"], ["a", "b"], axis=0), helper.make_node("Identity", ["b"], ["c"]))
    inputs = [value("x", ["N", 2])]
    mms = [helper.make_node("MatMul", ["x", "a"], ["y"]), helper.make_node("MatMul", ["x", "c"], ["z"])]
    proto = model([*nodes, *mms], inputs, [value("y", None), value("z", None)], [tensor("w", w(4, 3))])
    (found,) = find_weights(Model(proto)).weights
    assert found.layout is None


def test_what_is_computed_from_constants_is_refused_with_the_operation() -> None:
    nodes = (helper.make_node("Neg", ["w"], ["n"]), helper.make_node("Transpose", ["n"], ["t"]))
    proto = one(helper.make_node("MatMul", ["x", "t"], ["y"]), tensor("w", w(2, 4)), nodes=nodes)
    assert refusals(proto) == {"t": ("behind", "computed from constants by Neg, which is not followed")}


def test_zero_points_that_are_computed_or_disagree_are_refused() -> None:
    inits = (tensor("q", np.ones((4, 2), np.int8)), tensor("s", np.float32(0.1)), tensor("z", np.int8(3)))
    zero = helper.make_node("Neg", ["z"], ["n"])
    dq = helper.make_node("DequantizeLinear", ["q", "s", "n"], ["d"])
    proto = one(helper.make_node("MatMul", ["x", "d"], ["y"]), *inits, nodes=(zero, dq))
    assert refusals(proto)["q"][0] == "point"
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["e"]),
        helper.make_node("MatMul", ["x", "d"], ["y"]), helper.make_node("MatMul", ["x", "e"], ["v"]),
    ]  # fmt: skip
    proto = model(nodes, [value("x", ["N", 4])], [value("y", None), value("v", None)], inits)
    assert refusals(proto)["q"] == ("point", "its uses disagree about its zero point or scale")


@pytest.mark.parametrize("other", [False, True])
def test_a_float_weight_quantised_and_dequantised_on_its_way(other: bool) -> None:
    inits = (tensor("w", w(4, 2)), tensor("s", np.float32(0.1)), tensor("z", np.int8(3)), tensor("z2", np.int8(4)))
    nodes = (
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z2" if other else "z"], ["d"]),
    )
    proto = one(helper.make_node("MatMul", ["x", "d"], ["y"]), *inits, nodes=nodes)
    if other:
        assert refusals(proto)["w"][0] == "quantised"
    else:
        assert names(proto) == ["w"]


def test_activations_are_neither_weights_nor_refused() -> None:
    nodes = (helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("Relu", ["t"], ["u"]))
    assert find_weights(Model(one(helper.make_node("MatMul", ["x", "u"], ["y"]), nodes=nodes))).refusals == ()


def test_empty_and_one_dimensional_weights_are_refused() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert refusals(one(node, tensor("w", w(4, 0))))["w"][0] == "empty"
    assert refusals(one(node, tensor("w", w(4))))["w"] == ("rank", "one-dimensional: it has no output units")


def sparse(shape: list[int], places: list[int], values: list[float]) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(
        helper.make_tensor("w", TensorProto.FLOAT, [len(values)], values),
        tensor("i", np.array(places, np.int64)), shape,
    )  # fmt: skip


def test_a_sparse_weight_is_pruned_further_and_stays_sparse() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    proto = one(node, sparse_initializer=[sparse([4, 2], [0, 3, 5], [4.0, -0.25, 0.25])])
    source = Model(proto)
    (found,) = find_weights(source).weights
    assert (found.shape, found.layout, found.path) == ((4, 2), Layout((4, 2), (1,)), ("sparse tensor",))
    pruned = apply(source, plan(source))
    assert pruned.values("w").tolist() == [[4.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    left = onnx.ModelProto.FromString(pruned.to_bytes()).graph.sparse_initializer[0]
    assert (list(left.dims), left.values.dims[0], left.indices.dims[0]) == ([4, 2], 1, 1)
    done = verify(pruned, source)
    assert done.ok, done.faults
    assert done.behaviour is not None
    assert refusals(one(node, sparse_initializer=[sparse([4, 2], [], [])]))["w"][0] == "empty"


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
    found = find_weights(Model(one(node, tensor("w", w(4, 2)), tensor("w", w(4, 2)))))
    assert [(r.tensor, r.code) for r in found.refusals] == [("w", "repeated")]


def branch(name: str, weight: str, *inits: TensorProto) -> onnx.GraphProto:
    node = helper.make_node("MatMul", ["x", weight], [f"{name}_y"], f"{name}_mm")
    return helper.make_graph([node], name, [], [value(f"{name}_y", None)], list(inits))


def conditional(then: onnx.GraphProto, other: onnx.GraphProto, *inits: TensorProto) -> onnx.ModelProto:
    node = helper.make_node("If", ["c"], ["y"], "choice", then_branch=then, else_branch=other)
    inputs = [value("x", ["N", 4]), value("c", [], TensorProto.BOOL)]
    return model([node], inputs, [value("y", None)], list(inits))


def test_weights_in_bodies_and_outer_weights_used_in_bodies_are_found() -> None:
    proto = conditional(branch("a", "w"), branch("b", "v", tensor("v", w(4, 2))), tensor("w", w(4, 2)))
    assert {item.key: item.uses for item in find_weights(Model(proto)).weights} == {
        "w": ("MatMul 'a_mm' input 1 in the body 'then_branch' of If 'choice'",),
        "else_branch of If 'choice'/v": ("MatMul 'b_mm' input 1 in the body 'else_branch' of If 'choice'",),
    }


def test_a_name_that_a_body_defines_again_is_another_tensor() -> None:
    proto = conditional(branch("a", "w", tensor("w", w(4, 2))), branch("b", "w"), tensor("w", w(4, 2)))
    assert {item.key: item.uses[0][:12] for item in find_weights(Model(proto)).weights} == {
        "then_branch of If 'choice'/w": "MatMul 'a_mm", "w": "MatMul 'b_mm",
    }  # fmt: skip


def test_bodies_of_nodes_with_one_name_have_keys_of_their_own() -> None:
    nodes = []
    for i in range(2):
        inner = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], [f"r{i}"])], "t", [], [value(f"r{i}", None)],
            [tensor("w", w(4, 2))],
        )  # fmt: skip
        nodes.append(helper.make_node("If", ["c"], [f"y{i}"], "same", then_branch=inner, else_branch=inner))
    inputs = [value("x", ["N", 4]), value("c", [], TensorProto.BOOL)]
    source = Model(model(nodes, inputs, [value("y0", None), value("y1", None)]))
    keys = [item.key for item in find_weights(source).weights]
    assert len(set(keys)) == 4
    pruned = apply(source, plan(source, include=keys[:1]))
    changed = [key for key in keys if pruned.values(key).tobytes() != source.values(key).tobytes()]
    assert changed == keys[:1]


def test_a_weight_that_a_body_gives_out_is_refused() -> None:
    then = helper.make_graph([], "t", [], [value("w", [4, 2])], [tensor("w", w(4, 2))])
    use = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"])], "t", [], [value("w", None)], [tensor("w", w(4, 2))]
    )
    proto = conditional(then, use)
    assert refusals(proto)["else_branch of If 'choice'/w"][0] == "output"
    assert names(proto) == []


def dense(*inside: onnx.NodeProto) -> onnx.FunctionProto:
    inner = helper.make_node("MatMul", ["a", "b"], ["c"])
    return helper.make_function("local", "Dense", ["a", "b"], ["c"], [*inside, inner], [helper.make_opsetid("", 13)])


def test_a_weight_handed_to_functions_is_found_once_with_the_uses_of_every_call() -> None:
    nodes = [
        helper.make_node("Dense", ["x", "w"], ["h"], domain="local"),
        helper.make_node("Dense", ["h", "v"], ["k"], domain="local"),
        helper.make_node("Gemm", ["k", "w"], ["y"], "fc"),
    ]
    inits = [tensor("w", w(4, 4)), tensor("v", w(4, 4))]
    proto = model(nodes, [value("x", ["N", 4])], [value("y", None)], inits, functions=[dense()])
    inside = "MatMul making 'c' input 1 in the local function 'Dense'"
    assert [(item.key, item.uses) for item in find_weights(Model(proto)).weights] == [
        ("w", (inside, "Gemm 'fc' input 1")), ("v", (inside,)),
    ]  # fmt: skip
    proto.functions[0].node.append(helper.make_node("Neg", ["b"], ["unused"]))
    assert {code for code, _ in refusals(proto).values()} == {"shared"}


def test_functions_that_call_themselves_are_an_error() -> None:
    again = helper.make_node("Dense", ["a", "b"], ["d"], domain="local")
    proto = one(
        helper.make_node("Dense", ["x", "w"], ["y"], domain="local"), tensor("w", w(4, 4)), functions=[dense(again)]
    )
    with pytest.raises(ModelError, match="at most 64 deep"):
        find_weights(Model(proto))


@pytest.mark.parametrize(("domain", "op"), [("com.microsoft", "MatMulNBits"), ("com.microsoft", "MatMulBnb4")])
def test_known_operations_that_are_left_alone_say_so(domain: str, op: str) -> None:
    proto = one(helper.make_node(op, ["x", "w"], ["y"], domain=domain), tensor("w", np.ones((4, 2), np.uint8)))
    assert refusals(proto)["w"][0] == "packed"


def test_embeddings_are_pruned_only_if_asked_for() -> None:
    nodes = [helper.make_node("Gather", ["w", "ids"], ["e"]), helper.make_node("MatMul", ["e", "v"], ["y"])]
    inits = [tensor("w", w(6, 4)), tensor("v", w(4, 2))]
    source = Model(model(nodes, [value("ids", ["N"], TensorProto.INT64)], [value("y", None)], inits))
    assert [r.code for r in find_weights(source).refusals] == ["embedding"]
    first, _ = find_weights(source, embeddings=True).weights
    assert (first.name, first.op, first.layout) == ("w", "Gather", Layout((6, 4), (0,)))
    pruned = apply(source, plan(source, embeddings=True))
    assert verify(pruned, source).ok
    assert apply(source, plan(source)).values("w").tobytes() == source.values("w").tobytes()


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
