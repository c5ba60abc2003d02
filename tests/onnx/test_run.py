"""`emp run`: what it saves, feed by feed, under whatever names and of whatever sizes."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper

from emp_onnx.cli import main
from emp_onnx.errors import OutputError, UsageError
from emp_onnx.fused import engine
from emp_onnx.runtime.collected import Collected
from emp_onnx.runtime.feeds import read_arrays
from tests.onnx.builders import model, tensor, value, write

NAMES = ["y", "file", "allow_pickle", "args", "a/b:0"]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose outputs, one of each name, have as many rows as its input."""
    w = np.arange(8, dtype=np.float32).reshape(4, 2)
    nodes = [helper.make_node("MatMul", ["x", "w"], [name]) for name in NAMES]
    proto = model(nodes, [value("x", ["N", 4])], [value(name, ["N", 2]) for name in NAMES], [tensor("w", w)])
    monkeypatch.chdir(tmp_path)
    return write(proto, tmp_path / "m.onnx")


def folder(place: Path, *rows: int) -> list[np.ndarray[Any, Any]]:
    """Feeds of so many rows; returns what comes out."""
    place.mkdir()
    made = [np.random.default_rng(i).standard_normal((n, 4)).astype(np.float32) for i, n in enumerate(rows)]
    for i, x in enumerate(made):
        np.savez(place / f"{i}.npz", x=x)
    return [x @ np.arange(8, dtype=np.float32).reshape(4, 2) for x in made]


@pytest.mark.parametrize("rows", [[3], [3, 3, 3], [3, 1, 3]], ids=["one feed", "equal sizes", "different sizes"])
def test_outputs_are_saved_by_any_name_and_of_any_size(path: Path, rows: list[int]) -> None:
    wanted = folder(path.parent / "feeds", *rows)
    assert main(["run", "m.onnx", "--feeds", "feeds", "-o", "out.npz", "--quiet"]) == 0
    with np.load("out.npz") as found:
        if len(set(rows)) > 1:
            assert set(found.files) == {f"{i}/{name}" for i in range(len(rows)) for name in NAMES}
            for i, expected in enumerate(wanted):
                for name in NAMES:
                    np.testing.assert_allclose(found[f"{i}/{name}"], expected, rtol=1e-5)
        else:
            assert set(found.files) == set(NAMES)
            for name in NAMES:
                np.testing.assert_allclose(found[name], np.stack(wanted) if len(rows) > 1 else wanted[0], rtol=1e-5)
    assert set(os.listdir()) == {"m.onnx", "feeds", "out.npz"}


@pytest.mark.parametrize("options", [["--json"], ["--quiet"], [], ["-o", "out.npz"]], ids=" ".join)
def test_no_more_than_the_outputs_of_two_feeds_are_held(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    folder(path.parent / "feeds", *[2] * 9)
    alive: list[weakref.ref[Any]] = []
    most = [0]
    opened = engine.open_engine("m.onnx", kernels="off")

    class Session:
        get_inputs, get_outputs = opened.session.get_inputs, opened.session.get_outputs

        def run(self, names: None, feed: Any) -> list[Any]:
            gc.collect()
            values = opened.session.run(names, feed)
            alive.extend(weakref.ref(item) for item in values)
            most[0] = max(most[0], sum(ref() is not None for ref in alive))
            return list(values)

    monkeypatch.setattr(engine, "open_engine", lambda *_, **__: dataclasses.replace(opened, session=Session()))
    assert main(["run", "m.onnx", "--feeds", "feeds", *options]) == 0
    assert len(alive) == 9 * len(NAMES)
    assert most[0] <= 2 * len(NAMES)
    if "--json" in options:
        said = json.loads(capsys.readouterr().out)
        assert said["outputs"] == [{"name": name, "dtype": "float32", "shape": [2, 2]} for name in NAMES]
        assert len(said["seconds"]) == 9
    elif not options:
        assert capsys.readouterr().out.count("2×2") == 9 * len(NAMES)


def test_a_run_that_fails_leaves_what_was_there(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(path.parent / "feeds", 3, 3)
    np.savez("feeds/9.npz", x=np.ones((3, 5), np.float32))
    Path("out.npz").write_bytes(b"old")
    assert main(["run", "m.onnx", "--feeds", "feeds", "-o", "out.npz"]) == 2
    assert "feed 2 must hold 'x' of shape" in capsys.readouterr().err
    assert Path("out.npz").read_bytes() == b"old"
    assert set(os.listdir()) == {"m.onnx", "feeds", "out.npz"}
    assert main(["run", "m.onnx", "-o", "none/out.npz"]) == 2
    assert "-o must be in a directory that exists" in capsys.readouterr().err


def test_outputs_that_are_no_arrays_are_shown_and_not_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [helper.make_node("SplitToSequence", ["x"], ["y"], axis=0)]
    said = helper.make_tensor_sequence_value_info("y", onnx.TensorProto.FLOAT, None)
    saved = str(write(model(nodes, [value("x", [3, 2])], [said], []), tmp_path / "s.onnx"))
    assert main(["run", saved]) == 0
    assert "list" in capsys.readouterr().out
    assert main(["run", saved, "-o", str(tmp_path / "out.npz")]) == 2
    assert "-o must be for outputs that are plain arrays, got 'y', a list" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["s.onnx"]


DTYPES = st.one_of(
    hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.boolean_dtypes(), hnp.complex_number_dtypes(),
    hnp.unicode_string_dtypes(),
)  # fmt: skip
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, min_side=0, max_dims=3))


NAMED = st.dictionaries(st.text("abc/._é0", max_size=6), ARRAYS, min_size=1, max_size=3)


@given(NAMED, st.integers(1, 3), st.booleans())
def test_what_is_saved_is_what_numpy_reads(arrays: dict[str, Any], feeds: int, fortran: bool) -> None:
    with tempfile.TemporaryDirectory() as place:
        out = Path(place, "o.npz")
        with Collected(out) as kept:
            for _ in range(feeds):
                kept.add({name: np.asfortranarray(a) if fortran and a.ndim else a for name, a in arrays.items()})
            kept.save()
        found = read_arrays(out, "outputs")
        assert set(found) == set(arrays)
        for name, a in arrays.items():
            expected = np.stack([a] * feeds).astype(a.dtype) if feeds > 1 else a
            assert (found[name].dtype, found[name].shape) == (expected.dtype, expected.shape)
            assert found[name].tobytes() == expected.tobytes()


def test_texts_are_saved_as_such_and_other_objects_are_not(tmp_path: Path) -> None:
    with Collected(tmp_path / "o.npz", "-o") as kept:
        kept.add({"t": np.array(["a", "bcd"], object)})
        with pytest.raises(UsageError, match="plain arrays, got 't', an array of objects"):
            kept.add({"t": np.array(["a", 1], object)})
        kept.save()
    with np.load(tmp_path / "o.npz", allow_pickle=False) as found:
        assert found["t"].tolist() == ["a", "bcd"]
    with pytest.raises(OutputError, match="-o must be in a directory that exists"):
        Collected(tmp_path / "no" / "o.npz", "-o")
