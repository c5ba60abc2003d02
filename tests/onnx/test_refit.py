"""Refit from a model to a verified file: what it promises, and what happens when it cannot."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import emp_onnx
from emp_onnx import ModelError, UsageError, VerifyError
from emp_onnx.budget.point import Budget
from emp_onnx.budget.sweep import sweep, to_csv
from emp_onnx.cli import main
from emp_onnx.files.model_io import Model, load
from emp_onnx.refit import prepared
from emp_onnx.refit.allocate import spread
from emp_onnx.refit.fitting import Fitting
from emp_onnx.refitting import HELD, refit
from tests.onnx.builders import model, tensor, value

RNG = np.random.default_rng(1)
MIX = RNG.standard_normal((12, 12))


def feeds(count: int = 40, rows: int = 8) -> list[dict[str, Any]]:
    rng = np.random.default_rng(2)
    return [{"x": (rng.standard_normal((rows, 12)) @ MIX).astype(np.float32)} for _ in range(count)]


def network() -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    sizes = [12, 30, 30, 5]
    nodes, tensors, name = [], [], "x"
    for i, (a, b) in enumerate(pairwise(sizes)):
        tensors += [tensor(f"w{i}", (rng.standard_normal((a, b)) / np.sqrt(a)).astype(np.float32))]
        tensors += [tensor(f"b{i}", rng.standard_normal(b).astype(np.float32))]
        nodes.append(helper.make_node("Gemm", [name, f"w{i}", f"b{i}"], [f"z{i}"]))
        name = f"z{i}"
        if i < 2:
            nodes.append(helper.make_node("Relu", [name], [f"r{i}"]))
            name = f"r{i}"
    return model(nodes, [value("x", [None, 12])], [value(name, [None, 5])], tensors)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "in.onnx"
    onnx.save(network(), file)
    return file


def outputs(file: Any, given: list[dict[str, Any]]) -> Any:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in given])


def test_it_is_much_better_than_zeros(path: Path, tmp_path: Path) -> None:
    given = feeds()
    report = refit(path, tmp_path / "a.onnx", feeds=given, sparsity=0.5)
    emp_onnx.prune(path, tmp_path / "b.onnx", sparsity=0.5)
    fresh = feeds(60)[40:]
    dense, fitted, plain = (outputs(file, fresh) for file in (path, tmp_path / "a.onnx", tmp_path / "b.onnx"))
    assert np.square(fitted - dense).sum() < 0.2 * np.square(plain - dense).sum()
    assert report.point.sparsity == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("count", [2, 15, 40])
def test_in_the_end_all_feeds_are_learnt_from(path: Path, tmp_path: Path, count: int) -> None:
    given = feeds(count)
    report = refit(path, tmp_path / "a.onnx", feeds=given, sparsity=0.5)
    before = Fitting(load(path), given, held=HELD, biases=True)
    back = len(before.kept_back)
    assert len(before.network.feeds) + back == count
    keep = before.count(sparsity=0.5)
    first = before.thin(keep)
    assert (report.point.agreement, report.point.error) == (before.agreement(first), before.moved(first))
    last = before.to_all()
    assert len(last.network.feeds) == count
    assert all((a["x"] == b["x"]).all() for a, b in zip(last.network.feeds, given, strict=True))
    written = load(tmp_path / "a.onnx")
    thin = last.thin(keep)
    assert thin.changed.keys() == first.changed.keys()
    for key, values in thin.changed.items():
        np.testing.assert_array_equal(written.values(key), values)
    assert any((first.changed[key] != values).any() for key, values in thin.changed.items())
    assert (report.how["feeds"], report.how["feeds_sha256"]) == (count, Fitting(load(path), given).digest())
    assert any(
        f"fitted to all {count} feeds in the end" in note and f"from the {back} that" in note for note in report.notes
    )


@pytest.mark.parametrize("more", [{"effort": "quick"}, {"budget": Budget(size=4000)}, {"feeds": None}])
def test_what_measures_the_very_model_that_is_written_is_not_fitted_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    monkeypatch.delattr(Fitting, "to_all")
    report = refit(path, tmp_path / "a.onnx", **{"feeds": feeds(), **more})
    assert not any("in the end" in note for note in report.notes)


@pytest.mark.parametrize("allocate", ["error", "emp", "uniform", "lamp", "erk", "owl"])
@pytest.mark.parametrize("criterion", ["obs", "wanda"])
def test_exactly_so_many_are_kept(path: Path, allocate: str, criterion: str) -> None:
    fitting = Fitting(load(path), feeds())
    for keep in (fitting.total, fitting.total // 2, fitting.total // 9):
        thin = fitting.thin(keep, how=allocate, criterion=criterion)
        assert sum(int(mask.sum()) for mask in thin.masks.values()) == keep
        for key, mask in thin.masks.items():
            assert (thin.changed[key][~mask] == 0).all()
            assert not np.signbit(thin.changed[key][~mask]).any()


def test_beta_counts_as_the_rule_does(path: Path) -> None:
    fitting = Fitting(load(path), feeds())
    plan = emp_onnx.plan(load(path))
    assert fitting.count() == sum(entry.k for entry in plan.entries)
    assert fitting.count(beta=0.5) == sum(entry.k for entry in emp_onnx.plan(load(path), beta=0.5).entries)


def test_equal_inputs_give_equal_bytes(path: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        refit(path, tmp_path / f"{name}.onnx", feeds=feeds(), threads=1)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_nothing_removed_changes_next_to_nothing(path: Path, tmp_path: Path) -> None:
    refit(path, tmp_path / "a.onnx", feeds=feeds(), sparsity=0.0)
    fresh = feeds(50)[40:]
    np.testing.assert_allclose(outputs(tmp_path / "a.onnx", fresh), outputs(path, fresh), atol=1e-3)


def test_the_file_verifies_and_changes_are_found(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.onnx"
    refit(path, out, feeds=feeds())
    assert emp_onnx.verify(out).ok
    assert emp_onnx.verify(out, path).ok
    other = onnx.load(path)
    other.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(other.graph.initializer[0]) * 2, "w0")
    )
    onnx.save(other, tmp_path / "other.onnx")
    assert "another one before" in " ".join(emp_onnx.verify(out, tmp_path / "other.onnx").faults)
    for name in ("w1", "b1"):
        touched = onnx.load(out)
        (item,) = [i for i in touched.graph.initializer if i.name == name]
        array = numpy_helper.to_array(item).copy()
        array.flat[np.flatnonzero(array)[0]] *= 1.5
        item.CopyFrom(numpy_helper.from_array(array, name))
        onnx.save(touched, tmp_path / "touched.onnx")
        assert not emp_onnx.verify(tmp_path / "touched.onnx").ok
    touched = onnx.load(out)
    touched.graph.node[0].name = "renamed"
    onnx.save(touched, tmp_path / "touched.onnx")
    assert emp_onnx.verify(tmp_path / "touched.onnx").ok
    assert "differs" in " ".join(emp_onnx.verify(tmp_path / "touched.onnx", path).faults)
    touched = onnx.load(out)
    entry = touched.metadata_props[0]
    entry.value = entry.value.replace('"criterion":"obs"', '"criterion":"xyz"')
    onnx.save(touched, tmp_path / "touched.onnx")
    assert "edited" in " ".join(emp_onnx.verify(tmp_path / "touched.onnx").faults)


def test_a_bias_makes_good_the_mean(path: Path, tmp_path: Path) -> None:
    given = feeds()
    report = refit(path, tmp_path / "a.onnx", feeds=given, sparsity=0.8)
    assert set(report.biases) == {"b0", "b1", "b2"}
    gap = outputs(tmp_path / "a.onnx", given) - outputs(path, given)
    assert np.abs(gap.mean(0)).max() < 0.1 * np.abs(gap).max()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([{"y": np.zeros((1, 12), np.float32)}], "must hold the input 'x'"),
        ([{"x": np.zeros((1, 12), np.float64)}], "as float32, got float64"),
        ([{"x": np.zeros((1, 11), np.float32)}], r"\(\?, 12\), got \(1, 11\)"),
        ([], "at least one feed"),
    ],
)
def test_feeds_that_do_not_fit(path: Path, tmp_path: Path, bad: list[Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        refit(path, tmp_path / "a.onnx", feeds=bad)
    assert not (tmp_path / "a.onnx").exists()


def test_nan_activations_name_the_node(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Gemm making 'z0' must see finite numbers"):
        refit(path, tmp_path / "a.onnx", feeds=[{"x": np.full((1, 12), np.nan, np.float32)}])


def test_where_weights_go_does_not_depend_on_how_large_the_scores_are(tmp_path: Path) -> None:
    """Scores of thousands, as of a model whose feeds are not scaled, make every probability 0 or 1."""
    counts = []
    for power in (6, 10, 14):
        large = network()
        for item in large.graph.initializer:
            if item.name in ("w2", "b2"):
                item.CopyFrom(tensor(item.name, numpy_helper.to_array(item) * np.float32(2**power)))
        onnx.save(large, tmp_path / "in.onnx")
        report = refit(tmp_path / "in.onnx", tmp_path / f"{power}.onnx", feeds=feeds(), sparsity=0.5)
        assert report.point.error < 0.4
        counts.append({name: weight.k for name, weight in report.weights.items()})
    assert counts[0] == counts[1] == counts[2]


def test_too_few_feeds_are_said(path: Path, tmp_path: Path) -> None:
    report = refit(path, tmp_path / "a.onnx", feeds=feeds(4, 1))
    assert any("feeds would do" in note for note in report.notes)
    assert not any("feeds would do" in note for note in refit(path, tmp_path / "a.onnx", feeds=feeds()).notes)


def test_no_feeds_are_said_loudly(path: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["prune", str(path), str(tmp_path / "a.onnx"), "--refit", "--quiet"]) == 0
    assert "no feeds were given" in capsys.readouterr().err


def test_options_that_contradict(path: Path, capsys: Any) -> None:
    for more in (["--scope", "row"], ["--beta", "1", "--max-drop", "1%"], ["--max-drop", "1%", "--max-error", "1"],
                 ["--target-sparsity", "2"], ["--target-size", "many"]):  # fmt: skip
        assert main(["prune", str(path), "--refit", *more]) == 2
        assert " must " in capsys.readouterr().err


def test_a_recurrent_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    w, r, b = rng.standard_normal((2, 40, 6)), rng.standard_normal((2, 40, 10)) / 4, rng.standard_normal((2, 80))
    made = model(
        [helper.make_node("LSTM", ["x", "w", "r", "b"], ["", "h"], hidden_size=10, direction="bidirectional")],
        [value("x", [None, 1, 6])], [value("h", [2, 1, 10])],
        [tensor(n, a.astype(np.float32)) for n, a in (("w", w), ("r", r), ("b", b))],
    )  # fmt: skip
    onnx.save(made, tmp_path / "in.onnx")
    given = [{"x": rng.standard_normal((9, 1, 6)).astype(np.float32)} for _ in range(60)]
    refit(tmp_path / "in.onnx", tmp_path / "a.onnx", feeds=given[:50], sparsity=0.4, allocate="uniform")
    emp_onnx.prune(tmp_path / "in.onnx", tmp_path / "b.onnx", sparsity=0.4)
    dense, fitted, plain = (outputs(tmp_path / f"{n}.onnx", given[50:]) for n in ("in", "a", "b"))
    assert np.square(fitted - dense).sum() < 0.5 * np.square(plain - dense).sum()


def remembering(seed: int) -> tuple[onnx.ModelProto, np.random.Generator]:
    """A cell that hardly forgets."""
    rng = np.random.default_rng(seed)
    w, r, b = rng.standard_normal((1, 48, 6)), rng.standard_normal((1, 48, 12)) / 2, rng.standard_normal((1, 96)) / 4
    b[:, 24:36] += 4
    made = model(
        [helper.make_node("LSTM", ["x", "w", "r", "b"], ["", "h"], hidden_size=12)],
        [value("x", ["steps", 1, 6])], [value("h", [1, 1, 12])],
        [tensor(n, a.astype(np.float32)) for n, a in (("w", w), ("r", r), ("b", b))],
    )  # fmt: skip
    return made, rng


def test_short_sequences_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cell remembers does not show in sequences of one or two steps; what they are made of shows it."""
    errors = []
    for seed in range(7):
        made, rng = remembering(seed)
        onnx.save(made, tmp_path / "in.onnx")
        short = [{"x": rng.standard_normal((1 + i % 2, 1, 6)).astype(np.float32)} for i in range(80)]
        long = [{"x": rng.standard_normal((20, 1, 6)).astype(np.float32)} for _ in range(20)]
        done = refit(tmp_path / "in.onnx", tmp_path / "a.onnx", feeds=short, sparsity=0.4)
        assert done.how["feeds"] == 80
        assert any("made by joining them" in note for note in done.notes)
        with monkeypatch.context() as patch:
            patch.setattr(prepared, "longer", lambda *_: [])
            done = refit(tmp_path / "in.onnx", tmp_path / "b.onnx", feeds=short, sparsity=0.4)
        assert not any("made by joining them" in note for note in done.notes)
        dense, joined, alone = (outputs(tmp_path / f"{n}.onnx", long) for n in ("in", "a", "b"))
        errors.append([np.square(joined - dense).sum(), np.square(alone - dense).sum()])
    assert np.median(np.divide(*np.transpose(errors))) < 0.8  # of a single one chance decides


