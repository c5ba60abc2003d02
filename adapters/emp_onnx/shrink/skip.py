"""Layers left out whole: who read the tensor behind them reads one before them, with weights fitted anew.

A *skip* (A, B) lets every reader of B read A. Where A goes into B by itself too (a residual sum), anything may read A
in B's place, if both have one shape. Elsewhere all that read B must be readers (`readers.py`), since nothing says
that a channel of A means what the same channel of B did: their weights are made anew from A's channels.

For y = M·x of the dense model, x taken from B, and z from A, M' minimises E‖M'z + b' − Mx − b‖²: the same closed form
as after a cut. The dense model, not the one skipped before, says what is to be reached, however many skips follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.axes.sizes import Sizes
from emp_onnx.shrink.axes.trace import Trace
from emp_onnx.shrink.cut import drop_dead
from emp_onnx.shrink.fitting.moments import cross_moments
from emp_onnx.shrink.fitting.readers import Reader, find_readers
from emp_onnx.shrink.fitting.refit import RIDGE, Origin, solve, wanted
from emp_onnx.shrink.tensors import set_constant
from emp_onnx.shrink.view import View
from emp_onnx.shrink.work import counts_as_work

__all__ = ["Skip", "find_skips", "left_out", "skipped"]

NEAREST = 2  # tensors before the layer that are tried in place of the one behind it
PLAIN = ("conv", "right", "rightt")  # readers whose weights can be made anew for another number of channels


@dataclass(frozen=True)
class Skip:
    """Whoever read `after` reads `before`; `passes` says whether one goes into the other by itself too."""

    before: str
    after: str
    passes: bool


def find_skips(view: View, traced: Trace) -> list[Skip]:
    """Every skip that leaves something out, those of the last layers first."""
    sizes = Sizes(view, traced)
    readers = find_readers(view, traced)
    read = {r.source for r in readers if r.kind in PLAIN}
    out: list[Skip] = []
    for op in reversed(view.ops):
        after = op.outputs[0] if op.outputs else ""
        if not after or after in view.outputs or after in view.captured or not sizes.of(after):
            continue
        own = [r for r in readers if r.source == after and r.kind in PLAIN]
        whole = bool(own) and len({r.op.index for r in own}) == len(view.readers.get(after, ()))
        worked, passing = _behind(view, after)
        found = 0
        for name in worked:
            if found == NEAREST:
                break
            same = sizes.of(name) == sizes.of(after)
            passes = name in passing and same
            if not passes and not (whole and name in read and _fits(sizes, name, own)):
                continue
            skip = Skip(name, after, passes)
            if left_out(view, skip):
                out.append(skip)
                found += 1
    return out


def _behind(view: View, name: str) -> tuple[list[str], set[str]]:
    """The tensors that some product stands between, nearest first; and those that come through without one."""
    worked: dict[str, int] = {}
    passing: set[str] = set()
    stack = [(name, False)]
    seen: set[tuple[str, bool]] = set()
    while stack:
        at, work = stack.pop()
        op = view.makers.get(at)
        if (at, work) in seen:
            continue
        seen.add((at, work))
        if at != name:
            if work:
                worked[at] = op.index if op is not None else -1
            else:
                passing.add(at)
        if op is not None:
            stack += [(i, work or counts_as_work(op)) for i in op.inputs if i and i not in view.constants]
    return sorted(worked, key=lambda n: -worked[n]), passing


def _fits(sizes: Sizes, name: str, readers: Sequence[Reader]) -> bool:
    """Whether a tensor has the shape that these readers read, but for the channels, whose number is the model's."""
    shape = sizes.of(name)
    for reader in readers:
        other = sizes.of(reader.source)
        if len(shape) != len(other) or not isinstance(shape[reader.axis], int):
            return False
        if any(a != b for axis, (a, b) in enumerate(zip(shape, other, strict=True)) if axis != reader.axis):
            return False
    return True


