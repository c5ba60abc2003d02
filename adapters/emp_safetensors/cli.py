"""The command line: the only room here that prints or returns an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from emp_core import EmpError
from emp_safetensors.checkpoint import load
from emp_safetensors.errors import CheckpointError, VerifyError, quote
from emp_safetensors.plan import plan
from emp_safetensors.prune import prune
from emp_safetensors.verify import verify

__all__ = ["main"]

EPILOG = "exit codes: 0 done, 1 verification failed, 2 usage, 3 this checkpoint is not supported"


def main(arguments: Sequence[str] | None = None, /) -> int:
    """Run a command; returns the exit code. Whatever fails ends in one sentence."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = 0
    try:
        text, code = _run(_parser().parse_args(arguments))
        print(text)
        sys.stdout.flush()
        return code
    except SystemExit as error:  # --help ends so, and what the parser refuses
        return error.code if isinstance(error.code, int) else 0
    except BrokenPipeError:
        # whoever read the output has gone; the work itself is done
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code
    except KeyboardInterrupt:
        return _complain("interrupted; no half-written file is left behind", 130)
    except VerifyError as error:
        return _complain(str(error), 1)
    except CheckpointError as error:
        return _complain(str(error), 3)
    except EmpError as error:
        return _complain(str(error), 2)
    except MemoryError:
        return _complain("this checkpoint needs more memory than there is", 3)
    except OSError as error:
        return _complain(f"{error.strerror or error}: {quote(error.filename or 'a file')}", 2)


def _complain(message: str, code: int) -> int:
    """One sentence on standard error; gives the exit code on."""
    with suppress(OSError):
        print(f"error: {message}", file=sys.stderr)
    return code


def _run(args: argparse.Namespace) -> tuple[str, int]:
    """Do what a command says: what it prints, and its exit code."""
    if args.command == "verify":
        faults = verify(args.checkpoint, args.original)
        return ("\n".join(faults), 1) if faults else ("the certificate holds", 0)
    options = {
        "beta": args.beta,
        "sparsity": args.sparsity,
        "scope": args.scope,
        "include": args.include,
        "exclude": args.exclude,
        "min_size": args.min_size,
        "embeddings": args.embeddings,
        "threads": args.threads,
    }
    if args.command == "plan":
        return str(plan(load(args.checkpoint), **options)), 0
    report = prune(args.checkpoint, args.out, **options)
    refusals = report.plan.refusals if args.verbose else ()
    files = ", ".join(map(str, report.files))
    return "\n".join([
        str(report.plan),
        *(f"left alone: {name}: {reason}" for name, reason in refusals),
        f"written and checked: {files}. Zeros take as many bytes as other numbers.",
    ]), 0  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emp_safetensors", description="Prune safetensors checkpoints.", epilog=EPILOG
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (("plan", "show what would be kept"), ("prune", "write a pruned copy")):
        command = commands.add_parser(name, help=about, description=about, epilog=EPILOG)
        command.add_argument("checkpoint", help="a .safetensors file, a folder of shards, or its index")
        if name == "prune":
            command.add_argument("out", help="a file for a file, a new folder for a folder")
            command.add_argument("--verbose", action="store_true", help="also say what was left alone, and why")
        command.add_argument("--beta", type=float, help="multiplier of the effective size, > 0 (default 1)")
        command.add_argument("--sparsity", type=float, help="instead: prune exactly this share, in [0, 1)")
        command.add_argument("--scope", default="tensor", choices=("tensor", "row", "model"), help="what competes")
        command.add_argument("--include", action="append", default=[], metavar="PATTERN")
        command.add_argument("--exclude", action="append", default=[], metavar="PATTERN")
        command.add_argument("--min-size", type=int, default=1, metavar="N")
        command.add_argument("--embeddings", action="store_true", help="also tables of embeddings")
        command.add_argument("--threads", type=int)
    command = commands.add_parser("verify", help="check a certificate", epilog=EPILOG)
    command.add_argument("checkpoint")
    command.add_argument("original", nargs="?", help="also compare with what it was made from")
    return parser
