"""Real disks: processes that are killed while they write, and file systems that are full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import emp_onnx
from emp_onnx.files import whole
from emp_onnx.files.whole import staged, sweep, write_whole
from tests.onnx.builders import model, tensor, value, write, write_external

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")])}
fcntl = pytest.importorskip("fcntl", reason="needs the locks of POSIX")

HOLD = """
import sys, time
from pathlib import Path
from emp_onnx.files.whole import staged
with staged(Path(sys.argv[1])) as stage:
    stage.path.write_bytes(b"half")
    print(stage.path, flush=True)
    time.sleep(600)
"""


@contextmanager
def writing(target: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that is in the middle of writing `target`, and its temporary file."""
    command = [sys.executable, "-c", HOLD, str(target)]
    with subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")
    with writing(target) as (process, part):
        assert part.name.startswith(".out.onnx.")
        # as long as it lives, its file is its own
        write_whole(target, b"new")
        assert part.read_bytes() == b"half"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert names(tmp_path) == [part.name, "out.onnx"]
    write_whole(tmp_path / "other.onnx", b"")
    assert part.exists()  # of another target
    write_whole(target, b"newer")
    assert names(tmp_path) == ["other.onnx", "out.onnx"]
    assert target.read_bytes() == b"newer"


def test_what_only_looks_like_it_stays(tmp_path: Path) -> None:
    mine = whole._prefix(tmp_path / "out") + "0" * 12 + ".emp.part"
    for name in (f"{mine}x", mine[1:], mine.replace("0" * 12, "0" * 11), ".out.123456-000000000000.part", ".out.part"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / mine).mkdir()
    (tmp_path / mine.replace("0" * 12, "1" * 12)).symlink_to("out")
    before = names(tmp_path)
    sweep(tmp_path / "out")
    assert names(tmp_path) == before
    (tmp_path / mine).rmdir()
    (tmp_path / mine).write_bytes(b"")
    sweep(tmp_path / "out")
    assert names(tmp_path) == [name for name in before if name != mine]


def test_many_writers_and_sweepers_at_once(tmp_path: Path) -> None:
    """Nobody's file is ever swept away from under it."""
    target, errors = tmp_path / "out", list[BaseException]()

    def work(i: int) -> None:
        try:
            for j in range(40):
                write_whole(target, f"{i} {j} {'x' * 100}".encode())
                sweep(target)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[i]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert names(tmp_path) == ["out"]
    assert len(target.read_bytes()) > 100


def test_one_that_is_swept_before_its_lock_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = fcntl.flock, [0]

    def flock(handle: int, how: int) -> None:
        calls[0] += 1
        if calls[0] == 1:  # another process was faster, and still holds it
            raise BlockingIOError
        if calls[0] == 2:  # and here it has removed the file already
            for path in tmp_path.iterdir():
                path.unlink()
        if calls[0] == 3:
            raise OSError(95, "no locks here")
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with staged(tmp_path / "out") as stage:
        stage.path.write_bytes(b"all")
    assert calls[0] == 3
    assert (tmp_path / "out").read_bytes() == b"all"


def big(size: int) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    w = [rng.standard_normal((size, size)).astype(np.float32) for _ in range(2)]
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    return model(nodes, [value("x", [1, size])], [value("y", None)], [tensor("a", w[0]), tensor("b", w[1])])


@pytest.mark.parametrize("external", [False, True])
def test_prune_killed_in_the_middle_and_run_again(tmp_path: Path, external: bool) -> None:
    path = (write_external if external else write)(big(1500), tmp_path / "m.onnx")
    before = names(tmp_path)
    command = [sys.executable, "-m", "emp_onnx", "prune", str(path), str(tmp_path / "out.onnx"), "--quiet"]
    for _ in range(5):
        with subprocess.Popen(command, env=ENV, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not any(".emp.part" in name for name in names(tmp_path)):
                time.sleep(0.001)
            process.kill()
        if names(tmp_path) != before:
            break
    left = [name for name in names(tmp_path) if name.endswith(".emp.part")]
    assert left, "it was never caught in the middle"
    assert subprocess.run(command, env=ENV, check=False).returncode == 0
    assert not [name for name in names(tmp_path) if name.endswith(".part")]
    assert emp_onnx.verify(tmp_path / "out.onnx", path).ok


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_full_disk_leaves_the_old_state(small_disk: Path, external: bool, in_place: bool) -> None:
    """8 MB of weights on a disk of 12 MB: there is no room for a second time as much."""
    path = (write_external if external else write)(big(1000), small_disk / "m.onnx")
    if not in_place:
        (small_disk / "out.onnx").write_bytes(b"what was there before")
    before = {file.name: file.read_bytes() for file in small_disk.iterdir()}
    command = [sys.executable, "-m", "emp_onnx", "prune", str(path), *(["--in-place"] if in_place else
               [str(small_disk / "out.onnx")]), "--quiet"]  # fmt: skip
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr
    assert {file.name: file.read_bytes() for file in small_disk.iterdir()} == before
    # with room again, all is well
    if external:
        return
    room = big(600)
    write(room, path)
    (small_disk / "out.onnx").unlink(missing_ok=True)
    assert subprocess.run(command, env=ENV, check=False).returncode == 0
    assert emp_onnx.verify(path if in_place else small_disk / "out.onnx").ok


def test_a_disk_too_full_for_a_plan(small_disk: Path, tmp_path: Path) -> None:
    path = write(big(50), tmp_path / "m.onnx")
    for size in (1 << 16, 64):
        with open(small_disk / "filler", "ab", buffering=0) as file, suppress(OSError):
            while file.write(bytes(size)) == size:
                pass
    done = subprocess.run([sys.executable, "-m", "emp_onnx", "plan", str(path), "-o", str(small_disk / "plan.json")],
                          env=ENV, capture_output=True, text=True)  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "No space left on device" in done.stderr
    assert names(small_disk) == ["filler"]
