"""Every kind of linear map: at equal sparsity a refit moves the outputs less than zeros alone, or it is said that none
was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from emp_onnx.files.model_io import Model, load
from emp_onnx.refit.fitting import Fitting
from emp_onnx.refitting import refit
from tests.onnx.builders import model, tensor, value

RNG = np.random.default_rng(8)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def node(op: str, inputs: str, output: str = "y", **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def cell(op: str, gates: int, **more: Any) -> tuple[list[Any], tuple[int, ...], dict[str, Any]]:
    dirs = 2 if more.get("direction") == "bidirectional" else 1
    tensors = {"w": normal(dirs, gates * 8, 6), "r": 0.3 * normal(dirs, gates * 8, 8), "b": normal(dirs, gates * 16)}
    return [node(op, "x w r b", hidden_size=8, **more)], (7, 2, 6), tensors


# name -> nodes, shape of x, tensors; the axis along which x is mixed is the last but where it says otherwise
CASES: dict[str, tuple[list[Any], tuple[int, ...], dict[str, Any]]] = {
    "Conv": ([node("Conv", "x w b", pads=[1] * 4)], (1, 6, 8, 8), {"w": normal(8, 6, 3, 3), "b": normal(8)}),
    "Conv without bias": ([node("Conv", "x w")], (1, 6, 8, 8), {"w": normal(8, 6, 3, 3)}),
    "Conv, then batch normalisation": (
        [node("Conv", "x w", "z"), node("BatchNormalization", "z s b m v")], (1, 6, 8, 8),
        {"w": normal(8, 6, 3, 3), "s": normal(8), "b": normal(8), "m": normal(8), "v": np.abs(normal(8)) + 20},
    ),
    "Conv 1-D": ([node("Conv", "x w", strides=[2])], (2, 6, 30), {"w": normal(8, 6, 5)}),
    "Conv 3-D": ([node("Conv", "x w")], (1, 4, 5, 5, 5), {"w": normal(6, 4, 3, 3, 3)}),
    "grouped Conv": ([node("Conv", "x w", group=2)], (1, 8, 8, 8), {"w": normal(8, 4, 3, 3)}),
    "depthwise Conv": ([node("Conv", "x w", group=6)], (2, 6, 9, 9), {"w": normal(6, 1, 5, 5)}),
    "ConvTranspose": ([node("ConvTranspose", "x w", strides=[2, 2])], (1, 6, 6, 6), {"w": normal(6, 8, 3, 3)}),
    "grouped ConvTranspose": ([node("ConvTranspose", "x w", group=2)], (1, 8, 20), {"w": normal(8, 4, 5)}),
    "Gemm": ([node("Gemm", "x w b")], (20, 12), {"w": normal(12, 9), "b": normal(9)}),
    "Gemm scaled": (
        [node("Gemm", "x w b", alpha=0.5, beta=2.0, transB=1)], (20, 12), {"w": normal(9, 12), "b": normal(9)},
    ),
    "Gemm without bias": ([node("Gemm", "x w")], (20, 12), {"w": normal(12, 9)}),
    "MatMul": ([node("MatMul", "x w")], (2, 10, 12), {"w": normal(12, 9)}),
    "MatMul, then Add": (
        [node("MatMul", "x w", "z"), node("Add", "z b")], (20, 12), {"w": normal(12, 9), "b": normal(9)},
    ),
    "batch of matrices": ([node("MatMul", "x w")], (3, 12, 12), {"w": normal(3, 12, 9)}),
    "one input, many matrices": ([node("MatMul", "x w")], (12, 12), {"w": normal(3, 12, 9)}),
    "weight on the left": ([node("Transpose", "x", "t"), node("MatMul", "w t")], (20, 12), {"w": normal(9, 12)}),
    "batch on the left": (
        [node("Transpose", "x", "t", perm=[0, 2, 1]), node("MatMul", "w t")], (3, 20, 12), {"w": normal(3, 9, 12)},
    ),
    "Einsum": ([node("Einsum", "x w", equation="abc,dc->abd")], (2, 10, 12), {"w": normal(9, 12)}),
    "Einsum by head": ([node("Einsum", "x w", equation="bthc,hcd->bthd")], (1, 12, 3, 8), {"w": normal(3, 8, 9)}),
    "LSTM": cell("LSTM", 4),
    "LSTM both ways": cell("LSTM", 4, direction="bidirectional"),
    "GRU": cell("GRU", 3, linear_before_reset=1),
    "GRU, reset first": cell("GRU", 3),
    "RNN": cell("RNN", 1),
}  # fmt: skip


def feeds(shape: tuple[int, ...], seed: int, count: int = 24) -> list[dict[str, Any]]:
    """Inputs as data are: related along every axis but the first, to neighbours most, and with means of their own."""
    mixes = [np.random.default_rng(n).standard_normal((n, n)) / n**0.5 for n in shape[1:]]
    mixes = [0.5 * mix + sum(np.eye(len(mix), k=k) for k in (-1, 0, 1)) for mix in mixes]
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        x = rng.standard_normal(shape) + 0.5
        for axis, mix in enumerate(mixes, 1):
            x = np.moveaxis(np.moveaxis(x, axis, -1) @ mix, -1, axis)
        found.append({"x": x.astype(np.float32)})
    return found


def made(name: str) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    nodes, shape, tensors = CASES[name]
    items = [tensor(key, array) for key, array in tensors.items()]
    return model(nodes, [value("x", list(shape))], [value("y", None)], items), shape


@pytest.mark.parametrize("name", CASES)
def test_a_refit_moves_the_outputs_less_than_zeros_alone(name: str) -> None:
    proto, shape = made(name)
    fitting = Fitting(Model(proto), feeds(shape, 1), threads=1)
    fitting.kept_back = feeds(shape, 2)
    keep = fitting.total // 2
    plain = fitting.thin(keep, how="uniform", criterion="magnitude", update=False)
    solved = fitting.thin(keep)
    assert plain.sparsity == solved.sparsity == pytest.approx(0.5, abs=0.01)
    assert not [note for note in solved.notes if "not refitted" in note]
    assert fitting.moved(solved) < 0.8 * fitting.moved(plain)


def inner(op: str) -> onnx.ModelProto:
    """A product with a weight in the body of a Loop or a Scan."""
    product = node("MatMul", "h w", "z")
    if op == "Loop":
        body = helper.make_graph(
            [product, node("Identity", "c", "d")], "body", [value("i", [], 7), value("c", [], 9), value("h", [4, 6])],
            [value("d", [], 9), value("z", [4, 6])], [tensor("w", normal(6, 6))],
        )  # fmt: skip
        nodes = [helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)]
        return model(nodes, [value("x", [4, 6])], [value("y", None)], [tensor("n", np.array(2))])
    body = helper.make_graph(
        [product, node("Identity", "s", "t")], "body", [value("s", [1]), value("h", [4, 6])],
        [value("t", [1]), value("z", [4, 6])], [tensor("w", normal(6, 6))],
    )  # fmt: skip
    nodes = [helper.make_node("Scan", ["s0", "x"], ["last", "y"], body=body, num_scan_inputs=1)]
    return model(nodes, [value("x", [3, 4, 6])], [value("y", None)], [tensor("s0", np.zeros(1, np.float32))])


@pytest.mark.parametrize("op", ["Loop", "Scan"])
def test_the_body_of_a_loop_is_refitted(op: str, tmp_path: Path) -> None:
    given = [{"x": normal(*((4, 6) if op == "Loop" else (3, 4, 6)))} for _ in range(8)]
    source = Model(inner(op))
    report = refit(source, tmp_path / "a.onnx", feeds=given, sparsity=0.5)
    assert not [note for note in report.notes if "not refitted" in note]
    ((name, weight),) = report.weights.items()
    before, after = source.values(name), load(tmp_path / "a.onnx").values(name)
    assert weight.k == np.count_nonzero(after) == 18
    assert (after != before)[after != 0].any()


def test_quantised_weights_are_refitted_on_their_grid(tmp_path: Path) -> None:
    proto = model(
        [node("DequantizeLinear", "q s z", "w"), node("MatMul", "x w", "h"), node("MatMul", "h v")],
        [value("x", [20, 12])], [value("y", None)],
        [tensor("q", RNG.integers(-99, 99, (12, 9)).astype(np.int8)), tensor("s", np.float32(0.01)),
         tensor("z", np.int8(0)), tensor("v", normal(9, 9))],
    )  # fmt: skip
    report = refit(Model(proto), tmp_path / "a.onnx", feeds=feeds((20, 12), 1), sparsity=0.5)
    assert list(report.weights) == ["q", "v"]
    q = load(tmp_path / "a.onnx").values("q")
    assert q.dtype == np.int8
    assert report.weights["q"].k == np.count_nonzero(q)


def test_the_variance_of_a_batch_normalisation_has_its_best_value() -> None:
    """Of the factors that solved outputs could have, 1 has the least error: re-estimating the variance adds some."""
    proto, shape = made("Conv, then batch normalisation")
    fitting = Fitting(Model(proto), feeds(shape, 1), threads=1)
    fitting.kept_back = feeds(shape, 1)
    fitting.network = fitting.network.on(fitting.kept_back)  # no mirrored ones: what is learned from is looked at
    solved = fitting.thin(fitting.total // 3)
    before = fitting.moved(solved)
    says = (fitting.answers(changed, fitting.kept_back) for changed in (None, solved.changed))
    # as numbers, which they are: (samples, channels, places)
    channels = len(fitting.model.values("m"))
    dense, thin = (np.concatenate([a[0].reshape(shape[0], channels, -1) for a in found]) for found in says)
    assert (solved.changed["m"] != fitting.model.values("m")).all()  # the mean is re-estimated
    share = thin.var((0, 2)) / dense.var((0, 2))
    assert (share < 1).all()
    solved.changed["v"] = (fitting.model.values("v") * share).astype(np.float32)  # type: ignore[index]
    assert fitting.moved(solved) > before
