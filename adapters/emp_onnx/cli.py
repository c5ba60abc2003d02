"""The command `emp`: parses, calls, prints, and returns an exit code. The only room that prints or exits."""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from emp_core import EmpError, __version__
from emp_onnx._files import same_file, write_whole
from emp_onnx.errors import ModelError, OnnxError, UsageError, escape, quote
from emp_onnx.figures import SCOPES
from emp_onnx.model_io import Model, load
from emp_onnx.packing.forms import FORMS, TARGETS
from emp_onnx.packing.pack import Packing, pack, unpack
from emp_onnx.plan import Plan, plan
from emp_onnx.progress import Meter
from emp_onnx.prune import nothing_to_prune, prune
from emp_onnx.report import (
    Style,
    bench_text,
    fused_text,
    packing_text,
    plan_text,
    report_text,
    run_text,
    uses_text,
    verification_text,
)
from emp_onnx.shrink.options import add_options
from emp_onnx.verify import verify

if TYPE_CHECKING:
    from emp_onnx.budget.search import Budget
    from emp_onnx.refit.fitting import Fitting

__all__ = ["main"]

CODES = """exit codes:
  0  done    1  verification failed    2  usage    3  this model is not supported, or cannot be read
On failure nothing is written, and the input stays as it was."""
_OPTIONS = {
    "beta",
    "order",
    "sparsity",
    "scope",
    "include",
    "exclude",
    "min_size",
    "embeddings",
    "feeds",
    "plan",
    "threads",
    "out",
    "kernels",
    "pack",
    "target",
    "form",
    "compact_indices",
    "allocate",
    "criterion",
    "metric",
    "in_place",
    "dead_only",
    "signal",
    "round_to",
    "min_channels",
    "max_drop",
    "max_error",
    "target_latency",
    "target_flops",
    "target_size",
    "refit",
    "seed",
}


# options of prune that ask for a refit
REFIT = ("allocate", "criterion", "target_sparsity", "max_drop", "max_error", "target_size", "metric")


