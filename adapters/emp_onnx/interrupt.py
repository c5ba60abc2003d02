"""Ctrl-C that cannot get lost: code of others may swallow the exception, but not that it was raised.

Modules written in C catch everything while they are imported (`numpy.random` does), and Python drops what is raised
inside a callback. The work then goes on as if nobody had pressed a key.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["check", "watched"]

_pressed = threading.Event()


def check() -> None:
    """Raise `KeyboardInterrupt` if one was raised inside `watched` and did not get out; called between two steps."""
    if _pressed.is_set():
        raise KeyboardInterrupt


@contextmanager
def watched() -> Iterator[None]:
    """Remember, while the block runs, that Ctrl-C was pressed. Whoever has a handler of their own keeps it."""
    mine = threading.current_thread() is threading.main_thread()
    mine = mine and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if mine:
        signal.signal(signal.SIGINT, _press)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _pressed.clear()


def _press(_: int, __: FrameType | None) -> None:
    _pressed.set()
    raise KeyboardInterrupt
