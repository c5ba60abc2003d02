"""Weights in loops and in functions are refitted as those of the same network unrolled by hand are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import emp_onnx
from emp_onnx.calibration.loops import Walk
from emp_onnx.calibration.network import Network
from emp_onnx.calibration.statistics import calibrate
from emp_onnx.files.model_io import Model, load
from emp_onnx.refit.fitting import Fitting
from emp_onnx.refitting import refit
from tests.onnx.builders import model, tensor, value
from tests.onnx.loops import WAYS, Net

QUIET = onnxruntime.SessionOptions()
QUIET.log_severity_level = 4
HOMES = ("initializer", "constant", "outer")


def outputs(file: Any, feeds: list[dict[str, Any]]) -> Any:
    given = file.SerializeToString() if isinstance(file, onnx.ModelProto) else str(file)
    session = onnxruntime.InferenceSession(given, QUIET, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0].reshape(-1) for feed in feeds])


nets = st.builds(
    Net, inputs=st.integers(1, 4), units=st.integers(2, 6), middle=st.integers(2, 8), steps=st.integers(1, 5),
    home=st.sampled_from(HOMES), turned=st.booleans(), biased=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip


@settings(max_examples=8)
@given(net=nets, way=st.sampled_from(WAYS), criterion=st.sampled_from(["obs", "wanda"]))
def test_it_is_as_if_unrolled(net: Net, way: str, criterion: str) -> None:
    feeds, told = net.feeds(12), net.told(way)
    np.testing.assert_allclose(outputs(told, feeds), outputs(net.told("unrolled"), feeds), atol=1e-5)
    errors = []
    for proto in (told, net.told("unrolled")):
        fitting = Fitting(Model(proto), feeds, threads=1)
        thin = fitting.thin(fitting.total // 2, how="uniform", criterion=criterion)
        assert not any("not refitted" in note for note in thin.notes)
        dense, fitted = (np.array(fitting.answers(changed, feeds)) for changed in (None, thin.changed))
        errors.append(float(np.square(fitted - dense).sum() / np.square(dense).sum()))
    assert errors[0] == pytest.approx(errors[1], rel=0.01, abs=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_is_better_than_zeros(way: str, tmp_path: Path) -> None:
    net = Net()
    onnx.save(net.told(way), tmp_path / "in.onnx")
    refit(tmp_path / "in.onnx", tmp_path / "a.onnx", feeds=net.feeds(40), sparsity=0.5)
    emp_onnx.prune(tmp_path / "in.onnx", tmp_path / "b.onnx", sparsity=0.5)
    fresh = net.feeds(60, 2)
    dense, fitted, zeros = (outputs(tmp_path / f"{name}.onnx", fresh) for name in ("in", "a", "b"))
    assert np.square(fitted - dense).sum() < 0.2 * np.square(zeros - dense).sum()
    assert emp_onnx.verify(tmp_path / "a.onnx", tmp_path / "in.onnx").ok


@pytest.mark.parametrize("way", ["loop", "function"])
def test_statistics_and_quick_effort(way: str) -> None:
    """Sums of a loop are those of the network unrolled, and what is solved from them too."""
    net = Net()
    one, two = (calibrate(Model(net.told(told)), net.feeds(12)) for told in (way, "unrolled"))
    for a, b in zip(one.inputs, two.inputs, strict=True):
        assert (a.count, a.shape) == (b.count, b.shape)
        assert a.second is not None
        assert b.second is not None
        np.testing.assert_allclose(a.second, b.second, rtol=1e-4, atol=1e-4)
    assert one.inputs[0].count == 12 * net.steps


def test_quick_effort(tmp_path: Path) -> None:
    net, fresh = Net(), Net().feeds(60, 2)
    for way in ("loop", "unrolled"):
        refit(Model(net.told(way)), tmp_path / f"{way}.onnx", feeds=net.feeds(40), sparsity=0.5, effort="quick")
    one, two = (outputs(tmp_path / f"{way}.onnx", fresh) for way in ("loop", "unrolled"))
    np.testing.assert_allclose(one, two, atol=1e-3)


def looped(inner: list[Any], states: dict[str, Any], most: Any, tensors: list[Any], **weights: Any) -> onnx.ModelProto:
    """A loop whose body maps each state s to `s'`, while `go'` holds; the first state is the answer."""
    inside = [tensor(name, array) for name, array in weights.items()]
    body = helper.make_graph(
        inner, "body",
        [value("t", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), *(value(s, None) for s in states)],
        [value("go'", [], TensorProto.BOOL), *(value(f"{s}'", None) for s in states)], inside,
    )  # fmt: skip
    last = [f"{s} last" for s in states]
    node = helper.make_node("Loop", ["most", "", *states.values()], last, body=body)
    return model([node], [value("x", [None, 4])], [value(last[0], None)], [tensor("most", np.array(most)), *tensors])


def square(seed: int = 0) -> Any:
    return (np.random.default_rng(seed).standard_normal((4, 4)) / 2).astype(np.float32)


def rows(count: int, seed: int = 3) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1 + i % 3, 4)).astype(np.float32)} for i in range(count)]


def seen(proto: onnx.ModelProto, feeds: list[dict[str, Any]]) -> tuple[Network, list[int]]:
    """The network, and how many samples each of its problems has."""
    source = Model(proto)
    network = Network(source, emp_onnx.find_weights(source).weights, feeds, 1)
    return network, [item.count for item in calibrate(source, feeds).inputs]


def test_values_that_grow() -> None:
    """A state of another shape at each iteration, which no scan output could hold."""
    node = helper.make_node
    inner = [node("MatMul", ["h", "w"], ["z"]), node("Tanh", ["z"], ["y"]), node("Concat", ["h", "y"], ["h'"], axis=0),
             node("Identity", ["go"], ["go'"])]  # fmt: skip
    _, counts = seen(looped(inner, {"h": "x"}, 3, [], w=square()), rows(3))
    assert counts == [(1 + 2 + 3) * (1 + 2 + 4)]


def test_a_loop_that_the_data_ends() -> None:
    node = helper.make_node
    inner = [node("MatMul", ["h", "w"], ["z"]), node("Tanh", ["z"], ["h'"]), node("Add", ["n", "one"], ["n'"]),
             node("Less", ["n'", "limit"], ["go'"])]  # fmt: skip
    tensors = [tensor("zero", np.float32(0)), tensor("one", np.float32(1)), tensor("first", np.array(0))]
    made = looped(inner, {"h": "x", "n": "zero"}, 100, tensors, w=square())
    before = [node("Shape", ["x"], ["shape"]), node("Gather", ["shape", "first"], ["count"]),
              node("Cast", ["count"], ["limit"], to=TensorProto.FLOAT)]  # fmt: skip
    for i, item in enumerate(before):
        made.graph.node.insert(i, item)
    _, counts = seen(made, rows(3))
    assert counts == [1 + 4 + 9]  # as many iterations as rows


def test_a_scan_backwards_along_another_axis() -> None:
    node = helper.make_node
    body = helper.make_graph(
        [node("MatMul", ["row", "w"], ["z"]), node("Add", ["z", "h"], ["h'"]), node("Identity", ["h'"], ["out"])],
        "body", [value("h", [3]), value("row", [4])], [value("h'", [3]), value("out", [3])],
        [tensor("w", square()[:, :3].copy())],
    )  # fmt: skip
    scan = node("Scan", ["h0", "x"], ["h", "y"], body=body, num_scan_inputs=1, scan_input_axes=[1],
                scan_input_directions=[1])  # fmt: skip
    made = model([scan], [value("x", [4, None])], [value("y", None)], [tensor("h0", np.zeros(3, np.float32))])
    x = np.arange(20, dtype=np.float32).reshape(4, 5)
    source = Model(made)
    network = Network(source, emp_onnx.find_weights(source).weights, [{"x": x}], 1)
    (site,) = network.sites
    walk = Walk(site.path, site.reads, network.value, 1)
    found = [get(site.reads[0]) for _, get in walk({"x": x, "h0": np.zeros(3, np.float32)}.get)]
    np.testing.assert_array_equal(np.array(found), x.T[::-1])


def test_convolutions_and_cells_in_a_body() -> None:
    rng = np.random.default_rng(5)
    node = helper.make_node
    w, r = (rng.standard_normal((1, 12, k)).astype(np.float32) for k in (4, 3))
    inner = [
        node("Conv", ["h", "k", ""], ["c"], pads=[1, 1]), node("Transpose", ["c"], ["s"], perm=[2, 0, 1]),
        node("LSTM", ["s", "w", "r"], ["", "last"], hidden_size=3), node("ReduceMean", ["last"], ["mean"], keepdims=0),
        node("Add", ["c", "mean"], ["h'"]), node("Identity", ["go"], ["go'"]),
    ]  # fmt: skip
    made = looped(
        inner, {"h": "image"}, 2, [tensor("shape", np.array([1, 4, -1]))],
        k=rng.standard_normal((4, 4, 3)).astype(np.float32) / 4, w=w, r=r,
    )  # fmt: skip
    made.graph.node.insert(0, node("Reshape", ["x", "shape"], ["image"]))
    network, counts = seen(made, rows(4))
    assert len(network.sites) == 2
    positions = 1 + 2 + 3 + 1
    assert counts == [2 * positions] * 2


def test_attributes_by_reference(tmp_path: Path) -> None:
    """A function's convolution is strided as each call says."""
    rng = np.random.default_rng(6)
    conv = helper.make_node("Conv", ["a", "w"], ["b"])
    for name in ("strides", "pads"):
        conv.attribute.add(name=name, ref_attr_name=name, type=onnx.AttributeProto.INTS)
    made = helper.make_function(
        "local", "Mine", ["a", "w"], ["b"], [conv], [helper.make_opsetid("", 13)], attributes=["strides"],
        attribute_protos=[helper.make_attribute("pads", [1, 1])],
    )  # fmt: skip
    nodes = [helper.make_node("Mine", ["x", "w0"], ["y"], domain="local", strides=[2]),
             helper.make_node("Mine", ["y", "w1"], ["z"], domain="local", strides=[1], pads=[0, 0])]  # fmt: skip
    weights = [tensor(n, rng.standard_normal((4, 4, 3)).astype(np.float32)) for n in ("w0", "w1")]
    proto = model(nodes, [value("x", [1, 4, 9])], [value("z", None)], weights, functions=[made])
    feeds = [{"x": rng.standard_normal((1, 4, 9)).astype(np.float32)} for _ in range(30)]
    _, counts = seen(proto, feeds)
    assert counts == [30 * 5, 30 * 3]
    report = refit(Model(proto), tmp_path / "a.onnx", feeds=feeds, sparsity=0.3)
    assert not any("not refitted" in note for note in report.notes)