class _Parser(argparse.ArgumentParser):
    """Usage errors are raised like any other, to be printed in one place."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Example:
        >>> main(["prune", "missing.onnx"])
        3
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        options = _parser().parse_args(argv)
        with _collecting_less():
            code: int = options.run(options)
        sys.stdout.flush()
        return code
    except SystemExit as error:  # --help and --version end so
        return error.code if isinstance(error.code, int) else 0
    except BrokenPipeError:
        # whoever read the output has gone; the work itself is done
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        _complain("interrupted; no half-written file is left behind")
        return 130
    except OnnxError as error:
        if shown := getattr(error, "shown", ""):
            print(shown, file=sys.stderr, end="")
        _complain(_in_options(str(error)))
        return error.exit_code
    except EmpError as error:
        _complain(str(error))
        return 2
    except MemoryError:
        _complain("this model needs more memory than there is")
        return 3
    except OSError as error:
        _complain(f"{error.strerror or error}: {quote(error.filename or 'a file')}")
        return 2


def _plan(options: argparse.Namespace) -> int:
    model = load(options.model)
    if options.output is not None:
        _not_the_model(options.output, model, "-o")
    with _metered(options) as meter:
        made = plan(model, watch=meter, **_rule(options))
    if not made.entries:
        raise nothing_to_prune(model, made.refusals)
    if options.output is not None:
        write_whole(options.output, made.to_json().encode(), "-o")
    if options.json:
        sys.stdout.write(made.to_json())
    elif not options.quiet:
        print(plan_text(made, Style.of(sys.stdout)))
        if options.verbose:
            print(uses_text(made))
    return 0


def _prune(options: argparse.Namespace) -> int:
    if options.refit or any(getattr(options, name) is not None for name in REFIT):
        return _refit(options)
    given: dict[str, Any] = {}
    if options.plan is not None:
        for name in ("beta", "order", "sparsity", "scope", "include", "exclude", "min_size", "embeddings"):
            if getattr(options, name) not in (None, [], False):
                raise UsageError(f"--plan must come without --{name.replace('_', '-')}, which the plan has settled")
        given["plan"] = _read_plan(options.plan)
    else:
        given |= _rule(options)
    if options.in_place and options.out is not None:
        raise UsageError(f"--in-place must come without OUT, got {quote(options.out)}")
    model = load(options.model)
    if options.out is not None and same_file(options.out, options.model):
        raise UsageError(f"OUT must not be the input {quote(options.model)}; to replace that, give --in-place instead")
    for path in (options.plan, options.feeds):
        target = options.model if options.in_place else options.out
        if path is not None and target is not None and same_file(path, target):
            raise UsageError(f"OUT must not be a file that is read, got {quote(path)}")
    with _metered(options) as meter:
        report = prune(
            model, options.out, watch=meter, feeds=options.feeds, seed=_seed(options), in_place=options.in_place,
            threads=_threads(options), pack=options.pack, target=options.target,
            **{k: v for k, v in given.items() if k != "threads"},
        )  # fmt: skip
    if options.json:
        _print_json(report.to_dict())
    elif not options.quiet:
        print(report_text(report, Style.of(sys.stdout)))
        if options.verbose:
            print(uses_text(report.plan))
    return 0


def _pack(options: argparse.Namespace) -> int:
    _check_out(options)
    with _metered(options) as meter:
        done = pack(
            options.model, options.out, form=options.form, target=options.target, include=options.include,
            exclude=options.exclude, compact_indices=options.compact_indices, values=options.values,
            in_place=options.in_place, feeds=options.feeds, seed=_seed(options),
            threads=_threads(options), watch=meter,
        )  # fmt: skip
    return _shown(options, done)


def _unpack(options: argparse.Namespace) -> int:
    _check_out(options)
    with _metered(options) as meter:
        done = unpack(
            options.model, options.out, in_place=options.in_place, feeds=options.feeds, seed=_seed(options),
            threads=_threads(options), watch=meter,
        )  # fmt: skip
    return _shown(options, done)


def _fuse(options: argparse.Namespace) -> int:
    from emp_onnx.fuse import fused_model

    _check_out(options)
    source = load(options.model)
    out = Path(options.out or f"{options.model.removesuffix('.onnx')}.fused.onnx")
    if source.sidecars() and out.resolve().parent != Path(options.model).resolve().parent:
        raise UsageError(f"OUT must be in the folder of the model, whose sidecars it shares, got {quote(out)}")
    model, fused = fused_model(options.model, every=options.every)
    if not any(item.op for item in fused):
        raise ModelError(f"the model has no packed weight that kernels can take, got {quote(options.model)}")
    write_whole(out, model.SerializeToString(), "OUT")
    if options.json:
        _print_json({"out": str(out), "uses": [vars(item) for item in fused]})
    elif not options.quiet:
        print(fused_text(fused, out, Style.of(sys.stdout)))
    return 0


def _run(options: argparse.Namespace) -> int:
    from emp_onnx.bench import feeds_for, inputs_of
    from emp_onnx.engine import open_engine
    from emp_onnx.feeds import check_feed, read_feeds

    engine = open_engine(options.model, kernels=options.kernels, threads=_threads(options))
    seed = _seed(options)
    feeds = read_feeds(options.feeds) if options.feeds else iter([feeds_for(engine, 1, seed=seed)])
    names = [item.name for item in engine.session.get_outputs()]
    runs: list[dict[str, Any]] = []
    for i, feed in enumerate(feeds):
        check_feed(feed, inputs_of(engine), i)
        start = time.perf_counter()
        try:
            values = engine.session.run(None, feed)
        except Exception as error:  # onnxruntime's own errors have no common base
            raise ModelError(f"onnxruntime cannot run the model on feed {i}: {str(error).splitlines()[0]}") from error
        runs.append({"seconds": time.perf_counter() - start, "outputs": dict(zip(names, values, strict=True))})
    if options.output is not None:
        stream = io.BytesIO()
        many = len(runs) > 1
        np.savez(
            stream,
            allow_pickle=False,
            **{n: np.stack([r["outputs"][n] for r in runs]) if many else runs[0]["outputs"][n] for n in names},
        )
        write_whole(options.output, stream.getvalue(), "-o")
    if options.json:
        outputs = [{"name": n, "dtype": v.dtype.name, "shape": list(v.shape)} for n, v in runs[0]["outputs"].items()]
        _print_json(
            {
                "path": engine.note,
                "kernels": engine.kernels,
                "seconds": [r["seconds"] for r in runs],
                "outputs": outputs,
            }
        )
    elif not options.quiet:
        for run in runs:
            print(run_text(engine, list(run["outputs"].items()), run["seconds"], Style.of(sys.stdout)))
    return 0


def _bench(options: argparse.Namespace) -> int:
    from emp_onnx.bench import SECONDS, bench
    from emp_onnx.feeds import read_feeds

    if options.feeds is not None and options.batch is not None:
        raise UsageError("--feeds must come without --batch, which is for made-up feeds")
    feed = next(iter(read_feeds(options.feeds))) if options.feeds else None
    seconds = _number("--seconds", options.seconds, "> 0", lambda x: 0 < x < float("inf"))
    measured = bench(
        options.models, feed=feed, batch=_list("--batch", options.batch), threads=_list("--threads", options.threads),
        kernels=options.kernels, seconds=SECONDS if seconds is None else seconds, seed=_seed(options),
    )  # fmt: skip
    if options.json:
        _print_json({"models": [item.to_dict() for item in measured]})
    elif not options.quiet:
        print(bench_text(measured, Style.of(sys.stdout)))
    return 0


def _list(option: str, text: str | None) -> list[int]:
    """Whole numbers with commas between them."""
    return [int(_whole(option, part, 1, 1)) for part in text.split(",")] if text is not None else [1]


def _check_out(options: argparse.Namespace) -> None:
    if getattr(options, "in_place", False) and options.out is not None:
        raise UsageError(f"--in-place must come without OUT, got {quote(options.out)}")
    if options.out is not None and same_file(options.out, options.model):
        instead = "; to replace that, give --in-place instead" if hasattr(options, "in_place") else ""
        raise UsageError(f"OUT must not be the input {quote(options.model)}{instead}")
    target = options.model if getattr(options, "in_place", False) else options.out
    feeds = getattr(options, "feeds", None)
    if feeds is not None and target is not None and same_file(feeds, target):
        raise UsageError(f"OUT must not be a file that is read, got {quote(feeds)}")


def _shown(options: argparse.Namespace, done: Packing) -> int:
    if options.json:
        _print_json(done.to_dict())
    elif not options.quiet:
        print(packing_text(done, Style.of(sys.stdout)))
    return 0


def _refit(options: argparse.Namespace) -> int:
    from emp_onnx.refit.prune import refit
    from emp_onnx.refit.text import refit_text

    for name in ("plan", "order", "scope", "pack"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name} must come without a refit, which settles that itself")
    _check_out(options)
    if options.sparsity is not None and options.target_sparsity is not None:
        raise UsageError("--sparsity must come without --target-sparsity, which means the same here; got both")
    sparsity = options.sparsity if options.target_sparsity is None else options.target_sparsity
    amount: dict[str, Any] = {
        "beta": _number("--beta", options.beta, "> 0", lambda x: 0 < x < float("inf")),
        "sparsity": _number("--target-sparsity", sparsity, "≥ 0 and < 1", lambda x: 0 <= x < 1),
        "budget": _budget(options),
    }
    if sum(x is not None for x in amount.values()) > 1:
        raise UsageError("--beta, --sparsity and a budget must come one at a time, got more than one of them")
    model = load(options.model)
    with _metered(options) as meter:
        report = refit(
            model, options.out, feeds=options.feeds, allocate=options.allocate or "error",
            criterion=options.criterion or "obs", seed=_seed(options), in_place=options.in_place, watch=meter,
            **amount, **_choice(options),
        )  # fmt: skip
    if report.how["random_feeds"]:
        _complain("no feeds were given: the refit saw seeded random numbers, not data; give --feeds")
    if options.json:
        _print_json(report.to_dict())
    elif not options.quiet:
        print(refit_text(report, Style.of(sys.stdout)))
    return 0


def _budget(options: argparse.Namespace) -> Budget | None:
    from emp_onnx.budget.metric import read_metric
    from emp_onnx.budget.search import Budget

    drop, error = _share("--max-drop", options.max_drop), _share("--max-error", options.max_error)
    size = _bytes("--target-size", options.target_size)
    if drop is None and error is None and size is None:
        if options.metric is None:
            return None
        drop = 0.01
    if options.metric is not None and drop is None:
        raise UsageError("--metric must come with --max-drop, or alone, got another budget with it")
    if sum(x is not None for x in (drop, error, size)) > 1:
        raise UsageError("--max-drop, --max-error and --target-size must come one at a time, got more than one of them")
    return Budget(drop, error, size, read_metric(options.metric) if options.metric is not None else None)


def _choice(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "include": options.include, "exclude": options.exclude, "embeddings": options.embeddings,
        "min_size": _whole("--min-size", options.min_size, 0, 1), "threads": _threads(options),
    }  # fmt: skip


def _calibrate(options: argparse.Namespace) -> int:
    from emp_onnx.calibration.statistics import Statistics, calibrate
    from emp_onnx.refit.text import statistics_text

    model = load(options.model)
    _not_the_model(options.output, model, "-o")
    before = [Statistics.load(path) for path in options.merge]
    with _metered(options) as meter:
        found = calibrate(
            model, options.feeds, second=not options.norms, include=options.include, exclude=options.exclude,
            seed=_seed(options), threads=_threads(options), watch=meter,
        )  # fmt: skip
    for other in before:
        found = other.merge(found)
    found.save(options.output)
    if found.random:
        _complain("no feeds were given: these are statistics of seeded random numbers, not of data; give --feeds")
    if not options.quiet:
        print(statistics_text(found, Style.of(sys.stdout)))
        print(f"Wrote {quote(options.output)}: {len(found.inputs)} maps, {found.feeds} feeds.")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from emp_onnx.budget.metric import read_metric
    from emp_onnx.budget.sweep import CURVE, sweep, to_csv, to_json, to_png
    from emp_onnx.refit.text import curve_text

    score = read_metric(options.metric) if options.metric is not None else None
    at: tuple[float, ...] = CURVE
    if options.at is not None:
        at = tuple(_number("--at", text, "≥ 0 and < 1", lambda x: 0 <= x < 1) or 0.0 for text in options.at.split(","))
    model = load(options.model)
    writers = {".csv": lambda p: to_csv(p).encode(), ".json": lambda p: to_json(p).encode(), ".png": to_png}
    for path in options.output:
        if Path(path).suffix not in writers:
            raise UsageError(f"-o must end in .csv, .json or .png, got {quote(path)}")
        _not_the_model(path, model, "-o")
    with _metered(options) as meter:
        points = sweep(
            _fitting(options, model, meter), at, how=options.allocate or "error", criterion=options.criterion or "obs",
            score=score,
        )  # fmt: skip
    for path in options.output:
        write_whole(path, writers[Path(path).suffix](points), "-o")
    if options.json:
        sys.stdout.write(to_json(points))
    elif not options.quiet:
        print(curve_text(points, Style.of(sys.stdout)))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from emp_onnx.budget.compare import compare_rules
    from emp_onnx.budget.metric import read_metric
    from emp_onnx.refit.text import comparison_text

    score = read_metric(options.metric) if options.metric is not None else None
    sparsity = _number("--sparsity", options.sparsity, "≥ 0 and < 1", lambda x: 0 <= x < 1)
    model = load(options.model)
    with _metered(options) as meter:
        fitting = _fitting(options, model, meter)
        rows = list(compare_rules(fitting, fitting.count(sparsity=sparsity), score=score))
    if options.json:
        _print_json({"rules": [{"rule": name, **point.to_dict()} for name, point in rows]})
    elif not options.quiet:
        print(comparison_text(rows, Style.of(sys.stdout)))
    return 0


def _fitting(options: argparse.Namespace, model: Model, meter: Meter) -> Fitting:
    from emp_onnx.refit.fitting import Fitting

    made = Fitting(model, options.feeds, seed=_seed(options), held=0.25, watch=meter, **_choice(options))
    if made.random:
        _complain("no feeds were given: this is measured on seeded random numbers, not on data; give --feeds")
    return made


def _verify(options: argparse.Namespace) -> int:
    if options.feeds is not None and options.original is None:
        raise UsageError("--feeds must come with ORIGINAL to compare with, got none")
    done = verify(options.pruned, options.original, feeds=options.feeds, seed=_seed(options), threads=_threads(options))
    if options.json:
        _print_json(done.to_dict())
    elif not options.quiet:
        print(verification_text(done, Style.of(sys.stdout)))
        print("Verified." if done.ok else "VERIFICATION FAILED.")
    if not done.ok and options.quiet:
        _complain("verification failed: " + "; ".join(done.faults[:3]))
    return 0 if done.ok else 1


def _demo(options: argparse.Namespace) -> int:
    from emp_onnx.demo import run_demo

    shown = run_demo(scope=options.scope or "tensor", threads=_threads(options))
    if options.json:
        _print_json(shown.to_dict())
    elif not options.quiet:
        print(shown.text(Style.of(sys.stdout)))
    return 0


def _shrink(options: argparse.Namespace) -> int:
    from emp_onnx.shrink import shrink
    from emp_onnx.shrink.options import given
    from emp_onnx.shrink.text import shrink_text

    report = shrink(options.model, options.out, **given(options))
    if options.json:
        _print_json(report.to_dict())
    elif not options.quiet:
        print(shrink_text(report, Style.of(sys.stdout)))
    return 0


def _parser() -> _Parser:
    top = _Parser(
        prog="emp", epilog=CODES, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Effective Model Pruning of ONNX files: read from the weights how many matter, keep those.",
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"emp {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(
            name, help=text, description=text, epilog=CODES, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        parser.set_defaults(run=run)
        return parser

    one = command("plan", _plan, "show what pruning would keep of every weight; changes nothing")
    one.add_argument("model", metavar="IN.onnx", help="the model")
    one.add_argument("-o", "--output", metavar="PLAN.json", help="also save the plan there (a file there is replaced)")
    _rule_options(one)
    _common_options(one, verbose=True)

    one = command("prune", _prune, "prune a model, verify the result, and write it with its certificate")
    one.add_argument("model", metavar="IN.onnx", help="the model")
    one.add_argument(
        "out", metavar="OUT.onnx", nargs="?",
        help="where the result goes (default: IN.pruned.onnx); a file there is replaced, the input never",
    )  # fmt: skip
    one.add_argument("--in-place", action="store_true", help="replace the input")
    one.add_argument("--plan", metavar="PLAN.json", help="do what a plan saved by `emp plan -o` says")
    one.add_argument("--pack", choices=FORMS, help="also store the result in the smallest forms, as `emp pack` does")
    _target_option(one)
    _rule_options(one)
    _refit_options(one)
    _feed_options(one)
    _common_options(one, verbose=True)

    one = command("calibrate", _calibrate, "run a model on feeds and save what goes into its weights")
    one.add_argument("model", metavar="IN.onnx", help="the model")
    one.add_argument("-o", "--output", metavar="STATS.npz", required=True, help="where the statistics go")
    one.add_argument(
        "--merge", metavar="STATS.npz", action="append", default=[], help="add these, saved before, to them"
    )
    one.add_argument("--norms", action="store_true", help="only norms, no second moments: smaller, for Wanda")
    _feed_options(one)
    _choice_options(one)
    _common_options(one, verbose=True)

    one = command("sweep", _sweep, "prune with refit at many amounts, and show what is left of the model at each")
    one.add_argument("model", metavar="IN.onnx", help="the model")
    one.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        action="append",
        default=[],
        help="save as .csv, .json or .png; may be repeated",
    )
    one.add_argument("--at", metavar="S,S,…", help="sparsities (default: 0.1,0.2,…,0.9)")
    one.add_argument("--metric", metavar="SCRIPT.py:FUNCTION", help="also your own score, from the path of a model")
    _spread_options(one)
    _feed_options(one)
    _choice_options(one)
    _common_options(one, verbose=True)

    one = command("compare", _compare, "prune by every rule to the same sparsity, and show what is left of the model")
    one.add_argument("model", metavar="IN.onnx", help="the model")
    one.add_argument("--sparsity", metavar="S", help="of all weights together (default: what β = 1 gives)")
    one.add_argument("--metric", metavar="SCRIPT.py:FUNCTION", help="also your own score, from the path of a model")
    _feed_options(one)
    _choice_options(one)
    _common_options(one, verbose=True)

    one = command("verify", _verify, "check a pruned model by its certificate and, if given, against the original")
    one.add_argument("pruned", metavar="PRUNED.onnx", help="a model that `emp prune` wrote")
    one.add_argument("original", metavar="ORIGINAL.onnx", nargs="?", help="the model that it was made from")
    _feed_options(one)
    _common_options(one)

    one = command("pack", _pack, "store each tensor in the smallest form, with every bit kept")
    one.add_argument("model", metavar="IN.onnx", help="the model")
    _out_options(one, "packed")
    one.add_argument("--form", choices=FORMS, default="auto", help="auto: whichever is smallest (default)")
    _target_option(one)
    one.add_argument(
        "--compact-indices", action="store_true",
        help="coo with indices of 32 bits: onnxruntime takes them, onnx.checker does not",
    )  # fmt: skip
    one.add_argument("--values", choices=["float16"], help="LOSSY: round float32 values to float16")
    one.add_argument("--include", metavar="GLOB", action="append", default=[], help="only these; may be repeated")
    one.add_argument("--exclude", metavar="GLOB", action="append", default=[], help="not these; may be repeated")
    _feed_options(one)
    _common_options(one, verbose=True)

    one = command("unpack", _unpack, "store packed and sparse tensors as plain dense ones again")
    one.add_argument("model", metavar="IN.onnx", help="a model that is packed, or has sparse tensors")
    _out_options(one, "unpacked")
    _feed_options(one)
    _common_options(one, verbose=True)

    one = command(
        "shrink", _shrink, "take out whole channels, neurons and heads: a smaller model, faster in every runtime"
    )
    add_options(one)
    _common_options(one)

    one = command("fuse", _fuse, "put packed weights into the nodes that use them, where kernels find them")
    one.add_argument("model", metavar="IN.onnx", help="a model with packed weights, as `emp pack` writes it")
    one.add_argument(
        "out", metavar="OUT.onnx", nargs="?",
        help="where the result goes (default: IN.fused.onnx); a file there is replaced, the input never",
    )  # fmt: skip
    one.add_argument(
        "--every", action="store_true", help="also weights for which dense kernels are expected to be faster"
    )
    one.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, on standard output")
    one.add_argument("--quiet", action="store_true", help="print only errors")

    one = command("run", _run, "run a model in onnxruntime, with the kernels where they are installed")
    one.add_argument("model", metavar="MODEL.onnx", help="the model, packed or not")
    one.add_argument("-o", "--output", metavar="OUT.npz", help="save the outputs there, by name")
    _kernels_option(one, ("auto", "on", "off"), "auto", "auto: where they are installed and of use (default)")
    _feed_options(one)
    _common_options(one)

    one = command("bench", _bench, "measure models side by side: latency, time to load, memory")
    one.add_argument(
        "models", metavar="MODEL.onnx", nargs="+", help="the models; the first is what the others are compared with"
    )
    one.add_argument("--batch", metavar="N,N…", help="sizes of the first axis of made-up feeds (default: 1)")
    one.add_argument("--threads", metavar="N,N…", help="numbers of threads (default: 1)")
    one.add_argument("--seconds", metavar="S", help="for each model, batch and number of threads (default: 1)")
    _kernels_option(one, ("both", "auto", "on", "off"), "both", "both: each packed model with and without (default)")
    _feed_options(one)
    one.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, on standard output")
    one.add_argument("--quiet", action="store_true", help="print only errors")

    one = command("demo", _demo, "prune a small network trained on real data, and show its accuracy before and after")
    one.add_argument("--scope", choices=SCOPES, help="which weights compete (default: tensor)")
    _common_options(one)
    return top


def _out_options(parser: argparse.ArgumentParser, word: str) -> None:
    parser.add_argument(
        "out", metavar="OUT.onnx", nargs="?",
        help=f"where the result goes (default: IN.{word}.onnx); a file there is replaced, the input never",
    )  # fmt: skip
    parser.add_argument("--in-place", action="store_true", help="replace the input")


def _target_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", choices=TARGETS, default="onnxruntime", help="what must run the result (default: onnxruntime)"
    )


def _rule_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is kept")
    group.add_argument("--beta", metavar="B", help="keep ⌊B·N_eff⌋ of every pool (default: 1, the rule itself)")
    group.add_argument(
        "--order", metavar="Q", help="order of the Hill number that counts (default: 2, N_eff; 1 is gentler)"
    )
    group.add_argument("--sparsity", metavar="S", help="remove exactly this share of every pool instead, 0 ≤ S < 1")
    group.add_argument(
        "--scope", choices=SCOPES,
        help="which weights compete: those of one tensor (default), of one row (output or gate unit), of the model",
    )  # fmt: skip
    _choice_options(parser)


def _refit_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("refit in closed form, on the feeds of --feeds (any of these asks for it)")
    group.add_argument("--refit", action="store_true", help="solve the kept weights and the biases again")
    _spread_options(parser, group)
    group.add_argument("--target-sparsity", metavar="S", help="remove this share of all weights together")
    group.add_argument("--max-drop", metavar="D", help="the most sparsity at which agreement falls by at most D (1%%)")
    group.add_argument(
        "--max-error", metavar="E", help="the most sparsity at which the outputs' relative error is at most E"
    )
    group.add_argument("--target-size", metavar="N", help="the least sparsity at which the file gzips to N bytes (4MB)")
    group.add_argument(
        "--metric", metavar="SCRIPT.py:FUNCTION",
        help="with --max-drop: your own score, from the path of a model to a number, instead of the agreement",
    )  # fmt: skip


def _spread_options(parser: argparse.ArgumentParser, group: Any = None) -> None:
    from emp_onnx.words import ALLOCATIONS, CRITERIA

    group = group or parser.add_argument_group("refit")
    group.add_argument(
        "--allocate", choices=ALLOCATIONS, help="how the amount is spread over the layers (default: error, as measured)"
    )
    group.add_argument("--criterion", choices=CRITERIA, help="which weights stay within a layer (default: obs)")


def _choice_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which weights (names of initializers, or of the nodes that use them)")
    group.add_argument("--include", metavar="GLOB", action="append", default=[], help="only these; may be repeated")
    group.add_argument("--exclude", metavar="GLOB", action="append", default=[], help="not these; may be repeated")
    group.add_argument("--min-size", metavar="N", help="only weights of at least N elements")
    group.add_argument("--embeddings", action="store_true", help="also embedding tables (which Gather reads)")


def _kernels_option(parser: argparse.ArgumentParser, choices: Sequence[str], default: str, text: str) -> None:
    parser.add_argument("--kernels", choices=choices, default=default, help=text)


def _feed_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("comparison of outputs")
    group.add_argument(
        "--feeds", metavar="PATH",
        help="a folder of .npz files, one feed each, keys are input names; or one .npz with one more leading axis",
    )  # fmt: skip
    group.add_argument("--seed", metavar="N", help="of the random feeds used without --feeds (default: 0)")


def _common_options(parser: argparse.ArgumentParser, verbose: bool = False) -> None:
    parser.add_argument("--threads", metavar="N", help="how many to use; the result is the same (default: all)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, and nothing else, on standard output"
    )
    parser.add_argument("--quiet", action="store_true", help="print only errors")
    if verbose:
        parser.add_argument(
            "--verbose",
            action="store_true",
            help="also every use of each weight, and on standard error the seconds taken",
        )


@contextmanager
def _collecting_less() -> Iterator[None]:
    """Look for garbage less often: a graph of many nodes is many small objects that all stay.

    Measured on 30 000 nodes: a quarter of the time.
    """
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def _metered(options: argparse.Namespace) -> Iterator[Meter]:
    """Progress on standard error while it is a terminal; with --verbose, the seconds of each phase at the end."""
    if options.verbose and options.quiet:
        raise UsageError("--verbose must come without --quiet, got both")
    seen = not options.quiet and sys.stderr is not None and sys.stderr.isatty()
    meter = Meter(sys.stderr if seen else None)
    try:
        yield meter
    finally:
        meter.close()
    if options.verbose:
        for name, seconds in meter.spent.items():
            print(f"{name}: {seconds:.2f} s", file=sys.stderr)


def _rule(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the rule, checked in the words of the command line."""
    beta = _number("--beta", options.beta, "> 0", lambda x: 0 < x < float("inf"))
    sparsity = _number("--sparsity", options.sparsity, "≥ 0 and < 1", lambda x: 0 <= x < 1)
    order = _number("--order", options.order, "≥ 0", lambda x: x >= 0)
    if beta is not None and sparsity is not None:
        raise UsageError(f"--beta must come without --sparsity, got {options.beta} and {options.sparsity}")
    if order is not None and sparsity is not None:
        raise UsageError(f"--order must come without --sparsity, got {options.order} and {options.sparsity}")
    return {
        "beta": beta, "sparsity": sparsity, "order": 2.0 if order is None else order,
        "scope": options.scope or "tensor",
        "include": options.include, "exclude": options.exclude,
        "min_size": _whole("--min-size", options.min_size, 0, 1), "embeddings": options.embeddings,
        "threads": _threads(options),
    }  # fmt: skip


