"""What several commands take."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from emp_onnx.cli import values
from emp_onnx.errors import UsageError
from emp_onnx.figures import SCOPES
from emp_onnx.packing.forms import TARGETS
from emp_onnx.words import ALLOCATIONS, CRITERIA

__all__ = [
    "CODES", "COMPARED", "SECONDS", "USES", "Commands", "Parser", "choice", "choice_options", "common_options",
    "feed_options", "include_options", "kernels_option", "model_option", "out_options", "rule_options",
    "spread_options", "target", "target_option",
]  # fmt: skip

CODES = """exit codes:
  0  done    1  verification failed    2  usage    3  this model is not supported, or cannot be read
  130  interrupted
On failure nothing is written, and the input stays as it was."""

COMPARED = "comparison of outputs"  # title of the feeds where both models are run on them
SECONDS = "also, on standard error, the seconds that each part of the work took"
USES = "also every use of each weight, and on standard error the seconds that each part of the work took"


class Parser(argparse.ArgumentParser):
    """Usage errors are raised like any other, to be printed in one place."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong as a sentence."""
        raise UsageError(f"{message}; see {self.prog} --help")


class Commands:
    """The commands of `emp`; each room adds its own."""

    def __init__(self, top: Parser) -> None:
        self._made = top.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)

    def add(self, name: str, run: Callable[[argparse.Namespace], int], text: str) -> Parser:
        """A new command: `run` takes its options and returns the exit code."""
        parser: Parser = self._made.add_parser(
            name, help=text, description=text, epilog=CODES, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        parser.set_defaults(run=run)
        return parser


def model_option(parser: argparse.ArgumentParser, text: str = "the model") -> None:
    """IN.onnx."""
    parser.add_argument("model", metavar="IN.onnx", help=text)


def out_options(parser: argparse.ArgumentParser, word: str, *, in_place: bool = True) -> None:
    """OUT.onnx, by default IN.`word`.onnx, and --in-place."""
    parser.add_argument(
        "out", metavar="OUT.onnx", nargs="?",
        help=f"where the result goes (default: IN.{word}.onnx); a file there is replaced, the input never",
    )  # fmt: skip
    if in_place:
        parser.add_argument("--in-place", action="store_true", help="replace the input")


def target_option(parser: argparse.ArgumentParser, before: str = "") -> None:
    """--target: who must be able to read packed files; `before`: with which option it means something."""
    parser.add_argument("--target", choices=TARGETS, help=f"{before}what must run the result (default: onnxruntime)")


def target(options: argparse.Namespace) -> str:
    """`--target`, or who it is without."""
    return options.target or TARGETS[0]


def rule_options(parser: argparse.ArgumentParser) -> None:
    """The rule: how many weights of which pool are kept."""
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
    choice_options(parser)


def spread_options(parser: argparse.ArgumentParser, criteria: Sequence[str] = CRITERIA, group: Any = None) -> None:
    """How a refit spreads an amount over layers, and which weights of a layer stay, by one of `criteria`."""
    group = group or parser.add_argument_group("refit")
    group.add_argument(
        "--allocate", choices=ALLOCATIONS, help="how the amount is spread over the layers (default: error, as measured)"
    )
    group.add_argument("--criterion", choices=criteria, help="which weights stay within a layer (default: obs)")


def choice_options(parser: argparse.ArgumentParser) -> None:
    """Which weights are considered at all; `choice` reads them."""
    group = parser.add_argument_group("which weights (names of initializers, or of the nodes that use them)")
    include_options(group)
    group.add_argument("--min-size", metavar="N", help="only weights of at least N elements")
    group.add_argument("--embeddings", action="store_true", help="also embedding tables (which Gather reads)")


def include_options(parser: Any, what: str = "these") -> None:
    """--include and --exclude."""
    parser.add_argument("--include", metavar="GLOB", action="append", default=[], help=f"only {what}; may be repeated")
    parser.add_argument("--exclude", metavar="GLOB", action="append", default=[], help="not these; may be repeated")


def choice(options: argparse.Namespace) -> dict[str, Any]:
    """The keywords that `choice_options` stand for."""
    least = values.whole("--min-size", options.min_size, 0)
    return {
        "include": options.include, "exclude": options.exclude, "embeddings": options.embeddings,
        "min_size": 1 if least is None else least, "threads": values.threads(options),
    }  # fmt: skip


def kernels_option(parser: argparse.ArgumentParser, choices: Sequence[str], default: str, text: str) -> None:
    """--kernels."""
    parser.add_argument("--kernels", choices=choices, default=default, help=text)


def feed_options(parser: argparse.ArgumentParser, title: str) -> None:
    """--feeds, and --seed for the random ones without it."""
    group = parser.add_argument_group(title)
    group.add_argument(
        "--feeds", metavar="PATH",
        help="a folder of .npz files, one feed each, keys are input names; or one .npz with one more leading axis; "
        "or a folder of .npy files, one input each, named as the input, with one more leading axis; for a model of one "
        "input also a folder of .npy files of other names, one feed each",
    )  # fmt: skip
    group.add_argument("--seed", metavar="N", help="of the random feeds used without --feeds (default: 0)")


def common_options(parser: argparse.ArgumentParser, *, threads: str | None = None, verbose: str | None = None) -> None:
    """--json and --quiet; --threads and --verbose with what they mean here, where they mean something."""
    if threads is not None:
        parser.add_argument("--threads", metavar="N", help=threads)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, and nothing else, on standard output"
    )
    parser.add_argument("--quiet", action="store_true", help="print only errors")
    if verbose is not None:
        parser.add_argument("--verbose", action="store_true", help=verbose)
