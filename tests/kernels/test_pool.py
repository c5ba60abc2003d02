"""A pool behind a convolution, in the kernels and in files, against a slow and obvious one and against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from emp_onnx.fused.fuse import fuse
from tests.kernels.native import Conv, build, instruction_sets
from tests.kernels.test_conv import problems
from tests.kernels.test_ort import model, packed, session, weight

POOLS = [
    ((3, 3), (2, 2), (1, 1, 1, 1)),
    ((2, 2), (2, 2), (0, 0, 0, 0)),
    ((3, 2), (1, 3), (2, 0, 0, 1)),
    ((1, 5), (3, 1), (0, 4, 0, 3)),
    ((2, 2), (5, 1), (0, 1, 1, 0)),
    ((7, 3), (2, 2), (3, 1, 6, 2)),
    ((9, 1), (1, 1), (8, 0, 8, 0)),  # as many lines as are kept of a tile
    ((10, 2), (1, 2), (0, 1, 9, 0)),  # more
]


def greatest(image: Any, kernel: Any, stride: Any, pads: Any) -> Any:
    """The definition, window by window."""
    image = np.pad(image, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])), constant_values=-np.inf)
    sizes = [(image.shape[2 + i] - kernel[i]) // stride[i] + 1 for i in range(2)]
    y = np.empty((*image.shape[:2], *sizes), image.dtype)
    for row in range(sizes[0]):
        for column in range(sizes[1]):
            top, left = row * stride[0], column * stride[1]
            y[:, :, row, column] = image[:, :, top : top + kernel[0], left : left + kernel[1]].max(axis=(2, 3))
    return y


def check(conv: Conv, x: Any, bias: Any, pool: Any, relu: bool, isa: str, threads: int) -> None:
    kernel, stride, pads = pool
    image = conv(x, bias, relu=relu, isa=isa)
    if any(image.shape[2 + i] + pads[i] + pads[i + 2] < kernel[i] for i in range(2)):
        return
    got = conv.pooled(x, bias, kernel, stride, pads, relu=relu, isa=isa, threads=threads)
    # tiles of other heights add in another order
    np.testing.assert_allclose(got, greatest(image, kernel, stride, pads), rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("isa", instruction_sets())
@settings(max_examples=40, deadline=None)
@given(problem=problems(), pool=st.sampled_from(POOLS), threads=st.integers(1, 8), seed=st.none() | st.integers(0, 99))
def test_the_greatest_of_each_window(
    isa: str, problem: dict[str, Any], pool: Any, threads: int, seed: int | None
) -> None:
    x = problem["x"]
    if seed is not None:  # what is not finite
        rng = np.random.default_rng(seed)
        for value in (np.nan, np.inf, -np.inf):
            x[rng.random(x.shape) < 0.002] = value
    with np.errstate(invalid="ignore"):
        check(Conv(problem["weight"], **problem["geometry"]), x, problem["bias"], pool, problem["relu"], isa, threads)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("channels", "outputs", "size", "kernel", "stride"), [(3, 64, 120, 7, 2), (32, 40, 61, 3, 1)])
def test_images_of_several_bands(
    isa: str, pool: Any, channels: int, outputs: int, size: int, kernel: int, stride: int
) -> None:
    rng = np.random.default_rng(0)
    conv = Conv(weight(rng, outputs, channels, kernel, kernel), stride=(stride, stride), pads=(kernel // 2,) * 4)
    x = rng.standard_normal((2, channels, size, size)).astype(np.float32)
    check(conv, x, rng.standard_normal(outputs).astype(np.float32), pool, True, isa, 3)
    x[1, channels - 1, size // 2, 3] = np.inf
    check(conv, x, None, pool, False, isa, 3)


@pytest.fixture
def _library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMP_KERNELS_LIBRARY", str(next(build().glob("libemp_kernels.*"))))


def network(order: str, form: str = "Mask", **attributes: Any) -> onnx.ModelProto:
    """A convolution with what follows it: R for a Relu, P for a pool."""
    rng = np.random.default_rng(3)
    node, parts = packed(weight(rng, 24, 16, 3, 3), "w", form)
    nodes, name = [node, helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1])], "c"
    for i, step in enumerate(order):
        op, given = ("Relu", {}) if step == "R" else ("MaxPool", {"kernel_shape": [3, 3], **attributes})
        nodes.append(helper.make_node(op, [name], [f"s{i}"], **given))
        name = f"s{i}"
    nodes[-1].output[0] = "y"
    return model(nodes, parts, ["n", 16, "h", "w_"], form)


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("form", ["Mask", "Mask4"])
@pytest.mark.parametrize(
    "attributes", [{"strides": [2, 2], "pads": [1, 1, 1, 1]}, {}, {"strides": [3, 1], "pads": [0, 2, 1, 0]}]
)
@pytest.mark.parametrize(("order", "name"), [("P", ""), ("RP", "Relu"), ("PR", "Relu")])
def test_files_with_and_without_kernels(order: str, name: str, attributes: dict[str, Any], form: str) -> None:
    before = network(order, form, **attributes)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    assert [item.op for item in fuse(after, every=True)] == [f"ConvMaxPool{name}{form}"]
    assert not [node for node in after.graph.node if node.op_type in ("MaxPool", "Relu")]
    onnx.checker.check_model(after, full_check=True)
    x = np.random.default_rng(1).standard_normal((2, 16, 23, 41)).astype(np.float32)
    expected = session(before, kernels=False).run(None, {"x": x})[0]
    np.testing.assert_allclose(session(after, kernels=False).run(None, {"x": x})[0], expected, rtol=1e-5, atol=5e-5)
    got = session(after, kernels=True, threads=2).run(None, {"x": x})[0]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=5e-5)


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize(
    "attributes", [{"ceil_mode": 1}, {"dilations": [2, 1]}, {"auto_pad": "SAME_UPPER"}, {"kernel_shape": [1025, 1]}]
)
def test_pools_that_kernels_cannot_do_stay(attributes: dict[str, Any]) -> None:
    after = network("RP", **attributes)
    assert [item.op for item in fuse(after, every=True)] == ["ConvReluMask"]
    assert [node.op_type for node in after.graph.node if node.domain == ""] == ["MaxPool"]


@pytest.mark.usefixtures("_library")
def test_a_pool_that_cannot_be_ends_in_a_sentence() -> None:
    after = network("P")
    fuse(after, every=True)
    node = next(node for node in after.graph.node if node.op_type.startswith("ConvMaxPool"))
    with pytest.raises(Exception, match="the kernel of its pool must not be larger than the padded image"):
        session(after, kernels=True).run(None, {"x": np.zeros((1, 16, 2, 9), np.float32)})
    pads = next(item for item in node.attribute if item.name == "pool_pads")
    pads.ints[0] = 3
    with pytest.raises(Exception, match="must have a pool whose pads are ≥ 0 and smaller than its kernel"):
        session(after, kernels=True)
