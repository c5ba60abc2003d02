"""The verb `shrink`: read, find groups, choose, cut, prove, write."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.errors import ModelError, UsageError, VerifyError, quote
from emp_onnx.files.whole import check_target, same_file
from emp_onnx.runtime.feeds import Feed, read_feeds
from emp_onnx.shrink.amounts import SIGNALS, keep, signal_of, step
from emp_onnx.shrink.budget import Budget, fit_budget
from emp_onnx.shrink.choose import Planner
from emp_onnx.shrink.constants import constant_channels
from emp_onnx.shrink.cost import Costs
from emp_onnx.shrink.cut import Masks, cut
from emp_onnx.shrink.distance import agreement, output_error, watched
from emp_onnx.shrink.fold import fold, muted, silent
from emp_onnx.shrink.latency import latencies
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.proof import Proof, prove
from emp_onnx.shrink.readers import drop_zero_biases
from emp_onnx.shrink.store import default_out, read, write
from emp_onnx.shrink.trace import made_up
from emp_onnx.shrink.view import View

__all__ = ["GroupRow", "ShrinkReport", "shrink"]

MOST_FEEDS = 512
PROVEN = 16  # feeds of the proof


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


def shrink(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    /,
    *,
    feeds: Iterable[Feed] | str | os.PathLike[str] | None = None,
    dead_only: bool = False,
    refit: bool = False,
    signal: str | None = None,
    scores: Mapping[str, NDArray[Any]] | None = None,
    beta: float = 1.0,
    order: float = 2.0,
    max_drop: float | None = None,
    max_error: float | None = None,
    target_latency: float | None = None,
    target_flops: float | None = None,
    target_size: float | None = None,
    round_to: int = 8,
    min_channels: int = 1,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    seed: int = 0,
    in_place: bool = False,
    threads: int = 1,
) -> ShrinkReport:
    """Remove whole channels, neurons and heads from a model; prove that the rest computes what it did; write it.

    The result is a plain ONNX model with smaller tensors: every runtime reads it, and runs it faster. Its inputs and
        outputs keep their names and shapes.

    Args:
        model: a path.
        out: where the result goes; `IN.shrunk.onnx` beside the input if not given. A file already there is replaced.
        feeds: a path (see `read_feeds`) or feeds. Without them random ones are made up, for the proof alone;
            statistics of the activations, and budgets, mean little then.
        dead_only: remove only what says nothing, or the same on all inputs; outputs stay as they are.
        refit: refit the consumers in closed form, from what is left to what the dense consumer received.
        signal: whose effective size counts: `norm`, `activation`, or `spectrum`; default `spectrum` with feeds, else
            `norm`.
        scores: of the units of some groups, by group name, in their place (gradients, say).
        beta, order: keep ⌊beta·N⌋ of a group, N its Hill number of this order (2: N_eff).
        max_drop, max_error: budgets at the outputs, on feeds kept back: share of largest class scores that may
            change; relative error.
        target_latency, target_flops, target_size: shares of the dense model's to reach, in (0, 1).
        round_to: what is left of a group is a multiple of this; halved for groups of less than four times that.
        min_channels: at least so many units of a group stay.
        include, exclude: patterns of group names.
        seed: of feeds that are made up.
        in_place: replace the input.
        threads: of onnxruntime, for statistics; latency is always that of one thread.

    Raises:
        UsageError: an option out of its range, feeds that do not fit, a target that no cut reaches.
        ModelError: not a model that onnxruntime runs, or without anything that can go (the message gives the reasons).
        VerifyError: the shrunk model does not say what the masked one says; nothing was written.

    Example:
        >>> shrink("missing.onnx")
        Traceback (most recent call last):
            ...
        emp_onnx.errors.ModelError: model must be an ONNX file, got 'missing.onnx', which does not exist
    """
    budget = Budget(max_drop, max_error, target_latency, target_flops, target_size)
    _check(locals())
    proto, source = read(model)
    path = Path(model)
    target = _target(path, out, in_place)
    given = None if feeds is None else _given(feeds)
    samples = made_up(proto, seed=seed) if given is None else given
    signal = signal or ("norm" if given is None else "spectrum")
    problem = Problem.of(proto, samples, biases=True, threads=threads)
    _select(problem, include, exclude)
    if not problem.groups:
        raise nothing(path, problem)
    notes = _notes(problem, given, refit)
    held = samples[-max(len(samples) // 5, 1) :]
    fit = samples[: len(samples) - len(held)] or samples
    rows: list[GroupRow]
    if dead_only:
        masks, reference, shrunk, rows = _dead(problem, proto)
    else:
        if refit:
            problem.turn(fit)
        if refit or budget.any or signal != "norm":
            problem.measure(fit)
        else:
            problem.curves = [problem.by_norm(group) for group in problem.groups]
        build = lambda m: problem.fitted(m, fit, held) if refit else _exact(problem, m)[1]  # noqa: E731
        counts, effective = _counts(
            problem, budget, signal, scores, beta, order, round_to, min_channels, held, samples, build
        )
        chosen = problem.masks(counts)
        masks = {} if chosen is None else chosen
        rows = [
            GroupRow(g.name, g.units, g.units - n, e) for g, n, e in zip(problem.groups, counts, effective, strict=True)
        ]
        if refit:
            shrunk = problem.fitted(masks, fit, held)
            reference = problem.reference(shrunk, masks)
        else:
            reference, shrunk = _exact(problem, masks)
    drop_zero_biases(shrunk, problem.added)
    evidence = [*samples[:PROVEN], *problem.trace.feeds[min(len(samples), 2) :]]
    proof = prove(reference, shrunk, evidence, random=given is None, threads=threads)
    if not proof.holds:
        raise VerifyError(f"verification failed, nothing was written: {proof.problem}")
    if not masks:
        notes = (
            *notes,
            "NOTHING WAS REMOVED: " + ("no unit is dead." if dead_only else "the amount asked for keeps every unit."),
        )
    seen = watched(proto, threads)
    dense = [seen(feed) for feed in held[:64]]
    figures: dict[str, Any] = {
        "parameters": (_parameters(problem.view.model) - _parameters_of(problem), _parameters(shrunk)),
        "flops": _flops(problem, masks),
        "micros": tuple(latencies([proto, shrunk], samples, seconds=1.0)),
        "agreement": agreement(dense, shrunk, held[:64]),
        "error": output_error(dense, shrunk, held[:64]) ** 0.5,
    }
    before = path.stat().st_size + sum(f.stat().st_size for f in source.sidecars().values())
    files = write(shrunk, target, source)
    walls = tuple(Counter(_plain(reason) for reason in problem.reasons.values()).most_common())
    return ShrinkReport(
        path, files[0], files[1:], tuple(rows), walls, proof, len(samples), given is None,
        bytes=(before, sum(f.stat().st_size for f in files)), notes=notes, **figures,
    )  # fmt: skip


def nothing(path: Path, problem: Problem) -> ModelError:
    """The error for a model in which no unit can go, with the reasons."""
    reasons = Counter(problem.reasons.values()).most_common(4)
    why = "; ".join(f"{count} × {reason}" for reason, count in reasons)
    return ModelError(f"nothing in {quote(path)} can be shrunk: {why or 'it has no weights of more than one channel'}")


def _plain(reason: str) -> str:
    """A reason without the tensor it was met at, and without the names of operations, to be counted."""
    return re.sub(r"^(\S+) '[^']*'", r"\1", reason.split(" (axis ")[0])


def _check(given: Mapping[str, Any]) -> None:
    for name in ("max_drop", "max_error"):
        if given[name] is not None and not 0 <= given[name] < 1:
            raise UsageError(f"{name} must be ≥ 0 and < 1, got {given[name]:g}")
    targets = [name for name in ("target_latency", "target_flops", "target_size") if given[name] is not None]
    for name in targets:
        if not 0 < given[name] < 1:
            raise UsageError(f"{name} must be a share > 0 and < 1 of the dense model's, got {given[name]:g}")
    if len(targets) > 1:
        raise UsageError(f"{targets[0]} must come without {targets[1]}, got both")
    asked = [n for n in ("refit", "signal", "scores", "max_drop", "max_error", *targets) if given[n]]
    if given["dead_only"] and asked:
        raise UsageError(f"dead_only must come without {asked[0]}, got both")
    if given["signal"] is not None and given["signal"] not in SIGNALS:
        raise UsageError(f"signal must be one of {', '.join(SIGNALS)}, got {quote(given['signal'])}")
    for name in ("round_to", "min_channels", "threads"):
        if given[name] < 1:
            raise UsageError(f"{name} must be ≥ 1, got {given[name]}")
    if not 0 < given["beta"] < float("inf"):
        raise UsageError(f"beta must be > 0, got {given['beta']}")
    if not given["order"] >= 0:
        raise UsageError(f"order must be ≥ 0, got {given['order']}")


def _target(path: Path, out: str | os.PathLike[str] | None, in_place: bool) -> Path:
    if in_place:
        if out is not None and not same_file(out, path):
            raise UsageError("in_place must come without another output")
        return path
    target = default_out(path) if out is None else Path(out)
    if same_file(target, path):
        raise UsageError(f"out must not be the input {quote(path)}; to replace that, ask for it with in_place")
    check_target(target, "out")
    return target


def _given(feeds: Iterable[Feed] | str | os.PathLike[str]) -> list[dict[str, NDArray[Any]]]:
    found = read_feeds(feeds) if isinstance(feeds, (str, os.PathLike)) else feeds
    out = []
    for feed in found:
        out.append({name: np.asarray(value) for name, value in feed.items()})
        if len(out) == MOST_FEEDS:
            break
    if not out:
        raise UsageError("feeds must hold at least one feed, got none")
    return out


def _select(problem: Problem, include: Sequence[str], exclude: Sequence[str]) -> None:
    def named(pattern: str) -> set[int]:
        hits = {
            i
            for i, g in enumerate(problem.groups)
            if any(fnmatchcase(n, pattern) for n in (g.name, *{a[0] for a in g.axes if a[0] in problem.view.constants}))
        }
        if not hits:
            raise UsageError(f"a pattern must match the name of a group or of one of its tensors, got {quote(pattern)}")
        return hits

    wanted = set().union(*map(named, include)) if include else set(range(len(problem.groups)))
    wanted -= set().union(*map(named, exclude))
    if problem.groups and not wanted:
        raise UsageError("include and exclude must leave some group, got none")
    problem.groups = [g for i, g in enumerate(problem.groups) if i in wanted]


def _notes(problem: Problem, given: Any, refit: bool) -> tuple[str, ...]:
    notes = []
    if given is None:
        notes.append(
            "NO FEEDS WERE GIVEN: random ones were made up. The proof holds on them; agreement and error on them say "
            "little about real inputs."
        )
        if refit:
            notes.append("REFITTED TO RANDOM FEEDS: the consumers were fitted to inputs that are none. Give real ones.")
    if problem.trace.fixed:
        some = ", ".join(problem.trace.fixed[:6])
        notes.append(
            f"The model leaves some sizes open and does not run with twice the size given: {some}. They are taken to "
            "be as in the feeds."
        )
    return tuple(notes)


def _dead(problem: Problem, proto: Any) -> tuple[Masks, Any, Any, list[GroupRow]]:
    """Units that say nothing or always the same, folded and cut; the reference is the model as it came."""
    told = constant_channels(problem.view, problem.trace)
    quiet = [silent(problem.view, problem.trace, g, problem.readers, told) for g in problem.groups]
    masks: dict[Any, Any] = {}
    rows = []
    for group, mask in zip(problem.groups, quiet, strict=True):
        gone = np.flatnonzero(mask)
        merged = _merged(masks, group.removed(gone))
        while gone.size and any(m.all() for m in merged.values()):  # one of them has to stay
            gone = gone[:-1]
            merged = _merged(masks, group.removed(gone))
        masks = merged
        rows.append(GroupRow(group.name, group.units, group.units - len(gone), None))
    fold(problem.view, problem.readers, masks, told)
    return masks, proto, cut(problem.view, problem.trace, masks), rows


def _merged(masks: Masks, more: Masks) -> dict[Any, Any]:
    return {axis: masks.get(axis, False) | more.get(axis, False) for axis in {**masks, **more}}


def _exact(problem: Problem, masks: Masks) -> tuple[Any, Any]:
    """The masked model, and the one without what goes, which says the same.

    The weights that make a unit are zero in the masked model, its biases and shifts stay, and what it still says is
    folded into its readers. Where a reader cannot take that, all constants of the unit are zero.
    """
    view = View.of(muted(problem.view, masks, problem.readers, whole=False))
    told = constant_channels(view, problem.trace)
    loud: dict[Any, Any] = {}
    for group in problem.groups:
        gone = np.zeros(group.units, bool)
        for axis, labels in group.axes.items():
            if axis in masks and axis[0] in view.constants:
                hit = np.bincount(labels[(labels >= 0) & masks[axis]], minlength=group.units)
                gone |= hit == np.maximum(np.bincount(labels[labels >= 0], minlength=group.units), 1)
        bad = np.flatnonzero(gone & ~silent(view, problem.trace, group, problem.readers, told))
        loud = _merged(loud, {axis: mask & masks[axis] for axis, mask in group.removed(bad).items() if axis in masks})
    loud = {axis: mask for axis, mask in loud.items() if mask.any()}
    reference = muted(view, loud, problem.readers, whole=True)
    folded = View.of(muted(view, loud, problem.readers, whole=True))
    fold(folded, problem.readers, masks, constant_channels(folded, problem.trace))
    return reference, cut(folded, problem.trace, masks)


def _counts(
    problem: Problem, budget: Budget, signal: str, scores: Mapping[str, NDArray[Any]] | None, beta: float, order: float,
    round_to: int, least: int, held: Sequence[Feed], samples: Sequence[Feed], build: Any,
) -> tuple[list[int], list[float | None]]:  # fmt: skip
    """How many units of each group go, and the effective numbers behind it."""
    if budget.any:
        planner = Planner(
            problem, Costs(problem.view, problem.trace, samples), held[:64], round_to=round_to, least=least
        )
        chosen = fit_budget(problem, planner, budget, build, held[:64])
        return chosen, [None] * len(chosen)
    counts: list[int] = []
    effective: list[float | None] = []
    for i, group in enumerate(problem.groups):
        if scores is not None and group.name in scores:
            values = np.abs(np.asarray(scores[group.name], dtype=np.float64))
            if values.shape != (group.units,):
                raise UsageError(
                    f"scores of {quote(group.name)} must be {group.units} numbers, got shape {values.shape}"
                )
            problem.curves[i] = problem.by_scores(values)
        else:
            values = signal_of(problem, group, signal)
        number, kept = keep(
            values,
            group.units,
            beta=beta,
            order=order,
            round_to=step(group.units, round_to),
            least=least,
        )
        counts.append(group.units - kept)
        effective.append(number)
    while problem.masks(counts) is None:  # groups that share an axis may not take all of it together
        worst = int(np.argmax([n / g.units for n, g in zip(counts, problem.groups, strict=True)]))
        counts[worst] -= 1
    return counts, effective


def _parameters(model: Any) -> int:
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer)


def _parameters_of(problem: Problem) -> int:
    return sum(problem.view.constants[name].size for name in problem.added)


def _flops(problem: Problem, masks: Masks) -> tuple[float, float]:
    from emp_onnx.shrink.cost import counts_as_work, flops

    def total(sizes: Mapping[str, tuple[int, ...]]) -> float:
        return sum(flops(op, sizes) for op in problem.view.ops if counts_as_work(op))

    dense = problem.trace.runs[0]
    left = {
        name: tuple(d - int(masks[name, a].sum()) if (name, a) in masks else d for a, d in enumerate(shape))
        for name, shape in dense.items()
    }
    return total(dense), total(left)
