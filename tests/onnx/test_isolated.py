"""onnxruntime in a process of its own: whatever becomes of it there, what is said here is true, and nothing stays."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import emp_onnx
from emp_onnx import Model, UsageError, VerifyError
from emp_onnx.errors import MissingExtraError
from emp_onnx.runtime import ort
from emp_onnx.runtime import process as other
from emp_onnx.runtime.compare import CrashedError, NotRunError, Session, compare
from emp_onnx.runtime.isolated import Isolated
from tests.onnx.builders import two_layers, write

MODEL = two_layers(np.random.default_rng(0)).model
FEED = {"x": np.ones((2, 4), np.float32)}
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

# an onnxruntime that does at the n-th session, or the n-th run of any, what it is told
FAKE = """
import os, signal, sys, time
import numpy as np
EVENT, AT, WHAT = os.environ["FAKE_ORT"].split()
seen = {"open": 0, "run": 0}

def maybe(event):
    seen[event] += 1
    if event == EVENT and seen[event] == int(AT):
        if WHAT == "hang":
            time.sleep(600)
        if WHAT == "leave":
            os._exit(7)
        if WHAT == "memory":
            raise MemoryError
        if WHAT == "refuse":
            raise RuntimeError("it will not\\nat all")
        if WHAT == "lie":
            os.write(3, b"x" * 100)  # not where answers go, unless the descriptor is that
            for handle in range(3, 12):
                try:
                    os.write(handle, b"x" * 100)
                except OSError:
                    pass
            time.sleep(600)
        os.kill(os.getpid(), getattr(signal, WHAT))
        time.sleep(600)

class SessionOptions: pass
class RunOptions: pass
class Item:
    def __init__(self, name): self.name, self.type, self.shape = name, "tensor(float)", [2, 4]