def test_a_function_of_other_versions_stays_whole(tmp_path: Path) -> None:
    function = helper.make_function(
        "local", "Mine", ["a", "w"], ["b"], [helper.make_node("MatMul", ["a", "w"], ["b"])],
        [helper.make_opsetid("", 12)],
    )  # fmt: skip
    node = helper.make_node("Mine", ["x", "w"], ["y"], domain="local")
    proto = model([node], [value("x", [None, 4])], [value("y", None)], [tensor("w", square())], functions=[function])
    report = refit(Model(proto), tmp_path / "a.onnx", feeds=rows(9), sparsity=0.3)
    assert any("a function that is not opened" in note for note in report.notes)


def test_a_loop_that_never_runs_is_said(tmp_path: Path) -> None:
    node = helper.make_node
    inner = [node("MatMul", ["h", "w"], ["h'"]), node("Identity", ["go"], ["go'"])]
    made = looped(inner, {"h": "z"}, 0, [tensor("v", square(1))], w=square())
    made.graph.node.insert(0, node("MatMul", ["x", "v"], ["z"]))
    report = refit(Model(made), tmp_path / "a.onnx", feeds=rows(30), sparsity=0.5)
    (note,) = [note for note in report.notes if "not refitted" in note]
    assert "does not run" in note
    assert "/w" in note
    assert report.point.sparsity == pytest.approx(0.5, abs=0.05)


