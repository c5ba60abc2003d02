"""Consumers refitted in closed form: from what is left of their input to what the dense model's consumer received.

For a reader y = M·x + b let z be its input in the shrunk model and x the one in the dense model. M' and b' minimise
E‖M'z + b' − Mx − b‖² + λ‖M' − M₀‖², where M₀ is M restricted to what is left: normal equations of one square matrix.
Readers are refitted from the first to the last, each on what the ones before it, refitted, now send.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.cut import Masks, sliced
from emp_onnx.shrink.fitting.definite import solve_in_place, take_off
from emp_onnx.shrink.fitting.moments import cross_moments
from emp_onnx.shrink.fitting.readers import Reader
from emp_onnx.shrink.fitting.sums import beside
from emp_onnx.shrink.view import View

__all__ = [
    "RIDGE", "RIDGES", "Origin", "Solved", "kept_of", "put_fit", "refit", "refit_locally", "rows_of", "solve", "wanted",
]  # fmt: skip

RIDGE = 3e-2  # of the mean of the diagonal
RIDGES = (3e-3, 3e-2, 1e-1)  # among which feeds that are kept back choose
LONG = 16  # levels, each of which is a pass over all feeds; of more, only readers that were cut are fitted in sequence
MEMORY = 1 << 27  # bytes of solutions that are kept
Wide = NDArray[np.float64]


@dataclass(frozen=True)
class Origin:
    """The model that was there before layers were left out, and its readers; `whole`, where that one reads less of
    its input, is the one that reads all."""

    view: View
    readers: tuple[Reader, ...]
    whole: View | None = None

    def of(self, reader: Reader) -> Reader | None:
        """The reader that had this one's weight."""
        same = (reader.weight, reader.kind, reader.direction)
        return next((r for r in self.readers if (r.weight, r.kind, r.direction) == same), None)


@dataclass
class Solved:
    """Fits of readers by themselves, the last ones used: of cuts that are compared most readers have the same input.

    A fit is of all outputs, whichever go, for what goes of the outputs changes nothing in the others.
    """

    found: OrderedDict[Any, tuple[Wide, Wide, Wide]] = field(default_factory=OrderedDict)
    said: dict[int, tuple[Wide, Wide]] = field(default_factory=dict)  # what each is to reach, the same for all cuts
    bytes: int = 0

    def of(self, which: int, moment: Wide, kept: NDArray[np.bool_], target: Wide, *, bias: bool, ridge: float) -> Any:
        """M' and the shift of b of a reader with these moments of (x, 1), of which `kept` stay."""
        key = which, kept.tobytes(), ridge
        known = self.found.pop(key, None)
        if known is None or known[0] is not moment:
            said = self.said.get(which)
            if said is None or said[0] is not moment:
                said = self.said[which] = moment, wanted(moment, target)
            own = moment[np.ix_(kept, kept)]
            new, shift = solve(own, said[1][kept], target[:, kept[:-1]], bias=bias, ridge=ridge)
            known = moment, new, shift
            self.bytes += new.nbytes
        self.found[key] = known
        while self.bytes > MEMORY and len(self.found) > 1:
            self.bytes -= self.found.popitem(last=False)[1][1].nbytes
        return known[1:]


def wanted(cross: Wide, target: Wide, lost: Wide | None = None) -> Wide:
    """E[(z,1) yᵀ] of what y = M·x + d is to be reached, from E[(z,1)(x,1)ᵀ], M (outputs, features of x), and
    E[(z,1)(d,1)ᵀ] where there is a d."""
    said = cross[:, :-1] @ target.T
    return np.asarray(said if lost is None else said + lost[:, :-1])


def solve(own: Wide, said: Wide, prior: Wide, *, bias: bool, ridge: float = RIDGE) -> tuple[Wide, Wide]:
    """M' (outputs, kept) and the shift of b, from E[(z,1)(z,1)ᵀ], E[(z,1) yᵀ] and M₀ (outputs, kept)."""
    h, means, right = own[:-1, :-1].copy(), own[:-1, -1], said[:-1]
    if bias:
        take_off(h, means)
        right = right - np.outer(means, said[-1])
    level = ridge * float(np.trace(h)) / max(len(h), 1) + 1e-12
    np.einsum("ii->i", h)[...] += level
    new = solve_in_place(h, right + level * prior.T).T
    return new, said[-1] - new @ means if bias else np.zeros(len(prior))


def levels(view: View, readers: Sequence[Reader]) -> tuple[list[list[Reader]], dict[str, int]]:
    """Readers in the order in which they can be refitted, those that do not depend on each other together; and after
    how many of these each tensor is as it will be."""
    of: dict[int, set[int]] = {}
    reach: dict[str, int] = {}
    own = {r.op.index for r in readers}
    out: dict[int, list[Reader]] = {}
    for op in view.ops:
        level = max((reach.get(name, 0) for name in op.inputs if name), default=0)
        if op.index in own:
            of.setdefault(level, set()).add(op.index)
            level += 1
        for name in op.outputs:
            reach[name] = level
    for level, indices in sorted(of.items()):
        out[level] = [r for r in readers if r.op.index in indices]
    return list(out.values()), reach


