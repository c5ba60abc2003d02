"""The options of `emp shrink`."""

from __future__ import annotations

import argparse
from typing import Any

from emp_onnx.errors import UsageError, quote

__all__ = ["add_options", "given"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them to a parser."""
    parser.add_argument("model", metavar="IN.onnx", help="the model")
    parser.add_argument(
        "out", metavar="OUT.onnx", nargs="?",
        help="where the result goes (default: IN.shrunk.onnx); a file there is replaced, the input never",
    )  # fmt: skip
    parser.add_argument("--in-place", action="store_true", help="replace the input")
    group = parser.add_argument_group("what goes")
    group.add_argument("--dead-only", action="store_true",
        help="only what says nothing, or the same on all inputs: the outputs stay as they are",
    )  # fmt: skip
    group.add_argument(
        "--signal", metavar="S", help="whose effective size counts: norm, activation, spectrum (default with feeds)"
    )
    group.add_argument("--beta", metavar="B", help="keep ⌊B·N_eff⌋ units of every group (default: 1)")
    group.add_argument("--order", metavar="Q", help="order of the Hill number that counts (default: 2, N_eff)")
    group.add_argument("--round-to", metavar="N", help="what is left of a large group is a multiple of N (default: 8)")
    group.add_argument("--min-channels", metavar="N", help="at least N units of a group stay (default: 1)")
    group.add_argument(
        "--include", metavar="GLOB", action="append", default=[], help="only groups of this name; may be repeated"
    )
    group.add_argument("--exclude", metavar="GLOB", action="append", default=[], help="not these; may be repeated")
    group = parser.add_argument_group("budgets, measured, in place of the effective size")
    group.add_argument(
        "--max-drop", metavar="P", help="at most this share of largest class scores may change (1%% or 0.01)"
    )
    group.add_argument("--max-error", metavar="P", help="at most this relative error of the outputs")
    group.add_argument(
        "--target-latency", metavar="R", help="as much of the dense model's latency, in onnxruntime (0.6x)"
    )
    group.add_argument("--target-flops", metavar="R", help="as much of its multiply-adds")
    group.add_argument("--target-size", metavar="R", help="as much of its weights' bytes")
    group = parser.add_argument_group("feeds")
    group.add_argument("--feeds", metavar="PATH",
        help="a folder of .npz files, one feed each, keys are input names; or one .npz with one more leading axis",
    )  # fmt: skip
    group.add_argument("--seed", metavar="N", help="of the random feeds used without --feeds (default: 0)")
    group.add_argument(
        "--refit", action="store_true", help="refit consumers in closed form, from what is left to what they received"
    )


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `shrink` that were given."""
    out: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("in_place", "dead_only", "refit", "include", "exclude", "feeds", "signal")
    }
    for name in ("max_drop", "max_error", "target_latency", "target_flops", "target_size"):
        out[name] = _share(f"--{name.replace('_', '-')}", getattr(options, name))
    for name, kind in (
        ("beta", float),
        ("order", float),
        ("round_to", int),
        ("min_channels", int),
        ("seed", int),
        ("threads", int),
    ):
        text = getattr(options, name)
        if text is not None:
            try:
                out[name] = kind(text)
            except ValueError:
                raise UsageError(
                    f"{name} must be a {'whole ' if kind is int else ''}number, got {quote(text)}"
                ) from None
    if out.get("seed", 0) < 0:
        raise UsageError(f"seed must be ≥ 0, got {out['seed']}")
    return out


def _share(option: str, text: str | None) -> float | None:
    """`1%`, `0.6x` or `0.6` as a share."""
    if text is None:
        return None
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text.removesuffix("x"))
    except ValueError:
        raise UsageError(f"{option} must be a share such as 1%, 0.6x or 0.6, got {quote(text)}") from None
