"""One model taken apart: its groups, what reads them, and what a cut would cost and save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink import rules
from emp_onnx.shrink.cut import Masks, cut, merge_masks
from emp_onnx.shrink.distance import output_error, watched
from emp_onnx.shrink.links import find_links
from emp_onnx.shrink.moments import moments
from emp_onnx.shrink.order import Curve, eliminate, side
from emp_onnx.shrink.proof import masked, prove
from emp_onnx.shrink.readers import Reader, find_readers, with_biases
from emp_onnx.shrink.refit import refit, refit_locally
from emp_onnx.shrink.regions import Group, find_groups
from emp_onnx.shrink.rotate import rotate
from emp_onnx.shrink.trace import Trace, trace
from emp_onnx.shrink.view import View, prepared

__all__ = ["Problem"]

Wide = NDArray[np.float64]
assert rules
ANCHOR = 1.0  # weight of the dense model's own inputs in a refit in sequence


@dataclass
class Problem:
    """A prepared model with its groups and readers."""

    view: View
    trace: Trace
    groups: list[Group]
    reasons: dict[Any, str]
    readers: list[Reader]
    feeds: list[dict[str, Any]]
    threads: int = 1
    added: list[str] = field(default_factory=list)
    moments: dict[int, Wide] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)

    @classmethod
    def of(cls, model: Any, feeds: Sequence[Feed], *, biases: bool = False, threads: int = 1) -> Problem:
        """Read a model.

        Args:
            model: an onnx protobuf.
            feeds: on which it runs.
            biases: whether readers without a bias get one, of zeros.
            threads: for onnxruntime.
        """
        plain = [{name: np.asarray(value) for name, value in feed.items()} for feed in feeds]
        view = View.of(prepared(model))
        traced = trace(view, plain)
        added = with_biases(view.model, view, find_readers(view, traced)) if biases else []
        if added:
            view = View.of(view.model)
            traced = trace(view, plain)
        seeds = [
            (name, axis)
            for name, values in view.constants.items()
            if values.dtype.kind in "fV"
            for axis in range(values.ndim)
            if values.shape[axis] > 1
        ]
        groups, reasons = find_groups(find_links(view, traced), seeds, set(view.constants))
        return cls(view, traced, groups, reasons, find_readers(view, traced), plain, threads, added)

    def of_group(self, group: Group) -> list[int]:
        """The numbers of the readers that sum over a group's units."""
        return [
            i
            for i, r in enumerate(self.readers)
            if (r.source, r.axis) in group.axes and (group.axes[r.source, r.axis] >= 0).any()
        ]

    def turn(self, feeds: Sequence[Feed]) -> int:
        """Rotate the heads of attention so that their places can be told apart; undone if that moves the outputs."""
        before = type(self.view.model).FromString(self.view.model.SerializeToString())
        turned = rotate(self.view, self.trace, self.groups, feeds, self.threads)
        if turned and not prove(before, self.view.model, self.trace.feeds, threads=self.threads).holds:
            self.view = View.of(before)
            self.readers = find_readers(self.view, self.trace)
            return 0
        return turned

    def measure(self, feeds: Sequence[Feed]) -> None:
        """Take the moments of every reader that some group concerns, and the curves of all groups."""
        needed = sorted({i for group in self.groups for i in self.of_group(group)})
        found = (
            moments(self.view.model, [self.readers[i] for i in needed], feeds, threads=self.threads) if needed else []
        )
        self.moments = dict(zip(needed, found, strict=True))
        self.curves = [self.curve(group) for group in self.groups]

    def curve(self, group: Group) -> Curve:
        """In which order a group's units go."""
        sides = []
        for i in self.of_group(group):
            reader = self.readers[i]
            labels = group.axes[reader.source, reader.axis]
            made = side(reader, self.view.constants[reader.weight], self.moments[i], labels, group.units)
            if made is not None:
                sides.append(made)
        if sides:
            return eliminate(sides, group.units)
        return self.by_norm(group)

    def by_norm(self, group: Group) -> Curve:
        """The same by the norms of weights alone."""
        return self.by_scores(self.norms(group))

    def by_scores(self, values: Wide) -> Curve:
        """The same by any scores of units: the least goes first, and costs its share of the sum of squares."""
        scores = np.square(values)
        order = np.argsort(scores, kind="stable")
        return Curve(order, np.cumsum(scores[order]) / max(float(scores.sum()), 1e-300))

    def norms(self, group: Group) -> Wide:
        """For each unit the root of the sum of squares of its slices in all constants, each constant scaled to unit
        norm."""
        total = np.zeros(group.units)
        for (name, axis), labels in group.axes.items():
            values = self.view.constants.get(name)
            if values is None or values.dtype.kind != "f":
                continue
            squares = np.square(values.astype(np.float64)).sum(tuple(a for a in range(values.ndim) if a != axis))
            kept = labels >= 0
            total += np.bincount(labels[kept], squares[kept], group.units) / max(float(squares.sum()), 1e-300)
        return np.sqrt(total)

    def masks(self, counts: Sequence[int]) -> Masks | None:
        """What goes when so many units of each group go, the cheapest first; None if an axis would be left empty."""
        merged = merge_masks(
            [g.removed(c.order[:n]) for g, c, n in zip(self.groups, self.curves, counts, strict=True) if n]
        )
        return None if any(mask.all() for mask in merged.values()) else merged

    def cut(self, masks: Masks) -> Any:
        """The model without what goes."""
        return cut(self.view, self.trace, masks)

    def fitted(self, masks: Masks, feeds: Sequence[Feed] | None, held: Sequence[Feed] = ()) -> Any:
        """The cut model with its readers refitted.

        Without feeds each by itself, from the moments. With feeds also in sequence; what does better on `held` is
        returned: fits in sequence make up for what came before, and need more samples than a few feeds of a plain
        network give.
        """
        model = self.cut(masks)
        refit_locally(self.view, model, masks, self.readers, self.moments)
        if feeds is None:
            return model
        other = self.cut(masks)
        refit(self.view, other, masks, self.readers, feeds, threads=self.threads, stats=self.moments, anchor=ANCHOR)
        runner = watched(self.view.model, self.threads)
        dense = [runner(feed) for feed in held]
        errors = [output_error(dense, m, held, self.threads) if dense else 0.0 for m in (other, model)]
        return other if errors[0] <= errors[1] else model

    def reference(self, shrunk: Any, masks: Masks) -> Any:
        """The masked model to which a shrunk one is compared."""
        return masked(self.view, shrunk, masks)
