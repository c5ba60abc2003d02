"""Both models on the same feeds: when they are run, and by whom."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from emp_onnx.errors import ModelError, UsageError
from emp_onnx.files.model_io import Model
from emp_onnx.runtime.compare import NotRunError, Run, compare_runs, runs_of
from emp_onnx.runtime.feeds import Feed, read_feeds
from emp_onnx.runtime.isolated import Here, Isolated
from emp_onnx.verification.outcome import Check, Verification, check

__all__ = ["RUN", "begin", "load_ahead", "many_nodes", "run_both", "runs", "weight_of", "worth_running"]

MANY = 4096  # nodes from which graphs are run as they stand
SOME = 1 << 17  # bytes of the smallest graph with so many nodes
RUN = 1 << 28  # bytes up to which models are run without being asked: onnxruntime holds both in memory


def run_both(
    pruned: Model,
    original: Model,
    done: list[Check],
    process: Isolated | Here | None,
    /,
    *,
    feeds: Iterable[Feed] | str | os.PathLike[str] | None,
    seed: int,
    threads: int | None,
) -> Verification:
    """Both on the same feeds, after all other checks."""
    behaviour, not_run = None, ""
    if not worth_running(original, feeds):
        size = weight_of(original)
        why = f"{size / 2**20:.0f} MiB are more than the {RUN >> 20} MiB up to which models are run unasked; give feeds"
        return Verification(tuple(done), None, why)
    read = read_feeds(feeds, original.needed) if isinstance(feeds, (str, os.PathLike)) else feeds
    what = "the pruned model runs where the original does"
    with process or Isolated(threads=threads) as sessions:
        try:
            before = sessions.open(original.path or original, plain=many_nodes(original))
        except NotRunError as error:
            if feeds is not None:
                raise UsageError(f"feeds must come with a model that runs: {error}") from error
            return Verification(tuple(done), None, str(error))
        # made-up feeds run while the pruned model still loads, where that is another process: a crash in the same one
        # could be either's
        runs: Iterable[Run] | None = None
        try:
            runs = runs_of(before, read, seed=seed) if many_nodes(original) else None
        except NotRunError as error:
            not_run = str(error)
        try:
            after = sessions.open(pruned.path or pruned, plain=many_nodes(original))
        except NotRunError as error:
            return Verification((*done, Check(what, False, (f"the pruned model: {error}",))), None, str(error))
        if not_run:
            return Verification(tuple(done), None, not_run)
        try:
            runs = runs_of(before, read, seed=seed) if runs is None else runs
            behaviour = compare_runs(runs, before.outputs, after, random=read is None)
            done.append(check(what, behaviour.problems))
        except NotRunError as error:
            not_run = str(error)
    return Verification(tuple(done), behaviour, not_run)


def runs(model: Model, feeds: Sequence[Feed], sessions: Isolated | Here, /) -> None:
    """See to it that a whole model runs.

    Raises:
        ModelError: it does not, or crashes onnxruntime.
    """
    try:
        session = sessions.open(model.path or model, plain=many_nodes(model))
        for feed in feeds:
            session.run(feed)
    except NotRunError as error:
        raise ModelError(f"model must be one that onnxruntime runs: {error}") from error


def weight_of(model: Model, /) -> int:
    """Bytes of a model and its sidecar files."""
    return model.source.size + sum(file.stat().st_size for file in set(model.sidecars().values()))


def worth_running(original: Model, feeds: object, /) -> bool:
    """Whether both models are to be run: on feeds given always, on made-up ones if they are not too large."""
    return feeds is not None or weight_of(original) <= RUN


def many_nodes(model: Model, /) -> bool:
    """Whether a model is so long that onnxruntime would take longer to optimise it than to run it."""
    return len(model.graph.nodes) > MANY


def begin(process: Isolated, path: str | os.PathLike[str], /) -> None:
    """Let a process for onnxruntime begin before anything is known of a model but that it may take long to load."""
    with suppress(OSError):  # there is no such file: whoever reads it says so
        if SOME <= os.path.getsize(path) <= RUN:
            process.start()


def load_ahead(process: Isolated, path: Path | None, original: Model, feeds: object, /) -> None:
    """Let onnxruntime begin with a file that will be run; what else is to be done here goes on at the same time."""
    if path is not None and worth_running(original, feeds):
        process.start(plain=many_nodes(original))
        process.ahead(path, plain=many_nodes(original))