def refit(
    view: View,
    shrunk: Any,
    masks: Masks,
    readers: Sequence[Reader],
    feeds: Sequence[Feed],
    *,
    threads: int = 1,
    ridge: float = RIDGE,
    stats: Mapping[int, Wide] | None = None,
    anchor: float = 0.0,
    origin: Origin | None = None,
) -> None:
    """Refit, in place, every reader of the shrunk model whose input was cut or has changed upstream.

    What is to be reached is what the readers of `origin` received, the model before layers were left out; without
    one, of `view`.

    With `anchor` > 0 the dense model's own inputs, less what went, count as samples too, with this weight: a chain of
    fits each of which is a little too small, as regression on noisy inputs is, would otherwise fade out what varies
    little and matters later.
    """
    import onnx

    tensors = {t.name: t for t in shrunk.graph.initializer}
    names = {name for node in shrunk.graph.node for name in node.output} | {i.name for i in shrunk.graph.input}
    moved = False
    every, reach = levels(view, readers)
    for level, together in enumerate(every):
        together = [r for r in together if r.weight in tensors and r.source in names]
        if len(every) > LONG:
            together = [r for r in together if (r.source, r.axis) in masks]
        moved = moved or any((r.source, r.axis) in masks for r in together)
        if not moved or not together:
            continue
        if not any((r.source, r.axis) in masks for r in together) and not any(r.kind != "state" for r in together):
            continue
        goals = [origin.of(reader) if origin is not None else reader for reader in together]
        together = [r for r, goal in zip(together, goals, strict=True) if goal is not None]
        if not together:  # a layer that the dense model does not have, the first of two thin ones
            continue
        dense_of = [goal for goal in goals if goal is not None]
        source = view if origin is None else origin.view
        besides = [
            beside(view, reader, source, goal, rows_of(view, masks, reader), level, reach)
            for reader, goal in zip(together, dense_of, strict=True)
        ]
        found = cross_moments(
            source.model, shrunk, dense_of, feeds, others=together, besides=besides, threads=threads
        )
        for reader, (own, cross, lost) in zip(together, found, strict=True):
            dense = (stats or {}).get(readers.index(reader)) if origin is None else None
            if anchor and dense is not None:
                mask = masks.get((reader.source, reader.axis))
                kept = _kept(mask, dense)
                own = (own + anchor * dense[np.ix_(kept, kept)]) / (1 + anchor)
                cross = (cross + anchor * dense[kept]) / (1 + anchor)
                lost = None if lost is None else lost / (1 + anchor)
            _one(source, tensors, masks, reader, own, cross, lost, ridge, onnx)


def refit_locally(
    view: View, shrunk: Any, masks: Masks, readers: Sequence[Reader], stats: Mapping[int, Wide], *,
    ridge: float = RIDGE, solved: Solved | None = None,
) -> None:  # fmt: skip
    """Refit, in place, each reader whose input was cut, as if nothing had changed before it."""
    import onnx

    tensors = {t.name: t for t in shrunk.graph.initializer}
    solved = Solved() if solved is None else solved
    for i, reader in enumerate(readers):
        mask = masks.get((reader.source, reader.axis))
        if mask is None or reader.weight not in tensors or i not in stats:
            continue
        full = reader.matrix(view.constants[reader.weight])
        new, shift = solved.of(
            i, stats[i], _kept(mask, stats[i]), full.reshape(len(full), -1), bias=bool(reader.bias), ridge=ridge
        )
        rows = rows_of(view, masks, reader)
        put_fit(view, tensors, masks, reader, new[rows], shift[rows], onnx)


def _kept(mask: NDArray[np.bool_] | None, moment: Wide) -> NDArray[np.bool_]:
    """Which rows of the moments of (x, 1) belong to channels that stay."""
    return np.append(kept_of(mask, len(moment) - 1), True)


def kept_of(mask: NDArray[np.bool_] | None, features: int) -> NDArray[np.bool_]:
    """Which features, places of channels, belong to channels that stay."""
    return np.ones(features, bool) if mask is None else np.repeat(~mask, features // len(mask))


def rows_of(view: View, masks: Masks, reader: Reader) -> NDArray[np.bool_]:
    """Which outputs of a reader stay."""
    shape = view.constants[reader.weight].shape
    outs = masks.get((reader.weight, reader.out))
    if reader.kind == "input":
        return np.ones(shape[0] * shape[1], bool) if outs is None else np.tile(~outs, shape[0])
    return np.ones(shape[reader.out if reader.kind != "state" else 1], bool) if outs is None else ~outs


def _one(
    view: View, tensors: Any, masks: Masks, reader: Reader, own: Wide, cross: Wide, lost: Wide | None, ridge: float,
    onnx: Any,
) -> None:  # fmt: skip
    rows = rows_of(view, masks, reader)
    target = reader.matrix(view.constants[reader.weight])[rows].reshape(int(rows.sum()), -1)
    prior = reader.matrix(onnx.numpy_helper.to_array(tensors[reader.weight]))
    said = wanted(cross, target, lost)
    new, shift = solve(own, said, prior.reshape(len(prior), -1), bias=bool(reader.bias), ridge=ridge)
    put_fit(view, tensors, masks, reader, new, shift, onnx)


def put_fit(view: View, tensors: Any, masks: Masks, reader: Reader, new: Wide, shift: Wide, onnx: Any) -> None:
    """Weights and shift of a bias into the cut model, if they are numbers."""
    if not (np.isfinite(new).all() and np.isfinite(shift).all()):
        return
    now = onnx.numpy_helper.to_array(tensors[reader.weight])
    put = reader.put(new.reshape(reader.matrix(now).shape), now)
    tensors[reader.weight].CopyFrom(onnx.numpy_helper.from_array(put, reader.weight))
    if reader.bias:
        start = sliced(reader.bias, view.constants[reader.bias], masks)
        if reader.kind in ("input", "state"):  # two readers share it, each with a half of its own
            start = onnx.numpy_helper.to_array(tensors[reader.bias])
        bias = reader.add_bias(start, shift)
        tensors[reader.bias].CopyFrom(onnx.numpy_helper.from_array(bias, reader.bias))