def _number(option: str, text: str | None, allowed: str, holds: Any) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"{option} must be a number {allowed}, got {quote(text)}") from None
    if not holds(value):
        raise UsageError(f"{option} must be {allowed}, got {value}")
    return value


def _share(option: str, text: str | None) -> float | None:
    """A share: 0.01 or 1%."""
    if text is None:
        return None
    percent = text.endswith("%")
    value = _number(option, text[:-1] if percent else text, "≥ 0, as 0.01 or 1%", lambda x: 0 <= x < float("inf"))
    return value / 100 if percent and value is not None else value


def _bytes(option: str, text: str | None) -> int | None:
    """A size: 4000000, 4MB, 4MiB."""
    if text is None:
        return None
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1}
    unit = next((u for u in sorted(units, key=len, reverse=True) if text.upper().endswith(u)), "")
    value = _number(option, text[: len(text) - len(unit)], "> 0, as 4000000 or 4MB", lambda x: 0 < x < float("inf"))
    return None if value is None else int(value * units.get(unit, 1))


def _whole(option: str, text: str | None, least: int, default: Any) -> Any:
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        raise UsageError(f"{option} must be a whole number ≥ {least}, got {quote(text)}") from None
    if value < least:
        raise UsageError(f"{option} must be ≥ {least}, got {value}")
    return value


def _seed(options: argparse.Namespace) -> int:
    return int(_whole("--seed", options.seed, 0, 0))


def _threads(options: argparse.Namespace) -> int | None:
    threads: int | None = _whole("--threads", options.threads, 1, None)
    return threads


def _read_plan(path: str) -> Plan:
    try:
        return Plan.from_json(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"--plan must be a file that can be read, got {quote(path)}: {error.strerror}") from error


def _not_the_model(path: str, model: Model, option: str) -> None:
    for file in ([model.path] if model.path else []) + list(model.sidecars().values()):
        if same_file(path, file):
            raise UsageError(f"{option} must not be a file of the model, got {quote(path)}")


def _print_json(data: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(_finite(data), allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """`value` with infinities and NaN, which JSON does not have, as words."""
    if isinstance(value, float) and value - value != 0:
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _in_options(message: str) -> str:
    """A message of the Python functions in the words of the command line: `--min-size must …` for `min_size must …`."""
    word, found, _ = message.partition(" must ")
    if found and word in _OPTIONS:
        return "OUT" + message[len(word) :] if word == "out" else f"--{word.replace('_', '-')}{message[len(word) :]}"
    return message


def _complain(message: str) -> None:
    with suppress(OSError):
        print(f"emp: {escape(message)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
