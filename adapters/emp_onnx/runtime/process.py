"""One other process in which onnxruntime runs: it may crash, hang or run out of memory there, and what is said then is
true."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from emp_onnx.errors import MissingExtraError
from emp_onnx.files.model_io import Model
from emp_onnx.runtime import ort
from emp_onnx.runtime.compare import CrashedError, NotRunError, Session, Sessions, declared
from emp_onnx.runtime.feeds import Feed

__all__ = ["Process"]

START, LOAD, RUN = 120.0, 60.0, 3600.0  # seconds to begin, to load a small model, for one run on feeds given
RATE = 1 << 22  # bytes of a model for which loading may take a second more
GRACE = 30.0  # seconds after which a run that does not heed its limit is ended from outside
BEGIN = "import sys; sys.path[:] = sys.argv[2:]; import runpy; runpy.run_path(sys.argv[1], run_name='__main__')"
SIGNALS = {"SIGSEGV": "segmentation fault", "SIGBUS": "bus error", "SIGABRT": "aborted", "SIGFPE": "division by 0",
           "SIGILL": "instruction that this processor does not have",
           "SIGKILL": "killed from outside, as happens when memory runs out"}  # fmt: skip


class Process:
    """A process for some sessions.

    It is a fresh interpreter, not a fork, and takes nothing from the program around but where packages are (so it
    needs no `site` to find them), and it
    works in notebooks, threads and scripts without a main guard. It ends by itself when this process dies. Where no
    interpreter can be started (Python inside another program), sessions are opened in this process.
    """

    def __init__(self, *, threads: int | None = None) -> None:
        self.threads = threads
        self._process: subprocess.Popen[bytes] | None = None
        self._greeted = self._late = self._ended = False
        self._gone = ""
        self._lock = threading.RLock()  # one request at a time
        self._life = threading.Lock()  # of the process: what still loads ahead begins no other when all is over

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def start(self) -> bool:
        """Begin, and do not wait: what follows here goes on at the same time. Returns whether there is a process."""
        script = Path(ort.__file__)
        if self._process is not None or self._gone or not sys.executable or not script.is_file() or not _installed():
            return self.running
        paths = [os.path.abspath(path) for path in sys.path]
        flags = getattr(subprocess, "CREATE_NO_WINDOW", 0)
        with self._life, suppress(OSError):
            if self._process is None and not self._ended:
                self._process = subprocess.Popen(
                    [sys.executable, "-S", "-W", "ignore", "-c", BEGIN, str(script), *paths],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, creationflags=flags,
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # NumPy moves arrays there: no threads ready
                )  # fmt: skip
        return self.running

    def open(self, model: Model | Path, /, *, plain: bool = False) -> Sessions:
        """See `Isolated.open`."""
        with self._lock:
            return self._opened(model, plain)

    def _opened(self, model: Model | Path, plain: bool) -> Sessions:
        self.start()
        if self._process is not None and not self._greeted:
            self._greet()
        if self._process is None:
            if self._gone or self._ended:
                raise CrashedError(self._gone or "onnxruntime's process has ended")
            return Session(model, threads=self.threads, plain=plain)
        if isinstance(model, Path):
            source: str | bytes = os.path.abspath(model)
            size = os.path.getsize(model)
        else:
            source = model.to_bytes()
            size = len(source)
        request = {"do": "open", "threads": self.threads, "plain": plain}
        answer, _ = self._ask(request, source, LOAD + size / RATE, "when it loaded it")
        if answer["error"] == "missing":
            raise MissingExtraError("onnxruntime")
        if answer["error"] == "text":
            raise NotRunError("its inputs and outputs have names or sizes that are no text")
        if answer["error"]:
            raise NotRunError(f"onnxruntime cannot load it: {answer['said']}")
        return _Remote(self, answer)

    def run(self, session: int, feed: Feed, limit: float | None) -> list[Any]:
        """One run; see `Session.run`."""
        patience = RUN if limit is None else limit + GRACE
        request = {"do": "run", "session": session, "limit": limit}
        with self._lock:
            answer, outputs = self._ask(request, dict(feed), patience, "when it ran it")
        if answer["error"]:
            raise NotRunError(f"onnxruntime cannot run it: {answer.get('said', answer['error'])}")
        found: list[Any] = outputs
        return found

    def end(self) -> None:
        """End the process, and begin no other."""
        self._ended = True
        self.close()

    def close(self) -> None:
        """End the process."""
        with self._life:
            process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        process.wait()

    def _greet(self) -> None:
        """Wait for the first word; an interpreter that has none to say is none."""
        assert self._process is not None
        assert self._process.stdout is not None
        timer = self._timer(START)
        try:
            self._greeted = "here" in ort.receive(self._process.stdout)[0]  # type: ignore[arg-type]
        except EOFError:
            self.close()
        finally:
            timer.cancel()

    def _ask(self, request: dict[str, Any], value: Any, limit: float, doing: str) -> tuple[dict[str, Any], Any]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise CrashedError(self._gone or "onnxruntime's process has ended")
        timer = self._timer(limit)
        try:
            ort.send(process.stdin, request, value)  # type: ignore[arg-type]
            answer, result = ort.receive(process.stdout)  # type: ignore[arg-type]
            if not isinstance(answer.get("error"), str):
                raise EOFError
            return answer, result
        except (EOFError, OSError, ValueError, MemoryError) as error:
            if isinstance(error, MemoryError):
                how = "gave more than there is memory for"
            elif self._late:
                how = f"did not end within {limit:.0f} seconds"
            else:
                how = f"crashed ({_how(process)})"
            self._gone = f"onnxruntime {how} {doing}"
            self.close()
            raise CrashedError(self._gone) from error
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()

    def _timer(self, limit: float) -> threading.Timer:
        process = self._process
        assert process is not None

        def end() -> None:
            self._late = True
            process.kill()

        timer = threading.Timer(limit, end)
        timer.daemon = True
        timer.start()
        return timer


class _Remote:
    """A session there, with the face of one here."""

    def __init__(self, process: Process, facts: dict[str, Any]) -> None:
        self._process, self._number = process, facts["session"]
        self.inputs = tuple(declared(*item) for item in facts["inputs"])
        self.overridable = tuple(declared(*item) for item in facts["overridable"])
        self.outputs: tuple[str, ...] = tuple(facts["outputs"])

    def run(self, feed: Feed, /, limit: float | None = None) -> dict[str, Any]:
        """See `Session.run`."""
        return dict(zip(self.outputs, self._process.run(self._number, feed, limit), strict=True))


def _installed() -> bool:
    try:
        return importlib.util.find_spec("onnxruntime") is not None
    except ValueError:  # a module without a specification
        return "onnxruntime" in sys.modules and sys.modules["onnxruntime"] is not None


def _how(process: subprocess.Popen[bytes]) -> str:
    """How a process ended, in words."""
    try:
        code = process.wait(GRACE)
    except subprocess.TimeoutExpired:
        return "it sent something else than an answer"
    if code < 0:
        with suppress(ValueError):
            name = signal.Signals(-code).name
            return SIGNALS.get(name, name)
    return "access violation" if code == 0xC0000005 else f"exit code {code}"
