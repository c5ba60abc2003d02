"""Operations on whole numbers, said with floats: what comes out is what onnxruntime gives, but for a last rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import emp_onnx
from emp_onnx.calibration.network import Network
from emp_onnx.calibration.unquantised import PLAIN
from emp_onnx.files.model_io import Model
from tests.onnx.builders import model, tensor, value

MS = "com.microsoft"
STEP, POINT = 0.05, 128
QUIET = onnxruntime.SessionOptions()
QUIET.log_severity_level = 4


def said(op: str, inputs: str, domain: str = "", **more: Any) -> Any:
    return helper.make_node(op, inputs.split(), ["yq"], domain=domain, **more)


CASES: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "QLinearConv": (
        said("QLinearConv", "xq xs xz w ws wz ys yz b", group=2, pads=[1, 0, 1, 2]), (1, 4, 5, 6), (6, 2, 3, 2)
    ),
    "QLinearMatMul": (said("QLinearMatMul", "xq xs xz w ws wz ys yz"), (3, 5), (5, 6)),
    "QLinearMatMul left": (said("QLinearMatMul", "w us uz xq xs xz ys yz"), (5, 3), (6, 5)),
    "QGemm": (said("QGemm", "xq xs xz w ws wz b ys yz", MS, transB=1), (3, 5), (6, 5)),
    "QGemm floats": (said("QGemm", "xq xs xz w ws wz b", MS, transB=1), (3, 5), (6, 5)),
    "QLinearAdd": (said("QLinearAdd", "xq xs xz w us uz ys yz", MS), (3, 5), (5,)),
    "QLinearMul": (said("QLinearMul", "xq xs xz w us uz ys yz", MS), (3, 5), (5,)),
    "QLinearGlobalAveragePool": (
        said("QLinearGlobalAveragePool", "xq xs xz ys yz", MS, channels_last=0), (1, 3, 4, 4), ()
    ),
    "QLinearAveragePool": (said("QLinearAveragePool", "xq xs xz ys yz", MS, kernel_shape=[2, 2]), (1, 3, 4, 4), ()),
    "QLinearSigmoid": (said("QLinearSigmoid", "xq xs xz ys yz", MS), (3, 5), ()),
    "QLinearLeakyRelu": (said("QLinearLeakyRelu", "xq xs xz ys yz", MS, alpha=0.2), (3, 5), ()),
    "QLinearConcat": (said("QLinearConcat", "ys yz xq xs xz w us uz", MS, axis=1), (3, 5), (3, 2)),
}  # fmt: skip


def made(name: str, scale: str = "constant") -> tuple[onnx.ModelProto, Any]:
    """Floats, rounded, through the operation, and floats again."""
    node, shape, size = CASES[name]
    rng = np.random.default_rng(3)
    x = ((rng.integers(60, 180, shape) - 120) * 0.02).astype(np.float32)  # no rounding moves them
    left = "us" in node.input
    w = rng.integers(20, 220, size).astype(np.uint8) if left else rng.integers(-100, 100, size).astype(np.int8)
    consts = {
        "xs": np.float32(0.02), "xz": np.uint8(120), "ys": np.float32(STEP), "yz": np.uint8(POINT), "w": w,
        "us": np.float32(0.01), "uz": np.uint8(120), "b": rng.integers(-900, 900, 6).astype(np.int32),
        "ws": rng.uniform(0.005, 0.01, 6).astype(np.float32), "wz": np.zeros(6, np.int8),
    }  # fmt: skip
    nodes = [helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]), node]
    ins = [value("x", shape)]
    if scale != "constant":  # it comes from outside
        ins.append(value("ys", ()))
        consts.pop("ys")
    floats = "ys" not in node.input
    if floats:
        node = onnx.NodeProto.FromString(node.SerializeToString())
        node.output[0] = "y"
        nodes[1] = node
    else:
        nodes.append(helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["y"]))
    used = {key for item in nodes for key in item.input}
    rank = max(len(shape), 1)
    tensors = [tensor(key, array) for key, array in consts.items() if key in used]
    return model(nodes, ins, [value("y", (None,) * rank)], tensors, opset=21), x


def network(source: onnx.ModelProto, feed: dict[str, Any]) -> tuple[Network, Any]:
    known = Model(source)
    net = Network(known, emp_onnx.find_weights(known).weights, [feed], 1, smooth=True)
    run = net.runner()
    for level in range(net.levels + 1):
        run.level(level, ["y"])
    return net, run.values.get("y", 0)


def test_every_operation_has_its_case() -> None:
    assert {op for _, op in PLAIN} == {name.split()[0] for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_what_comes_out_is_right_but_for_the_last_rounding(name: str) -> None:
    source, x = made(name)
    net, y = network(source, {"x": x})
    session = onnxruntime.InferenceSession(source.SerializeToString(), QUIET, providers=["CPUExecutionProvider"])
    right = session.run(None, {"x": x})[0]
    assert not {step.node.op for step in net.program.steps} & {op for _, op in PLAIN}
    assert net.smooth
    assert y.shape == right.shape
    assert (np.abs(y - right) <= STEP / 2 * 1.01).mean() == 1
    assert np.abs(right).max() > STEP
    if any(slot == "ws" for slot in CASES[name][0].input):
        assert not net.why
        assert len(net.sites) == 1
        assert (net.sites[0].problems[0].bias is not None) == ("b" in CASES[name][0].input)


def test_a_scale_that_is_no_constant_leaves_it_as_it_is() -> None:
    source, x = made("QLinearMatMul", scale="given")
    net, y = network(source, {"x": x, "ys": np.float32(STEP)})
    assert "QLinearMatMul" in {step.node.op for step in net.program.steps}
    assert y is not None
