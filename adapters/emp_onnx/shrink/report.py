"""What `shrink` gives back: figures, all measured, and what else is worth knowing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emp_onnx.errors import ModelError, quote
from emp_onnx.shrink.cut import Masks
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.proof import Proof
from emp_onnx.shrink.work import counts_as_work, flops
from emp_onnx.words import MAKE_CONSTANT

__all__ = ["GroupRow", "ShrinkReport", "added_to", "flops_of", "notes_on", "nothing", "parameters", "walls_of"]


@dataclass(frozen=True)
class GroupRow:
    """One group: its name, how many units there were and are, and the effective number that decided (None if a budget
    did)."""

    name: str
    units: int
    kept: int
    n_eff: float | None


@dataclass(frozen=True)
class ShrinkReport:
    """What was done, with every figure measured.

    Attributes:
        source, out, sidecars: files.
        groups: those with units that can go. walls: why other axes stay, with counts.
        proof: masked against shrunk. feeds, random: how many, and whether made up.
        parameters, bytes, flops, micros: before and after; micros is the latency of one run, one thread.
        agreement: share of largest class scores that stayed, on feeds kept back. error: relative, of the outputs.
        notes: what else is worth knowing.
    """

    source: Path
    out: Path
    sidecars: tuple[Path, ...]
    groups: tuple[GroupRow, ...]
    walls: tuple[tuple[str, int], ...]
    proof: Proof
    feeds: int
    random: bool
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    flops: tuple[float, float]
    micros: tuple[float, float]
    agreement: float | None
    error: float
    notes: tuple[str, ...]

    @property
    def removed(self) -> int:
        """How many units went."""
        return sum(row.units - row.kept for row in self.groups)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        data = asdict(self)
        data["source"], data["out"] = str(self.source), str(self.out)
        data["sidecars"] = [str(file) for file in self.sidecars]
        return data


def nothing(path: Path, problem: Problem) -> ModelError:
    """The error for a model in which no unit can go, with the reasons."""
    reasons = Counter(problem.reasons.values()).most_common(4)
    why = "; ".join(f"{count} × {reason}" for reason, count in reasons)
    said = f"nothing in {quote(path)} can be shrunk: {why or 'it has no weights of more than one channel'}"
    return ModelError(f"{said}. {MAKE_CONSTANT}" if problem.view.overridable else said)


def walls_of(problem: Problem) -> tuple[tuple[str, int], ...]:
    """Why axes stay, with counts."""
    return tuple(Counter(_general(reason) for reason in problem.reasons.values()).most_common())


def _general(reason: str) -> str:
    """A reason without the tensor it was met at, and without the names of operations, to be counted."""
    return re.sub(r"^(\S+) '[^']*'", r"\1", reason.split(" (axis ")[0])


def notes_on(problem: Problem, given: Any, refit: bool) -> tuple[str, ...]:
    """What the reader of a report must know, loudest first."""
    notes = []
    if given is None:
        notes.append(
            "NO FEEDS WERE GIVEN: random ones were made up. The proof holds on them; agreement and error on them say "
            "little about real inputs."
        )
        if refit:
            notes.append("REFITTED TO RANDOM FEEDS: the consumers were fitted to inputs that are none. Give real ones.")
    if problem.fewer:
        notes.append(
            f"{problem.fewer} operations that only worked out sizes, or said what others say, went without changing "
            "what is computed."
        )
    if problem.trace.fixed:
        some = ", ".join(problem.trace.fixed[:6])
        notes.append(
            f"The model leaves some sizes open and does not run with twice the size given: {some}. They are taken to "
            "be as in the feeds."
        )
    if problem.view.overridable:
        notes.append(MAKE_CONSTANT)
    return tuple(notes)


def parameters(model: Any) -> int:
    """How many numbers the constants of a model hold."""
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer)


def added_to(problem: Problem) -> int:
    """How many of them are biases that were not in the file."""
    return sum(problem.view.constants[name].size for name in problem.added)


def flops_of(problem: Problem, masks: Masks) -> tuple[float, float]:
    """Multiply-adds before and after."""

    def total(sizes: Mapping[str, tuple[int, ...]]) -> float:
        return sum(flops(op, sizes) for op in problem.view.ops if counts_as_work(op))

    dense = problem.trace.runs[0]
    left = {
        name: tuple(d - int(masks[name, a].sum()) if (name, a) in masks else d for a, d in enumerate(shape))
        for name, shape in dense.items()
    }
    return total(dense), total(left)
