"""Quantised weights under refit: on their grid, removed ones at the zero point, rounding errors made good by others."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import emp_onnx
from emp_onnx.calibration.network import Network
from emp_onnx.files.model_io import Model, load
from emp_onnx.refit.grid import Grid, onto
from emp_onnx.refit.loss import Quadratic
from emp_onnx.refit.solve import solve
from emp_onnx.refitting import refit
from tests.onnx.builders import model, tensor, value

QUIET = onnxruntime.SessionOptions()
QUIET.log_severity_level = 4


def problem(seed: int, groups: int, out: int, d: int, step: float) -> tuple[Quadratic, Any, Any, Grid]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, 3 * d, d)) @ rng.standard_normal((groups, d, d))
    a = np.einsum("gni,gnj->gij", x, x) / (3 * d) + 1e-3 * np.eye(d)
    loss = Quadratic(a, rng.standard_normal((groups, out, d)))
    mask = rng.random((groups, out, d)) < 0.7
    one = np.ones(mask.shape)
    return loss, mask, solve(loss, mask, loss.best), Grid(step * one, -3 * one, 3 * one)


@settings(max_examples=40)
@given(seed=st.integers(0, 999), groups=st.integers(1, 2), out=st.integers(1, 3), d=st.integers(1, 4))
def test_between_the_best_there_is_and_plain_rounding(seed: int, groups: int, out: int, d: int) -> None:
    loss, mask, w, grid = problem(seed, groups, out, d, 0.5)
    found, plain = onto(loss, mask, w, grid), np.where(mask, grid.round(w), 0)
    np.testing.assert_array_equal(found, np.where(mask, grid.round(found), 0))
    levels = 0.5 * np.arange(-3, 4)
    best = 0.0
    for g in range(groups):
        for o in range(out):
            rows = np.array(list(product(*(levels if kept else [0.0] for kept in mask[g, o]))))
            gaps = rows - loss.best[g, o]
            best += float(np.einsum("ri,ij,rj->r", gaps, loss.a[g], gaps).min())
    assert best - 1e-9 <= loss.loss(found) <= loss.loss(plain) + 1e-9


def test_others_make_good_for_what_is_rounded() -> None:
    """On a coarse grid, over ten draws, two fifths of what plain rounding costs are won back."""
    costs = []
    for seed in range(10):
        loss, mask, w, grid = problem(seed, 1, 20, 60, 0.3)
        plain = np.where(mask, grid.round(w), 0)
        costs.append([loss.loss(some) - loss.loss(w) for some in (onto(loss, mask, w, grid), plain)])
    ours, rounded = np.mean(costs, 0)
    assert ours < 0.6 * rounded


def test_floats_beside_stay_free() -> None:
    loss, mask, w, grid = problem(3, 1, 4, 12, 0.5)
    grid.step[..., 6:] = 0
    found = onto(loss, mask, w, grid)
    assert (found[~mask] == 0).all()
    np.testing.assert_array_equal(found[..., :6], grid.round(found)[..., :6])
    assert loss.loss(found) < loss.loss(np.where(mask, grid.round(w), 0))


def network(kind: Any, axis: int | None, levels: int) -> onnx.ModelProto:
    """Two layers on quantised weights (per output channel where `axis` is given), one bias a float, one whole."""
    rng, node = np.random.default_rng(4), helper.make_node
    nodes, tensors = [], []
    for i, (a, b) in enumerate([(12, 30), (30, 6)]):
        w = rng.standard_normal((b, a)) / np.sqrt(a)
        size = np.abs(w).max(1) if axis is not None else np.full(b, np.abs(w).max())
        scale = (size / levels).astype(np.float32)
        point = 100 if kind == np.uint8 else 0
        q = np.clip(np.rint(w / scale[:, None]) + point, np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)
        given = (scale, np.full(b, point, kind)) if axis is not None else (scale[0], np.array(point, kind))
        bias = rng.standard_normal(b).astype(np.float32)
        tensors += [tensor(f"w{i}", q), tensor(f"s{i}", given[0]), tensor(f"z{i}", given[1])]
        nodes.append(node("DequantizeLinear", [f"w{i}", f"s{i}", f"z{i}"], [f"d{i}"], axis=axis or 0))
        if i:
            tensors.append(tensor("b1", bias))
        else:
            tensors += [tensor("q0", np.rint(bias * 1000).astype(np.int32)), tensor("u0", np.float32(1e-3))]
            nodes.append(node("DequantizeLinear", ["q0", "u0"], ["b0"]))
        nodes.append(node("Gemm", [f"r{i - 1}" if i else "x", f"d{i}", f"b{i}"], [f"y{i}"], transB=1))
        nodes.append(node("Relu", [f"y{i}"], [f"r{i}"]))
    return model(nodes[:-1], [value("x", [None, 12])], [value("y1", None)], tensors)


def feeds(count: int, seed: int) -> list[dict[str, Any]]:
    mix = np.random.default_rng(6).standard_normal((12, 12))
    rng = np.random.default_rng(seed)
    return [{"x": (rng.standard_normal((8, 12)) @ mix).astype(np.float32)} for _ in range(count)]


def outputs(file: Path, given: list[dict[str, Any]]) -> Any:
    session = onnxruntime.InferenceSession(str(file), QUIET, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0].reshape(-1) for feed in given])


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("levels", [7, 100])
def test_a_file_with_quantised_weights(kind: Any, axis: int | None, levels: int, tmp_path: Path) -> None:
    onnx.save(network(kind, axis, levels), tmp_path / "in.onnx")
    report = refit(tmp_path / "in.onnx", tmp_path / "a.onnx", feeds=feeds(40, 1), sparsity=0.5)
    emp_onnx.prune(tmp_path / "in.onnx", tmp_path / "b.onnx", sparsity=0.5)
    fresh = feeds(30, 2)
    dense, fitted, zeros = (outputs(tmp_path / f"{name}.onnx", fresh) for name in ("in", "a", "b"))
    assert np.square(fitted - dense).sum() < 0.3 * np.square(zeros - dense).sum()
    assert emp_onnx.verify(tmp_path / "a.onnx", tmp_path / "in.onnx").ok
    assert set(report.biases) == {"q0", "b1"}
    before, after = (load(tmp_path / f"{name}.onnx") for name in ("in", "a"))
    point = 100 if kind == np.uint8 else 0
    for name in ("w0", "w1"):
        values = after.values(name)
        assert values.dtype == kind
        assert int((values != point).sum()) == report.weights[name].k
    for name in ("s0", "s1", "z0", "z1", "u0"):
        np.testing.assert_array_equal(before.values(name), after.values(name))
    touched = onnx.load(tmp_path / "a.onnx")
    (item,) = [i for i in touched.graph.initializer if i.name == "w0"]
    array = numpy_helper.to_array(item).copy()
    array.flat[np.flatnonzero(array == point)[0]] += 1
    item.CopyFrom(numpy_helper.from_array(array, "w0"))
    onnx.save(touched, tmp_path / "touched.onnx")
    assert "nonzeros" in " ".join(emp_onnx.verify(tmp_path / "touched.onnx").faults)


def test_masks_alone_keep_values(tmp_path: Path) -> None:
    """Wanda on what the weights stand for: what is kept keeps its bits."""
    source = Model(network(np.uint8, 0, 100))
    refit(source, tmp_path / "a.onnx", feeds=feeds(20, 1), sparsity=0.4, criterion="wanda", update=False)
    after = load(tmp_path / "a.onnx")
    for name in ("w0", "w1"):
        old, new = source.values(name), after.values(name)
        assert ((new == old) | (new == 100)).all()


SCALES = {"xs": np.float32(0.02), "xz": np.uint8(120), "ys": np.float32(0.05), "yz": np.uint8(128)}


def whole(op: str, inputs: str, **more: Any) -> Any:
    return helper.make_node(op, inputs.split(), ["y"], **more)


MS = "com.microsoft"
WHOLE: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "QLinearConv": (whole("QLinearConv", "x xs xz w ws wz ys yz b", group=2, pads=[1, 1]), (2, 4, 5), (6, 2, 3)),
    "QLinearMatMul": (whole("QLinearMatMul", "x xs xz w ws wz ys yz"), (3, 5), (5, 6)),
    "QLinearMatMul left": (whole("QLinearMatMul", "w ws wz x xs xz ys yz"), (5, 3), (6, 5)),
    "QGemm": (whole("QGemm", "x xs xz w ws wz b ys yz", domain=MS, transB=1), (3, 5), (6, 5)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_operations_on_whole_numbers_stand_for_those_on_floats(name: str) -> None:
    """Rows times matrix, plus the bias in its units, is the output to half a step of its own scale."""
    node, shape, size = WHOLE[name]
    rng = np.random.default_rng(7)
    x = rng.integers(60, 180, shape).astype(np.uint8)
    w, point = rng.integers(-100, 100, size).astype(np.int8), np.int8(0)
    if "left" in name:
        w, point = rng.integers(20, 220, size).astype(np.uint8), np.uint8(120)
    b = rng.integers(-900, 900, 6).astype(np.int32)
    many = 6 if "MatMul" not in name else 1
    tensors = {**SCALES, "w": w, "ws": np.full(many, 0.01, np.float32), "wz": np.zeros(many, np.int8), "b": b}
    if many == 1:
        tensors |= {"ws": np.float32(0.01), "wz": point}
    used = [tensor(key, array) for key, array in tensors.items() if key in node.input]
    made = model([node], [value("x", shape, onnx.TensorProto.UINT8)], [value("y", None, onnx.TensorProto.UINT8)], used)
    source = Model(made)
    network = Network(source, emp_onnx.find_weights(source).weights, [{"x": x}], 1)
    assert not network.why
    (problem,) = network.sites[0].problems
    rows = problem.rows({"x": x, **SCALES}.get, 0, 10**9)
    got = rows @ network.matrix(problem).swapaxes(1, 2)
    assert (problem.bias is not None) == ("b" in node.input)
    if problem.bias is not None:
        got = got + (b[problem.bias.index] * problem.bias.unit)[:, None]
    session = onnxruntime.InferenceSession(made.SerializeToString(), QUIET, providers=["CPUExecutionProvider"])
    y = (session.run(None, {"x": x})[0].astype(np.float64) - 128) * 0.05
    if name == "QLinearConv":
        y = np.moveaxis(y, 1, 0).reshape(2, 3, -1).transpose(0, 2, 1)
    else:
        y = (y.T if "left" in name else y)[None]
    inside = np.abs(y) < 6  # the rest is cut off
    assert inside.mean() > 0.5
    np.testing.assert_allclose(got[inside], y[inside], atol=0.0251)


def test_weights_whose_scale_is_multiplied_in_later_are_refused_with_what_to_do() -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "p"]),
        helper.make_node("MatMulInteger", ["q", "w", "p"], ["n"]),
        helper.make_node("Cast", ["n"], ["f"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    w = np.random.default_rng(0).integers(-99, 99, (6, 4)).astype(np.int8)
    source = Model(model(nodes, [value("x", (None, 6))], [value("y", (None, 4))], [tensor("w", w)]))
    with pytest.raises(emp_onnx.ModelError, match="MatMulInteger reads, are not refitted: refit the model of floats"):
        emp_onnx.refit(source, "unused.onnx", feeds=[{"x": np.ones((2, 6), np.float32)}], sparsity=0.5)
