"""What the commands print: results on standard output, complaints and progress on standard error."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from emp_onnx.errors import UsageError, escape
from emp_onnx.progress import Meter
from emp_onnx.texts.style import Style

__all__ = ["complain", "metered", "say", "show"]


def show(options: argparse.Namespace, data: Callable[[], Any], text: Callable[[Style], str]) -> None:
    """A result as the options want it: one JSON object, text, or nothing with --quiet."""
    if options.json:
        say(json.dumps(_finite(data()), allow_nan=False) + "\n")
    elif not options.quiet:
        say(text(Style.of(sys.stdout)) + "\n")


def say(text: str) -> None:
    """Write to standard output, at once. Whoever read it may have gone, which changes nothing about the exit code."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # what is still to be written, at the latest when Python ends, goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(message: str) -> None:
    """One sentence on standard error, with what a terminal might take for a command escaped."""
    with suppress(OSError):
        print(f"emp: {escape(message)}", file=sys.stderr)


@contextmanager
def metered(options: argparse.Namespace) -> Iterator[Meter]:
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
        with suppress(OSError):  # whoever read it has gone; the work goes on
            for name, seconds in meter.spent.items():
                print(f"{name}: {seconds:.2f} s", file=sys.stderr)


def _finite(value: Any) -> Any:
    """`value` with infinities and NaN, which JSON does not have, as words."""
    if isinstance(value, float) and value - value != 0:
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
