"""The verb: what it writes, what it refuses, and that a failed proof leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import emp_onnx.shrink.run as run
import emp_onnx.shrink.store as store
from emp_onnx.cli import main
from emp_onnx.errors import ModelError, UsageError
from emp_onnx.shrink import shrink
from emp_onnx.shrink.fitting.order import RIDGE, eliminate, side
from emp_onnx.shrink.fitting.readers import Reader
from emp_onnx.shrink.fitting.refit import solve, wanted
from emp_onnx.shrink.proof import Proof
from emp_onnx.shrink.search.amounts import keep
from emp_onnx.verification.outcome import VerifyError
from emp_onnx.words import MAKE_CONSTANT
from tests.shrink_fuzz import check


def network(dead: int = 0, bias: bool = True, width: int = 32) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    a = (rng.standard_normal((12, width)) / 4).astype(np.float32)
    a[:, :dead] = 0
    basis = rng.standard_normal((4, width)).astype(np.float32)
    if not dead:
        a = (rng.standard_normal((12, 4)) @ basis / 4).astype(np.float32)  # four directions, said by many channels
    constants = {
        "a": a,
        "ab": rng.standard_normal(width).astype(np.float32),
        "b": rng.standard_normal((width, 5)).astype(np.float32),
        "bb": np.ones(5, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Add", ["h", "ab"], ["i"]),
        helper.make_node("Sigmoid", ["i"], ["j"]),
        helper.make_node("MatMul", ["j", "b"], ["k"]),
        helper.make_node("Add", ["k", "bb"], ["y"]),
    ]
    if not bias:
        nodes[3].output[0] = "y"
        del nodes[4]
        del constants["bb"]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 12])],
        [helper.make_tensor_value_info("y", 1, ["n", 5])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(network(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def feeds(count: int = 64) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((4, 12)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("block", range(10))
def test_masked_equals_shrunk_on_generated_graphs(block: int) -> None:
    for seed in range(10_000 + 10 * block, 10_010 + 10 * block):
        faults, _ = check(seed)
        assert not faults


def test_constants_that_dead_channels_say_are_folded(tmp_path: Path) -> None:
    onnx.save(network(dead=5), tmp_path / "net.onnx")
    report = shrink(tmp_path / "net.onnx", dead_only=True, feeds=feeds())
    assert report.removed == 5
    assert report.error < 1e-6
    assert report.out == tmp_path / "net.shrunk.onnx"


def test_a_dead_channel_stays_where_no_bias_can_speak_for_it(tmp_path: Path) -> None:
    onnx.save(network(dead=5, bias=False), tmp_path / "net.onnx")
    report = shrink(tmp_path / "net.onnx", dead_only=True, feeds=feeds())
    assert report.removed == 0
    assert any("NOTHING WAS REMOVED" in note for note in report.notes)


def test_the_spectrum_counts_directions_and_refit_keeps_what_they_say(path: Path) -> None:
    plain = shrink(path, feeds=feeds(), signal="spectrum", beta=3, round_to=1)
    fitted = shrink(path, feeds=feeds(), signal="spectrum", beta=3, round_to=1, refit=True)
    assert fitted.groups[0].n_eff is not None
    assert fitted.groups[0].n_eff < 6
    assert fitted.groups == plain.groups
    assert fitted.error < 0.1 < plain.error


def test_equal_inputs_give_equal_bytes(path: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shrink(path, tmp_path / name, feeds=feeds(), refit=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("budget", [{"max_drop": 0.1}, {"max_error": 0.1}, {"target_flops": 0.5}, {"target_size": 0.5}])
def test_budgets_hold(path: Path, budget: dict[str, float]) -> None:
    report = shrink(path, feeds=feeds(), refit=True, round_to=1, **budget)
    assert report.removed
    if "max_drop" in budget:
        assert report.agreement is not None
        assert report.agreement >= 0.9
    if "max_error" in budget:
        assert report.error <= 0.1
    if "target_flops" in budget:
        assert report.flops[1] <= 0.5 * report.flops[0]
    if "target_size" in budget:
        assert report.parameters[1] <= 0.5 * report.parameters[0]


def test_a_failed_proof_writes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "prove", lambda *_, **__: Proof(1, False, 1.0, 0.0, "output 'y' is off by 1 of its size"))
    with pytest.raises(VerifyError, match="nothing was written"):
        shrink(path, feeds=feeds())
    assert [file.name for file in path.parent.iterdir()] == ["net.onnx"]


def test_a_proof_can_fail(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = run.exact

    def wrong(*args: object) -> tuple[onnx.ModelProto, onnx.ModelProto]:
        reference, shrunk = real(*args)
        tensor = next(t for t in shrunk.graph.initializer if t.name == "b")
        values = numpy_helper.to_array(tensor).copy()
        values[0, 0] += 0.01
        tensor.CopyFrom(numpy_helper.from_array(values, "b"))
        return reference, shrunk

    monkeypatch.setattr(run, "exact", wrong)
    with pytest.raises(VerifyError, match="is off by"):
        shrink(path, feeds=feeds())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta must be > 0, got 0.0"),
        ({"signal": "luck"}, "signal must be one of norm, activation, spectrum, got 'luck'"),
        ({"target_latency": 0.5, "target_size": 0.5}, "must come without"),
        ({"target_flops": 1.5}, "target_flops must be a share > 0 and < 1"),
        ({"dead_only": True, "refit": True}, "dead_only must come without refit"),
        ({"round_to": 0}, "round_to must be ≥ 1, got 0"),
        ({"include": ["nothing*"]}, "must match the name of a group"),
        ({"feeds": []}, "feeds must hold at least one feed, got none"),
        ({"feeds": [{"x": np.zeros((4, 11), np.float32)}]}, r"must hold 'x' of shape \(n, 12\), got \(4, 11\)"),
    ],
)
def test_what_makes_no_sense_is_said(path: Path, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        shrink(path, **({"feeds": feeds()} | options))
    assert [file.name for file in path.parent.iterdir()] == ["net.onnx"]


def test_a_model_without_channels_is_refused_with_the_reason(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "a"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [2, 3])],
        [helper.make_tensor_value_info("y", 1, [2, 4])],
        [numpy_helper.from_array(np.ones((3, 4), np.float32), "a")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="it is an output of the model"):
        shrink(tmp_path / "m.onnx")


def test_weights_that_callers_may_replace_stay_and_it_is_said_how_they_become_constants(tmp_path: Path) -> None:
    model = network(dead=8)
    free = tmp_path / "free.onnx"
    model.graph.input.append(helper.make_tensor_value_info("b", 1, [32, 5]))
    onnx.save(model, free)
    with pytest.raises(ModelError, match=f"can be shrunk: .*{MAKE_CONSTANT}"):
        shrink(free, dead_only=True)
    model.graph.input.append(helper.make_tensor_value_info("bb", 1, [5]))
    del model.graph.input[1]
    onnx.save(model, free)
    assert MAKE_CONSTANT in shrink(free, tmp_path / "s.onnx", dead_only=True).notes
    del model.graph.input[1]
    onnx.save(model, free)
    assert MAKE_CONSTANT not in shrink(free, tmp_path / "s.onnx", dead_only=True).notes


def test_external_data_stays_external(tmp_path: Path) -> None:
    onnx.save(
        network(width=256), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0
    )
    before = (tmp_path / "net.data").read_bytes()
    report = shrink(tmp_path / "net.onnx", tmp_path / "out.onnx", feeds=feeds())
    assert len(report.sidecars) == 1
    assert (tmp_path / "net.data").read_bytes() == before
    assert onnx.load(tmp_path / "out.onnx").graph.initializer
    assert sum(
        t.data_location == onnx.TensorProto.EXTERNAL
        for t in onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    )


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A model with its values in a sidecar."""
    file = tmp_path / "net.onnx"
    onnx.save(network(width=64), file, save_as_external_data=True, location="net.data", size_threshold=0)
    return file


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("options", [{}, {"round_to": 1}], ids=["the same again", "another"])
def test_what_breaks_off_leaves_what_an_earlier_run_wrote(
    beside: Path, monkeypatch: pytest.MonkeyPatch, options: dict
) -> None:
    out = beside.with_name("out.onnx")
    shrink(beside, out, feeds=feeds())
    before = contents(beside.parent)

    @contextmanager
    def broken(*_: object) -> Iterator[None]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(store, "staged", broken)
    with pytest.raises(KeyboardInterrupt):
        shrink(beside, out, feeds=feeds(), **options)
    assert contents(beside.parent) == before
    onnx.load(out)


