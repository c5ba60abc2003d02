"""From the arguments of a command line to an exit code: whatever fails ends in one sentence, here."""

from __future__ import annotations

import argparse
import atexit
import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from emp_core import EmpError, __version__
from emp_onnx.cli import packing, pruning, refitting, running, shrinking
from emp_onnx.cli.options import CODES, Commands, Parser
from emp_onnx.cli.show import complain, say
from emp_onnx.errors import OnnxError, quote
from emp_onnx.interrupt import watched

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Example:
        >>> main(["prune", "missing.onnx"])
        3
    """
    atexit.register(gc.freeze)  # what the modules hold is let go at the end anyway: to look through it took .05 s
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    options = argparse.Namespace()
    try:
        try:
            options = _parser().parse_args(argv)
        except SystemExit as error:  # --help and --version end so
            say("")
            return error.code if isinstance(error.code, int) else 0
        with watched(), _collecting_less():
            code: int = options.run(options)
        say("")  # what a metric of the user's has printed, say
        return code
    except KeyboardInterrupt:
        # one that came inside an `eval` has marked the process to end by a signal; the next `eval` takes the mark away
        eval("None")
        complain("interrupted; no half-written file is left behind")
        return 130
    except OnnxError as error:
        if shown := getattr(error, "shown", ""):
            with suppress(OSError):
                print(shown, file=sys.stderr, end="")
        complain(_in_options(str(error), options))
        return error.exit_code
    except EmpError as error:
        complain(_in_options(str(error), options))
        return 2
    except MemoryError:
        complain("this model needs more memory than there is")
        return 3
    except OSError as error:
        complain(f"{error.strerror or error}: {quote(error.filename or 'a file')}")
        return 2


def _parser() -> Parser:
    top = Parser(
        prog="emp", epilog=CODES, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Effective Model Pruning of ONNX files: read from the weights how many matter, keep those.",
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"emp {__version__}")
    commands = Commands(top)
    for room in (pruning, refitting, packing, shrinking, running):
        room.add(commands)
    return top


def _in_options(message: str, options: argparse.Namespace) -> str:
    """A message of the Python functions in the words of the command line: `--min-size must …` for `min_size must …`."""
    word, found, _ = message.partition(" must ")
    if not found or word in ("model", "models") or word not in vars(options):
        return message
    name = {"out": "OUT", "output": "-o"}.get(word, f"--{word.replace('_', '-')}")
    return name + message[len(word) :]


@contextmanager
def _collecting_less() -> Iterator[None]:
    """Look for garbage less often: a graph of many nodes is many small objects that all stay.

    Measured on 30 000 nodes: a third of the time. What is garbage in circles is a few objects here, never arrays.
    """
    before = gc.get_threshold()
    gc.set_threshold(1_000_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
