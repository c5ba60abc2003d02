"""From the answers back to every layer: how much a change of its outputs changes what is said.

Reverse mode, one feed at a time: the program runs once, with all that lies on the way, then its steps are gone through
from the last to the first. A value is followed only where every way from it to the answers is known; behind a step
without an adjoint (a cell, a loop, a branch, what is fused) nothing is said of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.chunks import chunks
from emp_onnx.calibration.loops import fixed_value
from emp_onnx.calibration.network import Network
from emp_onnx.calibration.program import Program, Step
from emp_onnx.calibration.runner import Kept, Runner
from emp_onnx.calibration.sessions import open_operation, open_session
from emp_onnx.calibration.values import Values
from emp_onnx.fisher.adjoints import Adjoint, Call, UnableError
from emp_onnx.fisher.sliding import ALL
from emp_onnx.runtime.feeds import Feed
from emp_onnx.runtime.ort import first_line

__all__ = ["Reverse"]

Array = NDArray[Any]
MOST = 1 << 26  # numbers on the way of one feed


class Reverse:
    """Gradients of what a network says, with respect to values on the way.

    Args:
        network: the network.
        answers: the values that it says.
        wanted: the values whose gradients are asked for.
        feed: one that shows of which types values are.

    Attributes:
        found: those of `wanted` from which every way to the answers is known, and leads through a further product.

    Raises:
        ModelError, UnableError: see `forward`.
    """

    def __init__(self, network: Network, answers: Sequence[str], wanted: Collection[str], feed: Feed) -> None:
        self.network, self.program, self.answers = network, network.program, list(answers)
        self._fixed: dict[str, Array] = {}
        self._sessions: dict[object, Any] = {}
        self._memo: dict[int, dict[str, Array]] = {}
        self._look_between(wanted)
        seen = self._seen(feed)  # one after the other: together they may be too many
        kinds = {name: value.dtype for name in self._shown if (value := seen.get(name, 0)) is not None}
        self._still = {name for name, kind in kinds.items() if kind.kind in "iubOSU"}
        self._floats = {name for name, kind in kinds.items() if kind == np.float32}
        self.found = self._followed(wanted)
        self._look_between(self.found)

    def _look_between(self, wanted: Collection[str]) -> None:
        """The steps between these values and the answers, and what they need."""
        self._way = self._between(wanted)
        names = [name for step in self._way for name in (*step.inputs, *step.outputs) if name]
        self._shown = [n for n in dict.fromkeys([*names, *self.answers]) if n not in self.program.fixed]
        # level by level, so that what does not fit in memory is seen before all of it is there
        self._cut = chunks(self.program, self.network.levels, self._shown)
        self._kept = Kept()

    def _between(self, wanted: Collection[str]) -> list[Step]:
        """The steps between the wanted values and the answers, the last first."""
        self._moved, before = set(wanted), list[Step]()
        for step in self.program.steps:
            if self._moved & set(step.reads):
                before.append(step)
                self._moved.update(filter(None, step.outputs))
        leading, way = set(self.answers), list[Step]()
        for step in reversed(before):
            if leading & set(step.outputs):
                way.append(step)
                leading.update(step.reads)
        return way

    def _adjoint(self, step: Step) -> Adjoint | None:
        known = step.node.domain in ("", "ai.onnx") or step.node.op == "Gelu"
        single = all(len(self.program.makers[name]) == 1 for name in step.outputs if name)
        return ALL.get(step.node.op) if known and single and not step.guard and step.body is None else None

    def _followed(self, wanted: Collection[str]) -> set[str]:
        """See `found`. Whole numbers stand still: a size, a condition, a choice."""
        known, mixed = set(self.answers) & self._floats, set[str]()
        self._lost = set(self.answers) - self._floats - self._still
        for step in self._way:
            adjoint, outputs = self._adjoint(step), set(filter(None, step.outputs))
            if outputs <= self._still:
                continue
            for slot, name in enumerate(step.inputs):
                if name not in self._moved or name in self._still:
                    continue
                passed = adjoint is not None and adjoint.through(slot) and not outputs & self._lost
                if not passed or name not in self._floats or adjoint is None:
                    self._lost.add(name)
                    continue
                known.add(name)
                if adjoint.product or outputs & mixed:
                    mixed.add(name)
        return {name for name in wanted if name in known & mixed and name not in self._lost}

    def forward(self, feed: Feed) -> dict[str, Array]:
        """The values of one feed that the way back asks for, as far as it reaches them.

        Raises:
            ModelError: onnxruntime cannot run it.
            UnableError: they are more than is kept in memory.
        """
        self._memo.clear()
        seen = self._seen(feed)
        shapes = [seen.shape(name, 0) for name in self._shown]
        if sum(math.prod(shape) for shape in shapes if shape) > MOST:
            raise UnableError
        found = {name: seen.get(name, 0) for name in self._shown}
        return {name: np.asarray(value) for name, value in found.items() if value is not None}

    def _seen(self, feed: Feed) -> Values:
        run = Runner(self.program, self._cut, self.network.value, threads=self.network.threads, kept=self._kept)
        run.start([feed])
        for level in range(len(self._cut)):
            run.level(level, self._shown)
        return run.values

    def back(self, values: Mapping[str, Array], seeds: Mapping[str, Array]) -> dict[str, Array]:
        """Gradients of Σ seed·answer with respect to the values found, at the values of the last feed.

        Raises:
            UnableError: a step's adjoint is not known after all.
        """
        pulls = {name: seed.astype(np.float32) for name, seed in seeds.items()}
        for step in self._way:
            adjoint = self._adjoint(step)
            if adjoint is None or not any(name in pulls for name in step.outputs if name):
                continue
            free = (self._moved & self._floats).intersection(step.inputs) - self._lost
            if not free:
                continue
            try:
                found = list(adjoint.pulls(self._call(step, values, pulls, frozenset(free))))
            except (ValueError, IndexError) as error:  # arrays that its adjoint was not made for
                raise UnableError(f"{step.node.label}: {error}") from error
            for name, pull in found:
                if pull.shape != values[name].shape:
                    raise UnableError(step.node.label)
                pulls[name] = pulls[name] + pull if name in pulls else pull
        return {name: pulls[name] for name in self.found if name in pulls}

    def _call(self, step: Step, values: Mapping[str, Array], pulls: Mapping[str, Array], free: frozenset[str]) -> Call:
        inputs = tuple(self._value(name, values) for name in step.inputs)
        said = {name: value for name, value in zip(step.inputs, inputs, strict=True) if value is not None}
        gives = [name for name in step.outputs if name]

        def run(changed: Mapping[str, Array]) -> list[Array]:
            reads = {**said, **changed}
            program = Program([step], {}, (), (), self.program.functions, self.program.opsets, self.program.ir_version)
            kinds = tuple((name, value.dtype.str, value.ndim) for name, value in reads.items())
            threads = self.network.threads
            opened = partial(open_session, program, [step], reads, gives, self.network.value, threads)
            return self._run((id(step), kinds), opened, reads, gives)

        version = next((item.version for item in self.program.opsets if item.domain in ("", "ai.onnx")), 1)
        outputs = tuple(values.get(name) if name else None for name in step.outputs)
        return Call(
            step, inputs, outputs, tuple(pulls.get(name) if name else None for name in step.outputs), free, run,
            self._memo.setdefault(id(step), {}), self._other, version,
        )  # fmt: skip

    def _value(self, name: str, values: Mapping[str, Array]) -> Array | None:
        if not name:
            return None
        if name not in self.program.fixed:
            return values.get(name)
        if name not in self._fixed:
            self._fixed[name] = fixed_value(self.program, name, self.network.value, self.network.threads)
        return self._fixed[name]

    def _other(self, op: str, *inputs: Array, outputs: int = 1, **attributes: Any) -> list[Array]:
        reads = {f"x{i}": np.ascontiguousarray(x) for i, x in enumerate(inputs)}
        gives = [f"y{i}" for i in range(outputs)]
        key = op, str(attributes), tuple((x.dtype.str, x.ndim) for x in inputs)
        return self._run(key, lambda: open_operation(op, reads, gives, attributes, self.network.threads), reads, gives)

    def _run(
        self, key: object, opened: Callable[[], Any], reads: Mapping[str, Array], gives: Sequence[str]
    ) -> list[Array]:
        try:
            if key not in self._sessions:
                self._sessions[key] = opened()
            found: list[Array] = self._sessions[key].run(gives, reads)
        except Exception as error:  # onnxruntime's own errors have no common base
            raise UnableError(first_line(error)) from error
        return found
