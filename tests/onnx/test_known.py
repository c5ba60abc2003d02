"""Pruning from saved statistics and from gradients: what they can do without feeds, and what does not fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from emp_onnx import UsageError, calibrate
from emp_onnx.cli import main
from emp_onnx.files.model_io import load
from emp_onnx.refitting import refit
from tests.onnx.test_refit import feeds, network, outputs

WEIGHTS = ("w0", "w1", "w2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(network(), tmp_path / "in.onnx")
    np.savez(tmp_path / "feeds.npz", x=np.stack([feed["x"] for feed in feeds()]))
    calibrate(tmp_path / "in.onnx", feeds()).save(tmp_path / "s.npz")
    calibrate(tmp_path / "in.onnx", feeds(), second=False).save(tmp_path / "norms.npz")
    np.savez(tmp_path / "g.npz", **gradients())
    return tmp_path


def gradients(**other: Any) -> dict[str, Any]:
    rng, shapes = np.random.default_rng(5), {"w0": (12, 30), "w1": (30, 30), "w2": (30, 5)}
    made = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: value for name, value in {**made, **other}.items() if value is not None}


def moved(folder: Path, file: str) -> float:
    fresh = feeds(60)[40:]
    dense, thin = (outputs(folder / name, fresh) for name in ("in.onnx", file))
    return float(np.square(thin - dense).sum() / np.square(dense - dense.mean(0)).sum())


def prune(folder: Path, out: str, *options: str) -> int:
    return main(["prune", str(folder / "in.onnx"), str(folder / out), "--sparsity", "0.5", "--quiet", *options])


def kept(folder: Path, out: str) -> dict[str, Any]:
    model = load(folder / out)
    return {name: model.values(name) for name in WEIGHTS}


def test_a_refit_from_statistics_is_far_better_than_zeros_and_near_that_from_feeds(folder: Path) -> None:
    stats = str(folder / "s.npz")
    assert prune(folder, "masks.onnx", "--stats", stats, "--criterion", "wanda") == 0
    assert prune(folder, "solved.onnx", "--stats", stats, "--refit") == 0
    assert prune(folder, "fed.onnx", "--feeds", str(folder / "feeds.npz"), "--refit") == 0
    masks, solved, fed = (moved(folder, f"{name}.onnx") for name in ("masks", "solved", "fed"))
    assert solved < 0.6 * masks
    assert fed < solved < 3 * fed
    values, before = kept(folder, "masks.onnx"), load(folder / "in.onnx")
    for name, value in values.items():  # only masks: what is left is as it was
        np.testing.assert_array_equal(value[value != 0], before.values(name)[value != 0])
    assert sum(np.count_nonzero(v) for v in values.values()) == sum(v.size for v in values.values()) // 2


def test_as_many_feeds_as_are_said_to_do_do(folder: Path) -> None:
    """The number is of the feeds behind the statistics, not of those that the result was measured on."""

    def wanted(count: int, out: str) -> list[int]:
        notes = refit(folder / "in.onnx", folder / out, stats=calibrate(folder / "in.onnx", feeds(count, 1))).notes
        return [
            int(found[1].replace(",", "")) for note in notes if (found := re.search(r"([\d,]+) feeds would do", note))
        ]

    (few,) = wanted(4, "few.onnx")
    assert few > 4
    assert wanted(few, "enough.onnx") == []
    assert wanted(few - 1, "nearly.onnx") == [few]


def test_what_is_said_of_weights_that_stay_as_they_were(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["prune", str(folder / "in.onnx"), "--sparsity", "0.5", "--stats", str(folder / "s.npz")]
    assert main([*common[:2], str(folder / "masks.onnx"), *common[2:], "--criterion", "wanda"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "with the values that they had" in said
    assert "new values" not in said
    assert "on seeded random feeds" in said.split("Wrote")[1]
    assert (
        main([*common[:2], str(folder / "solved.onnx"), *common[2:], "--refit", "--feeds", str(folder / "feeds.npz")])
        == 0
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "Kept weights hold new values" in said
    assert "on feeds kept back" in said.split("Wrote")[1]


def test_statistics_of_two_runs_prune_like_those_of_one(folder: Path) -> None:
    given, path = feeds(), folder / "in.onnx"
    calibrate(path, given[:17]).merge(calibrate(path, given[17:])).save(folder / "two.npz")
    for name in ("s", "two"):
        assert prune(folder, f"{name}.onnx", "--stats", str(folder / f"{name}.npz"), "--refit") == 0
    one, two = kept(folder, "s.onnx"), kept(folder, "two.onnx")
    for name in WEIGHTS:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4, atol=1e-5)


def test_norms_are_enough_for_wanda_and_not_for_more(folder: Path, capsys: Any) -> None:
    norms = str(folder / "norms.npz")
    assert prune(folder, "a.onnx", "--stats", norms) == 0
    assert prune(folder, "b.onnx", "--stats", norms, "--criterion", "obs") == 2
    assert (
        "criterion must be one of magnitude, gradient, wanda with statistics with norms only" in capsys.readouterr().err
    )
    assert prune(folder, "b.onnx", "--stats", norms, "--refit") == 2
    assert "a refit must have second moments" in capsys.readouterr().err
    assert not (folder / "b.onnx").exists()


def test_gradients_decide_what_stays(folder: Path) -> None:
    file = str(folder / "g.npz")
    assert prune(folder, "a.onnx", "--gradients", file, "--allocate", "uniform") == 0
    before, after = load(folder / "in.onnx"), kept(folder, "a.onnx")
    for name, value in gradients().items():
        scores = np.abs(before.values(name) * value)
        mask = after[name] != 0
        assert scores[mask].min() >= scores[~mask].max()
        assert mask.sum() == pytest.approx(mask.size / 2, abs=1)
        np.testing.assert_array_equal(after[name][mask], before.values(name)[mask])
    for more in (("--feeds", str(folder / "feeds.npz")), ("--stats", str(folder / "s.npz"))):
        assert prune(folder, "b.onnx", "--gradients", file, "--refit", "--allocate", "uniform", *more) == 0
        solved = kept(folder, "b.onnx")
        for name in WEIGHTS[:1]:  # the first layer sees what the dense one sees
            np.testing.assert_array_equal(solved[name] != 0, after[name] != 0)
            assert np.abs(solved[name] - after[name]).max() > 1e-3


def test_the_count_is_that_of_the_scores(folder: Path) -> None:
    one = np.full((12, 30), 1e-6, np.float32)
    one[3, 4] = 1e6
    report = refit(folder / "in.onnx", folder / "a.onnx", gradients=gradients(w0=one), update=False, exclude=["w[12]"])
    assert report.weights["w0"].k == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"w9": np.zeros(3)}, "gradients must be of weights of the model, got 'w9'; weights are: 'w0', 'w1', 'w2'"),
        ({"w1": np.zeros((30, 29))}, r"the shape of their weight: 'w1' is \(30, 30\), got \(30, 29\)"),
        ({"w1": None}, "must hold every weight that is pruned, got none of 'w1'"),
        ({"w1": np.full((30, 30), np.nan)}, "must be finite numbers, got others for 'w1'"),
    ],
)
def test_gradients_that_do_not_fit(folder: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        refit(folder / "in.onnx", folder / "a.onnx", gradients=gradients(**changed), update=False)
    assert not (folder / "a.onnx").exists()


def test_statistics_of_another_model(folder: Path) -> None:
    other = network()
    other.graph.initializer[0].name = "w9"
    other.graph.node[0].input[1] = "w9"
    onnx.save(other, folder / "other.onnx")
    stats = calibrate(folder / "other.onnx", feeds())
    with pytest.raises(UsageError, match=r"statistics must be of this model, got some of 'w9', which .* lacks"):
        refit(folder / "in.onnx", folder / "a.onnx", stats=stats)
    small = network()
    for name, shape in (("w0", (12, 20)), ("b0", (20,)), ("w1", (20, 30))):
        item = next(t for t in small.graph.initializer if t.name == name)
        item.CopyFrom(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    stats = calibrate(onnx_file(small, folder / "small.onnx"), feeds())
    with pytest.raises(UsageError, match=r"statistics of 'w0' must be of .* = \(1, 30, 12\), got \(1, 20, 12\)"):
        refit(folder / "in.onnx", folder / "a.onnx", stats=stats)


def onnx_file(made: onnx.ModelProto, path: Path) -> Path:
    onnx.save(made, path)
    return path


def test_what_needs_more_than_is_given(folder: Path) -> None:
    common = (folder / "in.onnx", folder / "a.onnx")
    with pytest.raises(UsageError, match="must come with gradients, got none"):
        refit(*common, feeds=feeds(), criterion="gradient")
    with pytest.raises(UsageError, match="with gradients alone, got 'obs'"):
        refit(*common, gradients=gradients(), update=False, criterion="obs")
    with pytest.raises(UsageError, match=r"gradients must be an .npz file, got .*absent.npz.*, which does not exist"):
        refit(*common, gradients=folder / "absent.npz")
    with pytest.raises(UsageError, match=r"statistics must be a file, got .*absent.npz.*, which does not exist"):
        refit(*common, stats=folder / "absent.npz")
