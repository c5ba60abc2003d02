"""Progress: right figures, a line that is wiped, silence where nobody looks, and nothing left after Ctrl-C."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest

from emp_onnx import prune
from emp_onnx.cli import main
from emp_onnx.figures import SCOPES
from emp_onnx.progress import Meter, size
from tests.onnx.builders import model, two_layers, value, write

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_line_says_done_of_how_many_rate_and_time_left() -> None:
    clock, out = Clock(), io.StringIO()
    meter = Meter(out, clock=clock)
    meter.phase("counting", 200_000_000)
    meter.add(1)
    assert out.getvalue() == ""
    clock.now = 2.0
    meter.add(49_999_999)
    assert out.getvalue() == "\rcounting: 50.0 MB of 200 MB, 25.0 MB/s, 6 s left"
    clock.now = 2.1
    meter.add(1)
    assert out.getvalue().count("\r") == 1
    clock.now = 20.0
    meter.add(10**9)
    assert out.getvalue().split("\r")[-1].startswith("counting: 200 MB of 200 MB")
    meter.close()
    assert out.getvalue().split("\r")[-2].strip() == ""
    assert out.getvalue().endswith("\r")
    assert meter.spent == {"counting": 20.0}


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (123_456, "123 kB"), (4.2e9, "4.2 GB")]
)
def test_sizes_in_words(count: float, text: str) -> None:
    assert size(count) == text


def test_a_stream_that_is_closed_does_not_stop_the_work() -> None:
    clock, out = Clock(), io.StringIO()
    meter = Meter(out, clock=clock)
    meter.phase("counting", 10)
    out.close()
    clock.now = 5.0
    meter.add(1)
    meter.add(1)
    meter.close()


@pytest.mark.parametrize("scope", SCOPES)
def test_what_is_announced_is_what_is_done(scope: str, tmp_path: Path) -> None:
    seen: dict[str, list[int]] = {}

    class Seen:
        name = ""

        def phase(self, name: str, total: int, /) -> None:
            self.name = name
            seen[name] = [0, total]

        def add(self, count: int, /) -> None:
            seen[self.name][0] += count

    path = write(two_layers(np.random.default_rng(0), 200).model, tmp_path / "m.onnx")
    prune(path, scope=scope, watch=Seen())
    assert list(seen) == ["counting", "writing", "checking"]
    for done, total in seen.values():
        assert total <= done <= 1.1 * total + 100_000


def test_silent_when_piped_and_told_when_verbose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(two_layers(np.random.default_rng(0), 6).model, tmp_path / "m.onnx")
    monkeypatch.setattr("emp_onnx.cli.show.Meter", lambda stream: Meter(stream, after=0.0, every=0.0))
    assert main(["prune", str(path)]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["prune", str(path)]) == 0
    assert "counting: " in capsys.readouterr().err
    assert main(["prune", str(path), "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    assert main(["plan", str(path), "--verbose"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("counting: ")
    assert "'a': Gemm 'first' input 1" in said.out
    assert main(["plan", str(path), "--verbose", "--quiet"]) == 2
    assert "--verbose must come without --quiet" in capsys.readouterr().err


@pytest.mark.alone
@pytest.mark.skipif(os.name != "posix", reason="sends a signal as a terminal on POSIX does")
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((4000, 4000)).astype(np.float32)
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    made = model([node], [value("x", ["N", 4000])], [value("y", None)], [onnx.numpy_helper.from_array(array, "w")])
    path = write(made, tmp_path / "m.onnx")
    data = path.read_bytes()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")])}

    def opened(pid: int) -> bool:  # where the system does not tell, it will have been by then
        time.sleep(0.005)
        folder = Path(f"/proc/{pid}/fd")
        if not folder.is_dir():
            time.sleep(2)
            return True
        with suppress(OSError):
            return any(os.path.realpath(item) == str(path) for item in folder.iterdir())
        return False

    def begun(_: int) -> bool:
        time.sleep(0.005)
        return any(name.endswith(".part") for name in os.listdir(tmp_path))

    for reached in (opened, begun):
        command = [sys.executable, "-m", "emp_onnx", "prune", str(path), "--threads", "1"]
        with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            until = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < until:
                if reached(process.pid):
                    process.send_signal(signal.SIGINT)
                    break
            said = process.communicate(timeout=60)[1].decode()
        assert process.returncode == 130, said
        assert "interrupted" in said.splitlines()[-1]
        assert "Traceback" not in said
        assert os.listdir(tmp_path) == ["m.onnx"]
    assert path.read_bytes() == data
