"""The quick way: the same sums from one pass of the feeds, and layers solved by themselves."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import emp_onnx
from emp_onnx import UsageError, calibrate, find_weights
from emp_onnx.calibration import once as module
from emp_onnx.calibration.network import Network
from emp_onnx.calibration.once import once
from emp_onnx.calibration.reads import Reads
from emp_onnx.cli import main
from emp_onnx.files.model_io import Model, load
from emp_onnx.refit.quick import Quick
from emp_onnx.refitting import refit
from tests.onnx import test_pooled as pooled
from tests.onnx.test_known import moved
from tests.onnx.test_refit import feeds, network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(network(), tmp_path / "in.onnx")
    np.savez(tmp_path / "feeds.npz", x=np.stack([feed["x"] for feed in feeds()]))
    return tmp_path


def prepared(model: Model, given: list[dict[str, Any]]) -> Network:
    return Network(model, find_weights(model).weights, given, 1)


@pytest.mark.parametrize("room", [1, 1 << 12, 1 << 24])
def test_one_pass_sums_what_levels_sum(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOM", room)
    model = Model(network())
    net = prepared(model, feeds())
    levels = [step.level for step in net.program.steps]
    found = once(net)
    assert [step.level for step in net.program.steps] == levels
    problems = [problem for site in net.sites for problem in site.problems]
    for problem, right in zip(problems, calibrate(model, feeds()).inputs, strict=True):
        sums = found[id(problem)]
        assert sums.count == right.count
        assert right.second is not None
        size = np.sqrt(np.einsum("gii->gi", right.second))
        gap = np.abs(sums.xx - right.second) / np.maximum(size[:, :, None] * size[:, None], 1e-12)
        assert gap.max() < 1e-5
        np.testing.assert_allclose(sums.x, right.total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", [*pooled.WAYS, *pooled.OTHERS])
def test_positions_before_a_mean_are_taken_as_level_by_level(way: str) -> None:
    steps = {**pooled.WAYS, **pooled.OTHERS}[way]
    net = prepared(Model(pooled.model(steps)), pooled.feeds())
    right = pooled.moments(steps)
    (found,) = [once(net)[id(problem)] for problem in net.at(net.levels)[0].problems]
    assert found.count == right.count
    np.testing.assert_allclose(found.xx, right.xx, rtol=1e-5, atol=1e-6)


def test_a_mean_that_is_one_on_the_first_feeds_only_is_none() -> None:
    steps = [pooled.POOL, pooled.clip(-1e3, 1.0), pooled.FLAT]
    small = [{"x": feed["x"] * np.float32(1e-2)} for feed in pooled.feeds()]
    large = {"x": np.full((1, 3, 5, 5), 9, np.float32)}
    for given, count in ((small, 12 * 25), ([*small, large], 13)):
        net = prepared(Model(pooled.model(steps)), given)
        (problem,) = net.at(net.levels)[0].problems
        assert once(net)[id(problem)].count == count


def test_what_a_site_was_given_is_let_go_at_once() -> None:
    """Not when garbage is searched for next, which a command does seldom: activations are large."""
    net = prepared(Model(network()), feeds())
    run, site = net.runner(), net.at(1)[0]
    run.level(0, net.wanted())
    gc.disable()
    try:
        get = Reads(net, site, None).at(run, [0, 1])
        assert get(site.reads[0]) is not None
        gone = weakref.ref(get)
        del get
        assert gone() is None
    finally:
        gc.enable()


def test_it_is_far_better_than_zeros_and_near_the_full_effort(folder: Path) -> None:
    for name, options in (("full", ["--refit"]), ("quick", ["--effort", "quick"]), ("zeros", [])):
        given = ["--feeds", str(folder / "feeds.npz"), "--sparsity", "0.5", "--quiet", *options]
        assert main(["prune", str(folder / "in.onnx"), str(folder / f"{name}.onnx"), *given]) == 0
    full, quick, zeros = (moved(folder, f"{name}.onnx") for name in ("full", "quick", "zeros"))
    assert quick < 0.2 * zeros
    assert quick < 4 * full
    assert emp_onnx.verify(folder / "quick.onnx", folder / "in.onnx").ok


@pytest.mark.parametrize("allocate", ["error", "emp", "lamp"])
def test_exactly_so_many_are_kept(folder: Path, allocate: str) -> None:
    fitting = Quick(load(folder / "in.onnx"), feeds())
    for keep in (fitting.total, fitting.total // 2, fitting.total // 9):
        thin = fitting.thin(keep, how=allocate)
        assert sum(int(mask.sum()) for mask in thin.masks.values()) == keep


def test_the_report_says_how(folder: Path, capsys: Any) -> None:
    given = ["--feeds", str(folder / "feeds.npz"), "--effort", "quick", "--json"]
    assert main(["prune", str(folder / "in.onnx"), str(folder / "out.onnx"), *given]) == 0
    how = json.loads(capsys.readouterr().out)["how"]
    assert (how["effort"], how["allocate"], how["criterion"]) == ("quick", "lamp", "obs")


def scaled(by: np.ndarray[Any, Any]) -> onnx.ModelProto:
    """Two layers; what goes into the second is multiplied by `by`, and its weight divided by it."""
    rng = np.random.default_rng(5)
    first, second = rng.standard_normal((12, 16)), rng.standard_normal((16, 6)) * np.linspace(0.1, 3, 16)[:, None]
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"]), helper.make_node("Mul", ["a", "by"], ["b"]),
        helper.make_node("MatMul", ["b", "second"], ["y"]),
    ]  # fmt: skip
    arrays = {"first": first, "second": second / by[:, None], "by": by}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, ["n", 12])], [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def test_how_much_a_layer_keeps_does_not_depend_on_the_units_of_what_goes_into_it() -> None:
    given = [{"x": x.astype(np.float32)} for x in np.random.default_rng(1).standard_normal((50, 1, 12))]
    kept = []
    for by in (np.ones(16), 2.0 ** np.random.default_rng(2).integers(-6, 7, 16)):
        fitting = Quick(Model(scaled(by)), given)
        thin = fitting.thin(fitting.total // 2, how="lamp")
        kept.append({name: int(mask.sum()) for name, mask in thin.masks.items()})
    assert kept[0] == kept[1]
    assert kept[0]["first"] != kept[0]["second"]


def cell(op: str) -> onnx.ModelProto:
    """A cell whose first state is computed from another input."""
    rng, gates = np.random.default_rng(3), {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    arrays = {
        "w": rng.standard_normal((1, 5 * gates, 4)), "r": rng.standard_normal((1, 5 * gates, 5)) / 2,
        "start": rng.standard_normal((3, 5)),
    }  # fmt: skip
    states = ["h", "h"] if op == "LSTM" else ["h"]
    nodes = [
        helper.make_node("MatMul", ["s", "start"], ["h"]),
        helper.make_node(op, ["x", "w", "r", "", "", *states], ["y"], hidden_size=5),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, [7, 1, 4]), helper.make_tensor_value_info("s", 1, [1, 1, 3])]
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_a_cell_that_begins_where_something_else_left_off(op: str) -> None:
    rng = np.random.default_rng(4)
    given = [
        {"x": rng.standard_normal((7, 1, 4), np.float32), "s": rng.standard_normal((1, 1, 3), np.float32)}
        for _ in range(20)
    ]
    model = Model(cell(op))
    found, net = once(prepared(model, given)), prepared(model, given)
    for sums, right in zip(found.values(), calibrate(model, given).inputs, strict=True):
        np.testing.assert_allclose(sums.xx, right.second, rtol=1e-5, atol=1e-5)
    assert len(found) == sum(len(site.problems) for site in net.sites)


def test_what_does_not_go_together(folder: Path) -> None:
    with pytest.raises(UsageError, match="effort must be one of full, quick, got 'none'"):
        refit(folder / "in.onnx", feeds=feeds(), effort="none")
    with pytest.raises(UsageError, match="effort must be full without feeds"):
        refit(folder / "in.onnx", stats=calibrate(folder / "in.onnx", feeds()), effort="quick")
    assert not (folder / "in.pruned.onnx").exists()


@pytest.mark.parametrize(("sparsity", "said"), [(0.1, False), (0.97, True)])
def test_what_little_effort_leaves_wrong_is_said(folder: Path, sparsity: float, said: bool) -> None:
    report = refit(folder / "in.onnx", feeds=folder / "feeds.npz", sparsity=sparsity, effort="quick")
    assert (report.point.error > 0.2) == said
    assert any("full effort" in note for note in report.notes) == said
