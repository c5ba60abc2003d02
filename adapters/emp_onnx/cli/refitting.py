"""`emp prune --refit` and its budgets, `emp calibrate`, `emp sweep`, `emp compare`: what is done with feeds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emp_onnx.cli.options import (
    SECONDS,
    Commands,
    choice,
    choice_options,
    common_options,
    feed_options,
    model_option,
    spread_options,
)
from emp_onnx.cli.places import check_out, check_places
from emp_onnx.cli.show import complain, metered, say, show
from emp_onnx.cli.values import positive, seed, share, size, sparsity
from emp_onnx.errors import UsageError, quote
from emp_onnx.files.model_io import Model, load
from emp_onnx.files.whole import write_whole
from emp_onnx.runtime.memory import large_apart
from emp_onnx.words import CRITERIA, EFFORTS

if TYPE_CHECKING:
    from emp_onnx.budget.point import Budget
    from emp_onnx.progress import Meter
    from emp_onnx.refit.fitting import Fitting

__all__ = ["add", "refit", "refit_options", "wanted"]

BITS = "how many to use; the result may differ in the last bits (default: all)"


def add(commands: Commands) -> None:
    """Add the commands of this room."""
    one = commands.add("calibrate", _calibrate, "run a model on feeds and save what goes into its weights")
    model_option(one)
    one.add_argument("-o", "--output", metavar="STATS.npz", required=True, help="where the statistics go")
    one.add_argument(
        "--merge", metavar="STATS.npz", action="append", default=[], help="add these, saved before, to them"
    )
    one.add_argument("--norms", action="store_true", help="only norms, no second moments: smaller, for Wanda")
    feed_options(one, "what it is run on")
    choice_options(one)
    common_options(one, threads=BITS, verbose=SECONDS)

    one = commands.add("sweep", _sweep, "prune with refit at many amounts, and show what is left of the model at each")
    model_option(one)
    one.add_argument(
        "-o", "--output", metavar="FILE", action="append", default=[],
        help="save as .csv, .json or .png; may be repeated",
    )  # fmt: skip
    one.add_argument("--at", metavar="S,S,…", help="sparsities (default: 0.1,0.2,…,0.9)")
    _metric_option(one)
    spread_options(one, [name for name in CRITERIA if name != "gradient"])  # there are no gradients here
    feed_options(one, "feeds; three quarters are learnt from, the others measured on")
    choice_options(one)
    common_options(one, threads=BITS, verbose=SECONDS)

    one = commands.add(
        "compare", _compare, "prune by every rule to the same sparsity, and show what is left of the model"
    )
    model_option(one)
    one.add_argument("--sparsity", metavar="S", help="of all weights together (default: what β = 1 gives)")
    _metric_option(one)
    feed_options(one, "feeds; three quarters are learnt from, the others measured on")
    choice_options(one)
    common_options(one, threads=BITS, verbose=SECONDS)


def refit_options(parser: argparse.ArgumentParser) -> None:
    """The options of `emp prune` that are about the refit; `wanted` says whether one of them was given."""
    group = parser.add_argument_group("refit in closed form, on the feeds of --feeds (any of these asks for it)")
    group.add_argument("--refit", action="store_true", help="solve the kept weights and the biases again")
    group.add_argument(
        "--stats",
        metavar="STATS.npz",
        help="instead of feeds, what `emp calibrate` saved: the criterion reads it, and with --refit each layer is "
        "solved by itself (what earlier layers got wrong is made good with --feeds only)",
    )
    group.add_argument(
        "--gradients", metavar="GRADS.npz",
        help="of a loss, an array per weight by its name: |w·g| decides what stays (--criterion gradient)",
    )  # fmt: skip
    spread_options(parser, group=group)
    group.add_argument(
        "--effort", choices=EFFORTS,
        help="full (default), or quick: each layer solved by itself in a few steps, in a fraction of the time (then "
        "--allocate is lamp unless given)",
    )  # fmt: skip
    group.add_argument("--target-sparsity", metavar="S", help="remove this share of all weights together")
    group.add_argument("--max-drop", metavar="D", help="the most sparsity at which accuracy falls by at most D (1%%)")
    group.add_argument(
        "--drop-in", choices=("agreement", "accuracy"),
        help="what --max-drop is of: what the answers that change cost in accuracy, as far as the dense model's own "
        "doubts tell (default), or all that change, which allows less",
    )  # fmt: skip
    group.add_argument(
        "--max-error", metavar="E", help="the most sparsity at which the outputs' relative error is at most E"
    )
    group.add_argument("--target-size", metavar="N", help="the least sparsity at which the file gzips to N bytes (4MB)")
    group.add_argument(
        "--metric", metavar="SCRIPT.py:FUNCTION",
        help="with --max-drop: your own score, from the path of a model to a number, instead of the accuracy",
    )  # fmt: skip


def wanted(options: argparse.Namespace) -> bool:
    """Whether `emp prune` was asked for a refit."""
    asks = (
        "allocate", "criterion", "target_sparsity", "max_drop", "drop_in", "max_error", "target_size", "metric",
        "stats", "gradients", "effort",
    )  # fmt: skip
    return options.refit or any(getattr(options, name) is not None for name in asks)


def refit(options: argparse.Namespace) -> int:
    """`emp prune` with a refit."""
    from emp_onnx.refitting import refit
    from emp_onnx.texts.refit import refit_text

    for name in ("plan", "order", "scope", "pack"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name} must come without a refit, which settles that itself")
    if options.sparsity is not None and options.target_sparsity is not None:
        raise UsageError("--sparsity must come without --target-sparsity, which means the same here; got both")
    given = options.sparsity if options.target_sparsity is None else options.target_sparsity
    amount: dict[str, Any] = {
        "beta": positive("--beta", options.beta),
        "sparsity": sparsity("--target-sparsity", given),
        "budget": _budget(options),
    }
    if sum(x is not None for x in amount.values()) > 1:
        raise UsageError("--beta, --sparsity and a budget must come one at a time, got more than one of them")
    model = load(options.model)
    check_out(options, "pruned", model)
    large_apart()
    with metered(options) as meter:
        report = refit(
            model, options.out, feeds=options.feeds, stats=options.stats, gradients=options.gradients,
            update=options.refit or (options.stats is None and options.gradients is None),
            allocate=options.allocate, criterion=options.criterion, effort=options.effort or "full", seed=seed(options),
            in_place=options.in_place, watch=meter, gzip=options.json or not options.quiet, **amount, **choice(options),
        )  # fmt: skip
    if report.how["random_feeds"]:
        complain(
            "the statistics are of seeded random numbers, not of data; calibrate with --feeds"
            if options.stats is not None
            else "no feeds were given: the refit saw seeded random numbers, not data; give --feeds"
        )
    show(options, report.to_dict, lambda style: refit_text(report, style))
    return 0


def _budget(options: argparse.Namespace) -> Budget | None:
    from emp_onnx.budget.metric import read_metric
    from emp_onnx.budget.point import Budget

    drop, error = share("--max-drop", options.max_drop), share("--max-error", options.max_error)
    file = size("--target-size", options.target_size)
    if drop is None and error is None and file is None:
        if options.metric is None and options.drop_in is None:
            return None
        drop = 0.01
    if options.metric is not None and drop is None:
        raise UsageError("--metric must come with --max-drop, or alone, got another budget with it")
    if sum(x is not None for x in (drop, error, file)) > 1:
        raise UsageError("--max-drop, --max-error and --target-size must come one at a time, got more than one of them")
    metric = read_metric(options.metric) if options.metric is not None else None
    return Budget(drop, error, file, metric, options.drop_in)


def _calibrate(options: argparse.Namespace) -> int:
    from emp_onnx.calibration.statistics import Statistics, calibrate
    from emp_onnx.texts.refit import statistics_text

    model = load(options.model)
    check_places(options, ("-o", options.output), model=model)
    before = [Statistics.load(path) for path in options.merge]
    large_apart()
    with metered(options) as meter:
        found = calibrate(
            model, options.feeds, second=not options.norms, seed=seed(options), watch=meter, **choice(options)
        )  # fmt: skip
    for other in before:
        found = other.merge(found)
    found.save(options.output)
    if found.random:
        complain("no feeds were given: these are statistics of seeded random numbers, not of data; give --feeds")
    show(
        options,
        lambda: {
            "out": options.output, "feeds": found.feeds, "random_feeds": found.random,
            "maps": [
                {"weights": list(item.keys), **dict(zip(("groups", "outputs", "inputs"), item.shape, strict=True)),
                 "samples": item.count}
                for item in found.inputs
            ],
            "missing": [{"weight": name, "reason": why} for name, why in found.missing],
        },
        lambda style: (
            f"{statistics_text(found, style)}\n"
            f"Wrote {quote(options.output)}: {len(found.inputs)} maps, {found.feeds} feeds."
        ),
    )  # fmt: skip
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from emp_onnx.budget.sweep import CURVE, sweep, to_csv, to_json, to_png
    from emp_onnx.texts.refit import curve_text

    score = _metric(options)
    at: tuple[float, ...] = CURVE
    if options.at is not None:
        at = tuple(sparsity("--at", text) or 0.0 for text in options.at.split(","))
    model = load(options.model)
    writers = {".csv": lambda p: to_csv(p).encode(), ".json": lambda p: to_json(p).encode(), ".png": to_png}
    for path in options.output:
        if Path(path).suffix not in writers:
            raise UsageError(f"-o must end in .csv, .json or .png, got {quote(path)}")
    check_places(options, *(("-o", path) for path in options.output), model=model)
    with metered(options) as meter:
        points = sweep(
            _fitting(options, model, meter), at, how=options.allocate or "error", criterion=options.criterion or "obs",
            score=score,
        )  # fmt: skip
    for path in options.output:
        write_whole(path, writers[Path(path).suffix](points), "-o")
    if options.json:
        say(to_json(points))  # the very bytes that -o saves
        return 0
    show(options, dict, lambda style: curve_text(points, style))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from emp_onnx.budget.compare import compare_rules
    from emp_onnx.texts.refit import comparison_text

    score = _metric(options)
    given = sparsity("--sparsity", options.sparsity)
    model = load(options.model)
    with metered(options) as meter:
        fitting = _fitting(options, model, meter)
        rows = list(compare_rules(fitting, fitting.count(sparsity=given), score=score))
    show(
        options,
        lambda: {"rules": [{"rule": name, **point.to_dict()} for name, point in rows]},
        lambda style: comparison_text(rows, style),
    )
    return 0


def _metric_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--metric", metavar="SCRIPT.py:FUNCTION", help="also your own score, from the path of a model")


def _metric(options: argparse.Namespace) -> Any:
    from emp_onnx.budget.metric import read_metric

    return read_metric(options.metric) if options.metric is not None else None


def _fitting(options: argparse.Namespace, model: Model, meter: Meter) -> Fitting:
    from emp_onnx.refit.fitting import Fitting

    large_apart()
    made = Fitting(model, options.feeds, seed=seed(options), held=0.25, watch=meter, biases=True, **choice(options))
    if made.random:
        complain("no feeds were given: this is measured on seeded random numbers, not on data; give --feeds")
    return made
