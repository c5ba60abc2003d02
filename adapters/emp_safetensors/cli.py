"""The command line: the only room here that prints or returns an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from emp_core import EmpError
from emp_safetensors.checkpoint import load
from emp_safetensors.errors import CheckpointError, VerifyError
from emp_safetensors.plan import plan
from emp_safetensors.prune import prune
from emp_safetensors.verify import verify

__all__ = ["main"]

EPILOG = "exit codes: 0 done, 1 verification failed, 2 usage, 3 this checkpoint is not supported"


def main(arguments: Sequence[str] | None = None, /) -> int:
    """Run a command; returns the exit code."""
    args = _parser().parse_args(arguments)
    try:
        if args.command == "verify":
            faults = verify(args.checkpoint, args.original)
            print("\n".join(faults) if faults else "the certificate holds")
            return 1 if faults else 0
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
            print(plan(load(args.checkpoint), **options))
            return 0
        report = prune(args.checkpoint, args.out, **options)
        print(report.plan)
        for name, reason in report.plan.refusals if args.verbose else ():
            print(f"left alone: {name}: {reason}")
        print(f"written and checked: {', '.join(map(str, report.files))}. Zeros take as many bytes as other numbers.")
        return 0
    except VerifyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except EmpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


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
