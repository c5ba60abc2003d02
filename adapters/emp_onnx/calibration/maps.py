"""Linear maps: what goes in, where their numbers lie in the file, and where they act.

Each use of a weight becomes one or more *problems* `Y = X·Wᵀ + b`: X of shape (groups, samples, d), W of shape (groups,
out, d). W is given by indices into tensors as stored, so whatever a weight passes through on its way (Transpose, Slice,
Concat, …) is undone by looking up; for recurrent cells the input side and the hidden side of a gate are one problem,
since they add.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.places import Places
from emp_onnx.calibration.program import Program, Step

__all__ = ["Bias", "Past", "Problem", "Site"]

Array = NDArray[Any]
Index = NDArray[np.int64]
Get = Callable[[str], "Array | None"]
Found = Mapping[int, tuple[str, Index]]


@dataclass(frozen=True, eq=False)
class Bias:
    """Where a problem's bias is kept: added `sign` times; index of shape (groups, out), repeated in several tensors;
    `readers`: how many steps it ends at; `unit`: what 1 in the tensor is worth, of the shape of `index`, or 1."""

    key: str
    index: Index
    sign: float = 1.0
    readers: int = 1
    unit: Any = 1.0


@dataclass(eq=False)
class Problem:
    """One linear map.

    Attributes:
        parts: tensors by key, each with the places (groups, out, its share of d) of its numbers.
        rows: from values and a seed for the choice of samples, X of shape (groups, samples, d).
        outs: the same samples of something that has the shape of the step's output, as (groups, samples, out).
        bias: where its bias is, or None.
        same: problems for which this is equal, and not None, have the same rows.
        stacks: whether feeds that are joined along their first axis give the rows of each, one after the other.
    """

    parts: list[tuple[str, Places]]
    rows: Callable[[Get, int, int], Array]
    outs: Callable[[Array, int, int], Array] | None = None
    bias: Bias | None = None
    same: object = None
    stacks: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, out, d)."""
        groups, out = self.parts[0][1].shape[:2]
        return groups, out, sum(places.shape[2] for _, places in self.parts)

    @property
    def size(self) -> int:
        """How many numbers."""
        return sum(places.size for _, places in self.parts)


@dataclass(frozen=True)
class Past:
    """A value that is added to a step's output, and the bounds that the output is kept within before that."""

    name: str
    low: float = -math.inf
    high: float = math.inf

    @property
    def bounded(self) -> bool:
        """Whether there are any."""
        return self.low > -math.inf or self.high < math.inf

    def room(self, outs: Array) -> NDArray[np.bool_]:
        """Where an output, bias included, lies within: only there does it show when it moves."""
        return np.asarray((outs > self.low) & (outs < self.high))


@dataclass(eq=False)
class Site:
    """A step that uses weights, with its problems.

    Attributes:
        step: the step.
        reads: values that its rows are made from.
        hidden: whether its own output is one of these: then it must be run for the rows.
        past: what is added to its output, so an error already in it can be made good here.
        pooled: a value whose mean over positions its input may be.
        program: the one that the step is of: the model's, or that of a body.
        path: the loops around it, the outermost first.
        also: other places where the same weights act; their samples count as this one's.
    """

    step: Step
    keys: tuple[str, ...]
    reads: tuple[str, ...]
    problems: list[Problem]
    hidden: str = ""
    past: Past | None = None
    pooled: str = ""
    program: Program = field(init=False)
    path: tuple[Step, ...] = ()
    also: list[Site] = field(default_factory=list)

    @property
    def outer(self) -> Step:
        """The step of the model's own program that this is, or is in."""
        return self.path[0] if self.path else self.step

    @property
    def level(self) -> int:
        """Its level."""
        return self.outer.level

    @property
    def needs(self) -> tuple[str, ...]:
        """Values of the model's own program that its rows are made from."""
        if self.path:
            return tuple(self.outer.reads)
        # a cell is run again for what it remembers, with its first state and the lengths of its sequences
        cell = [name for name in self.step.inputs if name not in self.program.fixed] if self.hidden else []
        return tuple(filter(None, (*self.reads, *cell, self.skip, self.pooled)))

    @property
    def skip(self) -> str:
        """The value that is added to its output; empty if there is none."""
        return self.past.name if self.past else ""

    @property
    def uses(self) -> list[Site]:
        """This site, and the others with the same weights."""
        return [self, *self.also]

    @property
    def again(self) -> bool:
        """Whether what it sees depends on its own weights: then it is solved twice."""
        return bool(self.hidden or self.path or self.also)
