"""The command `emp`: parses, calls, prints, and returns an exit code. The only room that prints or exits."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from emp_core import EmpError, __version__
from emp_onnx._files import same_file, write_whole
from emp_onnx.errors import OnnxError, UsageError, escape, quote
from emp_onnx.figures import SCOPES
from emp_onnx.model_io import Model, load
from emp_onnx.packing.forms import FORMS, TARGETS
from emp_onnx.packing.pack import Packing, pack, unpack
from emp_onnx.plan import Plan, plan
from emp_onnx.progress import Meter
from emp_onnx.prune import nothing_to_prune, prune
from emp_onnx.report import Style, packing_text, plan_text, report_text, uses_text, verification_text
from emp_onnx.verify import verify

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
    "pack",
    "target",
    "form",
    "compact_indices",
}


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


def _check_out(options: argparse.Namespace) -> None:
    if options.in_place and options.out is not None:
        raise UsageError(f"--in-place must come without OUT, got {quote(options.out)}")
    if options.out is not None and same_file(options.out, options.model):
        raise UsageError(f"OUT must not be the input {quote(options.model)}; to replace that, give --in-place instead")
    target = options.model if options.in_place else options.out
    if options.feeds is not None and target is not None and same_file(options.feeds, target):
        raise UsageError(f"OUT must not be a file that is read, got {quote(options.feeds)}")


def _shown(options: argparse.Namespace, done: Packing) -> int:
    if options.json:
        _print_json(done.to_dict())
    elif not options.quiet:
        print(packing_text(done, Style.of(sys.stdout)))
    return 0


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


def _parser() -> _Parser:
    top = _Parser(
        prog="emp", epilog=CODES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
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
    _feed_options(one)
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
    group = parser.add_argument_group("which weights (names of initializers, or of the nodes that use them)")
    group.add_argument("--include", metavar="GLOB", action="append", default=[], help="only these; may be repeated")
    group.add_argument("--exclude", metavar="GLOB", action="append", default=[], help="not these; may be repeated")
    group.add_argument("--min-size", metavar="N", help="only weights of at least N elements")
    group.add_argument("--embeddings", action="store_true", help="also embedding tables (which Gather reads)")


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
