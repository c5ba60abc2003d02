"""`emp pack` and `emp unpack`: the forms in which tensors are stored."""

from __future__ import annotations

import argparse

from emp_onnx.cli.options import (
    COMPARED,
    SECONDS,
    Commands,
    common_options,
    feed_options,
    include_options,
    model_option,
    out_options,
    target,
    target_option,
)
from emp_onnx.cli.places import check_out
from emp_onnx.cli.show import metered, show
from emp_onnx.cli.values import seed, threads
from emp_onnx.packing.forms import FORMS
from emp_onnx.packing.pack import Packing, pack, unpack
from emp_onnx.texts.packing import packing_text

__all__ = ["add"]

THREADS = "of onnxruntime, when both files are run (default: all)"


def add(commands: Commands) -> None:
    """Add the commands of this room."""
    one = commands.add("pack", _pack, "store each tensor in the smallest form, with every bit kept")
    model_option(one)
    out_options(one, "packed")
    one.add_argument("--form", choices=FORMS, default="auto", help="auto: whichever is smallest (default)")
    target_option(one)
    one.add_argument(
        "--compact-indices", action="store_true",
        help="coo with indices of 16 or 32 bits: onnxruntime takes them, onnx.checker does not",
    )  # fmt: skip
    one.add_argument("--values", choices=["float16"], help="LOSSY: round float32 values to float16")
    include_options(one)
    feed_options(one, COMPARED)
    common_options(one, threads=THREADS, verbose=SECONDS)

    one = commands.add("unpack", _unpack, "store packed and sparse tensors as plain dense ones again")
    model_option(one, "a model that is packed, or has sparse tensors")
    out_options(one, "unpacked")
    feed_options(one, COMPARED)
    common_options(one, threads=THREADS, verbose=SECONDS)


def _pack(options: argparse.Namespace) -> int:
    check_out(options, "packed")
    with metered(options) as meter:
        done = pack(
            options.model, options.out, form=options.form, target=target(options), include=options.include,
            exclude=options.exclude, compact_indices=options.compact_indices, values=options.values,
            in_place=options.in_place, feeds=options.feeds, seed=seed(options), threads=threads(options), watch=meter,
        )  # fmt: skip
    return _shown(options, done)


def _unpack(options: argparse.Namespace) -> int:
    check_out(options, "unpacked")
    with metered(options) as meter:
        done = unpack(
            options.model, options.out, in_place=options.in_place, feeds=options.feeds, seed=seed(options),
            threads=threads(options), watch=meter,
        )  # fmt: skip
    return _shown(options, done)


def _shown(options: argparse.Namespace, done: Packing) -> int:
    show(options, done.to_dict, lambda style: packing_text(done, style))
    return 0
