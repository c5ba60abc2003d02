"""Weights as scipy arrays: there and back without the loss of a bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from emp_onnx import Model, UsageError, from_scipy, load, save, to_scipy
from tests.onnx.builders import conv, recurrent, two_layers
from tests.onnx.packing import awkward, proto_of

FORMATS = ("coo", "csr", "csc", "bsr")


def holder(array: Any) -> onnx.ModelProto:
    kind = proto_of("w", array)
    op = "MatMul" if array.ndim == 2 else "Conv"
    x = helper.make_tensor_value_info(
        "x", kind.data_type, [1, array.shape[0 if op == "MatMul" else 1], *[9] * (array.ndim - 2)]
    )
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"])], "g", [x],
        [helper.make_tensor_value_info("y", kind.data_type, None)], [kind],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@settings(max_examples=60)
@given(
    st.sampled_from(["float32", "float64", "float16", "bfloat16"]),
    st.sampled_from([(4, 8), (1, 7), (5, 3), (64, 64), (8, 4, 3, 3), (3, 2, 5)]),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from(FORMATS), st.integers(0, 2**31),
    st.sampled_from(["dense", "coo", "packed", "auto"]),
)  # fmt: skip
def test_there_and_back(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, shape: tuple[int, ...], density: float, format: str,
    seed: int, form: str,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    array = awkward(rng, shape, dtype, density)
    array[rng.random(len(array)) < 0.3] = 0
    model = Model(holder(array))
    arrays = to_scipy(model, format=format)
    assert arrays["w"].format == format
    assert arrays["w"].shape == (shape[0], int(np.prod(shape[1:])))
    empty = Model(holder(np.zeros_like(array)))
    back = from_scipy(empty, arrays)
    assert back.values("w").tobytes() == array.tobytes()
    out = tmp_path_factory.mktemp("m") / "m.onnx"
    save(from_scipy(empty, arrays, form=form), out)
    stored = onnx.load(out).graph.sparse_initializer
    if stored:
        dense = np.zeros(array.size, array.dtype)
        dense[np.frombuffer(stored[0].indices.raw_data, "<i8")] = np.frombuffer(stored[0].values.raw_data, array.dtype)
        assert dense.tobytes() == array.tobytes()
    else:
        assert load(out).values("w").tobytes() == array.tobytes()


def test_integers_and_what_is_added(tmp_path: Path) -> None:
    weight = np.array([[0.0, 1.5], [2.5, 0.0]], np.float32)
    model = Model(holder(weight))
    twice = sp.coo_array((np.float32([1, 2, 3]), ([0, 0, 1], [1, 1, 0])), shape=(2, 2))
    assert from_scipy(model, {"w": twice}).values("w").tolist() == [[0, 3], [3, 0]]
    for other in (sp.dok_array(weight), sp.lil_array(weight), sp.dia_array(weight)):
        assert from_scipy(model, {"w": other}).values("w").tolist() == weight.tolist()


def test_rows_and_columns() -> None:
    rng = np.random.default_rng(0)
    name, array = next(iter(to_scipy(Model(conv(rng, 4).model)).items()))
    shape = Model(conv(np.random.default_rng(0), 4).model).tensors[name].shape
    assert array.shape == (shape[0], int(np.prod(shape[1:])))
    arrays = to_scipy(Model(recurrent(rng, 4).model))
    for key, matrix in arrays.items():
        assert matrix.shape[1] == Model(recurrent(np.random.default_rng(1), 4).model).tensors[key].shape[2]


def test_mistakes_are_named() -> None:
    model = Model(two_layers(np.random.default_rng(0), 4).model)
    name, array = next(iter(to_scipy(model).items()))
    for make, says in (
        (lambda: to_scipy(model, format="dia"), "format must be one of"),
        (lambda: to_scipy(model, names=["nobody"]), "names must be weights"),
        (lambda: from_scipy(model, {"nobody": array}), "arrays must be named after weights"),
        (lambda: from_scipy(model, {name: array.astype(np.float64)}), "must be float32"),
        (lambda: from_scipy(model, {name: array[:1]}), "must be float32 of"),
        (lambda: from_scipy(model, {name: array}, form="zip"), "form must be one of"),
    ):
        with pytest.raises(UsageError, match=says):
            make()
