"""`emp plan`, `emp prune`, `emp verify`, `emp demo`: the rule, and the proof that it was kept to."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from emp_onnx.cli import refitting
from emp_onnx.cli.options import (
    COMPARED,
    USES,
    Commands,
    choice,
    common_options,
    feed_options,
    model_option,
    out_options,
    rule_options,
    target,
    target_option,
)
from emp_onnx.cli.places import check_out, check_places
from emp_onnx.cli.show import complain, metered, say, show
from emp_onnx.cli.values import number, positive, seed, sparsity, threads
from emp_onnx.decide import plan
from emp_onnx.errors import UsageError, quote
from emp_onnx.figures import SCOPES
from emp_onnx.files.model_io import load
from emp_onnx.files.whole import write_whole
from emp_onnx.packing.forms import FORMS
from emp_onnx.plan import Plan
from emp_onnx.prune import nothing_to_prune, prune
from emp_onnx.texts.pruning import plan_text, report_text, uses_text, verification_text
from emp_onnx.verification.verify import verify

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the commands of this room."""
    one = commands.add("plan", _plan, "show what pruning would keep of every weight; changes nothing")
    model_option(one)
    one.add_argument("-o", "--output", metavar="PLAN.json", help="also save the plan there (a file there is replaced)")
    rule_options(one)
    common_options(one, threads="how many to use; the result is the same (default: all)", verbose=USES)

    one = commands.add("prune", _prune, "prune a model, verify the result, and write it with its certificate")
    model_option(one)
    out_options(one, "pruned")
    one.add_argument("--plan", metavar="PLAN.json", help="do what a plan saved by `emp plan -o` says")
    one.add_argument("--pack", choices=FORMS, help="also store the result in the smallest forms, as `emp pack` does")
    target_option(one, "with --pack: ")
    rule_options(one)
    refitting.refit_options(one)
    feed_options(one, "comparison of outputs, and what a refit learns from")
    common_options(
        one,
        threads="how many to use; the plain result is the same, a refit may differ in the last bits (default: all)",
        verbose=USES,
    )

    one = commands.add("verify", _verify, "check a pruned model by its certificate and, if given, against the original")
    one.add_argument("pruned", metavar="PRUNED.onnx", help="a model that `emp prune` wrote")
    one.add_argument("original", metavar="ORIGINAL.onnx", nargs="?", help="the model that it was made from")
    feed_options(one, COMPARED)
    common_options(one, threads="how many to use (default: all)")

    one = commands.add(
        "demo", _demo, "prune a small network trained on real data, and show its accuracy before and after"
    )
    one.add_argument("--scope", choices=SCOPES, help="which weights compete (default: tensor)")
    common_options(one, threads="how many to use (default: all)")


def _plan(options: argparse.Namespace) -> int:
    model = load(options.model)
    check_places(options, ("-o", options.output), model=model)
    with metered(options) as meter:
        made = plan(model, watch=meter, **_rule(options))
    if not made.entries:
        raise nothing_to_prune(model, made.refusals)
    if options.output is not None:
        write_whole(options.output, made.to_json().encode(), "-o")
    if options.json:
        say(made.to_json())  # the very bytes that -o saves
        return 0
    show(options, dict, lambda style: plan_text(made, style))
    if options.verbose:
        say(uses_text(made) + "\n")
    return 0


def _prune(options: argparse.Namespace) -> int:
    if options.target is not None and options.pack is None:
        raise UsageError(f"--target must come with --pack, got --target {options.target} without it")
    if refitting.wanted(options):
        return refitting.refit(options)
    given: dict[str, Any] = _rule(options)
    if options.plan is not None:
        for name in ("beta", "order", "sparsity", "scope", "include", "exclude", "min_size", "embeddings"):
            if getattr(options, name) not in (None, [], False):
                raise UsageError(f"--plan must come without --{name.replace('_', '-')}, which the plan has settled")
        given = {"plan": _read_plan(options.plan), "threads": threads(options)}
    check_out(options, "pruned")
    with metered(options) as meter:
        report = prune(
            options.model, options.out, watch=meter, feeds=options.feeds, seed=seed(options), in_place=options.in_place,
            pack=options.pack, target=target(options), gzip=options.json or not options.quiet, **given,
        )  # fmt: skip
    show(options, report.to_dict, lambda style: report_text(report, style))
    if options.verbose and not options.json:
        say(uses_text(report.plan) + "\n")
    return 0


def _verify(options: argparse.Namespace) -> int:
    if options.feeds is not None and options.original is None:
        raise UsageError("--feeds must come with ORIGINAL to compare with, got none")
    done = verify(options.pruned, options.original, feeds=options.feeds, seed=seed(options), threads=threads(options))
    last = "Verified." if done.ok else "VERIFICATION FAILED."
    show(options, done.to_dict, lambda style: f"{verification_text(done, style)}\n{last}")
    if not done.ok and options.quiet:
        complain("verification failed: " + "; ".join(done.faults[:3]))
    return 0 if done.ok else 1


def _demo(options: argparse.Namespace) -> int:
    from emp_onnx.demo import run_demo

    shown = run_demo(scope=options.scope or "tensor", threads=threads(options))
    show(options, shown.to_dict, shown.text)
    return 0


def _rule(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the rule, checked in the words of the command line."""
    beta, share = positive("--beta", options.beta), sparsity("--sparsity", options.sparsity)
    order = number("--order", options.order, "≥ 0", lambda x: x >= 0)
    for name, value in (("beta", beta), ("order", order)):
        if value is not None and share is not None:
            text = getattr(options, name)
            raise UsageError(f"--{name} must come without --sparsity, got {text} and {options.sparsity}")
    return {
        "beta": beta, "sparsity": share, "order": 2.0 if order is None else order,
        "scope": options.scope or "tensor", **choice(options),
    }  # fmt: skip


def _read_plan(path: str) -> Plan:
    try:
        return Plan.from_json(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"--plan must be a file that can be read, got {quote(path)}: {error.strerror}") from error
