"""Files appear whole or not at all, whatever fails and whenever."""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import emp_onnx
from emp_onnx.files.whole import same_file, staged, write_whole
from tests.onnx.builders import two_layers, write, write_external

RNG = np.random.default_rng(11)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def failing(monkeypatch: pytest.MonkeyPatch, name: str, at: int, error: BaseException) -> list[int]:
    """Make the `at`-th call of a function of `os` fail."""
    real, calls = getattr(os, name), [0]

    def call(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise error
        return real(*args, **options)

    monkeypatch.setattr(os, name, call)
    return calls


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(("name", "at"), [("fsync", 1), ("replace", 1), ("replace", 2), ("open", 1), ("fsync", 3)])
def test_a_failure_at_any_step_leaves_the_old_state(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    external: bool,
    in_place: bool,
    error: BaseException,
    name: str,
    at: int,
) -> None:
    proto = two_layers(RNG).model
    path = (write_external if external else write)(proto, tmp_path / "m.onnx")
    (tmp_path / "out.onnx").write_bytes(b"what was there before")
    before = snapshot(tmp_path)
    with monkeypatch.context() as patch:
        calls = failing(patch, name, at, error)
        raised: BaseException | None = None
        try:
            emp_onnx.prune(path, None if in_place else tmp_path / "out.onnx", in_place=in_place, gzip=False)
        except (emp_onnx.OnnxError, KeyboardInterrupt) as caught:
            raised = caught
    if raised is not None:
        assert "No space left on device" in str(raised) or isinstance(raised, KeyboardInterrupt)
        assert calls[0] >= at
        assert snapshot(tmp_path) == before
        return
    # the failure came after everything was in place (a directory's fsync), or not at all
    after = snapshot(tmp_path)
    out = "m.onnx" if in_place else "out.onnx"
    assert after[out] != before[out]
    assert {k: v for k, v in before.items() if k != out}.items() <= after.items()
    assert emp_onnx.verify(tmp_path / out).ok


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_crash_at_every_call_that_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool, in_place: bool
) -> None:
    """Every call in turn fails as on a full disk, until all went well."""
    path = (write_external if external else write)(two_layers(RNG, 8).model, tmp_path / "m.onnx")
    out = path if in_place else tmp_path / "out.onnx"
    if not in_place:
        out.write_bytes(b"what was there before")
    before, names = snapshot(tmp_path), ("pwrite", "copy_file_range", "ftruncate", "fsync", "replace")
    real = {name: getattr(os, name) for name in names}
    for at in range(1, 200):
        calls = [0]

        def call(name: str, *args: Any, at: int = at, calls: list[int] = calls) -> Any:
            calls[0] += 1
            if calls[0] == at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real[name](*args)

        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(os, name, partial(call, name))
            said = ""
            try:
                emp_onnx.prune(path, None if in_place else out, in_place=in_place, gzip=False)
            except emp_onnx.OutputError as error:
                said = str(error)
        if not said:
            break
        assert "No space left on device" in said
        assert snapshot(tmp_path) == before
    else:
        pytest.fail("it never went well")
    assert at > 3  # of small files all is written at once
    assert emp_onnx.verify(out).ok


def test_whole_files_and_their_mode(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_whole(target, b"one")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask
    target.chmod(0o640)
    write_whole(target, b"two")
    assert target.read_bytes() == b"two"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_new_file_is_read_by_no_more_people_than_its_source(tmp_path: Path) -> None:
    path = write_external(two_layers(RNG).model, tmp_path / "model.onnx")
    for file in tmp_path.iterdir():
        file.chmod(0o400)
    report = emp_onnx.prune(path, tmp_path / "out.onnx", gzip=False)
    assert len(report.sidecars) == 1
    assert {stat.S_IMODE(file.stat().st_mode) for file in (report.out, *report.sidecars)} == {0o600}


def test_an_input_that_vanishes_is_named(tmp_path: Path) -> None:
    path, lost = write(two_layers(RNG).model, tmp_path / "model.onnx"), tmp_path / "lost"

    def needs() -> None:
        with staged(tmp_path / "file"):
            lost.read_bytes()

    with pytest.raises(emp_onnx.ModelError, match=r"the file '.*lost' could not be read: No such .*; nothing was wri"):
        needs()
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(emp_onnx.ModelError, match="what was there is as it was"):
        needs()
    assert (tmp_path / "file").read_bytes() == b"old"
    model = emp_onnx.load(path)
    path.unlink()
    with pytest.raises(emp_onnx.ModelError, match=r"the file '.*model.onnx' could not be read"):
        emp_onnx.prune(model, tmp_path / "out.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_an_error_inside_removes_the_temporary_file(tmp_path: Path) -> None:
    def fails() -> None:
        with staged(tmp_path / "file") as stage:
            assert stage.path.exists()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert list(tmp_path.iterdir()) == []


def test_same_file_by_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = tmp_path / "one"
    one.write_bytes(b"")
    os.link(one, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(one)
    monkeypatch.chdir(tmp_path)
    for other in ("one", "./one", "hard", "soft"):
        assert same_file(one, other)
    assert not same_file(one, "two")
    assert same_file(tmp_path / "not yet", "not yet")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(emp_onnx.OutputError, match="Permission denied"):
        write_whole(tmp_path / "file", b"")
