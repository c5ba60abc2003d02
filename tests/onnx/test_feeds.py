"""Feeds: read from files, checked against the model, or made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emp_onnx import UsageError, read_feeds
from emp_onnx.runtime.feeds import Input, check_feed, random_feeds

X = Input("x", "tensor(float)", ("N", 4))
IDS = Input("ids", "tensor(int64)", ("N",))


def test_a_folder_gives_its_files_in_order(tmp_path: Path) -> None:
    for i in (2, 0, 1):
        np.savez(tmp_path / f"{i}.npz", x=np.full((1, 4), i, np.float32))
    (tmp_path / "notes.txt").write_text("not a feed")
    assert [feed["x"][0, 0] for feed in read_feeds(tmp_path)] == [0, 1, 2]


def test_a_file_gives_its_samples(tmp_path: Path) -> None:
    x, y = np.arange(12, dtype=np.float32).reshape(3, 1, 4), np.arange(3)
    np.savez(tmp_path / "f.npz", x=x, y=y)
    feeds = list(read_feeds(tmp_path / "f.npz"))
    assert [feed["y"] for feed in feeds] == [0, 1, 2]
    assert all((feed["x"] == x[i]).all() for i, feed in enumerate(feeds))


def write_bad(folder: Path, kind: str) -> Path:
    path = folder / "f.npz"
    if kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "npy":
        np.save(folder / "f.npy", np.zeros(3))
        return folder / "f.npy"
    elif kind == "pickled":
        np.savez(path, x=np.array([{}], dtype=object))
    elif kind == "unequal":
        np.savez(path, x=np.zeros((3, 1)), y=np.zeros((2, 1)))
    elif kind == "scalar":
        np.savez(path, x=np.float32(1))
    elif kind == "no samples":
        np.savez(path, x=np.zeros((0, 4)))
    elif kind == "no arrays":
        np.savez(path)
    elif kind == "folder":
        return folder
    elif kind == "cut":
        np.savez(path, x=np.zeros((3, 400)))
        path.write_bytes(path.read_bytes()[:700])
    return path


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("text", "must be .npz files of plain arrays"),
        ("empty", "must be .npz files of plain arrays"),
        ("cut", "must be .npz files of plain arrays"),
        ("npy", "which is a single array"),
        ("pickled", "must be .npz files of plain arrays"),
        ("unequal", "'x' with 3, 'y' with 2"),
        ("scalar", "'x' with no axis"),
        ("no samples", "at least one sample, got 0"),
        ("no arrays", "got none"),
        ("folder", "which holds none"),
        ("missing", "which does not exist"),
    ],
)
def test_files_that_are_no_feeds(tmp_path: Path, kind: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        list(read_feeds(write_bad(tmp_path, kind)))


def f32(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("feed", "sentence"),
    [
        ({"x": f32(1, 4)}, "feed 3 must hold the input 'ids', got 'x'"),
        ({}, "feed 3 must hold the input 'x', got nothing"),
        ({"x": f32(1, 4), "ids": np.zeros(1, np.int64), "z": f32(1)}, "got 'z'; they are: 'x', 'ids'"),
        ({"x": f32(1, 4), "ids": np.zeros(1, np.int32)}, "feed 3 must hold 'ids' as int64, got int32"),
        ({"x": np.zeros((1, 4)), "ids": np.zeros(1, np.int64)}, "feed 3 must hold 'x' as float32, got float64"),
        ({"x": f32(1, 5), "ids": np.zeros(1, np.int64)}, r"'x' of shape \(N, 4\), got \(1, 5\)"),
        ({"x": f32(4), "ids": np.zeros(1, np.int64)}, r"'x' of shape \(N, 4\), got \(4,\)"),
    ],
)
def test_a_feed_that_does_not_fit(feed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        check_feed(feed, [X, IDS], 3)


def test_a_feed_that_fits() -> None:
    check_feed({"x": f32(7, 4), "ids": np.zeros(2, np.int64)}, [X, IDS], 0)
    check_feed({"x": f32(7, 4)}, [X, IDS], 0, frozenset({"ids"}))


def test_made_up_feeds_are_the_same_for_the_same_seed() -> None:
    one, two, other = (next(random_feeds([X, IDS], seed=s, count=2)) for s in (1, 1, 2))
    assert all((a["x"] == b["x"]).all() for a, b in zip(one, two, strict=True))
    assert (one[0]["x"] != other[0]["x"]).any()
    assert (one[0]["x"] != one[1]["x"]).any()


def test_made_up_feeds_fit_and_use_one_size_per_symbol() -> None:
    inputs = [
        Input("a", "tensor(float)", ("N", "T", 3)),
        Input("b", "tensor(float16)", ("N", "T")),
        Input("attention_mask", "tensor(int64)", ("N", "T")),
        Input("lengths", "tensor(int32)", ("N",)),
        Input("flag", "tensor(bool)", ()),
        Input("u", "tensor(uint8)", (None, 2)),
    ]
    for attempt in random_feeds(inputs, seed=0, count=1):
        (feed,) = attempt
        check_feed(feed, inputs, 0)
        assert feed["a"].shape[:2] == feed["b"].shape == feed["attention_mask"].shape
        assert (feed["attention_mask"] == 1).all()
        assert (feed["lengths"] == feed["a"].shape[1]).all()


@pytest.mark.parametrize("kind", ["tensor(string)", "seq(tensor(float))", "optional(tensor(float))"])
def test_what_cannot_be_made_up(kind: str) -> None:
    with pytest.raises(UsageError, match="such values cannot be made up"):
        next(random_feeds([Input("s", kind, (1,))], seed=0, count=1))


def test_a_folder_of_npy_files_is_one_file_for_each_input(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = {"x": rng.standard_normal((5, 2, 3)), "ids": rng.integers(0, 9, (5, 4))}
    for name, array in given.items():
        np.save(tmp_path / f"{name}.npy", array)
    read = list(read_feeds(tmp_path))
    assert len(read) == 5
    for i, feed in enumerate(read):
        assert feed.keys() == given.keys()
        for name, array in given.items():
            np.testing.assert_array_equal(feed[name], array[i])


def test_a_folder_of_npy_files_is_one_file_for_each_feed_where_there_is_one_input(tmp_path: Path) -> None:
    given = np.random.default_rng(0).standard_normal((5, 2, 3))
    for i, array in enumerate(given):
        np.save(tmp_path / f"image{i}.npy", array)
    read = list(read_feeds(tmp_path, ["x"]))
    assert [list(feed) for feed in read] == [["x"]] * 5
    np.testing.assert_array_equal([feed["x"] for feed in read], given)
    assert list(next(read_feeds(tmp_path, ["x", "y"]))) == [f"image{i}" for i in range(5)]
    np.save(tmp_path / "x.npy", given)  # named as the input: then it is all of them
    for i in range(5):
        (tmp_path / f"image{i}.npy").unlink()
    np.testing.assert_array_equal([feed["x"] for feed in read_feeds(tmp_path, ["x"])], given)


def test_npy_files_that_do_not_fit_together(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((5, 2)))
    np.save(tmp_path / "y.npy", np.zeros((4, 2)))
    with pytest.raises(UsageError, match="equally many samples, got 'x' with 5, 'y' with 4"):
        read_feeds(tmp_path)
    np.savez(tmp_path / "a.npz", x=np.zeros(2))
    with pytest.raises(UsageError, match="which has both"):
        read_feeds(tmp_path)
    (tmp_path / "a.npz").unlink()
    (tmp_path / "y.npy").write_bytes(b"junk")
    with pytest.raises(UsageError, match=r"feeds must be .npy files of plain arrays, got .*y.npy"):
        read_feeds(tmp_path)


def test_samples_of_inputs_without_an_axis_are_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", x=np.zeros((2, 3), np.float32), n=np.arange(2))
    for feed in read_feeds(tmp_path / "f.npz", ["x", "n"]):
        assert all(isinstance(value, np.ndarray) for value in feed.values())
