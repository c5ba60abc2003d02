"""Calibration feeds as the other rooms want them: checked against the model's declared inputs, and in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from emp_onnx.calibration.chunks import chunks
from emp_onnx.calibration.flat import flatten
from emp_onnx.calibration.runner import Runner
from emp_onnx.errors import MissingExtraError, ModelError, UsageError
from emp_onnx.files.model_io import Model
from emp_onnx.files.wire import LENGTH, Wire
from emp_onnx.runtime.feeds import DTYPES, Feed, Input, check_feed, random_feeds, read_feeds
from emp_onnx.runtime.lengthen import lengthened

__all__ = ["declared", "gather", "longer"]

RANDOM = 16  # feeds made up where none are given


def gather(
    model: Model, feeds: Iterable[Feed] | str | os.PathLike[str] | None, seed: int = 0, threads: int | None = None
) -> tuple[list[Feed], bool]:
    """All feeds, and whether they were made up.

    Raises:
        UsageError: no feeds, or one that does not fit the model; none given, and none can be made up.
    """
    inputs = declared(model)
    if feeds is None:
        return _made_up(model, inputs, seed, threads), True
    read = read_feeds(feeds, model.needed) if isinstance(feeds, (str, os.PathLike)) else feeds
    defaults = frozenset(model.graph.tensors)
    out: list[Feed] = []
    for i, feed in enumerate(read):
        check_feed(feed, inputs, i, defaults)
        out.append({name: np.asarray(value) for name, value in feed.items()})
    if not out:
        raise UsageError("feeds must hold at least one feed, got none")
    return out, False


def declared(model: Model, *, outputs: bool = False) -> list[Input]:
    """The inputs that the model declares, initializers that are also listed as inputs among them; or its outputs."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx") from error
    words = {v: k for k, v in DTYPES.items()}
    wire, found = Wire(model.source), list[Input]()
    for number, kind, at, _, end in wire.fields(*model.contents.span):
        if number != (12 if outputs else 11) or kind != LENGTH:
            continue
        item = onnx.ValueInfoProto()
        item.ParseFromString(model.source.read(at, end - at))
        tensor = item.type.tensor_type
        shape: list[int | str | None] = []
        for dim in tensor.shape.dim:
            shape.append(dim.dim_value if dim.dim_value > 0 else dim.dim_param or None)
        try:
            name = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name if tensor.elem_type else ""
        except (KeyError, TypeError, ValueError):
            name = ""
        found.append(Input(item.name, words.get(name, f"tensor({name})"), tuple(shape)))
    return found


def longer(model: Model, feeds: Sequence[Feed], threads: int | None = None) -> list[Feed]:
    """Feeds made of these by joining them end to end, where the model reads sequences and none of them is long."""
    runs = _running(model, threads)
    return [*lengthened(declared(model), lambda feed: runs([feed]), feeds, apart=1)]


def _running(model: Model, threads: int | None) -> Callable[[Sequence[Feed]], None]:
    """What runs the whole model on feeds, and raises where it cannot."""
    program = flatten(model, lambda body: False)
    program.rank(lambda step: False)
    cut = chunks(program, 0)

    def run(feeds: Sequence[Feed]) -> None:
        runner = Runner(program, cut, model.values, threads=threads)
        runner.start(feeds)
        runner.level(0)

    return run


def _made_up(model: Model, inputs: list[Input], seed: int, threads: int | None) -> list[Feed]:
    real = [item for item in inputs if item.name not in model.graph.tensors]
    runs = _running(model, threads)
    last: Exception | None = None
    for attempt in random_feeds(real, seed=seed, count=RANDOM):
        try:
            runs(attempt)
        except (ModelError, MemoryError) as error:
            last = error
            continue
        return [dict(feed) for feed in attempt]
    raise UsageError(f"feeds must be given for {model.origin}: made-up ones do not fit it ({last})")