class InferenceSession:
    def __init__(self, source, options, providers):
        print("noise on standard output", flush=True)
        os.write(1, b"more noise")
        maybe("open")
    def get_inputs(self): return [Item("x")]
    def get_outputs(self): return [Item("y")]
    def get_overridable_initializers(self): return []
    def run(self, names, feed, options):
        maybe("run")
        return [np.full((2, 3), 1.5, np.float32)]
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Call it with what onnxruntime is to do in the other process: `open 1 SIGSEGV`."""
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "onnxruntime.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(folder))
    return lambda what: monkeypatch.setenv("FAKE_ORT", what)


def children() -> set[str]:
    """Processes that this one has started and that are not gone."""
    if not Path("/proc/self/task").is_dir():
        return set()
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found.update((task / "children").read_text().split())
    return found


@pytest.fixture(autouse=True)
def no_orphan() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.binary() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
DTYPES = st.sampled_from(["<f4", "<f8", "<f2", "|b1", "|i1", "|u1", ">i4", "<i8", "<c8", "<U3", "|S2", "<U0"])


@given(VALUES)
def test_values_travel(value: Any) -> None:
    stream = io.BytesIO()
    ort.send(stream, {"a": 1}, value)
    stream.seek(0)
    message, back = ort.receive(stream)
    assert (message["a"], back) == (1, value)
    assert not stream.read()


@given(DTYPES.flatmap(lambda d: arrays.arrays(np.dtype(d), arrays.array_shapes(min_dims=0, min_side=0, max_side=4))))
def test_arrays_travel_whatever_their_layout(array: Any) -> None:
    stream = io.BytesIO()
    ort.send(stream, {}, {"a": array.T, "b": [array], "c": array.astype(object) if array.dtype.kind == "U" else 1})
    stream.seek(0)
    _, back = ort.receive(stream)
    assert back["a"].shape == array.T.shape
    assert back["a"].tobytes() == array.T.tobytes() or array.dtype.itemsize == 0
    assert back["b"][0].tolist() == array.tolist() or array.dtype.kind in "fc"


def test_what_does_not_travel_is_named() -> None:
    stream = io.BytesIO()
    ort.send(stream, {}, [object(), np.zeros(1, "M8[s]")])
    stream.seek(0)
    _, back = ort.receive(stream)
    assert [type(item) for item in back] == [ort.Other] * 2
    assert back[1].kind == "array of datetime64[s]"


@given(st.binary(max_size=60))
def test_what_is_no_message_is_an_end(data: bytes) -> None:
    for start in (b"", b"emp1", b"emp1\x10\0\0\0"):
        with pytest.raises(EOFError):
            ort.receive(io.BytesIO(start + data))


def test_a_session_there_is_one_here() -> None:
    source = Model(MODEL)
    here = Session(source)
    with Isolated() as process:
        there = process.open(source)
        assert (there.inputs, there.overridable, there.outputs) == (here.inputs, here.overridable, here.outputs)
        assert there.run(FEED)["y"].tobytes() == here.run(FEED)["y"].tobytes()
        with pytest.raises(NotRunError, match="onnxruntime cannot run it: "):
            there.run({"x": np.ones((2, 5), np.float32)})
        with pytest.raises(NotRunError, match="cannot load it"):
            process.open(Path(__file__))
        assert there.run(FEED)["y"].shape == (2, 3)
        assert len(children()) >= 1 or not Path("/proc").is_dir()
    assert not process.running


@pytest.mark.parametrize("plain", [False, True])
def test_models_loaded_ahead_are_those_opened(tmp_path: Path, plain: bool) -> None:
    other = two_layers(np.random.default_rng(1)).model
    paths, models = [], [MODEL, other]
    for i, model in enumerate(models):
        paths.append(write(model, tmp_path / f"{i}.onnx"))
    with Isolated() as process:
        for path in (*paths, Path(__file__)):
            process.ahead(path, plain=plain)
        with pytest.raises(NotRunError, match="cannot load it"):
            process.open(Path(__file__))
        for model, path in reversed(list(zip(models, paths, strict=True))):
            there, here = process.open(path), Session(Model(model))
            np.testing.assert_allclose(there.run(FEED)["y"], here.run(FEED)["y"], rtol=1e-6)
        assert process.open(paths[0], plain=plain).outputs == ("y",)  # again, and not ahead
        process.ahead(paths[0])  # never opened
    assert not process.running


def test_feeds_are_taken_one_by_one() -> None:
    taken = []

    def feeds() -> Iterator[dict[str, Any]]:
        for i in range(5):
            taken.append(i)
            yield FEED

    with Isolated() as process:
        before = process.open(Model(MODEL))
        run, seen = before.run, []

        def watched(feed: Any, limit: float | None = None) -> Any:
            seen.append(len(taken))
            return run(feed, limit)

        before.run = watched  # type: ignore[method-assign]
        assert compare(before, process.open(Model(MODEL)), feeds()).feeds == 5
    assert seen == [1, 2, 3, 4, 5]


@POSIX
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("SIGSEGV", r"onnxruntime crashed \(segmentation fault\) when it loaded it"),
        ("SIGKILL", r"onnxruntime crashed \(killed from outside, as happens when memory runs out\) when it loaded it"),
        ("leave", r"onnxruntime crashed \(exit code 7\) when it loaded it"),
        ("hang", r"onnxruntime did not end within \d+ seconds when it loaded it"),
        ("memory", r"onnxruntime cannot load it: it needs more memory than there is"),
        ("refuse", r"onnxruntime cannot load it: it will not$"),
        ("lie", r"onnxruntime crashed \(it sent something else than an answer\) when it loaded it"),
    ],
)
def test_whatever_happens_on_loading_is_told(
    fake: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str, words: str
) -> None:
    monkeypatch.setattr(other, "LOAD", 1.0)
    monkeypatch.setattr(other, "GRACE", 0.2)
    fake(f"open 1 {what}")
    path = write(MODEL, tmp_path / "m.onnx")
    report = emp_onnx.prune(path, tmp_path / "out.onnx")
    assert report.verification.ok
    assert report.verification.behaviour is None
    assert re.search(words, report.verification.not_run)
    fake(f"open 1 {what}")
    with pytest.raises(UsageError, match=f"feeds must come with a model that runs: {words}"):
        emp_onnx.prune(path, tmp_path / "other.onnx", feeds=[FEED])
    assert not (tmp_path / "other.onnx").exists()
    # the same to the pruned model is its fault
    fake(f"open 2 {what}")
    with pytest.raises(VerifyError, match=f"the pruned model: {words}"):
        emp_onnx.prune(path, tmp_path / "other.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fake", "m.onnx", "out.onnx"]


@POSIX
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("SIGABRT", r"onnxruntime crashed \(aborted\) when it ran it"),
        ("hang", r"onnxruntime did not end within \d+ seconds when it ran it"),
    ],
)
def test_whatever_happens_on_running_is_told(
    fake: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str, words: str
) -> None:
    monkeypatch.setattr(other, "RUN", 1.0)
    monkeypatch.setattr("emp_onnx.runtime.compare.LIMIT", 0.5)
    monkeypatch.setattr(other, "GRACE", 0.5)
    path, out = write(MODEL, tmp_path / "m.onnx"), tmp_path / "out.onnx"
    fake(f"run 1 {what}")
    report = emp_onnx.prune(path, out)
    assert re.search(f"{words}, on made-up feeds; give feeds", report.verification.not_run)
    out.unlink()
    fake(f"run 1 {what}")
    with pytest.raises(UsageError, match=f"feed 0 must be one that the original model runs on: {words}"):
        emp_onnx.prune(path, out, feeds=[FEED])
    # four made-up feeds run on the original first; given ones in turns
    for at, feeds in ((5, None), (4, [FEED] * 5)):
        fake(f"run {at} {what}")
        if what == "hang" and feeds is None:
            monkeypatch.setattr("emp_onnx.runtime.compare.LIMIT", 0.05)
        with pytest.raises(VerifyError, match=f"the pruned model fails where the original runs: {words}"):
            emp_onnx.prune(path, out, feeds=feeds)
        assert not out.exists()


def test_no_onnxruntime_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other, "_installed", lambda: True)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "site-packages" not in p])
    numpy_only = Path(np.__file__).parent.parent
    code = f"import sys; sys.path.append({str(numpy_only)!r}); sys.modules['onnxruntime'] = None"
    monkeypatch.setattr(other, "BEGIN", f"{other.BEGIN.partition('import runpy')[0]}{code}; import runpy"
                        f"{other.BEGIN.partition('import runpy')[2]}")  # fmt: skip
    with Isolated() as process, pytest.raises(MissingExtraError):
        process.open(Model(MODEL))


@pytest.mark.parametrize("interpreter", ["", "/nowhere/python", None])
def test_without_an_interpreter_to_start_it_runs_here(monkeypatch: pytest.MonkeyPatch, interpreter: str | None) -> None:
    monkeypatch.setattr(sys, "executable", interpreter)
    with Isolated() as process:
        assert process.open(Model(MODEL)).run(FEED)["y"].shape == (2, 3)
        assert not process.running


def test_an_interpreter_that_is_none_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "program"
    other.write_text("#!/bin/sh\nexit 0\n")
    other.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(other))
    with Isolated() as process:
        assert process.open(Model(MODEL)).run(FEED)["y"].shape == (2, 3)


def test_a_file_in_the_current_folder_is_not_run(tmp_path: Path) -> None:
    """`json.py` in the folder where someone prunes is theirs, not a part of Python."""
    write(MODEL, tmp_path / "m.onnx")
    for name in ("json", "struct", "runpy", "queue", "numpy", "onnxruntime"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')\nraise SystemExit(9)\n")
    root = Path(emp_onnx.__file__).parent.parent
    command = "import sys; sys.path[:] = [p for p in sys.path if p]; from emp_onnx.cli import main; sys.exit(main())"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root.parent)])}
    done = subprocess.run([sys.executable, "-c", command, "prune", "m.onnx"], cwd=tmp_path, env=env,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Outputs before and after" in done.stdout
    assert not (tmp_path / "ran").exists()


def test_scripts_without_a_main_guard_and_threads(tmp_path: Path) -> None:
    write(MODEL, tmp_path / "m.onnx")
    script = textwrap.dedent("""
        import threading, emp_onnx
        reports = []
        def work(i):
            reports.append(emp_onnx.prune("m.onnx", f"o{i}.onnx").verification)
        threads = [threading.Thread(target=work, args=[i]) for i in range(2)]
        [t.start() for t in threads]; [t.join() for t in threads]
        print([r.behaviour.feeds for r in reports])
    """)
    (tmp_path / "s.py").write_text(script)
    root = Path(emp_onnx.__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root.parent)])}
    for args in (["s.py"], ["-c", script]):
        done = subprocess.run([sys.executable, *args], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("[4, 4]\n", "")


@pytest.mark.alone
@POSIX
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to see processes")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_running(fake: Callable[[str], None], tmp_path: Path, how: int) -> None:
    """Ctrl-C, or even kill -9, while onnxruntime hangs: its process ends too."""
    write(MODEL, tmp_path / "m.onnx")
    fake("open 1 hang")
    root = Path(emp_onnx.__file__).parent.parent
    path = os.pathsep.join([str(tmp_path / "fake"), str(root), str(root.parent)])
    with subprocess.Popen(
        [sys.executable, "-m", "emp_onnx", "prune", "m.onnx"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:  # fmt: skip
        until = time.monotonic() + 30
        there: set[str] = set()
        while time.monotonic() < until and not any(tmp_path.glob(".*.part")):
            time.sleep(0.05)
        time.sleep(0.5)
        tasks = list(Path(f"/proc/{process.pid}/task").iterdir())
        there = {n for task in tasks for n in (task / "children").read_text().split()}
        assert there
        process.send_signal(how)
        _, said = process.communicate(timeout=20)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "interrupted" in said
        assert sorted(p.name for p in tmp_path.iterdir()) == ["fake", "m.onnx"]
    while time.monotonic() < until and any(_alive(n) for n in there):
        time.sleep(0.05)
    assert not any(_alive(n) for n in there)


def _alive(number: str) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().split(")")[-1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.alone
def test_ctrl_c_in_the_middle_ends_the_process(fake: Callable[[str], None]) -> None:
    fake("open 1 hang")
    model = Model(MODEL)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt), Isolated() as process:
        process.open(model)
    assert not process.running
    with pytest.raises(CrashedError):
        process.open(model)
