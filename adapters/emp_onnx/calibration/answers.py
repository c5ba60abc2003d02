"""What a model finally says, as numbers that can be compared: the last floats on the way to its outputs.

An output that is a whole number (a class, a token) says nothing of how near it came to change; so from there the way is
followed back to the floats that decided it. And an output that the model reads again at its next step is a state, not
something that it says: it counts as numbers, never as scores of classes. Of the others `along.py` says along which axis
they hold scores, if they do; that axis is made the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.along import channels, class_axis, laid, makers, scores_along
from emp_onnx.calibration.chunks import Chunk, chunks
from emp_onnx.calibration.feeding import declared
from emp_onnx.calibration.network import Network
from emp_onnx.calibration.runner import Kept, Runner
from emp_onnx.errors import ModelError
from emp_onnx.runtime.feeds import Feed, Input
from emp_onnx.weights.find import Weight

__all__ = ["Answers", "states"]

Array = NDArray[Any]
FLOATS = ("float16", "float32", "float64")
LARGE = 1 << 28  # bytes of weights beyond which a network is run level by level


class Answers:
    """Runs a network and gives the floats behind its outputs, feed by feed.

    Attributes:
        names: of these values.
        states: those of them that are states; their values are given flat.
        along: by name the axis of class scores, None for numbers; known once a feed was seen.
    """

    def __init__(self, network: Network) -> None:
        self.network, self.kept = network, Kept()
        program = network.program
        self.inputs, self.outputs = declared(network.model), declared(network.model, outputs=True)
        self.states = states(self.inputs, self.outputs)
        self.along: dict[str, int | None] = {}
        self.large = sum(4 * weight for weight in map(_size, network.weights)) > LARGE
        everything = {n for step in program.steps for n in step.outputs if n and n not in program.fixed}
        levels = [step.level for step in program.steps]
        try:
            if not self.large:  # one session, where a large network is run level by level
                program.rank(lambda step: False)
            # mostly the outputs are floats themselves, and nothing else has to be looked at
            names = self._declared() or self._floats(set(program.outputs)) or self._floats(everything) or []
            self.names = names
            self.cut = self._cut(names)
        finally:
            for step, level in zip(program.steps, levels, strict=True):
                step.level = level
        if not self.names:
            raise ModelError(f"model must have outputs that follow from floats, got none in {network.model.origin}")

    def _cut(self, names: Iterable[str]) -> list[list[Chunk]]:
        return chunks(self.network.program, self.network.levels if self.large else 0, names)

    def _declared(self) -> list[str] | None:
        """The outputs, where the model says that all of them are floats, and makes them on every feed."""
        program = self.network.program
        names = [n for n in dict.fromkeys(program.outputs) if n not in program.fixed and n not in program.inputs]
        kinds = {item.name: item.dtype for item in self.outputs}
        made = all(not step.guard for name in names for step in program.makers.get(name, ()))
        return names if made and all(kinds.get(name) in FLOATS for name in names) else None

    def _floats(self, wanted: set[str]) -> list[str] | None:
        """The last floats on the way to the outputs; None if they are not among the values that are `wanted`."""
        program, found = self.network.program, dict[str, None]()
        cut = self._cut(wanted)
        probe = self._runner(cut, {}, False)
        probe.start(self.network.feeds[:1])
        for level in range(len(cut)):
            probe.level(level, wanted)
        todo, seen = list(program.outputs), set[str]()
        while todo:
            name = todo.pop(0)
            if name in seen or name in program.fixed or name in program.inputs:
                continue
            seen.add(name)
            if name not in wanted:
                return None
            value = probe.values.get(name, 0)
            if value is not None and value.dtype.kind == "f":
                found[name] = None
            else:
                todo += [n for step in program.makers.get(name, ()) for n in step.reads]
        return list(found)

    def _runner(self, cut: Sequence[Sequence[Chunk]], changed: Mapping[str, Array], keep: bool = True) -> Runner:
        network = self.network
        return Runner(
            network.program, cut, lambda key: network.value(key, changed), threads=network.threads,
            kept=self.kept if keep else None, changed=changed,
        )  # fmt: skip

    def __call__(self, changed: Mapping[str, Array] | None, feeds: Sequence[Feed]) -> list[list[Array]]:
        """For each feed the values, with some tensors changed."""
        run = self._runner(self.cut, changed or {})
        run.start(feeds)
        for level in range(len(self.cut)):
            run.level(level, self.names)
        if feeds:
            self.states |= self._seen(run, feeds[0])
            self._look(run, feeds[0])
        return [[self._one(run, name, i) for name in self.names] for i in range(len(feeds))]

    def _seen(self, run: Runner, feed: Feed) -> frozenset[str]:
        """States by the sizes that they have on a feed, which a model need not declare."""
        given = [replace(item, shape=np.shape(feed[item.name])) for item in self.inputs if item.name in feed]
        says = [(item, run.values.get(item.name, 0)) for item in self.outputs]
        return states(given, [item if x is None else replace(item, shape=x.shape) for item, x in says])

    def _look(self, run: Runner, feed: Feed) -> None:
        """Find the axes of class scores by the first feed that is seen."""
        made, inputs = makers(self.network.program), channels(feed)
        version = next((item.version for item in self.network.program.opsets if not item.domain), 1)
        for name in self.names:
            value = run.values.get(name, 0)
            if value is not None and name not in self.along:
                axis = class_axis(made, name, value.ndim, version) if value.ndim > 1 else None
                self.along[name] = scores_along(np.asarray(value), axis, inputs)

    def told(self, answer: Sequence[Array]) -> list[Array]:
        """Of an answer what is no state."""
        return [value for name, value in zip(self.names, answer, strict=True) if name not in self.states]

    def dense(self, feeds: Sequence[Feed]) -> list[list[Array]]:
        """What the dense network answers on feeds that are measured on.

        Raises:
            ModelError: NaN, with the node's name.
        """
        says = self(None, feeds)
        for i, answer in enumerate(says):
            for name, value in zip(self.names, answer, strict=True):
                if np.isnan(value).any():
                    label = next(step.node.label for step in self.network.program.makers[name])
                    raise ModelError(f"{label} must give numbers, got NaN on feed {i} of those that are measured on")
        return says

    def beyond(
        self, level: int, dense: Runner, feeds: Sequence[int], says: Sequence[Sequence[Array]], /
    ) -> Callable[[Mapping[str, Array]], list[list[Array]]]:
        """The same for changes of weights beyond a level alone, so that only what follows has to run.

        Args:
            level: the last one whose weights are as they were.
            dense: the dense network, run up to that level.
            feeds: which of its feeds.
            says: what the dense network answers on these.
        """
        cut = self.cut[level + 1 :] if self.large else self._later(level)
        self.kept.drop(chunk for part in self.cut[: level + 1] for chunk in part)
        made = {n for part in cut for chunk in part for step in chunk.steps for n in step.outputs}
        reads = {n for part in cut for chunk in part for n in (*chunk.reads, *(g for g, _ in chunk.guard))} - made

        def answers(changed: Mapping[str, Array]) -> list[list[Array]]:
            run = self._runner(cut, changed, self.large)  # its chunks are here to stay
            run.feeds = len(feeds)
            for at, feed in enumerate(feeds):
                for name in reads:
                    value = dense.values.get(name, feed)
                    if value is not None:
                        run.values.put(name, at, value)
            for part in range(len(cut)):
                run.level(part, self.names)
            return [
                [self._one(run, name, i) if name in made else says[i][j] for j, name in enumerate(self.names)]
                for i in range(len(feeds))
            ]

        return answers

    def _later(self, level: int) -> list[list[Chunk]]:
        """What lies beyond a level, in as few chunks as can be."""
        program = self.network.program
        levels = [step.level for step in program.steps]
        try:
            for step in program.steps:
                step.level = int(step.level > level)
            return chunks(program, 1, self.names)[1:]
        finally:
            for step, was in zip(program.steps, levels, strict=True):
                step.level = was

    def _one(self, run: Runner, name: str, feed: int) -> Array:
        value = run.values.get(name, feed)
        if value is None:
            return np.zeros(0)
        if name in self.states:
            return value.reshape(-1)
        return laid(np.asarray(value), self.along.get(name, value.ndim - 1))


def states(inputs: Sequence[Input], outputs: Sequence[Input], /) -> frozenset[str]:
    """The names of outputs that are states: tensors of two or more axes of the same type and sizes as an input (sizes
    that are not given fit any), where there are other outputs that are not so.

    >>> x, state = Input("x", "tensor(float)", (1, 576)), Input("state", "tensor(float)", (2, None, 128))
    >>> y, after = Input("y", "tensor(float)", (1, 1)), Input("after", "tensor(float)", (2, 1, 128))
    >>> sorted(states([x, state], [y, after]))
    ['after']
    >>> states([x], [Input("again", "tensor(float)", (1, 576))])
    frozenset()
    """
    found = frozenset(out.name for out in outputs if len(out.shape) > 1 and any(_fits(out, item) for item in inputs))
    return found if len(found) < len({out.name for out in outputs}) else frozenset()


def _fits(out: Input, item: Input) -> bool:
    if out.type != item.type or len(out.shape) != len(item.shape):
        return False
    pairs = [(a, b) for a, b in zip(out.shape, item.shape, strict=True) if isinstance(a, int) and isinstance(b, int)]
    return all(a == b for a, b in pairs) and any(a > 1 for a, _ in pairs)


def _size(weight: Weight) -> int:
    return math.prod(weight.shape)
