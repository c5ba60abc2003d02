"""What errors of layers do to the answers: gradients against differences in double precision, metrics against sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from emp_onnx import Fitting, find_weights
from emp_onnx.calibration.answers import Answers
from emp_onnx.calibration.network import Network
from emp_onnx.files.model_io import Model
from emp_onnx.fisher import metric, reverse
from emp_onnx.fisher.metric import damped, metrics, seed
from emp_onnx.fisher.reverse import Reverse
from emp_onnx.refit.loss import Few, Quadratic
from emp_onnx.refit.solve import descend, exchange, solve

SHAPE, IN, OUT = (2, 4, 6, 4), 3, 3
rng = np.random.default_rng(5)
C = rng.normal(size=(4, 1, 4))
Node = tuple[str, list[Any], dict[str, Any]]


def node(op: str, *inputs: Any, **attributes: Any) -> Node:
    """Inputs are names, arrays, or `h`; outputs are v0, v1, … in the order of nodes."""
    return op, list(inputs), attributes


CASES: dict[str, tuple[int, list[Node]]] = {
    **{
        op: (20, [node(op, "h")])
        for op in (
            "Relu",
            "Sigmoid",
            "Tanh",
            "LeakyRelu",
            "Elu",
            "Selu",
            "Softplus",
            "Softsign",
            "Exp",
            "Abs",
            "Neg",
            "Erf",
            "Gelu",
            "Mish",
            "HardSigmoid",
            "HardSwish",
            "Identity",
            "GlobalAveragePool",
        )
    },
    "Clip": (13, [node("Clip", "h", np.array(-0.5), np.array(0.7))]),
    "Clip, early": (6, [node("Clip", "h", min=-0.5, max=0.7)]),
    "Sqrt": (13, [node("Exp", "h"), node("Sqrt", "v0")]),
    "Pow": (13, [node("Pow", "h", np.array(2.0))]),
    "PRelu": (13, [node("PRelu", "h", np.full((4, 1, 1), 0.2))]),
    "BatchNormalization": (13, [node("BatchNormalization", "h", *(rng.uniform(0.5, 2, 4) for _ in range(4)))]),
    "Add": (13, [node("Add", C, "h")]),
    "Sub": (13, [node("Sub", C, "h")]),
    "Mul": (13, [node("Mul", "h", C)]),
    "Mul by itself": (13, [node("Mul", "h", "h")]),
    "Div": (13, [node("Exp", "h"), node("Div", C, "v0")]),
    "broadcast": (13, [node("ReduceMean", "h", axes=[1, 3]), node("Mul", "v0", "h")]),
    "residual": (13, [node("Tanh", "h"), node("Add", "h", "v0")]),
    "Sum": (13, [node("Tanh", "h"), node("Sum", "h", "v0", "h")]),
    "Max": (13, [node("Max", "h", C)]),
    "Where": (13, [node("Less", "h", C), node("Where", "v0", "h", C)]),
    "Reshape": (13, [node("Reshape", "h", np.array([2, 6, -1]))]),
    "Reshape to a shape of its own": (
        13,
        [
            node("Shape", "h"),
            node("Gather", "v0", np.array([0])),
            node("Concat", "v1", np.array([-1]), axis=0),
            node("Reshape", "h", "v2"),
        ],
    ),
    "Transpose": (13, [node("Transpose", "h", perm=[0, 3, 1, 2])]),
    "Flatten": (13, [node("Flatten", "h", axis=2)]),
    "Squeeze": (13, [node("Unsqueeze", "h", np.array([0, 2])), node("Squeeze", "v0", np.array([0]))]),
    "Slice": (13, [node("Slice", "h", np.array([3, -1]), np.array([0, -7]), np.array([1, 2]), np.array([-1, -2]))]),
    "Split": (13, [node("Split", "h", np.array([1, 3]), axis=1, outs=["a", "b"]), node("Mul", "a", "b")]),
    "Split, one of both": (13, [node("Split", "h", axis=2, outs=["a", "b"]), node("Tanh", "b")]),
    "Concat": (13, [node("Tanh", "h"), node("Concat", "h", np.ones((2, 1, 6, 4)), "v0", "h", axis=1)]),
    "Pad": (13, [node("Pad", "h", np.array([0, 0, 1, 2, 0, 0, 0, 1]), np.array(0.5))]),
    "Pad, reflected": (13, [node("Pad", "h", np.array([0, 0, 1, 2, 0, 0, 2, 1]), mode="reflect")]),
    "Expand": (13, [node("ReduceMean", "h", axes=[1]), node("Expand", "v0", np.array([2, 3, 6, 4]))]),
    "Tile": (13, [node("Tile", "h", np.array([1, 2, 1, 1]))]),
    "Gather": (13, [node("Gather", "h", np.array([[0, 2], [0, -1]]), axis=1)]),
    "DepthToSpace": (13, [node("DepthToSpace", "h", blocksize=2)]),
    "SpaceToDepth": (13, [node("SpaceToDepth", "h", blocksize=2)]),
    "ReduceMean": (13, [node("ReduceMean", "h", axes=[-1, 2], keepdims=0)]),
    "ReduceMean of all": (13, [node("ReduceMean", "h"), node("Mul", "v0", "h")]),
    "ReduceMean, late": (18, [node("ReduceMean", "h", np.array([1]))]),
    "ReduceSum": (13, [node("ReduceSum", "h", np.array([1, 2]))]),
    "MatMul": (13, [node("MatMul", "h", rng.normal(size=(4, 5)))]),
    "MatMul from the left": (13, [node("MatMul", rng.normal(size=(4, 3, 6)), "h")]),
    "attention": (
        13,
        [
            node("Transpose", "h", perm=[0, 1, 3, 2]),
            node("MatMul", "h", "v0"),
            node("Softmax", "v1"),
            node("MatMul", "v2", "h"),
        ],
    ),
    "attention, masked": (
        13,
        [
            node("Transpose", "h", perm=[0, 1, 3, 2]),
            node("MatMul", "h", "v0"),
            node("Add", "v1", np.triu(np.full((6, 6), -1e9), 1)),
            node("Softmax", "v2"),
            node("MatMul", "v3", "h"),
        ],
    ),
    "Gemm": (
        13,
        [
            node("Reshape", "h", np.array([8, 24])),
            node("Gemm", "v0", rng.normal(size=(8, 5)), C.ravel()[:5], transA=1, alpha=0.5),
        ],
    ),
    "Gemm, other sides": (
        13,
        [
            node("Reshape", "h", np.array([8, 24])),
            node("Gemm", rng.normal(size=(24, 5)), "v0", transA=1, transB=1, beta=2.0),
        ],
    ),
    "Softmax": (13, [node("Softmax", "h", axis=1)]),
    "Softmax, early": (11, [node("Softmax", "h", axis=2)]),
    "LogSoftmax": (13, [node("LogSoftmax", "h", axis=-2)]),
    "LayerNormalization": (17, [node("LayerNormalization", "h", C[0, 0], C[1, 0])]),
    "LayerNormalization of two axes": (17, [node("LayerNormalization", "h", rng.normal(size=(6, 4)), axis=2)]),
    "Conv": (13, [node("Conv", "h", rng.normal(size=(5, 4, 3, 2)), strides=[2, 1], pads=[1, 0, 0, 1])]),
    "Conv, dilated in groups": (
        13,
        [node("Conv", "h", rng.normal(size=(6, 2, 2, 2)), group=2, dilations=[3, 2], pads=[1, 1, 2, 1])],
    ),
    "Conv, depthwise": (
        13,
        [node("Conv", "h", rng.normal(size=(4, 1, 3, 3)), group=4, strides=[2, 2], auto_pad="SAME_UPPER")],
    ),
    "Conv of one axis": (
        13,
        [node("Reshape", "h", np.array([2, 4, 24])), node("Conv", "v0", rng.normal(size=(3, 4, 5)), strides=[3])],
    ),
    "ConvTranspose": (
        13,
        [
            node(
                "ConvTranspose",
                "h",
                rng.normal(size=(4, 3, 3, 3)),
                strides=[2, 2],
                pads=[1, 1, 1, 1],
                output_padding=[1, 0],
            )
        ],
    ),
    "ConvTranspose in groups": (
        13,
        [node("ConvTranspose", "h", rng.normal(size=(4, 3, 2, 2)), group=2, strides=[2, 1])],
    ),
    "AveragePool": (13, [node("AveragePool", "h", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])]),
    "AveragePool, padding counted": (
        13,
        [node("AveragePool", "h", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)],
    ),
    "MaxPool": (13, [node("MaxPool", "h", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])]),
    "MaxPool, overlapping": (8, [node("MaxPool", "h", kernel_shape=[3, 3])]),
}

# in double precision the evaluator gives other numbers for the first, takes the second for one of later operator sets,
# and refuses the third
NOT_IN_REFERENCE = ("BatchNormalization", "Softmax, early", "ConvTranspose in groups")


def built(case: tuple[int, list[Node]], start: str = "x", dtype: Any = np.float32) -> onnx.ModelProto:
    """y = V·flat(case(h)), with h = x·W, or h an input."""
    opset, steps = case
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, tensors, last = list[onnx.NodeProto](), dict[str, Any](), "h"
    shape = (*SHAPE[:-1], IN) if start == "x" else SHAPE
    if start == "x":
        tensors["W"] = np.random.default_rng(1).normal(size=(IN, SHAPE[-1])).astype(dtype)
        nodes.append(helper.make_node("MatMul", ["x", "W"], ["h"]))
    for i, (op, inputs, said) in enumerate(steps):
        names = []
        for j, item in enumerate(inputs):
            names.append(item if isinstance(item, str) else f"c{i}_{j}")
            if not isinstance(item, str):
                tensors[names[-1]] = np.asarray(item, dtype if item.dtype.kind == "f" else None)
        attributes = {key: value for key, value in said.items() if key != "outs"}
        outs = said.get("outs", [f"v{i}"])
        nodes.append(helper.make_node(op, names, outs, **attributes))
        last = outs[-1]
    nodes += [helper.make_node("Flatten", [last], ["flat"], axis=1), helper.make_node("MatMul", ["flat", "V"], ["y"])]
    tensors["V"] = np.zeros((1, OUT), dtype)
    ends = [helper.make_tensor_value_info(start, kind, shape)], [helper.make_tensor_value_info("y", kind, None)]
    graph = helper.make_graph(
        nodes, "g", *ends, [numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items()]
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    single = built(case, "h") if (start, dtype) != ("h", np.float32) else None
    if single is None:  # how long a row is
        bare = onnx.ModelProto()
        bare.CopyFrom(made)
        del bare.graph.node[-1]
        bare.graph.output[0].CopyFrom(helper.make_tensor_value_info("flat", kind, None))
        length = session(bare).run(None, {"h": np.zeros(SHAPE, np.float32)})[0].shape[1]
    else:
        length = len(numpy_helper.to_array(single.graph.initializer[-1]))
    v = np.random.default_rng(2).normal(size=(length, OUT)).astype(dtype)
    made.graph.initializer[-1].CopyFrom(numpy_helper.from_array(v, "V"))
    return made


def session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def network(proto: onnx.ModelProto, feeds: list[dict[str, Any]]) -> Network:
    made = Model(proto)
    return Network(made, find_weights(made).weights, feeds, 1)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_differences(name: str) -> None:
    x = np.random.default_rng(3).normal(size=(*SHAPE[:-1], IN)).astype(np.float32)
    back = Reverse(network(built(CASES[name]), [{"x": x}]), ["y"], {"h"}, {"x": x})
    assert back.found == {"h"}
    values = back.forward({"x": x})
    weights = np.random.default_rng(4).normal(size=values["y"].shape)
    pull = back.back(values, {"y": weights})["h"].astype(np.float64)
    assert pull.shape == SHAPE
    h = values["h"].astype(np.float64)
    if name in NOT_IN_REFERENCE:
        single = session(built(CASES[name], "h"))
        run, away = lambda h: single.run(None, {"h": h.astype(np.float32)})[0], 3e-3
    else:
        double = ReferenceEvaluator(built(CASES[name], "h", np.float64))
        run, away = lambda h: double.run(None, {"h": h})[0], 1e-4
    for way in np.random.default_rng(6).normal(size=(4, *SHAPE)):
        slope = float((weights * (run(h + away * way) - run(h - away * way))).sum()) / (2 * away)
        size = np.linalg.norm(pull) * np.linalg.norm(way)
        assert float((pull * way).sum()) == pytest.approx(slope, abs=(1e-3 if away < 1e-3 else 1e-2) * size)


@pytest.mark.parametrize("op", ["CumSum", "LRN", "InstanceNormalization"])
def test_nothing_is_said_of_what_lies_before_a_step_without_an_adjoint(op: str) -> None:
    others = {"CumSum": [np.array(1)], "LRN": [], "InstanceNormalization": [np.ones(4), np.zeros(4)]}[op]
    more = {"size": 3} if op == "LRN" else {}
    for case, found in (
        ([node(op, "h", *others, **more)], set()),
        ([node(op, "h", *others, **more), node("Add", "h", "v0")], set()),  # one way of two
        ([node("MatMul", "h", np.eye(4)), node(op, "v0", *others, **more), node("Add", "h", "v1")], set()),
        ([node("Tanh", "h"), node("MatMul", "v0", np.eye(4))], {"h"}),
    ):
        feed = {"x": np.ones((*SHAPE[:-1], IN), np.float32)}
        assert Reverse(network(built((13, case)), [feed]), ["y"], {"h"}, feed).found == found


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_nothing_is_said_of_what_also_goes_another_way_in_other_floats(kind: int) -> None:
    case = [node("Cast", "h", to=kind), node("Cast", "v0", to=TensorProto.FLOAT), node("Add", "h", "v1")]
    feed = {"x": np.ones((*SHAPE[:-1], IN), np.float32)}
    assert not Reverse(network(built((13, case)), [feed]), ["y"], {"h"}, feed).found


def test_what_does_not_fit_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = {"x": np.ones((4, 5), np.float32)}
    made = network(perceptron(np.eye(5), np.eye(5, 2)), [feed])
    assert metrics(made, Answers(made))
    with monkeypatch.context() as patch:
        patch.setattr(reverse, "MOST", 10)
        assert not metrics(made, Answers(made))
    monkeypatch.setattr(metric, "ROOM", 24)
    assert not metrics(made, Answers(made))


def perceptron(a: Any, b: Any, *, end: str = "", first: str = "Relu") -> onnx.ModelProto:
    """y = end(B·first(A·x))."""
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["h"]), helper.make_node(first, ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "B"], ["z" if end else "y"]),
    ]  # fmt: skip
    nodes += [helper.make_node(end, ["z"], ["y"])] if end else []
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, len(a)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, b.shape[1]])],
        [numpy_helper.from_array(np.float32(v), k) for k, v in (("A", a), ("B", b))],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("end", ["", "Softmax", "LogSoftmax"])
def test_a_metric_is_what_errors_do_to_the_divergence(end: str) -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(5, 4)), draw.normal(size=(4, 3))
    one = draw.normal(size=(1, 5)).astype(np.float32)
    feeds = [{"x": one}] * 256  # the same one, so that as many answers are drawn
    made = network(perceptron(a, b, end=end, first="Tanh"), feeds)
    found = metrics(made, Answers(made))
    (first, _) = made.sites
    assert list(found) == [id(first.problems[0])]  # not of the answers themselves

    h = one.astype(np.float64) @ a
    z = np.tanh(h) @ b
    p = np.exp(z - z.max())[0]
    p /= p.sum()
    jacobian = (1 - np.tanh(h[0]) ** 2)[:, None] * b
    draws = [jacobian @ (np.eye(3)[i] - p) for i in range(3)]  # each counts alike, whatever its length
    expected = sum(share * np.outer(g, g) / (g @ g) for share, g in zip(p, draws, strict=True))
    assert np.allclose(found[id(first.problems[0])], damped(expected[None]), atol=0.06)


def test_more_classes_than_answers_tell_nothing() -> None:
    draw = np.random.default_rng(0)
    feeds = [{"x": draw.normal(size=(1, 5)).astype(np.float32)} for _ in range(8)]
    for classes, found in ((4 * 8, 1), (4 * 8 + 1, 0)):  # four are drawn for each
        made = network(perceptron(draw.normal(size=(5, 4)), draw.normal(size=(4, classes))), feeds)
        assert len(metrics(made, Answers(made))) == found


@pytest.mark.parametrize("known", [False, True])
def test_drawn_answers_have_the_fisher_information(known: bool) -> None:
    z = np.array([[0.3, -0.2, 1.1]])
    p = np.exp(z) / np.exp(z).sum()
    draw, value = np.random.default_rng(1), (p if known else z).astype(np.float32)
    seeds = np.concatenate([seed(value, 1, draw) for _ in range(20_000)])
    true = np.diag(1 / p[0]) if known else np.diag(p[0]) - p.T @ p
    assert np.allclose(seeds.T @ seeds / len(seeds), true, atol=0.12 if known else 0.02)


def test_numbers_that_are_no_classes_count_by_squared_error() -> None:
    draw, value = np.random.default_rng(1), np.array([[1.0, 3.0], [5.0, 7.0]], np.float32)
    seeds = np.stack([seed(value, None, draw).ravel() for _ in range(20_000)])
    assert np.allclose(seeds.T @ seeds / len(seeds), np.eye(4) / value.var(), atol=0.02)


@pytest.mark.parametrize("seeds", range(3))
def test_outputs_that_no_answer_reads_lose_more(seeds: int) -> None:
    draw = np.random.default_rng(seeds)
    a, b = draw.normal(size=(12, 16)), draw.normal(size=(16, 4))
    b[8:] = 1e-3 * b[8:]
    feeds = [{"x": draw.normal(size=(1, 12)).astype(np.float32)} for _ in range(60)]
    fitting = Fitting(Model(perceptron(a, b)), feeds, threads=1)
    mask = fitting.thin(fitting.total // 2, how="uniform").masks["A"]
    assert mask[:, :8].sum() > 1.2 * mask[:, 8:].sum()


@st.composite
def weighed(draw: st.DrawFn) -> tuple[Quadratic, Any, np.random.Generator]:
    groups, out, d = draw(st.integers(1, 2)), draw(st.integers(2, 4)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    x = rng.standard_normal((groups, draw(st.integers(1, 20)), d))
    w = rng.standard_normal((groups, out, d))
    made = Quadratic.ridge(x.swapaxes(1, 2) @ x, w @ x.swapaxes(1, 2) @ x, w, 1e-1)
    if groups == 1 and draw(st.booleans()):
        made = Few.fit(x[0], x[0] @ w[0].T, w, 1e-1)
    pulls = rng.standard_normal((groups, 3, out))
    weighing = damped(pulls.swapaxes(1, 2) @ pulls)
    return made.weighed(weighing), weighing, rng


@settings(max_examples=80, deadline=None)
@given(weighed())
def test_rows_together_are_the_best_under_a_metric(case: Any) -> None:
    loss, weighing, rng = case
    groups = len(loss.best)
    mask = rng.random(loss.best.shape) < 0.6
    found = solve(loss, mask, loss.best, rounds=400)
    assert (found[~mask] == 0).all()
    best = np.zeros(loss.best.shape)
    for g in range(groups):  # all weights as one vector
        whole, kept = np.kron(weighing[g], loss.a[g]), mask[g].ravel()
        if kept.any():
            best[g].ravel()[kept] = np.linalg.solve(whole[np.ix_(kept, kept)], (whole @ loss.best[g].ravel())[kept])
    gap = best - loss.best
    assert loss.loss(best) == pytest.approx(
        sum(np.trace(weighing[g] @ gap[g] @ loss.a[g] @ gap[g].T) for g in range(groups)), rel=1e-9, abs=1e-12
    )
    assert loss.loss(found.astype(np.float64)) == pytest.approx(
        loss.loss(best), abs=1e-4 * loss.loss(np.zeros(mask.shape))
    )


@settings(max_examples=40, deadline=None)
@given(weighed(), st.floats(0.1, 0.9))
def test_a_metric_that_tells_nothing_apart_changes_nothing(case: Any, density: float) -> None:
    loss, _, _ = case
    count = max(1, round(density * loss.best.size))
    ((_, plain, _),) = descend(loss.weighed(None), [count])
    ((_, alike, _),) = descend(
        loss.weighed(np.broadcast_to(np.eye(loss.best.shape[1]), (len(loss.best), *[loss.best.shape[1]] * 2))), [count]
    )
    assert (plain == alike).all()


@settings(max_examples=40, deadline=None)
@given(weighed(), st.floats(0.2, 0.8))
def test_exchange_under_a_metric_makes_nothing_worse(case: Any, density: float) -> None:
    loss, _, _ = case
    count = max(1, round(density * loss.best.size))
    ((_, mask, w),) = descend(loss, [count])
    after, better = exchange(loss, mask, w)
    assert np.count_nonzero(after) == np.count_nonzero(mask)
    assert loss.loss(better) <= loss.loss(w) * (1 + 1e-6) + 1e-9
