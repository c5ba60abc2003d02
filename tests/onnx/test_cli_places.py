"""No command writes over a file that it reads, whatever the path by which it is named, nor twice to one place."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

import emp_onnx
from emp_onnx.cli import main
from tests.onnx.builders import two_layers, write, write_external


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    case = two_layers(np.random.default_rng(0), 6)
    write(case.model, tmp_path / "m.onnx")
    write_external(onnx.ModelProto.FromString(case.model.SerializeToString()), tmp_path / "s.onnx")
    (sidecar,) = emp_onnx.load(tmp_path / "s.onnx").sidecars().values()
    sidecar.rename(tmp_path / "v.npz")
    proto = onnx.load(tmp_path / "s.onnx", load_external_data=False)
    for item in proto.graph.initializer:
        for entry in item.external_data:
            if entry.key == "location":
                entry.value = "v.npz"
    write(proto, tmp_path / "s.onnx")
    (tmp_path / "plan.json").write_text(emp_onnx.plan(emp_onnx.load(tmp_path / "m.onnx")).to_json())
    x = np.ones((3, 1, 4), np.float32)
    np.savez(tmp_path / "feeds.npz", x=x)
    (tmp_path / "many").mkdir()
    np.savez(tmp_path / "many" / "0.npz", x=x[0])
    np.savez(tmp_path / "g.npz", **case.weights)
    assert main(["calibrate", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "stats.npz"), "--quiet"]) == 0
    (tmp_path / "metric.py").write_text("def f(path): return 1.0\n")
    os.symlink("metric.py", tmp_path / "curve.json")
    for name in ("m.onnx", "v.npz", "feeds.npz"):
        os.symlink(name, tmp_path / f"soft-{name}")
        os.link(tmp_path / name, tmp_path / f"hard-{name}")
    os.link(tmp_path / "many" / "0.npz", tmp_path / "hard-0.npz")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


OVER = [
    ("run m.onnx -o m.onnx", "-o must not be a file of the model, got 'm.onnx'"),
    ("run m.onnx -o soft-m.onnx", "-o must not be a file of the model, got 'soft-m.onnx'"),
    ("run m.onnx -o hard-m.onnx", "-o must not be a file of the model, got 'hard-m.onnx'"),
    ("run m.onnx -o sub/../m.onnx", "-o must not be a file of the model"),
    ("run s.onnx -o v.npz", "-o must not be a file of the model, got 'v.npz'"),
    ("run s.onnx -o soft-v.npz", "-o must not be a file of the model"),
    ("run s.onnx -o hard-v.npz", "-o must not be a file of the model"),
    ("run m.onnx --feeds feeds.npz -o feeds.npz", "-o must not be a file that is read, got 'feeds.npz'"),
    ("run m.onnx --feeds many -o many/0.npz", "-o must not be in the folder of the feeds"),
    ("run m.onnx --feeds many -o many/new.npz", "-o must not be in the folder of the feeds"),
    ("run m.onnx --feeds many -o hard-0.npz", "-o must not be a file that is read"),
    ("fuse s.onnx v.npz", "OUT must not be a file of the model, got 'v.npz'"),
    ("fuse s.onnx s.onnx", "OUT must not be the input 's.onnx'\n"),
    ("calibrate m.onnx --feeds feeds.npz -o feeds.npz", "-o must not be a file that is read"),
    ("calibrate m.onnx --feeds feeds.npz -o soft-feeds.npz", "-o must not be a file that is read"),
    ("calibrate m.onnx --feeds feeds.npz -o hard-feeds.npz", "-o must not be a file that is read"),
    ("calibrate m.onnx --feeds many -o many/stats.npz", "-o must not be in the folder of the feeds"),
    ("calibrate m.onnx --merge stats.npz -o stats.npz", "-o must not be a file that is read"),
    ("calibrate s.onnx -o v.npz", "-o must not be a file of the model"),
    ("plan s.onnx -o v.npz", "-o must not be a file of the model"),
    ("sweep m.onnx --at .5 --metric metric.py:f -o curve.json", "-o must not be a file that is read"),
    ("sweep m.onnx --at .5 -o a.csv -o sub/../a.csv", "-o must name another file than the outputs before it"),
    ("prune m.onnx soft-m.onnx", "OUT must not be the input"),
    ("prune s.onnx v.npz", "OUT must not be a file of the model"),
    ("prune m.onnx plan.json --plan plan.json", "OUT must not be a file that is read"),
    ("prune m.onnx feeds.npz --feeds feeds.npz", "OUT must not be a file that is read"),
    ("prune m.onnx hard-0.npz --feeds many", "OUT must not be a file that is read"),
    ("prune m.onnx stats.npz --stats stats.npz", "OUT must not be a file that is read"),
    ("prune m.onnx g.npz --gradients g.npz", "OUT must not be a file that is read"),
    ("prune m.onnx feeds.npz --feeds feeds.npz --refit", "OUT must not be a file that is read"),
    ("prune s.onnx v.npz --refit --feeds feeds.npz", "OUT must not be a file of the model"),
    ("pack s.onnx v.npz", "OUT must not be a file of the model"),
    ("pack m.onnx feeds.npz --feeds feeds.npz", "OUT must not be a file that is read"),
    ("unpack s.onnx v.npz", "OUT must not be a file of the model"),
    ("shrink s.onnx v.npz", "OUT must not be a file of the model"),
    ("shrink m.onnx hard-0.npz --feeds many", "OUT must not be a file that is read"),
]


@pytest.mark.parametrize(("line", "sentence"), OVER, ids=[line for line, _ in OVER])
def test_nothing_is_written_over_what_is_read(
    folder: Path, capsys: pytest.CaptureFixture[str], line: str, sentence: str
) -> None:
    def held() -> dict[Path, bytes]:
        # Python puts the bytecode of a script beside it
        files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
        return {path: path.read_bytes() for path in files}

    before = held()
    assert main(line.split()) == 2
    assert sentence in capsys.readouterr().err
    assert held() == before


def test_other_places_are_free(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (
        "run s.onnx --feeds many -o out.npz", "run s.onnx --feeds many -o out.npz", "run m.onnx -o v.npz",
        "calibrate m.onnx --feeds feeds.npz --merge stats.npz -o more.npz", "plan m.onnx -o many/plan.json",
        "prune m.onnx --in-place --feeds feeds.npz",
    ):  # fmt: skip
        assert main([*line.split(), "--quiet"]) == 0, line
    assert "must" not in capsys.readouterr().err
