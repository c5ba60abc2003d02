"""What follows a convolution, as part of its node, however it is spelled; and convolutions over one axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from emp_onnx.files.functions import function_bytes
from emp_onnx.fused.fuse import fuse
from tests.kernels.test_ort import _library, fused, model, of_rank, packed, same, session, weight

__all__ = ["_library"]  # a fixture

NODE = helper.make_node


def constant(name: str, number: float) -> onnx.NodeProto:
    return NODE("Constant", [], [name], value_float=number)


SPELLED: dict[str, tuple[str, int, list[onnx.NodeProto]]] = {
    "ReLU6": ("Clip", 17, [NODE("Clip", ["c", "zero", "six"], ["y"])]),
    "to a constant": ("Clip", 17, [constant("s", 6.0), NODE("Clip", ["c", "zero", "s"], ["y"])]),
    "from a constant 0": ("Clip", 17, [constant("s", 0.0), NODE("Clip", ["c", "s"], ["y"])]),
    "from below": ("Clip", 13, [NODE("Clip", ["c", "", "six"], ["y"])]),
    "from above": ("Clip", 11, [NODE("Clip", ["c", "zero"], ["y"])]),
    "by nothing": ("Clip", 17, [NODE("Clip", ["c"], ["y"])]),
    "leaky": ("LeakyRelu", 17, [NODE("LeakyRelu", ["c"], ["y"], alpha=0.1)]),
    "leaky as it comes": ("LeakyRelu", 11, [NODE("LeakyRelu", ["c"], ["y"])]),
    "leaky above 1": ("LeakyRelu", 17, [NODE("LeakyRelu", ["c"], ["y"], alpha=1.5)]),
    "slopes": ("PRelu", 17, [NODE("PRelu", ["c", "slopes"], ["y"])]),
    "slopes of four axes": ("PRelu", 11, [NODE("PRelu", ["c", "slopes4"], ["y"])]),
    "Gelu": ("Gelu", 20, [NODE("Gelu", ["c"], ["y"])]),
    "Gelu by tanh": ("GeluTanh", 20, [NODE("Gelu", ["c"], ["y"], approximate="tanh")]),
    "Gelu in steps": ("Gelu", 17, [
        NODE("Mul", ["c", "root"], ["s"]), NODE("Erf", ["s"], ["e"]), NODE("Add", ["e", "one"], ["g"]),
        NODE("Mul", ["c", "g"], ["d"]), NODE("Mul", ["d", "half"], ["y"]),
    ]),
    "SiLU": ("Swish", 17, [NODE("Sigmoid", ["c"], ["g"]), NODE("Mul", ["c", "g"], ["y"])]),
    "SiLU the other way round": ("Swish", 17, [NODE("Sigmoid", ["c"], ["g"]), NODE("Mul", ["g", "c"], ["y"])]),
    "HardSwish": ("HardSwish", 17, [NODE("HardSwish", ["c"], ["y"])]),
    "HardSwish in two": (
        "HardSwish", 11, [NODE("HardSigmoid", ["c"], ["g"], alpha=1 / 6, beta=0.5), NODE("Mul", ["c", "g"], ["y"])],
    ),
}  # fmt: skip
APART: dict[str, tuple[int, list[onnx.NodeProto]]] = {
    "a computed bound": (17, [NODE("ReduceMax", ["x"], ["s"], keepdims=0), NODE("Clip", ["c", "", "s"], ["y"])]),
    "a gate of another slope": (17, [NODE("HardSigmoid", ["c"], ["g"], alpha=0.2), NODE("Mul", ["c", "g"], ["y"])]),
    "a gate of something else": (17, [NODE("Sigmoid", ["six"], ["g"]), NODE("Mul", ["c", "g"], ["y"])]),
    "slopes along a row": (17, [NODE("PRelu", ["c", "across"], ["y"])]),
    "one slope": (17, [NODE("PRelu", ["c", "few"], ["y"])]),
    "computed slopes": (17, [NODE("Neg", ["slopes"], ["s"]), NODE("PRelu", ["c", "s"], ["y"])]),
    "squared": (17, [NODE("Mul", ["c", "c"], ["y"])]),
    "a gate used twice": (
        17, [NODE("Sigmoid", ["c"], ["g"]), NODE("Mul", ["c", "g"], ["m"]), NODE("Add", ["m", "g"], ["y"])],
    ),
    "behind a sum": (17, [NODE("Add", ["c", "c"], ["a"]), NODE("LeakyRelu", ["a"], ["y"])]),
}  # fmt: skip


def convolution(
    following: Sequence[onnx.NodeProto], opset: int, shape: tuple[int, ...] = (24, 16, 3, 3), **attributes: Any
) -> onnx.ModelProto:
    node, parts = packed(weight(np.random.default_rng(3), *shape), "w", "Mask")
    slopes = np.random.default_rng(4).uniform(-0.5, 1, 24).astype(np.float32)
    numbers: dict[str, Any] = {"zero": 0, "six": 6, "root": 0.5**0.5, "one": 1, "half": 0.5, "few": slopes[:1]}
    numbers |= {"slopes": slopes[:, None, None], "slopes4": slopes[None, :, None, None], "across": slopes[:21]}
    parts += [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in numbers.items()]
    sizes = ["h", "w_"][: len(shape) - 2]
    nodes = [node, NODE("Conv", ["x", "w"], ["c" if following else "y"], **attributes), *following]
    made = of_rank(model(nodes, parts, ["n", shape[1] * attributes.get("group", 1), *sizes], "Mask"), len(shape))
    made.opset_import[0].version = opset
    made.functions[0].CopyFrom(onnx.FunctionProto.FromString(function_bytes("UnpackMask", opset)))
    return made


@pytest.mark.parametrize("case", SPELLED)
def test_an_activation_behind_a_convolution_is_part_of_its_node(case: str) -> None:
    name, opset, following = SPELLED[case]
    before = convolution(following, opset, pads=[1, 1, 1, 1])
    after, op = fused(before)
    assert op == f"Conv{name}Mask"
    assert [node.op_type for node in after.graph.node if node.op_type != "Constant"] == [op]
    x = 4 * np.random.default_rng(5).standard_normal((2, 16, 13, 21)).astype(np.float32)
    same(before, after, x)


@pytest.mark.parametrize("case", APART)
def test_what_only_looks_like_one_stays(case: str) -> None:
    opset, following = APART[case]
    before = convolution(following, opset)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    (told,) = fuse(after, every=True)
    assert told.op in ("ConvMask", "ConvAddMask")
    same(before, after, np.random.default_rng(5).standard_normal((1, 16, 9, 23)).astype(np.float32))


def test_what_else_needs_the_value_before_keeps_it() -> None:
    before = convolution([NODE("LeakyRelu", ["c"], ["y"])], 17)
    before.graph.output.append(helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [None] * 4))
    _, op = fused(before)
    assert op == "ConvMask"


@settings(max_examples=25, deadline=None)
@given(data=st.data(), group=st.sampled_from([1, 1, 2]), relu=st.booleans())
def test_convolutions_over_one_axis(data: st.DataObject, group: int, relu: bool) -> None:
    taps, dilation = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 3))
    pads = data.draw(st.lists(st.integers(0, 4), min_size=2, max_size=2))
    attributes: dict[str, Any] = {"strides": [data.draw(st.integers(1, 3))], "dilations": [dilation], "pads": pads}
    attributes = {name: given for name, given in attributes.items() if data.draw(st.booleans())} | {"group": group}
    channels = data.draw(st.integers(8 if group > 1 else 1, 20))
    shape = (group * data.draw(st.integers(1, 40)), channels, taps)
    before = convolution([NODE("Relu", ["c"], ["y"])] if relu else [], 17, shape, **attributes)
    after, op = fused(before)
    assert op == f"Conv{'Relu' if relu else ''}Mask"
    length = dilation * (taps - 1) + 1 + data.draw(st.integers(0, 60))
    x = np.random.default_rng(5).standard_normal((data.draw(st.integers(0, 2)), channels * group, length))
    same(before, after, x.astype(np.float32))


def test_an_input_of_another_rank_ends_in_a_sentence() -> None:
    after, _ = fused(convolution([], 17, (24, 16, 3)))
    after.graph.node[0].name = "layer"
    del after.graph.input[0].type.tensor_type.shape.dim[:]
    after.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(Exception, match=r"the input must have three dimensions, the second 16, got \[1, 16, 4, 4\]"):
        session(after, kernels=True).run(None, {"x": np.zeros((1, 16, 4, 4), np.float32)})
