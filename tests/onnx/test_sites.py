"""Every operation as a linear map: rows times matrix is what onnxruntime makes of it, whatever a weight passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from emp_onnx import find_weights
from emp_onnx.calibration.network import Network
from emp_onnx.calibration.recurrent import HIDDEN
from emp_onnx.files.model_io import Model
from tests.onnx.builders import model, tensor, value

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def node(op: str, inputs: str, output: str = "y", **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def case(nodes: list[Any], x: Any, **tensors: Any) -> tuple[Any, Any]:
    tensors = {name: np.asarray(array) for name, array in tensors.items()}
    made = model(nodes, [value("x", [None] * x.ndim)], [value("y", None)], [tensor(n, a) for n, a in tensors.items()])
    return made, x


CASES = {
    "conv": case([node("Conv", "x w", strides=[2, 1], pads=[1, 0, 2, 1])], normal(2, 3, 7, 6), w=normal(4, 3, 3, 2)),
    "conv 1-D": case([node("Conv", "x w", dilations=[2])], normal(1, 3, 9), w=normal(4, 3, 3)),
    "conv 3-D": case([node("Conv", "x w", pads=[1] * 6)], normal(1, 2, 3, 4, 3), w=normal(3, 2, 3, 3, 3)),
    "grouped": case([node("Conv", "x w", group=2)], normal(1, 4, 5, 5), w=normal(6, 2, 3, 3)),
    "depthwise": case([node("Conv", "x w", group=4, pads=[1] * 4)], normal(1, 4, 5, 5), w=normal(4, 1, 3, 3)),
    "same upper": case(
        [node("Conv", "x w", auto_pad="SAME_UPPER", strides=[2, 2])], normal(1, 2, 6, 7), w=normal(3, 2, 4, 3)
    ),
    "same lower": case([node("Conv", "x w", auto_pad="SAME_LOWER")], normal(1, 2, 6, 7), w=normal(3, 2, 4, 2)),
    "transposed conv": case(
        [node("ConvTranspose", "x w", strides=[2, 1], pads=[1, 0, 0, 1], output_padding=[1, 0])],
        normal(1, 3, 4, 5), w=normal(3, 2, 3, 2),
    ),
    "transposed grouped": case(
        [node("ConvTranspose", "x w", group=2, strides=[2])], normal(1, 4, 5), w=normal(4, 3, 3)
    ),
    "gemm": case([node("Gemm", "x w")], normal(5, 4), w=normal(4, 3)),
    "gemm B": case([node("Gemm", "x w", transB=1)], normal(5, 4), w=normal(3, 4)),
    "gemm A": case([node("Gemm", "x w", transA=1)], normal(4, 5), w=normal(4, 3)),
    "matmul": case([node("MatMul", "x w")], normal(2, 5, 4), w=normal(4, 3)),
    "batch of matrices": case([node("MatMul", "x w")], normal(2, 3, 5, 4), w=normal(3, 4, 2)),
    "batch beyond": case([node("MatMul", "x w")], normal(3, 5, 4), w=normal(2, 1, 4, 2)),
    "one for all": case([node("MatMul", "x w")], normal(5, 4), w=normal(3, 4, 2)),
    "gemm scaled": case([node("Gemm", "x w", alpha=0.5)], normal(5, 4), w=normal(4, 3)),
    "einsum": case([node("Einsum", "x w", equation="abc,cde->abde")], normal(2, 3, 4), w=normal(4, 2, 3)),
    "transposed": case([node("Transpose", "w", "v"), node("MatMul", "x v")], normal(5, 4), w=normal(3, 4)),
    "sliced": case(
        [node("Slice", "w at end axis", "a"), node("Slice", "w start at axis", "b"), node("Concat", "a b", "v", axis=0),
         node("Unsqueeze", "v axis", "u"), node("Squeeze", "u axis", "t"), node("MatMul", "x t")],
        normal(5, 6), w=normal(6, 3), start=np.array([0]), at=np.array([2]), end=np.array([6]), axis=np.array([0]),
    ),
    "reshaped": case(
        [node("Reshape", "w shape", "v"), node("MatMul", "x v")],
        normal(5, 8), w=normal(2, 4, 3), shape=np.array([8, 3]),
    ),
}  # fmt: skip


def prepared(made: onnx.ModelProto, feeds: list[dict[str, Any]]) -> Network:
    read = Model(made)
    return Network(read, find_weights(read).weights, feeds, 1)


@pytest.mark.parametrize("name", CASES)
def test_rows_times_matrix_is_the_output(name: str) -> None:
    made, x = CASES[name]
    network = prepared(made, [{"x": x}])
    assert not network.why
    (site,) = network.sites
    (problem,) = site.problems
    run = network.runner()
    run.level(0, network.wanted())
    rows = problem.rows(lambda key: run.values.get(key, 0), 0, 10**9)
    y = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[
        0
    ]
    got = rows.astype(np.float64) @ network.matrix(problem).swapaxes(1, 2)
    if problem.outs is not None:
        np.testing.assert_allclose(got, problem.outs(y, 0, 10**9), atol=1e-4)
    else:
        np.testing.assert_allclose(got.reshape(y.shape), y, atol=1e-4)


def test_a_weight_on_the_left() -> None:
    made, x = case([node("MatMul", "w x")], normal(4, 5), w=normal(3, 4))
    network = prepared(made, [{"x": x}])
    problem = network.sites[0].problems[0]
    rows = problem.rows({"x": x}.get, 0, 10**9)
    got = rows[0] @ network.matrix(problem)[0].T
    y = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[
        0
    ]
    np.testing.assert_allclose(got.T, y, atol=1e-4)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["RNN", "LSTM", "GRU", "GRU, reset first"])
def test_gates_of_a_cell(op: str, direction: str) -> None:
    """From the gates' pre-activations, the cell's own equations give its hidden states."""
    op, _, first = op.partition(", ")
    time, batch, inputs, units = 5, 2, 3, 4
    gates, dirs = {"RNN": 1, "LSTM": 4, "GRU": 3}[op], 2 if direction == "bidirectional" else 1
    x, lengths = normal(time, batch, inputs), np.array([5, 3], np.int32)
    w, r, b = normal(dirs, gates * units, inputs), normal(dirs, gates * units, units), normal(dirs, 2 * gates * units)
    h0 = normal(dirs, batch, units)
    more = {"linear_before_reset": 1} if op == "GRU" and not first else {}
    made = model(
        [helper.make_node(op, ["x", "w", "r", "b", "n", "h"], ["y"], hidden_size=units, direction=direction, **more)],
        [value("x", [None] * 3)], [value("y", None)],
        [tensor("w", w), tensor("r", r), tensor("b", b), tensor("n", lengths), tensor("h", h0)],
    )  # fmt: skip
    y = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[
        0
    ]
    network = prepared(made, [{"x": x}])
    (site,) = network.sites
    values = {"x": x, "w": w, "r": r, "b": b, "n": lengths, "h": h0, site.hidden: y}
    assert site.hidden.startswith(HIDDEN)
    each = len(site.problems) // dirs
    for d in range(dirs):
        some = site.problems[d * each : (d + 1) * each]
        pre = [(p.rows(values.get, 0, 10**9) @ network.matrix(p).swapaxes(1, 2))[0] for p in some]
        for p, z in zip(some, pre, strict=True):
            assert p.bias is not None
            assert p.bias.index.shape == (1, z.shape[1])
        use = np.arange(time)[:, None] < lengths[None]
        last = some[0].rows(values.get, 0, 10**9)[0][:, -units:]
        got = _cell(op, pre, b[d], units, last)
        if op != "LSTM":  # an LSTM's output needs its cell state too
            np.testing.assert_allclose(got, y[:, d][use], atol=1e-4)
        else:
            assert got.shape == y[:, d][use].shape
            assert (np.abs(y[:, d][use]) <= np.abs(got) + 1e-5).all()


def _cell(op: str, pre: list[Any], b: Any, units: int, last: Any) -> Any:
    def s(z: Any) -> Any:
        return 1 / (1 + np.exp(-z))

    if op == "RNN":
        return np.tanh(pre[0] + b[:units] + b[units:])
    if op == "LSTM":  # |output gate| bounds |h|
        return s((pre[0] + b[: 4 * units] + b[4 * units :])[:, units : 2 * units])
    u = 2 * units
    z, reset = np.split(s(pre[0] + b[:u] + b[3 * units : 3 * units + u]), 2, axis=1)
    if len(pre) == 2:  # the reset gate is in the rows
        new = np.tanh(pre[1] + b[u : 3 * units] + b[3 * units + u :])
    else:
        new = np.tanh(pre[1] + b[u : 3 * units] + reset * (pre[2] + b[3 * units + u :]))
    return (1 - z) * new + z * last


def test_the_branch_that_is_taken() -> None:
    """Weights in the branches of an If are sites of their own; a feed reaches only those on its way."""
    inner = {
        name: helper.make_graph(
            [node("MatMul", f"x {name}", f"out_{name}")], name, [], [value(f"out_{name}", None)],
            [tensor(name, normal(4, 3))],
        )
        for name in ("one", "two")
    }  # fmt: skip
    made = model(
        [node("ReduceSum", "x", "sum", keepdims=0), node("Greater", "sum zero", "c"),
         helper.make_node("If", ["c"], ["y"], then_branch=inner["one"], else_branch=inner["two"])],
        [value("x", [None, 4])], [value("y", None)], [tensor("zero", np.float32(0))],
    )  # fmt: skip
    x = np.abs(normal(5, 4))
    network = prepared(made, [{"x": x}, {"x": -x}, {"x": 2 * x}])
    assert not network.why
    assert len(network.sites) == 2
    run = network.runner()
    for level in range(network.levels + 1):
        run.level(level, network.wanted())
        for site in network.at(level + 1):
            ((sums,),) = network.moments(site, run)
            assert sums.count == (10 if "then" in site.keys[0] else 5)
    np.testing.assert_allclose(
        run.values.get("y", 1), -x @ onnx.numpy_helper.to_array(inner["two"].initializer[0]), rtol=1e-4
    )


def test_a_bias_that_others_read_too_is_left_alone() -> None:
    made, x = case([node("Gemm", "x w b", "z"), node("Add", "z b")], normal(5, 4), w=normal(4, 3), b=normal(3))
    assert prepared(made, [{"x": x}]).sites[0].problems[0].bias is None
    made, x = case([node("MatMul", "x w", "z"), node("Add", "z b")], normal(5, 4), w=normal(4, 3), b=normal(3))
    assert prepared(made, [{"x": x}]).sites[0].problems[0].bias is not None


def test_lengths_and_first_states_that_are_constants_count() -> None:
    """They are no activations: what they are is looked up."""
    x, lengths = normal(5, 2, 3), np.array([5, 2], np.int32)
    made, _ = case(
        [helper.make_node("RNN", ["x", "w", "r", "", "n"], ["y"], hidden_size=4)], x,
        w=normal(1, 4, 3), r=normal(1, 4, 4), n=lengths,
    )  # fmt: skip
    network = prepared(made, [{"x": x}])
    run = network.runner()
    run.level(0, network.wanted(0))
    ((sums,),) = network.moments(network.sites[0], run)
    assert sums.count == 7
