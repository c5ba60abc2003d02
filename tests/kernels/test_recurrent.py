"""Recurrent cells with packed weights beside onnxruntime's own, over shapes, attributes and inputs left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from emp_onnx.packing.functions import function_bytes
from emp_onnx.runtime.fuse import fuse
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
    made = [{"y": "y", "h": "last", "c": "last_cell"}[o] if o in outputs else "" for o in "yhc"[: 3 if op == "LSTM" else 2]]
    nodes.append(helper.make_node(op, names, made, direction=direction, hidden_size=hidden, **attributes))
    info = helper.make_tensor_value_info
    state = [directions, "n", hidden]
    feeds = [info("x", 1, ["t", "n", inputs])]
    feeds += [info("l", onnx.TensorProto.INT32, ["n"])] if "l" in given else []
    feeds += [info(name, 1, state) for name in "hc" if name in given and (name == "h" or op == "LSTM")]
    graph = helper.make_graph(nodes, "g", feeds, [info(o, 1, ["t", "d", "n", "m"][o != "y" :]) for o in made if o], tensors)
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


@settings(max_examples=120, deadline=None)
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
