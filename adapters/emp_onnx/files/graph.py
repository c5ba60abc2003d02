"""What a model looks like to the other rooms: nodes, headers of constant tensors, graphs within graphs; no values.

What there may be tens of thousands of is a named tuple: as unchangeable as a frozen dataclass, and made in a tenth of
the time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from emp_onnx.errors import quote

__all__ = ["Graph", "Node", "Place", "Recipe", "Run", "Tensor"]

Attribute = int | float | str | tuple[int, ...] | None


class Node(NamedTuple):
    """One operation: what it reads and writes, by name.

    `attributes` holds whole numbers, lists of them, and texts; None stands for one whose value the caller of a local
    function gives. `constant` is the tensor that a Constant node holds, if it holds one.
    """

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]
    bodies: tuple[Graph, ...]
    constant: Tensor | None = None

    @property
    def label(self) -> str:
        """How to name this node to a person: operation, then its name or else what it makes."""
        if self.name:
            return f"{self.op} {quote(self.name)}"
        return f"{self.op} making {quote(self.outputs[0] if self.outputs else '')}"

    def number(self, name: str, default: int = 0) -> int:
        """A whole-number attribute; the default where there is none of that kind."""
        found = self.attributes.get(name, default)
        return found if isinstance(found, int) else default

    def numbers(self, name: str) -> tuple[int, ...] | None:
        """An attribute that is a list of whole numbers, or None."""
        found = self.attributes.get(name)
        return found if isinstance(found, tuple) else None

    @property
    def open(self) -> bool:
        """Whether an attribute's value is only known where the function around it is called."""
        return None in self.attributes.values()


class Run(NamedTuple):
    """Numbers at even distances in a file: the first at `at`, `many` of them, `width` bytes each, every `step`
    bytes."""

    at: int
    many: int
    width: int
    step: int


class Place(NamedTuple):
    """Where the numbers of a tensor lie.

    Attributes:
        width: bytes of one number; 0 where numbers are not whole bytes, or texts.
        coding: how the wire has typed numbers (4 or 8 bytes, or varints).
        runs: where they lie in the model's own file.
        external: where they lie in another, as the model says it: location, offset, length.
        location: where in the model's file that location is written.
        message: where the tensor's own message lies.
    """

    width: int
    coding: int
    runs: tuple[Run, ...]
    external: tuple[tuple[str, str], ...]
    location: tuple[int, int] | None
    message: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a packed tensor is stored: the function that unpacks it, what that is given by which keys, and the node.

    `values` are several where they are in parts, each of which begins with the fill.
    """

    function: str
    values: tuple[str, ...]
    where: tuple[str, ...]
    count: int
    node: tuple[int, int]


class Tensor(NamedTuple):
    """The header of a constant tensor: no values. `storage` is raw, typed, external, segment, sparse or packed.

    `key` is its address, unique in the model: the plain name for initializers of the main graph and for the outputs of
    its Constant nodes, else a path such as `then_branch of If 'x'/name`. For a sparse tensor `shape` is the dense one,
    and `parts` are the tensors of its values and of its indices.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    storage: str
    key: str = ""
    place: Place | None = None
    parts: tuple[Tensor, ...] = ()
    recipe: Recipe | None = None

    @property
    def size(self) -> int:
        """How many elements the header claims."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A graph, a body of If, Loop or Scan, or a local function.

    `where` says which, in words, and is empty for the main graph; `path` is what keys of its tensors begin with; `span`
    where it lies in the file.
    """

    where: str
    parent: Graph | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    sparse: dict[str, Tensor] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)
    path: str = ""
    span: tuple[int, int] = (0, 0)
