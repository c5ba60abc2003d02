"""Statistics by themselves: sums that merge, files that come back, scores."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import emp_onnx
from emp_onnx import Fitting, Statistics, UsageError, calibrate
from emp_onnx.budget.picture import Line, draw
from emp_onnx.budget.sweep import sweep, to_csv, to_json, to_png
from emp_onnx.cli import main
from tests.onnx.test_refit import feeds, network


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(network(), tmp_path / "in.onnx")
    np.savez(tmp_path / "feeds.npz", x=np.stack([feed["x"] for feed in feeds()]))
    return tmp_path / "in.onnx"


def equal(one: Statistics, other: Statistics) -> None:
    assert one.feeds == other.feeds
    for a, b in zip(one.inputs, other.inputs, strict=True):
        assert (a.keys, a.shape, a.count) == (b.keys, b.shape, b.count)
        for what in ("total", "squares", "second", "outputs"):
            np.testing.assert_allclose(getattr(a, what), getattr(b, what), rtol=1e-10)


def test_two_runs_add_up_to_one(path: Path) -> None:
    given = feeds()
    whole = calibrate(path, given)
    equal(calibrate(path, given[:7]).merge(calibrate(path, given[7:])), whole)
    x = np.concatenate([feed["x"] for feed in given]).astype(np.float64)
    first = whole.inputs[0]
    assert first.second is not None
    np.testing.assert_allclose(first.second[0], x.T @ x, rtol=1e-6)
    np.testing.assert_allclose(first.total[0], x.sum(0), rtol=1e-5)
    np.testing.assert_allclose(first.norms[0], np.linalg.norm(x, axis=0), rtol=1e-6)


def test_a_file_comes_back(path: Path, tmp_path: Path) -> None:
    for second in (True, False):
        found = calibrate(path, feeds(), second=second)
        found.save(tmp_path / "s.npz")
        back = Statistics.load(tmp_path / "s.npz")
        assert (back.inputs[0].second is None) is not second
        if second:
            equal(back, found)


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_files_that_are_something_else(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "s.npz"
    if content is None:
        np.savez(file, head=np.arange(3))
    else:
        file.write_bytes(content)
    with pytest.raises(UsageError, match="statistics must be as written"):
        Statistics.load(file)
    with pytest.raises(UsageError, match="does not exist"):
        Statistics.load(tmp_path / "absent.npz")


def test_statistics_of_other_models_do_not_merge(path: Path, tmp_path: Path) -> None:
    other = network()
    del other.graph.node[3:]
    other.graph.output[0].name = "r1" if other.graph.node[-1].output[0] == "r1" else other.graph.node[-1].output[0]
    del other.graph.output[0].type.tensor_type.shape.dim[:]
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(UsageError, match="same model"):
        calibrate(path, feeds()).merge(calibrate(tmp_path / "other.onnx", feeds()))


def test_scores(path: Path) -> None:
    found = calibrate(path, feeds()).inputs[0]
    weights = np.random.default_rng(0).standard_normal(found.shape)
    wanda = found.scores("wanda", weights)
    np.testing.assert_allclose(wanda, np.abs(weights) * found.norms[:, None])
    obs, error = found.scores("obs", weights), found.scores("error", weights)
    assert found.second is not None
    h = found.second[0] / found.count
    h = h + 1e-2 * np.trace(h) / len(h) * np.eye(len(h))
    np.testing.assert_allclose(obs[0], weights[0] ** 2 / np.diag(np.linalg.inv(h)), rtol=1e-9)
    assert np.ptp(obs / error) == pytest.approx(0, abs=1e-6 * float((obs / error).max()))
    with pytest.raises(UsageError, match="criterion must be one of"):
        found.scores("other", weights)


def test_the_commands(path: Path, tmp_path: Path, capsys: Any) -> None:
    common = [str(path), "--feeds", str(tmp_path / "feeds.npz")]
    assert main(["calibrate", *common, "-o", str(tmp_path / "a.npz")]) == 0
    assert main(["calibrate", *common, "-o", str(tmp_path / "b.npz"), "--merge", str(tmp_path / "a.npz")]) == 0
    assert Statistics.load(tmp_path / "b.npz").feeds == 80
    capsys.readouterr()
    assert main(["calibrate", *common, "-o", str(tmp_path / "a.npz"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["feeds"], told["random_feeds"], len(told["maps"])) == (40, False, len(calibrate(path, feeds()).inputs))
    files = [str(tmp_path / f"c.{kind}") for kind in ("csv", "json", "png")]
    assert main(["sweep", *common, "--at", "0.3,0.6", *(w for f in files for w in ("-o", f))]) == 0
    assert len(Path(files[0]).read_text().splitlines()) == 3
    assert main(["compare", *common, "--sparsity", "0.5"]) == 0
    assert capsys.readouterr().out.count("50.00%") >= 12
    assert main(["sweep", *common, "-o", "c.gif"]) == 2
    assert main(["sweep", *common, "--at", "1.5"]) == 2
    assert main(["calibrate", *common, "-o", str(path)]) == 2


def test_a_sweep(path: Path) -> None:
    fitting = Fitting(emp_onnx.load(path), feeds(), held=0.25)
    points = sweep(fitting, [0.2, 0.8, 0.5], score=lambda file: float(file.stat().st_size > 0))
    assert [round(p.sparsity, 2) for p in points] == [0.2, 0.5, 0.8]
    assert points[0].error < points[1].error < points[2].error
    assert {p.score for p in points} == {1.0}
    assert to_csv(points).startswith("sparsity,mass,bound,agreement,expected,cost,error,score\n0.")
    assert to_json(points).count('"agreement"') == 3
    assert Image.open(io.BytesIO(to_png(points))).size == (640, 480)
    with pytest.raises(UsageError):
        sweep(fitting, [])


def test_the_picture_shows_its_line() -> None:
    image = np.asarray(Image.open(io.BytesIO(draw([Line([(0.0, 0.0), (1.0, 1.0), (2.0, -1.0)], (255, 0, 0))]))))
    red = (image == (255, 0, 0)).all(-1)
    assert red[240:246, 315:326].any()
    assert red.sum() > 500
    assert (image[2, 2] == 255).all()
