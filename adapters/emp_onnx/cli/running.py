"""`emp fuse`, `emp run`, `emp bench`: models at work, with the kernels where they are installed."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from emp_onnx.cli.options import (
    Commands,
    common_options,
    feed_options,
    kernels_option,
    model_option,
    out_options,
)
from emp_onnx.cli.places import check_out, check_places
from emp_onnx.cli.show import show
from emp_onnx.cli.values import listed, positive, seed, threads
from emp_onnx.errors import ModelError, UsageError, quote
from emp_onnx.files.model_io import load
from emp_onnx.files.names import default_out
from emp_onnx.files.whole import write_whole
from emp_onnx.texts.running import Output, bench_text, fused_text, run_text

if TYPE_CHECKING:
    from emp_onnx.fused.fuse import Fused

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the commands of this room."""
    one = commands.add("fuse", _fuse, "put packed weights into the nodes that use them, where kernels find them")
    model_option(one, "a model with packed weights, as `emp pack` writes it")
    out_options(one, "fused", in_place=False)
    one.add_argument(
        "--every", action="store_true", help="also weights for which dense kernels are expected to be faster"
    )
    common_options(one)

    one = commands.add("run", _run, "run a model in onnxruntime, with the kernels where they are installed")
    one.add_argument("model", metavar="MODEL.onnx", help="the model, packed or not")
    one.add_argument("-o", "--output", metavar="OUT.npz", help="save the outputs there, by name")
    kernels_option(one, ("auto", "on", "off"), "auto", "auto: where they are installed and of use (default)")
    feed_options(one, "what it is run on")
    common_options(one, threads="of onnxruntime (default: all)")

    one = commands.add("bench", _bench, "measure models side by side: latency, time to load, memory")
    one.add_argument(
        "models", metavar="MODEL.onnx", nargs="+", help="the models; the first is what the others are compared with"
    )
    one.add_argument("--batch", metavar="N,N…", help="sizes of the first axis of made-up feeds (default: 1)")
    one.add_argument("--threads", metavar="N,N…", help="numbers of threads (default: 1)")
    one.add_argument("--seconds", metavar="S", help="for each model, batch and number of threads (default: 1)")
    kernels_option(one, ("both", "auto", "on", "off"), "both", "both: each packed model with and without (default)")
    feed_options(one, "what they are run on; of --feeds the first one")
    common_options(one)


def _fuse(options: argparse.Namespace) -> int:
    from emp_onnx.fused.fuse import fused_model

    source = load(options.model)
    check_out(options, "fused", source)
    out = Path(options.out) if options.out is not None else default_out(Path(options.model), "fused")
    if source.sidecars() and out.resolve().parent != Path(options.model).resolve().parent:
        raise UsageError(f"OUT must be in the folder of the model, whose sidecars it shares, got {quote(out)}")
    model, fused = fused_model(options.model, every=options.every)
    if not any(item.op for item in fused):
        raise ModelError(_none_fused(fused, options.model))
    write_whole(out, model.SerializeToString(), "OUT")
    show(
        options,
        lambda: {"out": str(out), "uses": [vars(item) for item in fused]},
        lambda style: fused_text(fused, out, style),
    )
    return 0


def _none_fused(fused: Sequence[Fused], model: str) -> str:
    """Why nothing was fused."""
    if not fused:
        return f"the model must have packed weights that kernels can take, got {quote(model)}, which has none"
    reasons = "; ".join(f"{quote(item.weight)}: {item.reason}" for item in fused[:5])
    more = f"; and {len(fused) - 5} more" if len(fused) > 5 else ""
    return (
        f"the model must have packed weights that are worth a kernel, got {quote(model)}, where all stay as they are "
        f"({reasons}{more}); --every takes those too where dense kernels are expected to be faster"
    )


def _run(options: argparse.Namespace) -> int:
    from emp_onnx.fused.bench import feeds_for, inputs_of
    from emp_onnx.fused.engine import open_engine
    from emp_onnx.runtime.collected import Collected
    from emp_onnx.runtime.feeds import check_feed, read_feeds
    from emp_onnx.runtime.ort import first_line

    check_places(options, ("-o", options.output))
    engine = open_engine(options.model, kernels=options.kernels, threads=threads(options))
    declared = inputs_of(engine)
    given = read_feeds(options.feeds, [item.name for item in declared]) if options.feeds else None
    names = [item.name for item in engine.session.get_outputs()]
    runs: list[tuple[float, list[Output]]] = []
    with Collected(options.output, "-o") if options.output is not None else nullcontext() as kept:
        for i, feed in enumerate(given or [feeds_for(engine, 1, seed=seed(options))]):
            check_feed(feed, declared, i)
            start = time.perf_counter()
            try:
                values = engine.session.run(None, feed)
            except Exception as error:  # onnxruntime's own errors have no common base
                raise ModelError(f"onnxruntime cannot run the model on feed {i}: {first_line(error)}") from error
            seconds = time.perf_counter() - start
            outputs, figures = dict(zip(names, values, strict=True)), not (options.json or options.quiet)
            runs.append((seconds, [Output.of(name, value, figures=figures) for name, value in outputs.items()]))
            if kept is not None:
                kept.add(outputs)
        if kept is not None:
            kept.save()
    show(
        options,
        lambda: {
            "path": engine.note, "kernels": engine.kernels, "seconds": [seconds for seconds, _ in runs],
            "outputs": [{"name": o.name, "dtype": o.dtype, "shape": list(o.shape)} for o in runs[0][1]],
        },
        lambda style: "\n".join(run_text(engine.note, outputs, seconds, style) for seconds, outputs in runs),
    )  # fmt: skip
    return 0


def _bench(options: argparse.Namespace) -> int:
    from emp_onnx.files.model_io import load
    from emp_onnx.fused.bench import SECONDS, bench
    from emp_onnx.runtime.feeds import read_feeds

    if options.feeds is not None and options.batch is not None:
        raise UsageError("--feeds must come without --batch, which is for made-up feeds")
    feed = next(iter(read_feeds(options.feeds, load(options.models[0]).needed))) if options.feeds else None
    seconds = positive("--seconds", options.seconds)
    measured = bench(
        options.models, feed=feed, batch=listed("--batch", options.batch), threads=listed("--threads", options.threads),
        kernels=options.kernels, seconds=SECONDS if seconds is None else seconds, seed=seed(options),
    )  # fmt: skip
    show(
        options,
        lambda: {"models": [item.to_dict() for item in measured]},
        lambda style: bench_text(measured, style),
    )
    return 0
