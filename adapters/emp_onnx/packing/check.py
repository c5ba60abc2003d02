"""Whether a model written in other forms is the same model: bit for bit, and in onnxruntime, at the same time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from emp_onnx.errors import UsageError, quote
from emp_onnx.files.model_io import Model
from emp_onnx.files.storage import pieces_of
from emp_onnx.packing.counts import bits_of
from emp_onnx.packing.forms import rounded
from emp_onnx.packing.places import Chosen
from emp_onnx.packing.rewrite import half_name
from emp_onnx.runtime.compare import Behaviour, NotRunError, compare
from emp_onnx.runtime.feeds import Feed, read_feeds
from emp_onnx.runtime.isolated import Isolated
from emp_onnx.verification.outcome import Check, Verification
from emp_onnx.verification.running import RUN, worth_running

__all__ = ["Feeds", "checked"]

BITS = "every tensor is as before, bit for bit"
SAME = "outputs are the same"
RUNS = "it runs where the original does"
Feeds = Iterable[Feed] | str | os.PathLike[str] | None


def checked(
    written: Model, source: Model, chosen: Sequence[Chosen], path: Path, process: Isolated,
    feeds: Feeds = None, seed: int = 0,
) -> Verification:  # fmt: skip
    """Whether the written model is the same as its source, but for the forms.

    onnxruntime runs both in a process of its own, while the bits are compared here.

    Raises:
        UsageError: feeds that cannot be read, or on which the original does not run.
    """
    lossy = any(item.half for item in chosen)
    if not worth_running(source, feeds):
        why = f"models of more than {RUN >> 20} MiB are not run unasked; give feeds"
        return Verification(tuple(_bits(written, source, chosen, lossy)), None, why)
    with ThreadPoolExecutor(1) as beside:
        running = beside.submit(_run, source, path, process, lossy, feeds, seed)
        checks = list(_bits(written, source, chosen, lossy))
        ran, behaviour, why = running.result()
    return Verification((*checks, *ran), behaviour, why)


def _bits(written: Model, source: Model, chosen: Sequence[Chosen], lossy: bool) -> Iterator[Check]:
    faults = tuple(fault for item in chosen for fault in _differs(written, source, item))
    yield Check(f"{BITS}, or rounded to float16" if lossy else BITS, not faults, faults)
    if lossy:
        return
    keys = frozenset(item.tensor.key for item in chosen)
    both = [(key, tensor.storage) for model in (written, source) for key, tensor in model.tensors.items()]
    apart = frozenset(key for key, kind in both if kind == "packed" or (kind == "sparse" and key in keys))
    after, was = written.rest(keys, "", apart), source.rest(keys, "", apart)
    rest = [f"{place} differs" for place in sorted(after.keys() | was.keys()) if after.get(place) != was.get(place)]
    yield Check("nothing else differs", not rest, tuple(rest))


def _differs(written: Model, source: Model, item: Chosen) -> Iterator[str]:
    """What is wrong with one tensor."""
    key, dtype = item.tensor.key, "float16" if item.half else item.tensor.dtype
    name = half_name(key) if item.half else key
    tensor = written.tensors.get(name)
    if tensor is None or (tensor.dtype, tensor.shape) != (dtype, item.tensor.shape):
        yield f"tensor {quote(key)} is missing, or of another type or shape"
        return
    for start, stop in pieces_of(tensor.size):
        one, other = rounded(source.piece(key, start, stop), item.found.fill), written.piece(name, start, stop)
        if not np.array_equal(bits_of(one), bits_of(other)):
            yield f"tensor {quote(key)} has other bits than before, at {start} to {stop}"
            return


def _run(
    source: Model, path: Path, process: Isolated, lossy: bool, feeds: Feeds, seed: int
) -> tuple[list[Check], Behaviour | None, str]:
    """Both models on the same feeds: the checks that follow, how far outputs moved, and why they were not compared."""
    read = read_feeds(feeds, source.needed) if isinstance(feeds, (str, os.PathLike)) else feeds
    try:
        original = process.open(source.path or source)
    except NotRunError as error:
        if feeds is not None:
            raise UsageError(f"feeds must come with a model that runs: {error}") from error
        return [], None, str(error)
    try:
        packed = process.open(path)
    except NotRunError as error:
        return [Check(RUNS, False, (f"the packed model: {error}",))], None, str(error)
    try:
        seen = compare(original, packed, read, seed=seed)
    except NotRunError as error:
        return [], None, str(error)
    wrong = list(seen.problems)
    if lossy:
        return [Check(RUNS, not wrong, tuple(wrong))], seen, ""
    wrong += [f"output {quote(o.name)} moved by {o.max_abs:.3g}" for o in seen.outputs if o.max_abs]
    return [Check(SAME, not wrong, tuple(wrong))], seen, ""
