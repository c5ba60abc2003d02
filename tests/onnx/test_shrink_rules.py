"""One test for each kind of relation: which units there are, and, where nothing may go, why."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from emp_onnx.shrink.axes import rules
from emp_onnx.shrink.axes.links import RULES
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.proof import prove

assert rules
W = np.random.default_rng(0)


def weight(*shape: int) -> np.ndarray:
    return W.standard_normal(shape).astype(np.float32)


def model(
    nodes: list, constants: dict[str, np.ndarray], shape: list, out: list, opset: int = 17, domain: str = ""
) -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node(op, ins, outs, domain=domain if op in ("MultiHeadAttention",) else "", **attributes)
            for op, ins, outs, attributes in nodes
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", 1, out)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def groups(proto: onnx.ModelProto) -> tuple[list[int], Problem]:
    """The sizes of the groups; each is cut by half and proven on the way."""
    info = proto.graph.input[0].type.tensor_type.shape.dim
    feeds = [{"x": weight(*(d.dim_value or 2 for d in info))}]
    problem = Problem.of(proto, feeds)
    for group in problem.groups:
        masks = group.removed(range(group.units // 2))
        if masks:
            shrunk = problem.cut(masks)
            onnx.checker.check_model(shrunk, full_check=True)
            proof = prove(problem.reference(shrunk, masks), shrunk, problem.trace.feeds)
            assert proof.holds, proof
    return sorted(group.units for group in problem.groups), problem


CONV = {"kernel_shape": [1, 1]}
CASES: dict[str, tuple[Callable[[], onnx.ModelProto], list[int]]] = {
    "conv": (
        lambda: model(
            [("Conv", ["x", "a"], ["h"], CONV), ("Conv", ["h", "b"], ["y"], CONV)],
            {"a": weight(6, 3, 1, 1), "b": weight(2, 6, 1, 1)},
            [1, 3, 4, 4],
            [1, 2, 4, 4],
        ),
        [6],
    ),
    "depthwise": (
        lambda: model(
            [
                ("Conv", ["x", "a"], ["h"], CONV),
                ("Conv", ["h", "d"], ["i"], {**CONV, "group": 6}),
                ("Conv", ["i", "b"], ["y"], CONV),
            ],
            {"a": weight(6, 3, 1, 1), "d": weight(6, 1, 1, 1), "b": weight(2, 6, 1, 1)},
            [1, 3, 4, 4],
            [1, 2, 4, 4],
        ),
        [6],
    ),
    # two groups of four inputs and three outputs: whole groups, places of inputs, places of outputs
    "grouped": (
        lambda: model(
            [
                ("Conv", ["x", "a"], ["h"], CONV),
                ("Conv", ["h", "d"], ["i"], {**CONV, "group": 2}),
                ("Conv", ["i", "b"], ["y"], CONV),
            ],
            {"a": weight(8, 3, 1, 1), "d": weight(6, 4, 1, 1), "b": weight(2, 6, 1, 1)},
            [1, 3, 4, 4],
            [1, 2, 4, 4],
        ),
        [2, 3, 4],
    ),
    "residual": (
        lambda: model(
            [
                ("Conv", ["x", "a"], ["h"], CONV),
                ("Conv", ["h", "c"], ["i"], CONV),
                ("Add", ["h", "i"], ["j"], {}),
                ("Conv", ["j", "b"], ["y"], CONV),
            ],
            {"a": weight(6, 3, 1, 1), "c": weight(6, 6, 1, 1), "b": weight(2, 6, 1, 1)},
            [1, 3, 4, 4],
            [1, 2, 4, 4],
        ),
        [6],
    ),
    # a sum with the input of the model: nothing may go
    "residual to the input": (
        lambda: model(
            [("Conv", ["x", "a"], ["h"], CONV), ("Add", ["h", "x"], ["j"], {}), ("Conv", ["j", "b"], ["y"], CONV)],
            {"a": weight(3, 3, 1, 1), "b": weight(2, 3, 1, 1)},
            [1, 3, 4, 4],
            [1, 2, 4, 4],
        ),
        [],
    ),
    # a part of a concatenation may go although the rest is an input
    "concat": (
        lambda: model(
            [
                ("Conv", ["x", "a"], ["h"], CONV),
                ("Concat", ["h", "x"], ["j"], {"axis": 1}),
                ("Conv", ["j", "b"], ["y"], CONV),
            ],
            {"a": weight(4, 3, 1, 1), "b": weight(2, 7, 1, 1)},
            [1, 3, 4, 4],
            [1, 2, 4, 4],
        ),
        [4],
    ),
    "flatten": (
        lambda: model(
            [
                ("Conv", ["x", "a"], ["h"], CONV),
                ("Flatten", ["h"], ["j"], {}),
                ("Gemm", ["j", "b"], ["y"], {"transB": 1}),
            ],
            {"a": weight(4, 3, 1, 1), "b": weight(2, 64)},
            [1, 3, 4, 4],
            [1, 2],
        ),
        [4],
    ),
    "layer norm": (
        lambda: model(
            [
                ("MatMul", ["x", "a"], ["h"], {}),
                ("LayerNormalization", ["h", "s"], ["j"], {}),
                ("MatMul", ["j", "b"], ["y"], {}),
            ],
            {"a": weight(3, 6), "s": weight(6), "b": weight(6, 2)},
            [2, 3],
            [2, 2],
        ),
        [],
    ),
    "softmax": (
        lambda: model(
            [("MatMul", ["x", "a"], ["h"], {}), ("Softmax", ["h"], ["j"], {}), ("MatMul", ["j", "b"], ["y"], {})],
            {"a": weight(3, 6), "b": weight(6, 2)},
            [2, 3],
            [2, 2],
        ),
        [],
    ),
    "left product": (
        lambda: model(
            [("MatMul", ["a", "x"], ["h"], {}), ("Relu", ["h"], ["j"], {}), ("MatMul", ["b", "j"], ["y"], {})],
            {"a": weight(6, 3), "b": weight(2, 6)},
            [3, 5],
            [2, 5],
        ),
        [6],
    ),
    "open batch": (
        lambda: model(
            [("MatMul", ["x", "a"], ["h"], {}), ("Tanh", ["h"], ["j"], {}), ("MatMul", ["j", "b"], ["y"], {})],
            {"a": weight(3, 6), "b": weight(6, 2)},
            ["n", 3],
            ["n", 2],
        ),
        [6],
    ),
    # heads of two, and places within them: (2 heads × 3)
    "unfold": (
        lambda: model(
            [
                ("MatMul", ["x", "a"], ["h"], {}),
                ("Reshape", ["h", "s"], ["i"], {}),
                ("Transpose", ["i"], ["j"], {"perm": [0, 2, 1]}),
                ("Reshape", ["j", "t"], ["k"], {}),
                ("MatMul", ["k", "b"], ["y"], {}),
            ],
            {"a": weight(3, 6), "b": weight(6, 2), "s": np.array([0, 2, 3]), "t": np.array([0, 6])},
            ["n", 3],
            ["n", 2],
        ),
        [2, 3],
    ),
    "heads, fused": (
        lambda: model(
            [
                ("MatMul", ["x", "a"], ["q"], {}),
                ("MatMul", ["x", "b"], ["k"], {}),
                ("MatMul", ["x", "c"], ["v"], {}),
                ("MultiHeadAttention", ["q", "k", "v"], ["o"], {"num_heads": 4}),
                ("MatMul", ["o", "d"], ["y"], {}),
            ],
            {"a": weight(6, 8), "b": weight(6, 8), "c": weight(6, 8), "d": weight(8, 6)},
            [1, 5, 6],
            [1, 5, 6],
            domain="com.microsoft",
        ),
        [4],
    ),
    "squared sum": (
        lambda: model(
            [("MatMul", ["x", "a"], ["h"], {}), ("ReduceSumSquare", ["h"], ["y"], {"axes": [1]})],
            {"a": weight(3, 6)},
            [2, 3],
            [2, 1],
        ),
        [6],
    ),
    "mean of channels": (
        lambda: model(
            [("MatMul", ["x", "a"], ["h"], {}), ("ReduceMean", ["h"], ["y"], {"axes": [1]})],
            {"a": weight(3, 6)},
            [2, 3],
            [2, 1],
        ),
        [],
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_units(name: str) -> None:
    make, sizes = CASES[name]
    found, problem = groups(make())
    assert found == sizes, problem.reasons
    if not sizes:
        assert problem.reasons


def test_an_operation_without_a_rule_is_a_wall() -> None:
    proto = model(
        [
            ("MatMul", ["x", "a"], ["h"], {}),
            ("Det", ["h"], ["i"], {}),
            ("Mul", ["h", "i"], ["j"], {}),
            ("MatMul", ["j", "b"], ["y"], {}),
        ],
        {"a": weight(4, 4), "b": weight(4, 2)},
        [4, 4],
        [4, 2],
    )
    sizes, problem = groups(proto)
    assert sizes == []
    assert any("Det" in reason and "has no rule" in reason for reason in problem.reasons.values())


def test_every_rule_is_known_to_onnx_or_onnxruntime() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    assert {name for name in RULES if "." not in name} <= known | {"SimplifiedLayerNormalization"}


def test_computed_factors_do_not_follow_the_channels() -> None:
    """√channels, computed from a shape, stays √ of what it was."""
    proto = model(
        [
            ("MatMul", ["x", "a"], ["h"], {}),
            ("Shape", ["h"], ["s"], {}),
            ("Gather", ["s", "one"], ["c"], {"axis": 0}),
            ("Cast", ["c"], ["f"], {"to": 1}),
            ("Sqrt", ["f"], ["r"], {}),
            ("Div", ["h", "r"], ["j"], {}),
            ("MatMul", ["j", "b"], ["y"], {}),
        ],
        {"a": weight(3, 6), "b": weight(6, 2), "one": np.array(1)},
        ["n", 3],
        ["n", 2],
    )
    sizes, _ = groups(proto)
    assert sizes == [6]
