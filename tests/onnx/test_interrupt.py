"""Ctrl-C at every moment: no half-written file is left, and no key press gets lost in code of others."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import emp_onnx.__main__ as entry
from emp_onnx import interrupt
from emp_onnx.cli import command, main
from emp_onnx.files import whole
from emp_onnx.files.whole import write_whole
from emp_onnx.progress import Meter


class At:
    """Raises `KeyboardInterrupt` before instruction `n` of `files/whole.py` from here on, but once."""

    def __init__(self, n: int) -> None:
        self.left, self.raised = n, False

    def __call__(self, frame: FrameType, event: str, _: Any) -> At | None:
        if frame.f_code.co_filename != whole.__file__:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and not self.raised:
            self.left -= 1
            if self.left < 0:
                self.raised = True
                raise KeyboardInterrupt
        return self


def interrupted(target: Path, data: bytes, n: int) -> bool:
    """Write with an interrupt before instruction `n`; whether there were so many."""
    at, before = At(n), sys.gettrace()
    sys.settrace(at)
    try:
        with suppress(KeyboardInterrupt):
            write_whole(target, data)
    finally:
        sys.settrace(before)
    return at.raised


# between opening and `with` a handle is closed by nobody but the collector, which says so
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_an_interrupt_before_any_instruction_leaves_the_old_file_or_the_new_and_nothing_else(tmp_path: Path) -> None:
    target, n, seen = tmp_path / "out", 0, set[bytes]()
    target.write_bytes(b"old")
    while interrupted(target, b"new", n):
        assert [path.name for path in tmp_path.iterdir()] == ["out"], n
        seen.add(target.read_bytes())
        target.write_bytes(b"old")
        n += 1
    assert n > 100
    assert seen == {b"old", b"new"}


def swallow() -> None:
    with suppress(BaseException):
        signal.raise_signal(signal.SIGINT)


def test_what_was_swallowed_is_raised_at_the_next_step_and_nothing_is_written(tmp_path: Path) -> None:
    with interrupt.watched():
        swallow()
        with pytest.raises(KeyboardInterrupt):
            write_whole(tmp_path / "out", b"new")
        with pytest.raises(KeyboardInterrupt):
            Meter(None).phase("counting", 10)
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    write_whole(tmp_path / "out", b"new")  # it is forgotten then


def test_a_handler_of_others_stays_and_other_threads_have_none() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    try:
        with interrupt.watched():
            swallow()
            interrupt.check()
        assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)

    def other() -> None:
        with interrupt.watched():
            seen.append(int(signal.getsignal(signal.SIGINT) is signal.default_int_handler))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [signal.SIGINT, 1]


def test_the_command_line_watches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(_: object) -> int:
        swallow()
        write_whole(tmp_path / "out", b"new")
        return 0

    class Parser:
        def parse_args(self, _: object) -> Any:
            return type("Options", (), {"run": staticmethod(run)})

    monkeypatch.setattr(command, "_parser", Parser)
    assert main([]) == 130
    assert list(tmp_path.iterdir()) == []


def test_it_may_come_while_modules_are_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Pressed:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "emp_onnx.cli":
                raise KeyboardInterrupt

    for name in [name for name in sys.modules if name.startswith("emp_onnx.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Pressed(), *sys.meta_path])
    assert entry.main() == 130
    assert capsys.readouterr().err == "emp: interrupted; no half-written file is left behind\n"
