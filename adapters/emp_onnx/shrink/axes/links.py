"""Which coordinates of an operation's tensors go together: links, and walls where nothing may go.

An axis is (tensor, number). A *link* says of two or more axes that coordinate i[k] of the one, j[k] of the other, …
stand or fall together. An operation that folds several axes into one (Reshape, groups of a Conv, heads) has *ways*:
the folded axis is linked to an axis of the operation's own (a virtual one, its tensor's name begins with #) in each
way, and a set of coordinates goes one way at a time. Whole units removed in different ways may be put together, since
each way removes whole slices.

A rule has to speak of every axis of every tensor of its operation. An axis of which it says nothing is a wall.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.shrink.axes.trace import Trace
from emp_onnx.shrink.view import Op, View

__all__ = ["RULES", "Axis", "Link", "Links", "Relation", "Wall", "find_links", "rule"]

Axis = tuple[str, int]
Index = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Link:
    """Coordinates that go together: equally many of each axis. `way` names the folded axis that it is one way of."""

    ends: tuple[tuple[Axis, Index], ...]
    way: tuple[int, Axis] | None = None


@dataclass(frozen=True, eq=False)
class Wall:
    """Coordinates of an axis (None for all) that stay, and why."""

    axis: Axis
    reason: str
    index: Index | None = None


@dataclass
class Links:
    """All links and walls of a model, and the sizes of the axes, virtual ones included."""

    sizes: dict[Axis, int] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)
    walls: list[Wall] = field(default_factory=list)


class Relation:
    """What a rule writes into: it reads the operation, links axes, frees them, or walls them."""

    def __init__(self, op: Op, view: View, traced: Trace, out: Links) -> None:
        self.op, self.view, self.trace, self.out = op, view, traced, out
        self.spoken: set[Axis] = set()

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Sizes, None for one that changes with the input; None for a tensor of no known rank."""
        return self.trace.shapes.get(name)

    def rank(self, name: str) -> int:
        """The number of axes; raises `Unfit` where it is not known."""
        found = self.shape(name)
        if found is None:
            raise Unfit(f"the shape of '{name}' is not known")
        return len(found)

    def size(self, name: str, axis: int) -> int | None:
        """The size of an axis, None where it changes with the input."""
        found = self.shape(name)
        if found is None or not -len(found) <= axis < len(found):
            raise Unfit(f"'{name}' has no axis {axis}")
        return found[axis]

    def value(self, slot: int) -> NDArray[Any] | None:
        """The contents of an input that is constant, or follows from constant sizes."""
        return self.trace.values.get(self.op.input(slot))

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute, or its default."""
        return self.op.attributes.get(name, default)

    def virtual(self, label: str, size: int) -> str:
        """The name of an axis of the operation's own, of this size; as an axis it is (name, 0)."""
        name = f"#{self.op.index}.{label}"
        self.out.sizes[name, 0] = size
        return name

    def tie(self, *ends: tuple[str, int, Index | None], way: Axis | None = None) -> None:
        """Link axes, each with its coordinates in order (None: all). Sizes that change are left to the caller of the
        model."""
        real: list[tuple[Axis, Index]] = []
        moving = False
        for name, axis, index in ends:
            if not name:
                continue
            virtual = name.startswith("#")
            size = self.out.sizes[name, 0] if virtual else self.size(name, axis)
            place = (name, axis if virtual else axis % self.rank(name))
            self.spoken.add(place)
            if size is None:
                moving = True
                continue
            real.append((place, np.arange(size) if index is None else index))
        if moving or len({len(index) for _, index in real}) > 1:
            why = (
                "its size changes with the input"
                if moving
                else f"{self.op.label} ties it to another number of coordinates"
            )
            for place, _ in real:
                if place[0][0] != "#":
                    self.out.walls.append(Wall(place, why))
            return
        if len(real) > 1:
            self.out.links.append(Link(tuple(real), None if way is None else (self.op.index, way)))

    def free(self, name: str, *axes: int) -> None:
        """Speak of axes on which nothing depends: all of a tensor, or the ones given.

        A whole constant that says how an operation works (bounds, scales, borders) is no weight, and stays.
        """
        if not axes and name in self.view.constants:
            self.wall(name, None, f"{self.op.label} reads from it how to work")
        elif name and self.shape(name) is not None:
            rank = self.rank(name)
            self.spoken |= {(name, axis % rank) for axis in (axes or range(rank))} if rank else set()

    def wall(self, name: str, axis: int | None, reason: str, index: Index | None = None) -> None:
        """Nothing of this axis (None: of any axis) goes."""
        if not name or self.shape(name) is None:
            return
        rank = self.rank(name)
        for a in range(rank) if axis is None else (axis % rank,):
            self.spoken.add((name, a))
            self.out.walls.append(Wall((name, a), reason, index))


class Unfit(Exception):  # noqa: N818 - no error of the caller: a reason to leave an operation alone
    """A rule does not apply, and why."""


Rule = Callable[[Relation], None]
RULES: dict[str, Rule] = {}


def rule(*types: str) -> Callable[[Rule], Rule]:
    """Enter a rule for these operations into the table."""

    def enter(function: Rule) -> Rule:
        for name in types:
            RULES[name] = function
        return function

    return enter


def find_links(view: View, traced: Trace) -> Links:
    """The links and walls of every operation, and of the model's own borders."""
    out = Links()
    for name, shape in traced.shapes.items():
        for axis, size in enumerate(shape):
            if size is not None:
                out.sizes[name, axis] = size
    for op in view.ops:
        _operation(op, view, traced, out)
    _borders(view, traced, out)
    return out


def _operation(op: Op, view: View, traced: Trace, out: Links) -> None:
    relation = Relation(op, view, traced, out)
    before = len(out.links)
    reason = f"{op.label} has no rule"
    found = RULES.get(op.type)
    if any(a.HasField("g") or a.graphs for a in op.node.attribute):
        found, reason = None, f"{op.label} has a body"
    if found is not None:
        try:
            found(relation)
            reason = f"{op.label} works along it"
        except Unfit as unfit:
            reason = f"{op.label}: {unfit}"
            del out.links[before:]
            relation.spoken.clear()
    for name in dict.fromkeys((*op.inputs, *op.outputs)):
        shape = traced.shapes.get(name) if name else None
        for axis in range(len(shape or ())):
            if (name, axis) not in relation.spoken:
                out.walls.append(Wall((name, axis), reason))


def _borders(view: View, traced: Trace, out: Links) -> None:
    def wall(names: Sequence[str], reason: str) -> None:
        for name in names:
            for axis in range(len(traced.shapes.get(name) or ())):
                out.walls.append(Wall((name, axis), reason))

    wall(view.inputs, "it is an input of the model")
    wall(view.outputs, "it is an output of the model")
    wall(sorted(view.captured), "a body of If, Loop or Scan reads it")
    wall(sorted(view.overridable), "its initializer may be given anew by the caller")
    wall([n for n, v in view.constants.items() if v.dtype.kind not in "fV"], "whole numbers are not weights")


def whole(op: Op, name: str, default: int) -> int:
    """An integer attribute."""
    return int(op.attributes.get(name, default))
