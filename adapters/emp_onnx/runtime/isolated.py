"""onnxruntime in processes of its own, and models that load there while other work goes on."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType

from emp_onnx.files.model_io import Model
from emp_onnx.runtime.compare import Session, Sessions
from emp_onnx.runtime.process import Process

__all__ = ["Here", "Isolated"]


class Here:
    """The same face for sessions in this process: where onnxruntime has run the model here before, a process of its
    own protects from nothing."""

    def __init__(self, *, threads: int | None = None) -> None:
        self.threads = threads

    def __enter__(self) -> Here:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to end."""

    def open(self, model: Model | Path, /, *, plain: bool = False) -> Sessions:
        """Load a model; see `Isolated.open`."""
        return Session(model, threads=self.threads, plain=plain)


class Isolated:
    """Where the sessions of one comparison run; a context, at whose end every process is gone.

    Usually that is one process. A `plain` model is a graph of so many nodes that onnxruntime needs a second or more
    to load it: the first two of these get a process each, and load at the same time.

    Example:
        >>> with Isolated() as process:
        ...     process.running
        False
    """

    def __init__(self, *, threads: int | None = None) -> None:
        self._processes = (Process(threads=threads), Process(threads=threads))
        self._given = 0  # plain models that were given a process
        self._ahead: dict[Path, Future[Sessions]] = {}

    def __enter__(self) -> Isolated:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.end()

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return any(process.running for process in self._processes)

    def start(self, *, plain: bool = False) -> None:
        """Begin, and do not wait: the first process, or for plain models both."""
        for process in self._processes[: 1 + plain]:
            process.start()

    def ahead(self, path: Path, /, *, plain: bool = False) -> None:
        """Begin to load a file that will be opened, and do not wait; one process loads its files in this order."""
        process = self._for(plain)
        if not process.start():
            return
        future: Future[Sessions] = Future()
        before, self._ahead[path] = list(self._ahead.values()), future

        def work() -> None:
            for other in () if plain else before:
                other.exception()
            try:
                future.set_result(process.open(path, plain=plain))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, daemon=True).start()

    def open(self, model: Model | Path, /, *, plain: bool = False) -> Sessions:
        """Load a model there; `plain` without optimising its graph, if it runs so.

        Raises:
            NotRunError: onnxruntime cannot load it; CrashedError, one of these: it crashed, or did not end.
            MissingExtraError: onnxruntime is not installed.
        """
        future = self._ahead.pop(model, None) if isinstance(model, Path) else None
        return self._for(plain).open(model, plain=plain) if future is None else future.result()

    def wait(self, path: Path, /) -> None:
        """Until a model that loads ahead is there, or is known not to load."""
        if (future := self._ahead.get(path)) is not None:
            future.exception()

    def _for(self, plain: bool) -> Process:
        """The process that takes the next model."""
        self._given += plain
        return self._processes[1 if plain and self._given == 2 else 0]