def skipped(
    origin: Origin, view: View, traced: Trace, skip: Skip, feeds: Sequence[Feed], *,
    far: bool = True, threads: int = 1, ridge: float = RIDGE,
) -> Any:  # fmt: skip
    """A copy of a model with a skip in it.

    Args:
        origin: the dense model.
        view, traced: the model that is changed: the dense one, or one with skips in it.
        skip: one of its skips.
        feeds: on which readers are fitted.
        far: whether all readers behind the skip are fitted again in sequence, or those alone that read anew.
        threads: of onnxruntime.
        ridge: as a share of the mean of the diagonal.
    """
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(view.model)
    own = {r.weight: r for r in find_readers(view, traced)}
    dense = {r.weight: r for r in origin.readers if r.kind in PLAIN}
    channels = traced.shapes[skip.before]
    for op, slot in view.readers[skip.after]:
        model.graph.node[op.index].input[slot] = skip.before
        for reader in (r for r in own.values() if r.op.index == op.index and r.source == skip.after):
            count = channels[reader.axis]
            old = view.constants[reader.weight]
            if not skip.passes and isinstance(count, int):
                blank = np.zeros(_shape(reader, old.shape, count), old.dtype)
                set_constant(model, reader.weight, blank)
    drop_dead(model.graph)
    changed = View.of(model)
    left = [replace(r, source=skip.before) if r.source == skip.after else r for r in own.values()]
    left = [r for r in left if r.weight in changed.constants and r.kind in PLAIN and r.weight in dense]
    for together in _levels(changed, left, skip.before, far):
        found = cross_moments(
            origin.view.model, model, [dense[r.weight] for r in together], feeds, others=together, threads=threads
        )
        for reader, (z, cross, _) in zip(together, found, strict=True):
            now = changed.constants[reader.weight]
            goal = dense[reader.weight].matrix(origin.view.constants[reader.weight])
            start = reader.matrix(now)
            if len(start) != len(goal):
                continue
            said = wanted(cross, goal.reshape(len(goal), -1))
            new, shift = solve(z, said, start.reshape(len(start), -1), bias=bool(reader.bias), ridge=ridge)
            if not (np.isfinite(new).all() and np.isfinite(shift).all()):
                continue
            set_constant(model, reader.weight, reader.put(new.reshape(start.shape), now))
            if reader.bias:
                set_constant(model, reader.bias, reader.add_bias(origin.view.constants[reader.bias], shift))
    return model


def left_out(view: View, skip: Skip) -> frozenset[str]:
    """What the operations make that nobody needs any more after a skip."""
    needed: set[str] = set(view.outputs) | set(view.captured)
    gone: set[str] = set()
    for op in reversed(view.ops):
        if needed.intersection(op.outputs):
            needed |= {skip.before if name == skip.after else name for name in op.inputs}
        else:
            gone.update(filter(None, op.outputs))
    return frozenset(gone)


def _shape(reader: Reader, shape: tuple[int, ...], channels: int) -> tuple[int, ...]:
    out = list(shape)
    out[0 if reader.kind == "right" else 1] = channels
    return tuple(out)


def _levels(view: View, readers: Sequence[Reader], start: str, far: bool) -> list[list[Reader]]:
    """The readers behind a tensor, those together that no other of them stands between."""
    level: dict[str, int] = {start: 0}
    out: dict[int, list[Reader]] = {}
    by_op: dict[int, list[Reader]] = {}
    for reader in readers:
        by_op.setdefault(reader.op.index, []).append(reader)
    of = {r.weight: r for r in readers}
    for op in view.ops:
        at = max((level[name] for name in op.inputs if name in level), default=None)
        if at is None:
            continue
        mine = [of[name] for name in op.inputs if name in of]
        if mine:
            out.setdefault(at, []).extend(mine)
            at += 1
        for name in op.outputs:
            level[name] = at
    found = [out[key] for key in sorted(out)]
    return found if far else found[:1]
