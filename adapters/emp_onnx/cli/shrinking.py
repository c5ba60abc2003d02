"""`emp shrink`: whole channels, neurons and heads."""

from __future__ import annotations

import argparse
from typing import Any

from emp_onnx.cli.options import (
    Commands,
    common_options,
    feed_options,
    include_options,
    model_option,
    out_options,
)
from emp_onnx.cli.places import check_out
from emp_onnx.cli.show import show
from emp_onnx.cli.values import number, positive, seed, share, threads, whole

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the commands of this room."""
    one = commands.add(
        "shrink", _shrink, "take out whole channels, neurons and heads: a smaller model, faster in every runtime"
    )
    model_option(one)
    out_options(one, "shrunk")
    group = one.add_argument_group("what goes")
    group.add_argument(
        "--dead-only", action="store_true",
        help="only what says nothing, or the same on all inputs: the outputs stay as they are",
    )  # fmt: skip
    group.add_argument(
        "--signal", metavar="S", help="whose effective size counts: norm, activation, spectrum (default with feeds)"
    )
    group.add_argument("--beta", metavar="B", help="keep ⌊B·N_eff⌋ units of every group (default: 1)")
    group.add_argument("--order", metavar="Q", help="order of the Hill number that counts (default: 2, N_eff)")
    group.add_argument("--round-to", metavar="N", help="what is left of a large group is a multiple of N (default: 8)")
    group.add_argument("--min-channels", metavar="N", help="at least N units of a group stay (default: 1)")
    include_options(group, "groups of this name")
    group = one.add_argument_group("budgets, measured, in place of the effective size")
    group.add_argument(
        "--max-drop", metavar="P", help="at most this share of largest class scores may change (1%% or 0.01)"
    )
    group.add_argument("--max-error", metavar="P", help="at most this relative error of the outputs")
    group.add_argument(
        "--target-latency", metavar="R", help="as much of the dense model's latency, in onnxruntime (0.6x)"
    )
    group.add_argument("--target-flops", metavar="R", help="as much of its multiply-adds")
    group.add_argument("--target-size", metavar="R", help="as much of its weights' bytes")
    feed_options(one, "feeds")
    one.add_argument(
        "--refit", action="store_true", help="refit consumers in closed form, from what is left to what they received"
    )
    common_options(one, threads="of onnxruntime, for statistics; latency is always that of one thread (default: 1)")


def _shrink(options: argparse.Namespace) -> int:
    from emp_onnx.shrink import shrink
    from emp_onnx.shrink.text import shrink_text

    check_out(options, "shrunk")
    given: dict[str, Any] = {
        name: share(f"--{name.replace('_', '-')}", getattr(options, name))
        for name in ("max_drop", "max_error", "target_latency", "target_flops", "target_size")
    }
    given |= {
        "beta": positive("--beta", options.beta),
        "order": number("--order", options.order, "≥ 0", lambda x: x >= 0),
        "round_to": whole("--round-to", options.round_to, 1),
        "min_channels": whole("--min-channels", options.min_channels, 1),
        "threads": threads(options),
    }
    report = shrink(
        options.model, options.out, in_place=options.in_place, dead_only=options.dead_only, refit=options.refit,
        include=options.include, exclude=options.exclude, feeds=options.feeds, signal=options.signal,
        seed=seed(options), **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    show(options, report.to_dict, lambda style: shrink_text(report, style))
    return 0
