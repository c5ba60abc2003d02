"""What a model looks like to the other rooms: nodes, headers of initializers, graphs within graphs; no values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from emp_onnx.errors import quote

__all__ = ["Graph", "Node", "Tensor"]


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operation: what it reads and writes, by name, and its whole-number attributes."""

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, int]
    bodies: tuple[Graph, ...]

    @property
    def label(self) -> str:
        """How to name this node to a person: operation, then its name or else what it makes."""
        if self.name:
            return f"{self.op} {quote(self.name)}"
        return f"{self.op} making {quote(self.outputs[0] if self.outputs else '')}"


@dataclass(frozen=True, slots=True)
class Tensor:
    """The header of an initializer: no values. `storage` is raw, typed or external."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    storage: str

    @property
    def size(self) -> int:
        """How many elements the header claims."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A graph, a body of If, Loop or Scan, or a local function; `where` says which, and is empty for the main graph."""

    where: str
    parent: Graph | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    sparse: dict[str, Tensor] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)
