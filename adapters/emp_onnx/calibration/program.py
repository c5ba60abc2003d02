"""A model as one flat list of steps, ordered so that it can be run level by level.

The bodies of If are laid flat (see `flat.py`): each of their steps carries a guard, the conditions under which it runs.
So are local functions. A Loop or a Scan is one step, which also has its body as a program of its own. A *site* is a
step that uses a weight linearly; its level is one more than the highest of its inputs, so all sites of one level can be
solved together, once everything below has been run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from emp_onnx.files.graph import Node, Tensor

__all__ = ["Body", "Guard", "Program", "Step", "ordered"]

Guard = tuple[tuple[str, bool], ...]
Proto = Any
T = TypeVar("T")


@dataclass(eq=False)
class Step:
    """One operation. `inputs` also names what its bodies read from outside; empty names stand for absent inputs.

    `body` is there for a Loop or a Scan that can be run step by step.
    """

    proto: Proto
    node: Node
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    guard: Guard = ()
    level: int = 0
    body: Body | None = None

    @property
    def reads(self) -> Iterator[str]:
        """Every value that must be there before: inputs, and conditions."""
        yield from (name for name in self.inputs if name)
        yield from (name for name, _ in self.guard)


@dataclass(eq=False)
class Body:
    """What a Loop or a Scan does again and again.

    Attributes:
        program: its steps, and those outside that make constants for it; it reads other values from outside by name.
        ranks: of its inputs as declared, None where they are not.
    """

    program: Program
    ranks: tuple[int | None, ...]


@dataclass(eq=False)
class Program:
    """The steps of a model.

    Attributes:
        steps: in an order in which they can run.
        constants: value to the tensor it is.
        inputs, outputs: of the model.
        functions: local functions, for steps that call them.
        opsets: what the model imports.
        ir_version: of the file.
    """

    steps: list[Step]
    constants: dict[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    functions: list[Proto] = field(default_factory=list)
    opsets: list[Proto] = field(default_factory=list)
    ir_version: int = 8

    @cached_property
    def makers(self) -> dict[str, list[Step]]:
        """The steps that make each value; several when the branches of an If do."""
        out: dict[str, list[Step]] = {}
        for step in self.steps:
            for name in filter(None, step.outputs):
                out.setdefault(name, []).append(step)
        return out

    @cached_property
    def readers(self) -> dict[str, list[tuple[Step, int]]]:
        """The steps that read each value, and as which input."""
        out: dict[str, list[tuple[Step, int]]] = {}
        for step in self.steps:
            for slot, name in enumerate(step.inputs):
                if name:
                    out.setdefault(name, []).append((step, slot))
        return out

    @cached_property
    def fixed(self) -> frozenset[str]:
        """Values that follow from constants alone."""
        known = set(self.constants)
        for step in self.steps:
            random = step.node.op.startswith("Random") or step.node.op in ("Multinomial", "Bernoulli")
            if not random and all(not name or name in known for name in step.inputs):
                known.update(filter(None, step.outputs))
        return frozenset(known)

    def sources(self, name: str, /) -> set[str]:
        """The tensors, by key, that a fixed value is made from."""
        found, todo, seen = set[str](), [name], set[str]()
        while todo:
            now = todo.pop()
            if now in seen:
                continue
            seen.add(now)
            if now in self.constants:
                found.add(self.constants[now].key)
            for step in self.makers.get(now, ()):
                todo += [value for value in step.inputs if value]
        return found

    def closure(self, names: Iterable[str], /) -> list[Step]:
        """The steps that make these fixed values, in order."""
        wanted, todo = set[int](), list(names)
        while todo:
            for step in self.makers.get(todo.pop(), ()):
                if id(step) not in wanted:
                    wanted.add(id(step))
                    todo += [value for value in step.inputs if value]
        return [step for step in self.steps if id(step) in wanted]

    def rank(self, is_site: Callable[[Step], bool], /) -> int:
        """Give every step its level; returns the highest."""
        level: dict[str, int] = {}
        for step in self.steps:
            step.level = max((level.get(name, 0) for name in step.reads if name not in self.fixed), default=0)
            step.level += is_site(step)
            for name in step.outputs:
                level[name] = max(level.get(name, 0), step.level)
        return max((step.level for step in self.steps), default=0)

    def whole(self, look: Callable[[], T], /) -> T:
        """What is seen while all steps are of one level; their levels are then as before."""
        levels = [step.level for step in self.steps]
        self.rank(lambda step: False)
        try:
            return look()
        finally:
            for step, level in zip(self.steps, levels, strict=True):
                step.level = level


def ordered(steps: list[Step]) -> list[Step]:
    """The steps so that each comes after those whose values it reads; otherwise in their own order."""
    makers: dict[str, list[int]] = {}
    for i, step in enumerate(steps):
        for name in filter(None, step.outputs):
            makers.setdefault(name, []).append(i)
    state, out = [0] * len(steps), list[Step]()
    for first in range(len(steps)):
        stack = [(first, False)]
        while stack:
            i, done = stack.pop()
            if done:
                out.append(steps[i])
            elif not state[i]:
                state[i] = 1
                stack.append((i, True))
                before = [j for name in steps[i].reads for j in makers.get(name, ()) if j != i]
                stack += [(j, False) for j in reversed(before) if not state[j]]
    return out