def test_a_loop_over_sequences_is_said(tmp_path: Path) -> None:
    """A state that is no tensor: the loop stays whole, its weights go by magnitude, and the reason is given."""
    node = helper.make_node
    kind = onnx.helper.make_sequence_type_proto(onnx.helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    inner = [node("MatMul", ["h", "w"], ["h'"]), node("SequenceInsert", ["s", "h'"], ["s'"]),
             node("Identity", ["go"], ["go'"])]  # fmt: skip
    made = looped(inner, {"h": "z", "s": "empty"}, 2, [tensor("v", square(1))], w=square())
    made.graph.node.insert(0, node("MatMul", ["x", "v"], ["z"]))
    made.graph.node.insert(1, node("SequenceEmpty", [], ["empty"]))
    body = made.graph.node[2].attribute[0].g
    body.input[3].type.CopyFrom(kind)
    body.output[2].type.CopyFrom(kind)
    report = refit(Model(made), tmp_path / "a.onnx", feeds=rows(30), sparsity=0.5)
    (note,) = [note for note in report.notes if "not refitted" in note]
    assert "not a tensor" in note
    assert emp_onnx.verify(load(tmp_path / "a.onnx")).ok


def test_ties_with_biases_of_their_own() -> None:
    """One weight, two uses: a bias moves only where both have the same one."""
    node = helper.make_node
    nodes = [node("Gemm", ["x", "w", "a"], ["y"]), node("Tanh", ["y"], ["t"]), node("Gemm", ["t", "w", "b"], ["z"])]
    vector = np.ones(4, np.float32)
    for other in ("a", "b"):
        nodes[2].input[2] = other
        made = model(nodes, [value("x", [None, 4])], [value("z", None)],
                     [tensor("w", square()), tensor("a", vector), tensor("b", vector)])  # fmt: skip
        network, counts = seen(made, rows(6))
        assert counts == [2 * 12]
        (problem,) = network.sites[0].problems
        assert (problem.bias is None) == (other == "b")


@pytest.mark.parametrize("effort", ["full", "quick"])
def test_a_scan_before_opset_9_is_pruned_and_said(effort: str, tmp_path: Path) -> None:
    """It has a batch of its own and is not opened: the body's weight goes by its size, the rest is refitted."""
    node, rng = helper.make_node, np.random.default_rng(0)
    shapes = {"W": (6, 6), "V": (6, 4)}
    inner = {name: (rng.standard_normal(shape) / 3).astype(np.float32) for name, shape in shapes.items()}
    body = helper.make_graph(
        [node("Add", ["h", "x"], ["s"]), node("MatMul", ["s", "W"], ["m"]), node("Tanh", ["m"], ["n"]),
         node("Identity", ["n"], ["o"])],
        "body", [value("h", (1, 6)), value("x", (1, 6))], [value("n", (1, 6)), value("o", (1, 6))],
        [tensor("W", inner["W"])],
    )  # fmt: skip
    nodes = [
        node("Scan", ["", "h0", "x"], ["last", "y"], body=body, num_scan_inputs=1),
        node("MatMul", ["y", "V"], ["z"]),
    ]
    made = model(
        nodes, [value("h0", (2, 1, 6)), value("x", (2, 5, 1, 6))], [value("z", (2, 5, 1, 4))],
        [tensor("V", inner["V"])], opset=8, ir=4,
    )  # fmt: skip
    feeds = [
        {"h0": rng.standard_normal((2, 1, 6)).astype(np.float32), "x": rng.standard_normal((2, 5, 1, 6)).astype("f4")}
        for _ in range(20)
    ]
    report = refit(Model(made), tmp_path / "out.onnx", feeds=feeds, sparsity=0.4, effort=effort)
    assert report.point.sparsity == pytest.approx(0.4)
    (name,) = (name for name in report.weights if name.endswith("W"))
    assert any("not refitted" in note and name in note for note in report.notes)
    kept = load(tmp_path / "out.onnx").values(name)
    edge = np.sort(np.abs(inner["W"]).reshape(-1))[-report.weights[name].k]
    np.testing.assert_array_equal(kept, np.where(np.abs(inner["W"]) >= edge, inner["W"], 0))
