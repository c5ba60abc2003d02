"""Weights in fields of numbers, in every form that protobuf allows: pruned, and every kept number as it was written."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from emp_onnx import Model, apply, find_weights, plan, verify
from emp_onnx.files.wire import Wire, varint
from tests.onnx.builders import Case, expected_masks, hash_mask, model, tensor, value

FIELDS = {"float32": 4, "float64": 10}
TYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.int8, np.uint8,
         ml_dtypes.int4, ml_dtypes.uint4, np.int16]  # fmt: skip


def spelled(array: Any, parts: list[tuple[int, bool]], longer: bool) -> bytes:
    """A TensorProto with its numbers in these parts: how many, and whether packed; `longer` varints than needed."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    number = FIELDS.get(array.dtype.name, 5)
    if number == 5:
        proto = helper.make_tensor("w", kind, array.shape, array.astype(np.float64).ravel().tolist())
        each = [varint(v & (2**64 - 1)) for v in proto.int32_data]
        if longer:  # the same numbers, with a byte of leading zeros that no writer needs
            each = [v[:-1] + bytes([v[-1] | 128, 0]) if len(v) < 9 else v for v in each]
    else:
        size = array.dtype.itemsize
        data = array.tobytes()
        each = [data[i : i + size] for i in range(0, len(data), size)]
    out = b"".join(b"\x08" + varint(d) for d in array.shape) + b"\x10" + varint(kind)
    wire, at = {4: 5, 10: 1}.get(number, 0), 0
    for count, together in [*parts, (len(each), True)]:
        some = each[at : at + count]
        at += len(some)
        if together and some:
            whole = b"".join(some)
            out += varint(number << 3 | 2) + varint(len(whole)) + whole
        elif some:
            out += b"".join(varint(number << 3 | wire) + one for one in some)
    return out + b"\x42\x01w" + b"\xa2\x06\x04what"  # its name, and a field that nobody knows


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 2**32 - 1), st.sampled_from(TYPES),
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=6), st.booleans(),
    st.sampled_from(["initializer", "constant"]),
)  # fmt: skip
def test_any_form(seed: int, dtype: Any, parts: list[tuple[int, bool]], longer: bool, home: str) -> None:
    rng = np.random.default_rng(seed)
    name = np.dtype(dtype).name
    low = 0 if "uint" in name else -7
    array = (rng.integers(low, 8, (4, 6)) if "int" in name else rng.integers(-40, 41, (4, 6)) / 8).astype(dtype)
    item = onnx.TensorProto.FromString(spelled(array, parts, longer))
    nodes = [helper.make_node("MatMul", ["x", "f"], ["y"])]
    zero = 0
    if "int" in name:
        zero = 3
        point = np.array(zero).astype(dtype)
        nodes.insert(0, helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"]))
        inits = [tensor("s", np.float32(0.5)), helper.make_tensor("z", item.data_type, [], [float(point)])]
    else:
        nodes[0].input[1] = "w"
        inits = []
    if home == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=onnx.TensorProto(name="PLACE")))
    else:
        inits.append(onnx.TensorProto(name="PLACE"))
    proto = model(nodes, [value("x", [2, 4])], [value("y", None)], inits, opset=21, ir=10)
    # as bytes, since a protobuf library writes numbers in its own way
    data, place = proto.SerializeToString(), onnx.TensorProto(name="PLACE").SerializeToString()
    data = replaced(data, place, spelled(array, parts, longer))
    source = Model(data)
    assert source.values("w").tobytes() == array.tobytes()
    (weight,) = find_weights(source).weights
    dense = array.astype(np.float64) - zero
    masks = expected_masks(Case(proto, {"w": dense}, {"w": lambda i: i[1]}), scope="tensor")
    made = plan(source)
    if not masks:
        return
    assert [e.kept_sha256 for e in made.entries] == [hash_mask(masks["w"])]
    pruned = apply(source, made)
    after = np.where(masks["w"], array, np.array(zero).astype(dtype)).astype(dtype)
    fresh = Model(pruned.to_bytes())
    assert fresh.values("w").tobytes() == after.tobytes()
    assert onnx.ModelProto.FromString(pruned.to_bytes()).graph.name == "g"
    assert verify(fresh, source).ok
    assert weight.shape == (4, 6)
    # numbers that stay keep their bytes: were nothing removed, nothing but the certificate would differ
    same = apply(source, plan(source, beta=1e9)).to_bytes()
    assert same[: len(data)] == data
    if masks["w"].all():
        assert pruned.to_bytes()[: len(data)] == data


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    """`data` with the one message `old` somewhere in it replaced, and the lengths around it."""
    from emp_onnx.files.source import Memory
    from emp_onnx.files.wire import Edit

    at = data.index(old)
    pieces, _ = Wire(Memory(data)).edited(0, len(data), [Edit(at, at + len(old), new)])
    return b"".join(p if isinstance(p, bytes) else data[p[0] : p[1]] for p in pieces)
