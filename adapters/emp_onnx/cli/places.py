"""Where a command writes: never over a file that it reads, and never twice to one place."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from emp_onnx.errors import ModelError, UsageError, quote
from emp_onnx.files.model_io import Model, load
from emp_onnx.files.names import default_out
from emp_onnx.files.whole import same_file

__all__ = ["check_out", "check_places"]

FEEDS = (".npz", ".npy")  # endings of what is read from a folder of feeds
READ = ("plan", "stats", "gradients", "merge")  # options that name files, beside the model, --feeds and --metric


def check_out(options: argparse.Namespace, word: str, model: Model | None = None) -> None:
    """Check OUT, IN.`word`.onnx where it is not given, as `check_places` does; or the input, with --in-place."""
    if getattr(options, "in_place", False):
        if options.out is not None:
            raise UsageError(f"--in-place must come without OUT, got {quote(options.out)}")
        _read_otherwise("OUT", options.model, options)
        return
    if options.out is not None and same_file(options.out, options.model):
        instead = "; to replace that, give --in-place instead" if hasattr(options, "in_place") else ""
        raise UsageError(f"OUT must not be the input {quote(options.model)}{instead}")
    check_places(options, ("OUT", options.out or str(default_out(Path(options.model), word))), model=model)


def check_places(options: argparse.Namespace, *written: tuple[str, str | None], model: Model | None = None) -> None:
    """Each output, an option and its path if it was given, must be another file than all others and all that is read.

    Read are the model with its sidecars, and whatever other options name: feeds, one file or each of a folder,
    statistics, gradients, a plan, the script of a metric. Files are told apart as the system does, so links of either
    kind are seen through. `model` is that of `options`, where it was loaded before.

    Raises:
        UsageError: it is not; says which option.
    """
    places = [(option, path) for option, path in written if path is not None]
    for i, (option, path) in enumerate(places):
        for _, other in places[:i]:
            if same_file(path, other):
                raise UsageError(f"{option} must name another file than the outputs before it, got {quote(path)}")
        if same_file(path, options.model) or any(same_file(path, file) for file in _sidecars(path, options, model)):
            raise UsageError(f"{option} must not be a file of the model, got {quote(path)}")
        _read_otherwise(option, path, options)


def _sidecars(path: str, options: argparse.Namespace, model: Model | None) -> list[Path]:
    """The sidecars of the model that `path` may be: none where there is no file there yet."""
    if not os.path.exists(path):
        return []
    with suppress(ModelError):  # who runs the model says what is wrong with it
        return list((model or load(options.model)).sidecars().values())
    return []


def _read_otherwise(option: str, path: str, options: argparse.Namespace) -> None:
    feeds = getattr(options, "feeds", None)
    if feeds is not None and path.endswith(FEEDS) and same_file(Path(os.path.realpath(path)).parent, feeds):
        raise UsageError(f"{option} must not be in the folder of the feeds, where it would be one, got {quote(path)}")
    if os.path.exists(path) and any(same_file(path, file) for file in _inputs(options)):
        raise UsageError(f"{option} must not be a file that is read, got {quote(path)}")


def _inputs(options: argparse.Namespace) -> Iterator[str | Path]:
    """Paths that options name, but for the model's."""
    for name in READ:
        given = getattr(options, name, None)
        if given is not None:
            yield from [given] if isinstance(given, str) else given
    if (metric := getattr(options, "metric", None)) is not None:
        yield metric.rpartition(":")[0]
    if (feeds := getattr(options, "feeds", None)) is not None:
        yield feeds
        with suppress(OSError):  # not a folder
            yield from (Path(feeds, name) for name in os.listdir(feeds) if name.endswith(FEEDS))
