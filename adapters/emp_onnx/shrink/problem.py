"""One model taken apart: its groups, what reads them, and what a cut would cost and save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from emp_onnx.errors import ModelError
from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.axes import rules
from emp_onnx.shrink.axes.links import find_links
from emp_onnx.shrink.axes.regions import Group, find_groups
from emp_onnx.shrink.axes.trace import Trace, trace
from emp_onnx.shrink.cut import Masks, cut, merge_masks
from emp_onnx.shrink.fitting.moments import moments
from emp_onnx.shrink.fitting.order import Curve, eliminate, side
from emp_onnx.shrink.fitting.readers import Reader, find_readers, with_biases
from emp_onnx.shrink.fitting.refit import Origin, Solved
from emp_onnx.shrink.fitting.rotate import rotate
from emp_onnx.shrink.latency import latencies, share
from emp_onnx.shrink.plainer.attention_masks import attention_masks
from emp_onnx.shrink.plainer.early import early, unasked
from emp_onnx.shrink.plainer.linear import linear
from emp_onnx.shrink.plainer.plain import plain
from emp_onnx.shrink.plainer.rearranged import rearranged
from emp_onnx.shrink.plainer.rows import rows
from emp_onnx.shrink.proof import masked, prove
from emp_onnx.shrink.skip import Skip, skipped
from emp_onnx.shrink.together import together
from emp_onnx.shrink.view import View, prepared

__all__ = ["REWRITES", "Change", "Lighter", "Problem"]

Wide = NDArray[np.float64]
assert rules


class Lighter(Protocol):
    """A change of the model that needs no fit: `made` gives the changed model, and the dense readers at the places
    that it works at; `equal` another model that must say the same, where there is one."""

    def made(self, view: View, readers: Sequence[Reader], origin: Origin) -> tuple[Any, Origin]: ...  # noqa: D102

    def equal(self, view: View, readers: Sequence[Reader]) -> Any: ...  # noqa: D102


Change = Skip | Lighter
ROUNDS = 4  # of rewriting
REWRITES = (plain, rearranged, early, linear, rows, attention_masks)
FASTER = 0.98  # of the latency: what is less counts as faster


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
    fewer: int = 0
    simpler: bool = True
    source: Any = None
    joins: bool = False
    origin: Origin | None = None
    before: Problem | None = None
    changes: tuple[Change, ...] = ()
    moments: dict[int, Wide] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    solved: Solved = field(default_factory=Solved, init=False, repr=False)
    gone: dict[tuple[int, int], tuple[Curve, Any]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls, model: Any, feeds: Sequence[Feed], *, biases: bool = False, simpler: bool = True, threads: int = 1
    ) -> Problem:
        """Read a model.

        Args:
            model: an onnx protobuf.
            feeds: on which it runs.
            biases: whether readers without a bias get one, of zeros.
            simpler: whether what is said in a roundabout way is said plainly first (`plain`).
            threads: for onnxruntime.
        """
        runs = [{name: np.asarray(value) for name, value in feed.items()} for feed in feeds]
        view = View.of(prepared(model))
        traced = trace(view, runs)
        before = len(view.ops)
        if simpler:
            view, traced = _simpler(view, traced, runs, threads)
        fewer = before - len(view.ops)
        added = with_biases(view.model, view, find_readers(view, traced)) if biases else []
        if added:
            view = View.of(view.model)
            traced = trace(view, runs)
        groups, reasons = _groups(view, traced)
        return cls(
            view, traced, groups, reasons, find_readers(view, traced), runs, threads, added, fewer, simpler, model
        )

    @property
    def dense(self) -> Any:
        """The model that says what outputs should be: before it was changed."""
        return self.view.model if self.origin is None else (self.origin.whole or self.origin.view).model

    def whole(self) -> Problem:
        """The problem as it was before it was changed."""
        return self if self.before is None else self.before.whole()

    def without(self, skip: Skip, feeds: Sequence[Feed]) -> Problem:
        """The same with a layer left out, and the readers behind it fitted on feeds.

        Raises:
            ModelError: what is left does not run.
        """
        origin = self.origin or Origin(self.view, tuple(self.readers))
        return self._other(skipped(origin, self.view, self.trace, skip, feeds, threads=self.threads), origin, skip)

    def lighter(self, change: Lighter) -> Problem:
        """The same with fewer directions, places or bounds, which are checked where that is exact in part.

        Raises:
            ModelError: what is left does not run, or does not equal what it has to.
        """
        origin = self.origin or Origin(self.view, tuple(self.readers))
        model, origin = change.made(self.view, self.readers, origin)
        equal = change.equal(self.view, self.readers)
        if equal is not None:
            proof = prove(equal, model, self.trace.feeds, threads=self.threads)
            if not proof.holds:
                raise ModelError(f"a change has to equal what it stands for, got: {proof.problem}")
        return self._other(model, origin, change)

    def _other(self, model: Any, origin: Origin, change: Change) -> Problem:
        view = View.of(model)
        traced = trace(view, self.feeds)
        groups, reasons = _groups(view, traced)
        return replace(
            self, view=view, trace=traced, groups=groups, reasons=reasons, readers=find_readers(view, traced),
            origin=origin, before=self, changes=(*self.changes, change), moments={}, curves=[],
        )  # fmt: skip

    @property
    def skips(self) -> tuple[Skip, ...]:
        """The layers left out."""
        return tuple(change for change in self.changes if isinstance(change, Skip))

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
        self.measured(self.sums(feeds))

    def measured(self, moments: dict[int, Wide], like: Problem | None = None) -> None:
        """Take these moments, and the curves that follow from them; those that another problem has already as there."""
        self.moments = moments
        pairs = [] if like is None else zip(like.groups, like.curves, strict=True)
        known = {like._seen(group): curve for group, curve in pairs if like is not None}
        self.curves = [known.get(self._seen(group)) or self.curve(group) for group in self.groups]

    def _seen(self, group: Group) -> Any:
        """What a group's curve follows from: with the very same moments it is the same curve."""
        own = [(i, self.readers[i]) for i in self.of_group(group)]
        return group.name, tuple(
            (r.weight, r.kind, r.direction, id(self.moments.get(i)), group.axes[r.source, r.axis].tobytes())
            for i, r in own
        )

    def sums(self, feeds: Sequence[Feed], known: Mapping[int, Wide] | None = None) -> dict[int, Wide]:
        """The moments of every reader that some group concerns, by its number; those that are known as they are."""
        known = known or {}
        needed = sorted({i for group in self.groups for i in self.of_group(group)} - {*known})
        if not needed:
            return dict(known)
        found = moments(self.view.model, [self.readers[i] for i in needed], feeds, threads=self.threads)
        return {**known, **dict(zip(needed, found, strict=True))}

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
        merged = merge_masks([self._gone(i, n) for i, n in enumerate(counts) if n])
        return None if any(mask.all() for mask in merged.values()) else merged

    def _gone(self, which: int, count: int) -> dict[Any, NDArray[np.bool_]]:
        """What goes with so many units of one group; known from the last time that was asked."""
        curve, found = self.curves[which], self.gone.get((which, count))
        if found is None or found[0] is not curve:
            found = self.gone[which, count] = curve, self.groups[which].removed(curve.order[:count])
        return dict(found[1])

    def cut(self, masks: Masks) -> Any:
        """The model without what goes."""
        return cut(self.view, self.trace, masks)

    def settle(self) -> float:
        """See by measurement whether products that read the same are faster as one; the share of the model's latency
        that is left before anything is cut."""
        other = together(self.view.model)
        if other is None and not self.fewer and not self.changes:
            return 1.0
        self.joins = False
        if other is not None:
            apart, joined = latencies([self.view.model, other], self.feeds, seconds=1.0)
            self.joins = joined < FASTER * apart
        return min(share(self.source, other if self.joins else self.view.model, self.feeds, seconds=1.0), 1.0)

    def finish(self, model: Any) -> Any:
        """The cut model as it is written: products that read the same joined, where that is faster, and states that
        nobody reads not asked for."""
        other = together(model) if self.joins else None
        model = model if other is None else other
        return unasked(model) if self.simpler else model

    def reference(self, shrunk: Any, masks: Masks) -> Any:
        """The masked model to which a shrunk one is compared."""
        return masked(self.view, shrunk, masks)


