"""What a model finally says, as numbers that can be compared: the last floats on the way to its outputs.

An output that is a whole number (a class, a token) says nothing of how near it came to change; so from there the way is
followed back to the floats that decided it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.chunks import Chunk, chunks
from emp_onnx.calibration.feeding import declared
from emp_onnx.calibration.network import Network
from emp_onnx.calibration.runner import Kept, Runner
from emp_onnx.errors import ModelError
from emp_onnx.runtime.feeds import Feed
from emp_onnx.weights.find import Weight

__all__ = ["Answers", "agreement", "classes", "distance", "moved", "rows_of", "top1"]

Array = NDArray[Any]
FLOATS = ("float16", "float32", "float64")
LARGE = 1 << 28  # bytes of weights beyond which a network is run level by level


class Answers:
    """Runs a network and gives the floats behind its outputs, feed by feed.

    Attributes:
        names: of these values.
    """

    def __init__(self, network: Network) -> None:
        self.network, self.kept = network, Kept()
        program = network.program
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
        kinds = {item.name: item.dtype for item in declared(self.network.model, outputs=True)}
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
        return [[self._one(run, name, i) for name in self.names] for i in range(len(feeds))]

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

    @staticmethod
    def _one(run: Runner, name: str, feed: int) -> Array:
        value = run.values.get(name, feed)
        return np.zeros(0) if value is None else np.asarray(value)


def distance(one: Sequence[Sequence[Array]], other: Sequence[Sequence[Array]]) -> float:
    """How far answers are apart: the sum over outputs of squared differences, each by the output's own variance.

    Of class scores the Hellinger distance of the probabilities is taken, which weighs a change by what it does to the
    choice.
    """
    total = 0.0
    for a, b in zip(zip(*one, strict=True), zip(*other, strict=True), strict=True):
        moved = size = mean = 0.0
        count = 0
        for x, y in zip(a, b, strict=True):
            if x.shape != y.shape:
                return float("inf")
            p, q = _comparable(x), _comparable(y)
            moved += float(((p - q) ** 2).sum())
            size += float((p * p).sum())
            mean += float(p.sum())
            count += p.size
        spread = size - mean * mean / max(count, 1)
        total += moved / spread if spread > 0 else (0.0 if moved == 0 else float("inf"))
    return total


def top1(one: Sequence[Sequence[Array]], other: Sequence[Sequence[Array]]) -> float | None:
    """The share of rows of class scores whose largest entry is the same; None where no output is one of those."""
    same = rows = 0
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            p, q = classes(x), classes(y)
            if p is not None:
                rows += len(p)
                if q is not None and p.shape == q.shape:
                    same += int((p.argmax(1) == q.argmax(1)).sum())
    return same / rows if rows else None


def rows_of(answer: Sequence[Array], /) -> int:
    """How many answers one feed got: rows of class scores, else entries of the first axis; of the largest output."""
    found = [(classes(x), x) for x in answer]
    return max((len(x if rows is None else rows) if x.ndim else 1 for rows, x in found), default=0)


def _size(weight: Weight) -> int:
    return math.prod(weight.shape)


def classes(value: Array) -> Array | None:
    """Class scores as (rows, classes): the last axis longer than 1, where two or more axes are left."""
    shape = [size for i, size in enumerate(value.shape) if i < 1 or size != 1]
    if value.dtype.kind != "f" or len(shape) < 2 or shape[-1] < 2 or not value.size:
        return None
    return value.reshape(-1, shape[-1])


def _comparable(value: Array) -> Array:
    x = value.astype(np.float64)
    rows = classes(value)
    if rows is None:
        return x.reshape(-1)
    rows = rows.astype(np.float64)
    with np.errstate(all="ignore"):
        if (rows >= 0).all() and np.allclose(rows.sum(1), 1, atol=1e-3):
            return np.sqrt(rows)
        odds = np.exp(rows - rows.max(1, keepdims=True))
        found: Array = np.sqrt(odds / odds.sum(1, keepdims=True))
        return found


def agreement(one: Sequence[Sequence[Array]], other: Sequence[Sequence[Array]], /) -> float:
    """Share of answers that stayed the same (top-1), or 1 − their relative distance where none is class scores."""
    same = top1(one, other)
    return same if same is not None else 1 - min(1.0, distance(one, other))


def moved(one: Sequence[Sequence[Array]], other: Sequence[Sequence[Array]], /) -> float:
    """Relative error of answers: ‖difference‖ / ‖deviation from the mean‖."""
    gap = size = 0.0
    for a, b in zip(zip(*one, strict=True), zip(*other, strict=True), strict=True):
        count = mean = square = 0.0
        for x, y in zip(a, b, strict=True):
            if x.shape != y.shape:
                return math.inf
            p, q = x.astype(np.float64), y.astype(np.float64)
            finite = np.isfinite(p) & np.isfinite(q)
            if not finite.all():  # a score that is masked with −∞ is no difference
                if (p != q)[~finite].any():
                    return math.inf
                p, q = p[finite], q[finite]
            gap += float(((p - q) ** 2).sum())
            square += float((p * p).sum())
            mean += float(p.sum())
            count += p.size
        size += square - mean * mean / max(count, 1)
    return math.sqrt(gap / size) if size > 0 else (0.0 if gap == 0 else math.inf)
