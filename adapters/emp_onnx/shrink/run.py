"""The verb `shrink`: read, find groups, choose, cut, prove, write."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.errors import UsageError, quote
from emp_onnx.runtime.continued import continued
from emp_onnx.runtime.feeds import Feed
from emp_onnx.runtime.lengthen import lengthened
from emp_onnx.shrink.axes.trace import Runner, made_up
from emp_onnx.shrink.cost import Costs
from emp_onnx.shrink.depth import plan
from emp_onnx.shrink.exact import dead, exact
from emp_onnx.shrink.fitting.distance import agreement, output_error, watched
from emp_onnx.shrink.fitting.readers import drop_zero_biases
from emp_onnx.shrink.given import check, chosen, feeds_of, refuse_unless_defined, target_of
from emp_onnx.shrink.latency import latencies
from emp_onnx.shrink.problem import Problem
from emp_onnx.shrink.proof import file_problem, prove
from emp_onnx.shrink.report import (
    GroupRow,
    ShrinkReport,
    added_to,
    flops_of,
    notes_on,
    nothing,
    parameters,
    walls_of,
)  # fmt: skip
from emp_onnx.shrink.search.amounts import keep, signal_of, step
from emp_onnx.shrink.search.budget import Budget, fit_budget
from emp_onnx.shrink.search.choose import Planner
from emp_onnx.shrink.search.fits import best_fit
from emp_onnx.shrink.search.last import last_fit
from emp_onnx.shrink.search.near import chosen_near, judging_near
from emp_onnx.shrink.skip import Skip
from emp_onnx.shrink.store import read, write
from emp_onnx.verification.outcome import VerifyError

__all__ = ["shrink"]

APART = 4  # where sequences are short, a longer one begins at every so many feeds

LAST = (
    "The last fit is made from all feeds. Agreement and error are those of the one before, which had not seen feeds "
    "kept back."
)
NEAR = "Readers were fitted to more feeds, {} from those given, for that was seen to help on feeds kept back."
SKIPPED = (
    "{} layers went whole: what read their outputs ({}) reads what came before them. The masked model lacks them too."
)
CHANGED = "{}. The masked model is the one that is so changed already; agreement and error are against the dense one."
CONTINUED = "{} more feeds were used, in which the model goes on from those given by what it says itself."
PROVEN = 16  # feeds of the proof


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
    check(locals())
    proto, source = read(model)
    path = Path(model)
    target = target_of(source, out, in_place)
    given = None if feeds is None else feeds_of(feeds, source.needed)
    samples = made_up(proto, seed=seed) if given is None else given
    signal = signal or ("norm" if given is None else "spectrum")
    problem = Problem.of(proto, samples, biases=True, simpler=not dead_only, threads=threads)
    chosen(problem, include, exclude)
    if not problem.groups:
        raise nothing(path, problem)
    notes = notes_on(problem, given, refit)
    held = samples[-max(len(samples) // 5, 1) :]
    fit = samples[: len(samples) - len(held)] or samples
    runner = Runner(proto, threads=threads)
    refuse_unless_defined(() if given is None or dead_only else given, runner)
    joined = [lengthened(runner.inputs, runner, part, apart=APART) for part in (fit, held)]
    further = [continued(runner, part) for part in (fit, held)]
    short = bool(joined[0]) and not further[0]
    fit, held = [*fit, *joined[0], *further[0]], [*held, *joined[1], *further[1]]
    if further[0]:
        notes = (*notes, CONTINUED.format(len(further[0]) + len(further[1])))
    dense_problem = problem
    rows: list[GroupRow]
    effective: list[float | None]
    judged: Any = None
    if dead_only:
        masks, reference, shrunk, rows = dead(problem, proto)
    else:
        if refit:
            problem.turn(fit)
        if refit or budget.any or signal != "norm":
            problem.measure(fit)
        else:
            problem.curves = [problem.by_norm(group) for group in problem.groups]
        near = ""
        if refit and budget.latency is not None and max_drop is None and max_error is None:
            changes = not include and not exclude
            near = "" if given is None else chosen_near(problem, fit, held)
            judging = judging_near(problem, [*fit, *held], near)
            found = plan(
                problem, budget.latency, fit, held, near=near, judging=judging, round_to=round_to, least=min_channels,
                changes=changes, short=short,
            )  # fmt: skip
            problem, counts = found.problem, found.counts
            effective = [None] * len(counts)
        else:
            build = lambda m: best_fit(problem, m, fit, held).model if refit else exact(problem, m)[1]  # noqa: E731
            counts, effective = _counts(
                problem, budget, signal, scores, beta, order, round_to, min_channels, held, samples, build, short
            )
        masks = problem.masks(counts) or {}
        if problem.skips:
            notes = (*notes, SKIPPED.format(len(problem.skips), ", ".join(s.after for s in problem.skips)))
        notes = (*notes, *(CHANGED.format(change) for change in problem.changes if not isinstance(change, Skip)))
        rows = [
            GroupRow(g.name, g.units, g.units - n, e) for g, n, e in zip(problem.groups, counts, effective, strict=True)
        ]
        if refit:
            final = max_drop is None and max_error is None and bool(masks or problem.changes)
            last = last_fit(problem, masks, fit, held, near, final=final, more=final and given is not None)
            shrunk, judged, problem = last.shrunk, last.judged, last.problem
            notes = (*notes, *([NEAR.format(last.near)] if last.near else []), *([LAST] if final else []))
            reference = problem.reference(shrunk, masks)
        else:
            reference, shrunk = exact(problem, masks)
    drop_zero_biases(shrunk, problem.added)
    shrunk = problem.finish(shrunk)
    evidence = [*samples[:PROVEN], *problem.trace.feeds[min(len(samples), 2) :]]
    proof = prove(reference, shrunk, evidence, random=given is None, threads=threads)
    if not proof.holds:
        raise VerifyError(f"verification failed, nothing was written: {proof.problem}")
    if not masks and not problem.changes:
        notes = (
            *notes,
            "NOTHING WAS REMOVED: " + ("no unit is dead." if dead_only else "the amount asked for keeps every unit."),
        )
    judged = shrunk if judged is None else judged
    seen = watched(proto, threads)
    dense = [seen(feed) for feed in held[:64]]
    figures: dict[str, Any] = {
        "parameters": (parameters(dense_problem.view.model) - added_to(dense_problem), parameters(shrunk)),
        "flops": (flops_of(dense_problem, {})[0], flops_of(problem, masks)[1]),
        "micros": tuple(latencies([proto, shrunk], samples, seconds=1.0)),
        "agreement": agreement(dense, judged, held[:64]),
        "error": output_error(dense, judged, held[:64]) ** 0.5,
    }
    before = path.stat().st_size + sum(f.stat().st_size for f in source.sidecars().values())

    def check_file(file: Path) -> None:
        if problem := file_problem(file, shrunk, threads):
            raise VerifyError(f"verification failed, nothing was written: {problem}")

    files = write(shrunk, target, source, check=check_file)
    walls = walls_of(problem)
    return ShrinkReport(
        path, files[0], files[1:], tuple(rows), walls, proof, len(samples), given is None,
        bytes=(before, sum(f.stat().st_size for f in files)), notes=notes, **figures,
    )  # fmt: skip


def _counts(
    problem: Problem, budget: Budget, signal: str, scores: Mapping[str, NDArray[Any]] | None, beta: float, order: float,
    round_to: int, least: int, held: Sequence[Feed], samples: Sequence[Feed], build: Any,
    short: bool,
) -> tuple[list[int], list[float | None]]:  # fmt: skip
    """How many units of each group go, and the effective numbers behind it."""
    if budget.any:
        planner = Planner(
            problem, Costs(problem.view, problem.trace, samples), held[:64], round_to=round_to, least=least, short=short
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
