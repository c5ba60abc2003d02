"""Recurrent cells with packed weights beside onnxruntime's own, over shapes, attributes and inputs left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import emp_onnx
from emp_onnx.engine import open_engine
from emp_onnx.files.functions import function_bytes
from emp_onnx.runtime.fuse import fuse, fused_model
from tests.kernels.native import build
from tests.kernels.test_ort import DOMAIN, packed, session

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DIRECTIONS = ("forward", "reverse", "bidirectional")


@pytest.fixture(autouse=True, scope="module")
def _library() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMP_KERNELS_LIBRARY", str(next(build().glob("libemp_kernels.*"))))
        yield


def cell(
    op: str, direction: str, inputs: int, hidden: int, *, density: float = 0.4, bias: bool = True, given: str = "",
    outputs: str = "yhc", **attributes: Any,
) -> onnx.ModelProto:  # fmt: skip
    """A model of one cell. `given` and `outputs` name what is there: l(engths), h (state), c(ell), y."""
    rng, directions = np.random.default_rng(3), 2 if direction == "bidirectional" else 1
    rows = GATES[op] * hidden

    def weight(*shape: int) -> Any:
        made = rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[-1] or 1))
        return np.where(rng.random(shape) < density, made, np.float32(0))

    nodes, tensors = [], [numpy_helper.from_array(np.float32(0), "after")]
    for name, columns in (("w", inputs), ("r", hidden)):
        node, parts = packed(weight(directions, rows, columns), name, "Mask")
        nodes.append(node)
        tensors += parts
    names = ["x", "w", "r", "b" if bias else "", "l" if "l" in given else "", "h" if "h" in given else ""]
    names += ["c" if "c" in given else ""] if op == "LSTM" else []
    tensors += [numpy_helper.from_array(weight(directions, 2 * rows), "b")] if bias else []
    made = [
        {"y": "y", "h": "last", "c": "last_cell"}[o] if o in outputs else "" for o in "yhc"[: 3 if op == "LSTM" else 2]
    ]
    nodes.append(helper.make_node(op, names, made, direction=direction, hidden_size=hidden, **attributes))
    info = helper.make_tensor_value_info
    state = [directions, "n", hidden]
    feeds = [info("x", 1, ["t", "n", inputs])]
    feeds += [info("l", onnx.TensorProto.INT32, ["n"])] if "l" in given else []
    feeds += [info(name, 1, state) for name in "hc" if name in given and (name == "h" or op == "LSTM")]
    graph = helper.make_graph(
        nodes, "g", feeds, [info(o, 1, ["t", "d", "n", "m"][o != "y" :]) for o in made if o], tensors
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    unpack = onnx.FunctionProto.FromString(function_bytes("UnpackMask", 17))
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=[unpack])


def fused(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    assert [item.reason for item in fuse(made, every=True)] == ["", ""]
    assert not any(node.op_type.startswith("Unpack") for node in made.graph.node)
    assert [item.op for item in fuse(made)] == [made.graph.node[0].op_type] * 2, "told again"
    return made


def feeds(model: onnx.ModelProto, steps: int, batch: int, seed: int = 0) -> dict[str, Any]:
    rng, made = np.random.default_rng(seed), {}
    for item in model.graph.input:
        shape = [{"t": steps, "n": batch}.get(d.dim_param, d.dim_value) for d in item.type.tensor_type.shape.dim]
        if item.name == "l":
            made["l"] = rng.integers(1, steps + 1, batch).astype(np.int32)
        else:
            made[item.name] = rng.standard_normal(shape).astype(np.float32)
    return made


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_cells_are_those_of_onnxruntime(data: st.DataObject) -> None:
    draw = data.draw
    op, direction = draw(st.sampled_from(sorted(GATES))), draw(st.sampled_from(DIRECTIONS))
    attributes = {"linear_before_reset": draw(st.integers(0, 1))} if op == "GRU" else {}
    inputs, hidden = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    given = "".join(draw(st.sets(st.sampled_from("lhc"))))
    outputs = "".join(draw(st.sets(st.sampled_from("yhc" if op == "LSTM" else "yh"), min_size=1)))
    model = cell(op, direction, inputs, hidden, density=draw(st.sampled_from((0.0, 0.1, 0.4, 1.0))),
                 bias=draw(st.booleans()), given=given, outputs=outputs, **attributes)  # fmt: skip
    feed = feeds(model, draw(st.integers(1, 9)), draw(st.integers(1, 20)))
    expected = session(model, kernels=False).run(None, feed)
    after = fused(model)
    got = session(after, kernels=True, threads=draw(st.integers(1, 3))).run(None, feed)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("op", sorted(GATES))
def test_without_kernels_the_function_says_the_same(op: str) -> None:
    model = cell(op, "bidirectional", 24, 16, given="lh")
    after = fused(model)
    assert after.graph.node[0].op_type == f"{op}MaskMask"
    onnx.checker.check_model(after, full_check=True)
    feed = feeds(model, 5, 3)
    for one, other in zip(*(session(m, kernels=False).run(None, feed) for m in (after, model)), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("op", sorted(GATES))
def test_lengths_of_nothing_and_no_steps(op: str) -> None:
    """Of a sequence without steps onnxruntime gives no state, whatever it began with."""
    model = cell(op, "bidirectional", 8, 8, given="lhc")
    after = fused(model)
    feed = feeds(model, 4, 3)
    feed["l"][:] = [0, 4, 2]
    expected, got = (session(m, kernels=k).run(None, feed) for m, k in ((model, False), (after, True)))
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)
    feed.pop("l")
    empty = fused(cell(op, "bidirectional", 8, 8, given="hc"))
    y, *last = session(empty, kernels=True).run(None, {**feed, "x": feed["x"][:0]})
    assert y.shape == (0, 2, 3, 8)
    assert all(np.array_equal(one, feed[name]) for one, name in zip(last, "hc"))  # noqa: B905 (an LSTM has both)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"activations": ["Sigmoid", "Relu", "Tanh"]}, "the activations of its LSTM are not the default ones"),
        ({"clip": 3.0}, "clip of its LSTM is set"), ({"input_forget": 1}, "input_forget of its LSTM is set"),
        ({"layout": 1}, "layout of its LSTM is set"),
    ],
)  # fmt: skip
def test_what_kernels_do_not_compute_is_left_and_said(attributes: dict[str, Any], reason: str) -> None:
    model = cell("LSTM", "forward", 8, 8, **attributes)
    assert [item.reason for item in fuse(model, every=True)] == [reason, reason]
    assert [node.op_type for node in model.graph.node] == ["UnpackMask", "UnpackMask", "LSTM"]


def test_default_activations_that_are_written_out_are_no_hindrance() -> None:
    fused(cell("GRU", "bidirectional", 8, 8, activations=["Sigmoid", "Tanh"] * 2))


def test_a_cell_with_one_packed_weight_or_peepholes_is_left() -> None:
    model = cell("LSTM", "forward", 8, 8)
    model.graph.node[-1].input.append("p")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 24), np.float32), "p"))
    assert {item.reason for item in fuse(model, every=True)} == {"its LSTM has peepholes"}
    model = cell("RNN", "forward", 8, 8)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 8, 8), np.float32), "plain"))
    model.graph.node[-1].input[2] = "plain"
    assert [item.reason for item in fuse(model, every=True)] == ["not both weights of its RNN are packed"]


def test_size_and_density_decide() -> None:
    (reason,) = {item.reason for item in fuse(cell("LSTM", "forward", 8, 8))}
    assert reason == "both weights of its LSTM have fewer than 262144 elements"
    (reason,) = {item.reason for item in fuse(cell("LSTM", "forward", 256, 256))}
    assert reason == "the density of both weights of its LSTM, 40%, is above 12% at their size"
    assert {item.op for item in fuse(cell("LSTM", "forward", 256, 256, density=0.1))} == {"LSTMMaskMask"}


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("values", [None, "float16"])
def test_packed_files_in_every_form(tmp_path: Path, sparsity: float, values: str | None) -> None:
    """The input's weight is sparser than the state's, so that their forms differ at the end."""
    rng = np.random.default_rng(0)

    def weight(columns: int, zero: float) -> Any:
        made = rng.standard_normal((1, 192, columns)).astype(np.float32) / 8
        return np.where(rng.random(made.shape) < zero, np.float32(0), made).astype(np.float16).astype(np.float32)

    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=64)], "g", [info("x", 1, ["t", "n", 64])],
        [info("y", 1, ["t", 1, "n", 64])],
        [
            numpy_helper.from_array(weight(64, (1 + sparsity) / 2), "w"),
            numpy_helper.from_array(weight(64, sparsity), "r"),
        ],
    )  # fmt: skip
    plain, made = tmp_path / "m.onnx", tmp_path / "p.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), plain)
    emp_onnx.pack(plain, made, values=values)
    model, told = fused_model(made, every=True)
    assert {item.op[:3] for item in told} == {"GRU"}
    onnx.checker.check_model(model, full_check=True)
    x = rng.standard_normal((6, 2, 64)).astype(np.float32)
    expected = open_engine(plain, kernels="off").session.run(None, {"x": x})[0]
    engine = open_engine(made, every=True)
    assert engine.kernels
    np.testing.assert_allclose(engine.session.run(None, {"x": x})[0], expected, rtol=2e-5, atol=2e-5)
    without = session(model, kernels=False).run(None, {"x": x})[0]
    np.testing.assert_allclose(without, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("w.mask", lambda a: a[:-1], "must have a mask of"),
        ("r.mask", lambda a: np.append(a, a), "must have a mask of"),
        ("w.values", lambda a: a[:-1], "must have as many values as bits set"),
        ("r.values", lambda a: np.append(a, a[-1:]), "must have as many values as bits set"),
        ("r.values", lambda a: a + 1, "must have 0 as its fill"),
    ],
)  # fmt: skip
def test_parts_that_disagree_are_refused_when_the_session_is_made(name: str, change: Any, sentence: str) -> None:
    made = fused(cell("GRU", "bidirectional", 24, 16))
    for tensor in made.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    with pytest.raises(Exception, match=f"the packed weight of GRUMaskMask.*{sentence}"):
        session(made, kernels=True)


def test_inputs_that_do_not_fit_end_in_a_sentence() -> None:
    model = cell("GRU", "forward", 24, 16, given="l")
    made = fused(model)
    feed = feeds(model, 4, 3)
    with pytest.raises(Exception, match="lengths must be ≥ 0 and ≤ 4, got 5"):
        session(made, kernels=True).run(None, {**feed, "l": np.array([1, 5, 2], np.int32)})
    made.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "m"
    with pytest.raises(Exception, match=r"lengths must be 3 numbers, got the shape \[2\]"):
        session(made, kernels=True).run(None, {**feed, "l": np.array([1, 2], np.int32)})


def test_not_a_number_stays_where_it_is() -> None:
    model = cell("LSTM", "forward", 24, 16)
    feed = feeds(model, 5, 3)
    feed["x"][2, 1, 3] = np.nan
    got = session(fused(model), kernels=True).run(None, feed)[0]
    assert np.isfinite(got[:2]).all()
    assert np.isfinite(got[:, :, [0, 2]]).all()
    assert np.isnan(got[2:, :, 1]).all()
