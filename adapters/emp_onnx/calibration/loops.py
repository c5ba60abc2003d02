"""Loop and Scan run step by step, so that what their bodies see is known at every iteration.

onnxruntime runs a loop as one operation and says nothing of what happens inside. So the body is run as a network of its
own, once for every iteration, with the states that the last one left. Nothing but the values of the present iteration
is held. Values may change their shapes from one iteration to the next; branches in a body run where their conditions
hold; a loop in a loop is run in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.chunks import Chunk, chunks
from emp_onnx.calibration.program import Program, Step
from emp_onnx.calibration.sessions import open_session
from emp_onnx.calibration.values import holds
from emp_onnx.errors import ModelError, quote
from emp_onnx.runtime.ort import first_line

__all__ = ["Walk", "fixed_value", "in_step"]

Array = NDArray[Any]
Get = Callable[[str], "Array | None"]
At = tuple[int, ...]


def fixed_value(program: Program, name: str, read: Any, threads: int | None) -> Array:
    """A value that follows from constants.

    Raises:
        ModelError: it is no tensor.
    """
    if name in program.constants:
        return np.asarray(read(program.constants[name].key))
    return _tensor(name, open_session(program, [], {}, [name], read, threads).run([name], {})[0])


def _tensor(name: str, value: Any) -> Array:
    if not isinstance(value, np.ndarray):
        raise ModelError(f"value {quote(name)} is not a tensor, which calibration does not support")
    return value


class Walk:
    """Goes through all iterations of a loop, or of the innermost of loops within loops.

    Args:
        path: steps with bodies, each in the body of the one before.
        wanted: values of the innermost body that will be asked for.
        read: gives the values of a tensor by its key.
        threads: for onnxruntime.
    """

    def __init__(self, path: Sequence[Step], wanted: Iterable[str], read: Any, threads: int | None) -> None:
        self.path = tuple(path)
        deeper = [set(step.reads) for step in self.path[1:]]
        self.turns = [
            _Turns(step, names, read, threads) for step, names in zip(self.path, [*deeper, set(wanted)], strict=True)
        ]

    def __call__(self, outer: Get, /) -> Iterator[tuple[At, Get]]:
        """For each iteration its number (one for each loop, the outermost first), and what gives its values.

        Args:
            outer: gives the values around the outermost loop.

        Raises:
            ModelError: an iteration that cannot be run, or a value that is no tensor.
        """
        yield from self._within(0, outer, ())

    def _within(self, depth: int, outer: Get, at: At) -> Iterator[tuple[At, Get]]:
        if not all(holds(outer(name), wanted) for name, wanted in self.path[depth].guard):
            return
        for i, get in self.turns[depth](outer):
            if depth + 1 == len(self.path):
                yield (*at, i), get
            else:
                yield from self._within(depth + 1, get, (*at, i))


def in_step(one: Iterator[tuple[At, Get]], other: Iterator[tuple[At, Get]], /) -> Iterator[tuple[At, Get, Get]]:
    """The iterations that two networks both come to."""
    a, b = next(one, None), next(other, None)
    while a is not None and b is not None:
        if a[0] == b[0]:
            yield a[0], a[1], b[1]
            a, b = next(one, None), next(other, None)
        elif a[0] < b[0]:
            a = next(one, None)
        else:
            b = next(other, None)


class _Turns:
    """The iterations of one loop."""

    def __init__(self, step: Step, wanted: set[str], read: Any, threads: int | None) -> None:
        assert step.body is not None
        self.step, self.body, self.read, self.threads = step, step.body, read, threads
        self.program = program = step.body.program
        scans = step.node.number("num_scan_inputs")
        self.states = len(program.inputs) - (2 if step.node.op == "Loop" else scans)
        leaves = program.outputs[: self.states + (step.node.op == "Loop")]
        (self.cut,) = program.whole(lambda: chunks(program, 0, {*wanted, *leaves}))
        self.leaves = leaves
        self._sessions: dict[object, Any] = {}
        self._constant: dict[str, Array] = {}

    def __call__(self, outer: Get) -> Iterator[tuple[int, Get]]:
        yield from self._loop(outer) if self.step.node.op == "Loop" else self._scan(outer)

    def _loop(self, outer: Get) -> Iterator[tuple[int, Get]]:
        most, go, *states = (outer(name) if name else None for name in self.step.proto.input)
        ranks, i = self.body.ranks, 0
        while (go is None or bool(go.reshape(-1)[0])) and (most is None or i < int(most.reshape(-1)[0])):
            count, on = np.array(i, np.int64), np.array(True)
            given = [count.reshape((1,) * (ranks[0] or 0)), on.reshape((1,) * (ranks[1] or 0)), *states]
            get = self._once(i, given, outer)
            yield i, get
            go, *states = (get(name) for name in self.leaves)
            i += 1

    def _scan(self, outer: Get) -> Iterator[tuple[int, Get]]:
        given = [outer(name) for name in self.step.proto.input]
        states, scanned = given[: self.states], given[self.states :]
        node = self.step.node
        axes = node.numbers("scan_input_axes") or (0,) * len(scanned)
        ways = node.numbers("scan_input_directions") or (0,) * len(scanned)
        rows = [None if x is None else np.moveaxis(x, axis, 0) for x, axis in zip(scanned, axes, strict=True)]
        count = min((len(x) for x in rows if x is not None), default=0)
        for i in range(count):
            some = [None if x is None else x[count - 1 - i if way else i] for x, way in zip(rows, ways, strict=True)]
            get = self._once(i, [*states, *some], outer)
            yield i, get
            states = [get(name) for name in self.leaves]

    def _once(self, i: int, given: Sequence[Array | None], outer: Get) -> Get:
        """Run the body once."""
        program = self.program
        values = dict(zip(program.inputs, given, strict=True))
        inside = {*program.inputs, *(n for chunk in self.cut for step in chunk.steps for n in step.outputs)}

        def get(name: str) -> Array | None:
            if name in inside:
                return values.get(name)
            if name in program.fixed:
                if name not in self._constant:
                    self._constant[name] = fixed_value(program, name, self.read, self.threads)
                return self._constant[name]
            return outer(name)

        for chunk in self.cut:
            if not chunk.gives or not all(holds(get(name), wanted) for name, wanted in chunk.guard):
                continue
            feed = {name: value for name in chunk.reads if (value := get(name)) is not None}
            try:
                found = self._session(chunk, feed).run(chunk.gives, feed)
            except ModelError:
                raise
            except Exception as error:  # onnxruntime's own errors have no common base
                what = f"onnxruntime cannot run iteration {i} of {self.step.node.label}"
                raise ModelError(f"{what}: {first_line(error)}") from error
            for name, value in zip(chunk.gives, found, strict=True):
                values[name] = _tensor(name, value)
        return get

    def _session(self, chunk: Chunk, feed: dict[str, Array]) -> Any:
        kind = (id(chunk), *((name, value.dtype, value.ndim) for name, value in feed.items()))
        if kind not in self._sessions:
            self._sessions[kind] = open_session(
                self.program, chunk.steps, feed, chunk.gives, self.read, self.threads
            )  # fmt: skip
        return self._sessions[kind]