def test_a_failed_check_leaves_nothing(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from emp_onnx.verification import refitted as room

    def failing(*_: Any) -> tuple[Any, ...]:
        return (emp_onnx.Check("made to fail", False, ("it was made to fail",)),)

    monkeypatch.setattr(room, "_against", failing)
    with pytest.raises(VerifyError, match="made to fail"):
        refit(path, tmp_path / "a.onnx", feeds=feeds())
    assert not (tmp_path / "a.onnx").exists()


def test_budget_is_never_exceeded(path: Path, tmp_path: Path) -> None:
    given = feeds()
    report = refit(path, tmp_path / "a.onnx", feeds=given, budget=Budget(error=0.05))
    assert 0.05 < report.point.sparsity < 1
    assert report.point.error <= 0.05
    again = Fitting(load(path), given, held=0.25)
    out = Model(onnx.load(tmp_path / "a.onnx"))
    from emp_onnx.refit.fitting import Thin

    thin = Thin({k: out.values(k) for k in ("w0", "w1", "w2", "b0", "b1", "b2")}, {})
    assert again.moved(thin) <= 0.05


def test_a_metric_of_ones_own(path: Path, tmp_path: Path, capsys: Any) -> None:
    np.savez(tmp_path / "feeds.npz", x=np.stack([feed["x"] for feed in feeds()]))
    script = tmp_path / "mine.py"
    script.write_text(
        "import numpy as np, onnx\n"
        "def score(path):\n"
        "    found = onnx.load(path).graph.initializer\n"
        "    return -float(sum((onnx.numpy_helper.to_array(i) == 0).sum() for i in found))\n"
        "def broken(path):\n    raise RuntimeError('no such luck')\n"
    )
    common = ["prune", str(path), str(tmp_path / "a.onnx"), "--feeds", str(tmp_path / "feeds.npz"), "--json"]
    assert main([*common, "--metric", f"{script}:score", "--max-drop", "300"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert -300 <= said["measured"]["score"] < -200
    (tmp_path / "a.onnx").unlink()
    assert main([*common, "--metric", f"{script}:broken"]) == 2
    assert "no such luck" in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()
    assert main([*common, "--metric", f"{script}:absent"]) == 2
    assert main([*common, "--metric", "nowhere.py:f"]) == 2


def test_a_size_that_is_asked_for(path: Path, tmp_path: Path) -> None:
    full = refit(path, tmp_path / "a.onnx", feeds=feeds(), sparsity=0.0).after.gzipped
    assert full is not None
    report = refit(path, tmp_path / "a.onnx", feeds=feeds(), budget=Budget(size=full * 3 // 4))
    assert report.point.size is not None
    assert report.after.gzipped == report.point.size <= full * 3 // 4  # the certificate counts
    with pytest.raises(UsageError, match="target_size must be one that can be reached"):
        refit(path, tmp_path / "b.onnx", feeds=feeds(), budget=Budget(size=10))
    assert not (tmp_path / "b.onnx").exists()


def test_spread() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        sizes = rng.integers(1, 50, rng.integers(1, 8)).tolist()
        shares = rng.exponential(1, len(sizes)).tolist()
        total = int(rng.integers(len(sizes), sum(sizes) + 1))
        counts = spread(shares, sizes, total)
        assert sum(counts) == total
        assert all(1 <= k <= n for k, n in zip(counts, sizes, strict=True))


def test_nan_on_a_feed_that_is_only_measured_on(path: Path, tmp_path: Path) -> None:
    given = feeds()
    given[10]["x"][0, 0] = np.nan
    with pytest.raises(ModelError, match="Gemm making 'z2' must give numbers, got NaN on feed 0 of those that are"):
        refit(path, tmp_path / "out.onnx", feeds=given)
    assert not (tmp_path / "out.onnx").exists()


def test_a_drop_is_of_what_is_expected_of_other_inputs_too(path: Path, tmp_path: Path, capsys: Any) -> None:
    np.savez(tmp_path / "feeds.npz", x=np.stack([feed["x"] for feed in feeds()]))
    common = ["prune", str(path), str(tmp_path / "a.onnx"), "--feeds", str(tmp_path / "feeds.npz"), "--json"]
    found = {}
    for of in ("agreement", "accuracy"):
        assert main([*common, "--max-drop", "5%", "--drop-in", of]) == 0
        found[of] = json.loads(capsys.readouterr().out)
    strict, loose = (found[of]["measured"] for of in ("agreement", "accuracy"))
    assert strict["expected"] is None or min(strict["agreement"], strict["expected"]) >= 0.95
    assert loose["cost"] is None or loose["cost"] <= 0.05
    assert loose["sparsity"] >= strict["sparsity"]
    assert found["accuracy"]["how"]["budget"] == {"drop": 0.05, "drop_in": "accuracy"}
    assert main([*common, "--max-error", "0.1", "--drop-in", "accuracy"]) == 2
    assert main([*common, "--metric", "nowhere.py:f", "--drop-in", "accuracy"]) == 2


def test_a_sweep_gives_mass_and_bound(path: Path, tmp_path: Path) -> None:
    points = sweep(Fitting(load(path), feeds(), held=0.25), (0.3, 0.6), criterion="magnitude", update=False)
    for point in points:
        assert point.mass is not None
        assert point.bound is not None
        assert 0 < point.bound <= point.mass <= 1
    header, *lines = to_csv(points).splitlines()
    assert header == "sparsity,mass,bound,agreement,expected,cost,error,score"
    assert len(lines) == 2


def half_product(path: Path) -> list[dict[str, Any]]:
    """A product in half precision, and feeds for it."""
    w = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float16)
    half = onnx.TensorProto.FLOAT16
    ins, outs = (helper.make_tensor_value_info(n, half, [None, k]) for n, k in (("x", 12), ("y", 5)))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [ins], [outs])
    graph.initializer.append(numpy_helper.from_array(w, "w"))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, path)
    return [{"x": np.random.default_rng(i).standard_normal((9, 12)).astype(np.float16)} for i in range(6)]


def test_half_precision_is_run_whole_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a model may crash onnxruntime (1.32 does, on attention of torch): it must not take this process along."""
    from emp_onnx import refitting

    def here(**_: Any) -> None:
        raise AssertionError("run in this process")

    monkeypatch.setattr(refitting, "Here", here)
    some = half_product(tmp_path / "in.onnx")
    assert refitting.refit(tmp_path / "in.onnx", feeds=some, sparsity=0.5).verification.ok


def test_a_model_that_crashes_onnxruntime_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emp_onnx import refitting
    from emp_onnx.errors import ModelError
    from emp_onnx.runtime.compare import CrashedError

    def crash(*_: Any, **__: Any) -> None:
        raise CrashedError("onnxruntime crashed (segmentation fault) when it loaded it")

    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("the work came first")

    monkeypatch.setattr(refitting.Isolated, "open", crash)
    monkeypatch.setattr(refitting.Fitting, "thin", work)
    some = half_product(tmp_path / "in.onnx")
    with pytest.raises(ModelError, match="must be one that onnxruntime runs: onnxruntime crashed"):
        refitting.refit(tmp_path / "in.onnx", feeds=some, sparsity=0.5)


@pytest.mark.parametrize("effort", ["full", "quick"])
def test_a_weight_that_is_not_finite_is_named(path: Path, tmp_path: Path, effort: str) -> None:
    model = onnx.load(path)
    (tensor,) = (item for item in model.graph.initializer if item.name == "w1")
    broken = numpy_helper.to_array(tensor).copy()
    broken.flat[3] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(broken, "w1"))
    onnx.save(model, path)
    with pytest.raises(ModelError, match="weight 'w1' must hold finite numbers, got 1 that are NaN or infinite"):
        refit(path, tmp_path / "a.onnx", feeds=feeds(), effort=effort)
