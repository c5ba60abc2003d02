"""Pruning with refit, from a model to a verified file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from emp_onnx.budget.point import Budget, Point, measure
from emp_onnx.budget.search import Tried, in_turns, search
from emp_onnx.calibration.statistics import Statistics
from emp_onnx.certificates.refit import Refitted, read, write
from emp_onnx.certificates.rule import KEY
from emp_onnx.errors import UsageError, quote
from emp_onnx.files.model_io import Model, load, save
from emp_onnx.progress import Watch
from emp_onnx.prune import Sizes, _sizes, _target
from emp_onnx.refit.fitting import Fitting
from emp_onnx.refit.gradients import Gradients, read_gradients
from emp_onnx.refit.known import Known
from emp_onnx.refit.quick import Quick
from emp_onnx.runtime.feeds import Feed
from emp_onnx.runtime.isolated import Here, Isolated
from emp_onnx.runtime.memory import give_back
from emp_onnx.verification.outcome import Verification, VerifyError
from emp_onnx.verification.refitted import refitted
from emp_onnx.verification.running import run_both, runs
from emp_onnx.weights.find import Refusal
from emp_onnx.words import EFFORTS

__all__ = ["RefitReport", "refit"]

HELD = 0.05  # share of the feeds kept back to measure on, where they are not kept back in turn
RUNS = 16  # feeds on which both models are compared in the end, where all were learnt from
POOR = 0.2  # relative error of the outputs beyond which quick effort says so


@dataclass(frozen=True)
class RefitReport:
    """What `refit` did.

    Attributes:
        source: the model that was read, or None for one in memory.
        out: the file that was written, with `sidecars` beside it.
        how: what was asked for, as certified.
        weights: what is certified of each weight.
        biases: names of the biases that changed.
        refusals: what was not pruned, and why.
        point: sparsity, agreement and error on the feeds kept back.
        curve: under a budget, everything that was seen on the way.
        verification: every check, and the behaviour on the feeds that were kept back before the last fit.
        before, after: bytes on disk.
        notes: anything else a person should know.
    """

    source: Path | None
    out: Path
    sidecars: tuple[Path, ...]
    how: dict[str, Any]
    weights: dict[str, Refitted]
    biases: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    point: Point
    curve: tuple[Point, ...]
    verification: Verification
    before: Sizes
    after: Sizes
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "source": str(self.source) if self.source else None,
            "out": str(self.out),
            "sidecars": [str(file) for file in self.sidecars],
            "how": self.how,
            "measured": self.point.to_dict(),
            "curve": [point.to_dict() for point in self.curve],
            "weights": {name: asdict(item) for name, item in self.weights.items()},
            "biases": list(self.biases),
            "refusals": [asdict(item) for item in self.refusals],
            "bytes": {"before": asdict(self.before), "after": asdict(self.after)},
            "notes": list(self.notes),
            "verification": self.verification.to_dict(),
        }


def refit(
    model: Model | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    /,
    *,
    feeds: Iterable[Feed] | str | os.PathLike[str] | None = None,
    stats: Statistics | str | os.PathLike[str] | None = None,
    gradients: Gradients | str | os.PathLike[str] | None = None,
    update: bool = True,
    beta: float | None = None,
    sparsity: float | None = None,
    budget: Budget | None = None,
    allocate: str | None = None,
    criterion: str | None = None,
    effort: str = "full",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_size: int = 1,
    embeddings: bool = False,
    seed: int = 0,
    in_place: bool = False,
    threads: int | None = None,
    watch: Watch | None = None,
    gzip: bool = True,
) -> RefitReport:
    """Prune a model and solve what is left, so that its outputs stay what they were.

    The amount is Σ⌊β·N_eff⌋ over all weights (β = 1 unless given), or `sparsity` of all of them, or the most (the
    least, for a size) that a `budget` allows. Layers are taken from the inputs to the outputs; each is fitted in
    closed form to what the dense network wanted of it, given what the pruned network feeds it. No labels are needed.

    Args:
        model: a path, or a model from `load`.
        out: where the result goes; `IN.pruned.onnx` beside the input if not given.
        feeds: calibration feeds: a path (see `read_feeds`) or feeds; seeded random ones if not given, which say little.
            A twentieth of them is kept back and measured on, and with full effort learnt from in the end; where a drop
            or an error is asked for all are kept back, in turn.
        stats: in place of feeds, statistics from `calibrate`, or their file. Each layer is then solved by itself;
            feeds, if given too, are only measured on.
        gradients: of a loss, by name of weight, or their `.npz` file: for the criterion `gradient`, ``|w·g|``.
        update: whether kept weights are solved again; without, they keep their values.
        beta, sparsity, budget: the amount; at most one of them.
        allocate: how the amount is spread over the layers: `error` (measured, the default), `lamp` (the default
            of quick effort), `emp` (the default where there are gradients alone), `uniform`, `erk`, `owl`.
        criterion: which weights stay within a layer: `obs` (the default), `magnitude`, `wanda` (the default of
            statistics with norms only), `sparsegpt`, `gradient` (the default where gradients are given).
        effort: `full`, or `quick`: each layer is solved by itself, for what the dense network gives it, in few steps; a
            fraction of the time, and nearly as exact where little is removed.
        include, exclude, min_size, embeddings: see `find_weights`.
        seed: of random feeds.
        in_place: replace the input.
        threads: for onnxruntime.
        watch: told how far the work is.
        gzip: whether to measure how small the files get when gzipped, as `prune` does.

    Raises:
        UsageError: an option out of its range; feeds, statistics or gradients that do not fit; a metric that fails.
        ModelError: nothing can be pruned; NaN activations, with the node's name.
        VerifyError: the result failed verification; nothing was written.
    """
    if sum(x is not None for x in (beta, sparsity, budget)) > 1:
        raise UsageError("beta, sparsity and a budget must come one at a time, got more than one of them")
    source = model if isinstance(model, Model) else load(model)
    target = _target(source, out, in_place)
    known = Statistics.load(stats) if isinstance(stats, (str, os.PathLike)) else stats
    given = read_gradients(gradients) if isinstance(gradients, (str, os.PathLike)) else gradients
    alone = known is not None or (given is not None and not update)
    turned = budget is not None and in_turns(budget)
    held = 0.0 if turned else HELD
    common = (source, feeds, include, exclude, min_size, embeddings, seed, held, threads, watch, given, update)
    if alone and budget is not None and feeds is None:
        raise UsageError("a budget must come with feeds to measure it on, got none")
    if effort not in EFFORTS:
        raise UsageError(f"effort must be one of {', '.join(EFFORTS)}, got {quote(effort)}")
    if alone and effort != "full":
        raise UsageError("effort must be full without feeds to learn from, got quick")
    fitting = Known(*common, known) if alone else Quick(*common) if effort == "quick" else Fitting(*common)
    if criterion is None:
        criterion = "gradient" if given is not None else "wanda" if known is not None and known.norms_only else "obs"
    allocate = allocate or ("emp" if alone and known is None else "lamp" if effort == "quick" else "error")
    fitting.ready_for(criterion, update)
    # whole models in half precision can crash onnxruntime, where the parts that are run here do not
    half = any(tensor.dtype == "float16" for tensor in source.tensors.values())
    where = partial(Isolated if half else Here, threads=threads)
    if half:  # said before the work
        with where() as sessions:
            runs(source, fitting.kept_back[:1], sessions)
    how: dict[str, Any] = {"allocate": allocate, "criterion": criterion, "solved": update}
    if effort != "full":
        how["effort"] = effort
    if known is not None:
        how["from"] = "statistics"
    how |= _learnt(fitting)
    notes: list[str] = []
    if budget is not None:
        how |= {
            "budget": {
                k: v
                for k, v in (("drop", budget.drop), ("error", budget.error), ("size", budget.size))
                if v is not None
            }
            | ({"drop_in": budget.drop_in or "accuracy"} if budget.drop is not None and budget.score is None else {})
        }
        tried = search(
            fitting, budget, how=allocate, criterion=criterion, update=update,
            seal=lambda thin: {KEY: write(fitting.model, thin.changed, thin.masks.keys(), how, fitting.added)},
        )  # fmt: skip
        notes += _outcome(budget, tried)
    else:
        how |= {"sparsity": sparsity} if sparsity is not None else {"beta": 1.0 if beta is None else float(beta)}
        keep = fitting.count(beta=beta, sparsity=sparsity)
        fit = partial(Fitting.thin, keep=keep, how=allocate, criterion=criterion, update=update)
        thin = fit(fitting)
        point = measure(fitting, thin)
        learnt = fitting.learns and not (fitting.quick or fitting.random)
        if learnt and len(fitting.kept_back) < len(fitting.all_feeds):
            notes.append(
                f"The file was fitted to all {len(fitting.all_feeds)} feeds in the end. Agreement and error are those "
                f"of a fit before, which had not learned from the {len(fitting.kept_back)} that they were measured on."
            )
            fitting = fitting.to_all()
            how |= _learnt(fitting)
            del thin  # as large as the model
            give_back()
            thin = fit(fitting)
        fitting.forget()
        if effort == "quick" and point.error > POOR:
            notes.append(
                f"Quick effort leaves the outputs off by {point.error:.0%}: full effort, which makes good what earlier "
                f"layers got wrong and measures what each can bear, is likely to keep more here."
            )
        tried = Tried(thin, point, (), True)
    if fitting.joined:
        notes.append(
            f"The feeds are short sequences: {fitting.joined} longer ones, made by joining them, were learned from too."
        )
    if fitting.network.copied:
        notes.append(
            f"{fitting.network.copied} mirrored copies of feeds were learned from too, which was seen to do no harm on "
            f"feeds kept back."
        )
    if fitting.added:
        some = ", ".join(quote(item.name) for item in fitting.added[:4])
        more = f" and {len(fitting.added) - 4} more" if len(fitting.added) > 4 else ""
        notes.append(f"Layers without a bias got one, which makes good what the weights' loss shifts: {some}{more}.")
    seal = write(fitting.model, tried.thin.changed, tried.thin.masks.keys(), how, fitting.added)
    changed = fitting.model.replaced(dict(tried.thin.changed), {KEY: seal})
    before = _sizes([source.path, *source.sidecars().values()] if source.path else [], gzip)
    result: list[Verification] = []

    def check(temporary: Path) -> None:
        written = load(temporary)
        checks = list(refitted(written, source))
        some = fitting.kept_back[:: max(1, len(fitting.kept_back) // RUNS)] if turned else fitting.kept_back
        done = run_both(written, source, checks, where(), feeds=some, seed=seed, threads=threads)
        if not done.ok:
            raise VerifyError(f"verification failed, nothing was written: {'; '.join(done.faults[:5])}", done)
        result.append(done)

    files = save(changed, target, check=check)
    body = read(load(target))
    weights = {name: Refitted(**{**said, "shape": tuple(said["shape"])}) for name, said in body["weights"].items()}
    if fitting.random:
        result[0] = replace(result[0], behaviour=result[0].behaviour and replace(result[0].behaviour, random=True))
    return RefitReport(
        source.path, target, files[1:], how, weights, tuple(body["biases"]), fitting.refusals, tried.point, tried.curve,
        result[0], before, _sizes(files, gzip), (*notes, *tried.thin.notes),
    )  # fmt: skip


def _learnt(fitting: Fitting) -> dict[str, Any]:
    """What was learnt from, as certified."""
    return dict(zip(("feeds", "feeds_sha256", "random_feeds"), fitting.calibrated, strict=True))


def _outcome(budget: Budget, tried: Tried) -> list[str]:
    """What a person should know of the search.

    Raises:
        UsageError: nothing that was tried is within the budget.
    """
    point = tried.point
    if budget.size is not None:
        if not tried.within:
            raise UsageError(
                f"target_size must be one that can be reached, got {budget.size}: at {point.sparsity:.1%} sparsity "
                f"the file still has {point.size} bytes gzipped"
            )
        return [
            f"The least sparsity found at which the gzipped file has at most {budget.size:,} bytes: "
            f"{point.sparsity:.2%}."
        ]
    if point.sparsity > 0:
        return []
    dense, *others = tried.curve
    name, most = ("max_error", budget.error) if budget.error is not None else ("max_drop", budget.drop)
    least = f": at {others[0].sparsity:.1%} sparsity {budget.lost(others[0], dense):.3g} are lost" if others else ""
    raise UsageError(f"{name} must allow some weights to be removed, got {most:g}{least}")