def test_sidecars_of_what_is_replaced_go(beside: Path) -> None:
    out = beside.with_name("out.onnx")
    before = shrink(beside, out, feeds=feeds())
    report = shrink(beside, out, feeds=feeds(), round_to=1)
    assert before.sidecars != report.sidecars
    assert set(contents(beside.parent)) == {"net.onnx", "net.data", "out.onnx", report.sidecars[0].name}
    first = shrink(beside, in_place=True, feeds=feeds())
    second = shrink(beside, in_place=True, feeds=feeds(), round_to=1)
    assert first.sidecars != second.sidecars
    assert not first.sidecars[0].exists()
    assert (beside.parent / "net.data").exists()  # not one that was written here
    onnx.load(beside)


def test_a_sidecar_that_another_model_names_stays(beside: Path) -> None:
    """As one does that `emp fuse` wrote."""
    out = beside.with_name("out.onnx")
    before = shrink(beside, out, feeds=feeds())
    other = beside.with_name("other.onnx")
    other.write_bytes(out.read_bytes())
    shrink(beside, out, feeds=feeds(), round_to=1)
    assert before.sidecars[0].exists()
    onnx.load(other)


@pytest.mark.parametrize("earlier", [False, True])
def test_the_file_itself_is_verified_before_it_takes_its_place(
    beside: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    out = beside.with_name("out.onnx")
    if earlier:
        shrink(beside, out, feeds=feeds(), round_to=1)
    before = contents(beside.parent)
    real = onnx.external_data_helper.set_external_data
    monkeypatch.setattr(onnx.external_data_helper, "set_external_data", lambda t, name, _, size: real(t, name, 0, size))
    with pytest.raises(VerifyError, match="nothing was written: the file that was written holds another model"):
        shrink(beside, out, feeds=feeds())
    assert contents(beside.parent) == before


def test_a_sidecar_of_the_model_is_no_place_for_the_result(beside: Path) -> None:
    before = contents(beside.parent)
    with pytest.raises(UsageError, match="out must not be a file of the model"):
        shrink(beside, beside.with_name("net.data"), feeds=feeds())
    assert contents(beside.parent) == before


def test_the_command_line(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shrink", str(path), str(tmp_path / "out.onnx"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["random"] is True
    assert data["proof"]["problem"] == ""
    assert main(["shrink", str(path), "--round-to", "many"]) == 2
    assert "--round-to must be a whole number ≥ 1, got 'many'" in capsys.readouterr().err
    assert main(["shrink", str(tmp_path / "missing.onnx")]) == 3
    assert main(["shrink", str(path), str(path)]) == 2


@given(st.integers(1, 64), st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=100)
def test_what_is_kept_is_round_and_within_bounds(units: int, seed: int, round_to: int, least: int) -> None:
    scores = np.random.default_rng(seed).random(units)
    number, kept = keep(scores, units, round_to=round_to, least=least)
    assert 1 <= kept <= units
    assert kept >= min(least, units)
    assert kept == units or kept % round_to == 0
    assert kept >= int(number) or kept == units


def test_elimination_against_the_slow_way() -> None:
    """The first unit to go, and its cost, are those of solving each least-squares problem anew."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6))
    w = rng.standard_normal((4, 6))
    ones = np.concatenate([x, np.ones((500, 1))], 1)
    reader = Reader(None, "w", "x", "rightt", 1, 0, "b", channels=6)  # type: ignore[arg-type]
    made = side(reader, w, ones.T @ ones / 500, np.arange(6), 6)
    assert made is not None
    curve = eliminate([made], 6)
    h = np.cov(x.T, bias=True)
    h += np.eye(6) * RIDGE * np.trace(h) / 6
    costs = []
    for u in range(6):
        kept = [i for i in range(6) if i != u]
        new = w @ h[:, kept] @ np.linalg.inv(h[np.ix_(kept, kept)])
        gap = np.zeros_like(w)
        gap[:, kept] = new
        gap -= w
        costs.append(np.einsum("of,fg,og->", gap, h, gap))
    assert curve.order[0] == int(np.argmin(costs))
    total = np.einsum("of,fg,og->", w, np.cov(x.T, bias=True), w)
    np.testing.assert_allclose(curve.error[0], min(costs) / total, rtol=1e-9)
    assert (np.diff(curve.error) >= -1e-12).all()


def test_a_fit_of_what_is_there_changes_nothing() -> None:
    rng = np.random.default_rng(4)
    x = np.concatenate([rng.standard_normal((200, 5)), np.ones((200, 1))], 1)
    m = rng.standard_normal((3, 5))
    new, shift = solve(x.T @ x / 200, wanted(x.T @ x / 200, m), m, bias=True)
    np.testing.assert_allclose(new, m, atol=1e-9)
    np.testing.assert_allclose(shift, 0, atol=1e-9)


@pytest.mark.parametrize("refit", [False, True])
def test_feeds_of_which_the_model_makes_nan_or_nothing_are_refused(path: Path, tmp_path: Path, refit: bool) -> None:
    """One NaN among many is enough to spoil what is learned from all."""
    given = feeds(20)
    given[7]["x"].flat[5] = np.nan
    with pytest.raises(UsageError, match="outputs are numbers, got NaN on feed 7"):
        shrink(path, tmp_path / "a.onnx", feeds=given, refit=refit, target_flops=0.7)
    empty = [{"x": feed["x"][:0]} for feed in feeds(4)]
    with pytest.raises(UsageError, match="got nothing on feed 0"):
        shrink(path, tmp_path / "a.onnx", feeds=empty, refit=refit, target_flops=0.7)
    assert not (tmp_path / "a.onnx").exists()