def _groups(view: View, traced: Trace) -> tuple[list[Group], dict[Any, str]]:
    seeds = [
        (name, axis)
        for name, values in view.constants.items()
        if values.dtype.kind in "fV"
        for axis in range(values.ndim)
        if values.shape[axis] > 1
    ]
    return find_groups(find_links(view, traced), seeds, set(view.constants))


def _simpler(view: View, traced: Trace, feeds: Sequence[Feed], threads: int) -> tuple[View, Trace]:
    """The model said plainly, where that is proven to compute the same; else as it was.

    All rewrites are proven together, and one by one only where that fails.
    """
    for each in (False, True):
        try:
            found = _rewritten(REWRITES, view, traced, feeds, threads, each)
        except ModelError:  # one of them made what does not run
            continue
        if found[0] is view or each or _same(view, found[0], traced, feeds, threads):
            return found
    return view, traced


def _rewritten(
    rewrites: Sequence[Any], view: View, traced: Trace, feeds: Sequence[Feed], threads: int, each: bool
) -> tuple[View, Trace]:
    """What rewrites come to, one after the other; with `each` those that are not proven are left out."""
    rewrites = list(rewrites)
    for _ in range(ROUNDS):  # what became plain may make more so
        before = view
        for rewrite in list(rewrites):
            model = rewrite(view, traced)
            if model is None:
                continue
            new = View.of(model)
            if each and not _same(view, new, traced, feeds, threads):
                rewrites.remove(rewrite)
                continue
            view, traced = new, trace(new, feeds, known=traced)
        if view is before:
            break
    return view, traced


def _same(one: View, other: View, traced: Trace, feeds: Sequence[Feed], threads: int) -> bool:
    return prove(one.model, other.model, [*traced.feeds, *feeds[2:8]], threads=threads).holds
