"""A program cut into what runs at once: the steps of one level and guard, with what they read and give."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from emp_onnx.calibration.program import Guard, Program, Step

__all__ = ["Chunk", "chunks"]


@dataclass
class Chunk:
    """Steps of one level and guard, with what they read from before and give to later; `keys`: tensors they are made
    with."""

    guard: Guard
    steps: list[Step]
    reads: list[str] = field(default_factory=list)
    gives: list[str] = field(default_factory=list)
    keys: frozenset[str] = frozenset()


def chunks(program: Program, levels: int, extra: Iterable[str] = ()) -> list[list[Chunk]]:
    """The program cut into chunks, by level. `extra` names values that someone wants to see."""
    fixed = program.fixed
    wanted: dict[str, int] = {}
    for step in program.steps:
        for name in step.reads:
            wanted[name] = max(wanted.get(name, 0), step.level)
    for name in (*extra, *program.outputs):
        wanted[name] = levels + 1
    out: list[list[Chunk]] = []
    for level in range(levels + 1):
        todo = [s for s in program.steps if s.level == level and any(n and n not in fixed for n in s.outputs)]
        out.append([])
        while todo:
            chunk, waiting, rest = Chunk(todo[0].guard, []), set[str](), list[Step]()
            for step in todo:
                conditions = {name for name, _ in step.guard}
                made = {name for s in chunk.steps for name in s.outputs}
                if step.guard != chunk.guard or any(n in waiting for n in step.reads) or conditions & made:
                    rest.append(step)
                    waiting.update(step.outputs)
                else:
                    chunk.steps.append(step)
            out[-1].append(chunk)
            todo = rest
    users: dict[str, list[Chunk]] = {}
    for chunk in (c for found in out for c in found):
        made = {name for s in chunk.steps for name in s.outputs}
        reads = {n: None for s in chunk.steps for n in s.inputs if n and n not in made and n not in fixed}
        chunk.reads = list(reads)
        chunk.keys = frozenset().union(*(program.sources(n) for s in chunk.steps for n in s.inputs if n in fixed))
        for name in (*reads, *(n for n, _ in chunk.guard)):
            users.setdefault(name, []).append(chunk)
    keep = {*extra, *program.outputs}
    for chunk in (c for found in out for c in found):
        for name in dict.fromkeys(n for s in chunk.steps for n in s.outputs):
            if name and name not in fixed and (name in keep or any(c is not chunk for c in users.get(name, ()))):
                chunk.gives.append(name)
    return out
