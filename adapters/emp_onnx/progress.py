"""Progress of long work: bytes done, of how many, the rate, and the time left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import IO, Protocol

from emp_onnx.interrupt import check

__all__ = ["Meter", "Watch"]


class Watch(Protocol):
    """Whoever wants to know how far the work is."""

    def phase(self, name: str, total: int, /) -> None:
        """Another part of the work begins, over about `total` bytes."""
        ...

    def add(self, count: int, /) -> None:
        """So many more bytes are done."""
        ...


class Meter:
    """One line on a terminal, rewritten in place; nothing before `after` seconds, and nothing left at the end.

    Attributes:
        spent: seconds by phase.
    """

    def __init__(
        self,
        stream: IO[str] | None,
        *,
        after: float = 1.0,
        every: float = 0.2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spent: dict[str, float] = {}
        self._stream, self._every, self._clock = stream, every, clock
        self._name, self._total, self._done = "", 0, 0
        self._start = clock()
        self._next, self._shown, self._lock = self._start + after, 0, threading.Lock()

    def phase(self, name: str, total: int, /) -> None:
        """Another part of the work begins, over about `total` bytes."""
        check()
        with self._lock:
            self._end()
            self._name, self._total, self._done, self._start = name, total, 0, self._clock()

    def add(self, count: int, /) -> None:
        """So many more bytes are done; may be called by several threads."""
        with self._lock:
            self._done += count
            now = self._clock()
            if self._stream is not None and now >= self._next:
                self._next = now + self._every
                self._show(self._line(now))

    def close(self) -> None:
        """The work has ended, well or not: the line is wiped."""
        with self._lock:
            self._end()
            self._name = ""
            if self._shown and self._stream is not None:
                self._show("")

    def _end(self) -> None:
        if self._name:
            self.spent[self._name] = self.spent.get(self._name, 0.0) + self._clock() - self._start

    def _line(self, now: float) -> str:
        done, seconds = min(self._done, self._total), now - self._start
        rate = self._done / seconds if seconds > 0 else 0.0
        text = f"{self._name}: {size(done)} of {size(self._total)}"
        if rate:
            text += f", {size(rate)}/s, {_left((self._total - done) / rate)} left"
        return text

    def _show(self, text: str) -> None:
        assert self._stream is not None
        try:
            self._stream.write("\r" + text + " " * (self._shown - len(text)) + ("\r" if not text else ""))
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None  # nobody looks any more
        self._shown = len(text)


def size(count: float) -> str:
    """Bytes in words.

    >>> size(2_500_000)
    '2.5 MB'
    """
    for unit in ("bytes", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _left(seconds: float) -> str:
    whole = int(seconds + 0.5)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60} s"
