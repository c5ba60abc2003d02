"""What runs of the model show: the size of every axis, which sizes change with the input, and the shapes computed on
the way.

The model runs on its feeds, and again on feeds in which every size that it leaves open is doubled. A size that stays
the same is the model's own; one that changes is the caller's, and never touched. Whole numbers that follow from sizes
and constants alone (`free`), and stayed the same, are as good as constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.errors import MissingExtraError, ModelError, UsageError
from emp_onnx.runtime.feeds import Feed, Input, check_feed, random_feeds
from emp_onnx.runtime.lengthen import open_axes
from emp_onnx.runtime.ort import first_line
from emp_onnx.shrink.view import View

__all__ = ["Runner", "Trace", "made_up", "trace"]

SMALL = 256  # elements; what describes a shape has fewer
Array = NDArray[Any]


class Runner:
    """A model in onnxruntime on the CPU; `outputs` adds tensors to what it returns.

    Raises:
        ModelError: onnxruntime does not load it.
    """

    def __init__(
        self, model: Any, outputs: Iterable[str] = (), *, plain: bool = False, threads: int = 1, profile: str = ""
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime") from error
        import onnx

        extra = [name for name in outputs if name not in {o.name for o in model.graph.output}]
        if extra:
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra)
            model = copy
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        if plain:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        try:
            source = model if isinstance(model, (bytes, str)) else model.SerializeToString()
            self.session: Any = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own errors have no common base
            raise ModelError(f"the model must be one that onnxruntime loads, got: {first_line(error)}") from error
        self.names = [o.name for o in self.session.get_outputs()]

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs that onnxruntime asks for."""

        def size(d: Any) -> int | str | None:
            return d if isinstance(d, str) or (isinstance(d, int) and d > 0) else None

        return tuple(Input(i.name, i.type, tuple(size(d) for d in i.shape)) for i in self.session.get_inputs())

    def __call__(self, feed: Feed, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Outputs by name."""
        names = self.names if names is None else list(names)
        return dict(zip(names, self.session.run(names, dict(feed)), strict=True))


def made_up(model: Any, *, seed: int, count: int = 4) -> list[dict[str, Array]]:
    """Seeded random feeds on which the model runs, with finite outputs where any attempt gives them.

    Raises:
        ModelError: none was found.
    """
    runner = Runner(model)
    last: Exception | None = None
    fallback: list[dict[str, Array]] = []
    try:
        for feeds in random_feeds(runner.inputs, seed=seed, count=count):
            try:
                out = [runner(feed) for feed in feeds]
            except Exception as error:  # as above
                last = error
                continue
            values = [v for o in out for v in o.values() if isinstance(v, np.ndarray) and v.dtype.kind == "f"]
            if all(np.isfinite(v).all() for v in values):
                return feeds
            fallback = fallback or feeds
    except UsageError as error:
        last = error
    if fallback:
        return fallback
    why = first_line(last) if last is not None else "no size that fits"
    raise ModelError(f"the model must run on feeds that are made up, or come with feeds, got: {why}")


@dataclass
class Trace:
    """Sizes and small values by tensor.

    Attributes:
        shapes: by tensor; a size that changes with the input is None. Tensors without one shape are absent.
        runs: the shapes seen in each run.
        values: small tensors of numbers that stayed the same, of those in `free` and constants.
        free: tensors computed from sizes and constants alone.
        feeds: the feeds of the runs, the given ones first.
        fixed: sizes that the model leaves open, and with which it runs one way only.
    """

    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    runs: list[dict[str, tuple[int, ...]]] = field(default_factory=list)
    values: dict[str, Array] = field(default_factory=dict)
    free: frozenset[str] = frozenset()
    feeds: list[dict[str, Array]] = field(default_factory=list)
    fixed: tuple[str, ...] = ()
    dtypes: dict[str, np.dtype[Any]] = field(default_factory=dict)


def trace(view: View, feeds: Sequence[Feed], *, known: Trace | None = None) -> Trace:
    """Run the model on up to two feeds, and on one with every open size doubled.

    Args:
        view: the model.
        feeds: of which the first two are used.
        known: the trace of a model that this one was made from, in which tensors of the same name have the same shape
            and, if small, the same values: only tensors that are new are asked for.

    Raises:
        UsageError: a feed does not fit the model. ModelError: onnxruntime does not run it.
    """
    old = [] if known is None else [run.keys() for run in known.runs]
    names = [n for op in view.ops for n in op.outputs if n and (not old or any(n not in run for run in old))]
    runner = Runner(view.model, names, plain=True)
    if known is not None:
        return _more(view, runner, known)
    for which, feed in enumerate(feeds[:2]):
        check_feed(feed, runner.inputs, which)
    found = Trace(free=_free(view))
    seen: list[dict[str, Any]] = []
    for feed in feeds[:2]:
        try:
            seen.append(runner(feed))
        except Exception as error:  # onnxruntime's own errors have no common base
            raise UsageError(f"feeds must be such that the model runs on them, got: {first_line(error)}") from error
        found.feeds.append({k: np.asarray(v) for k, v in feed.items()})
    _vary(view, runner, found, seen)
    _describe(view, found, seen)
    return found


def _more(view: View, runner: Runner, known: Trace) -> Trace:
    """The same of a model made from one that was traced."""
    seen = []
    for feed in known.feeds:
        try:
            seen.append(runner(feed))
        except Exception as error:  # as above
            raise ModelError(f"a model said plainly must run as before, got: {first_line(error)}") from error
    found = replace(known, shapes={}, runs=[], values={}, free=_free(view), dtypes={})
    _describe(view, found, seen)
    made = {name for op in view.ops for name in op.outputs}
    for mine, run in zip(found.runs, known.runs, strict=True):
        mine.update({name: shape for name, shape in run.items() if name in made and name not in mine})
    found.shapes |= {k: v for k, v in known.shapes.items() if k in made and k not in found.shapes}
    found.dtypes |= {k: v for k, v in known.dtypes.items() if k in made and k not in found.dtypes}
    found.values |= {k: v for k, v in known.values.items() if k in made & found.free and k not in found.values}
    return found


def _describe(view: View, found: Trace, seen: list[dict[str, Any]]) -> None:
    """Take down sizes, types and small values of what was seen."""
    for out, feed in zip(seen, found.feeds, strict=True):
        shapes = {k: v.shape for k, v in (*out.items(), *feed.items()) if isinstance(v, np.ndarray)}
        found.runs.append(shapes | {k: v.shape for k, v in view.constants.items()})
    for name in found.runs[0]:
        every = [run.get(name) for run in found.runs]
        if None not in every and len({len(s) for s in every if s is not None}) == 1:
            found.shapes[name] = tuple(d[0] if len(set(d)) == 1 else None for d in zip(*every, strict=True))
    first = seen[0]
    found.dtypes = {
        k: v.dtype
        for k, v in (*first.items(), *found.feeds[0].items(), *view.constants.items())
        if isinstance(v, np.ndarray)
    }
    found.values = {k: v for k, v in view.constants.items() if v.size <= SMALL}
    for name in found.free & first.keys():
        every_value = [out[name] for out in seen]
        if all(isinstance(v, np.ndarray) and v.size <= SMALL for v in every_value) and all(
            v.shape == every_value[0].shape and np.array_equal(v, every_value[0]) for v in every_value
        ):
            found.values[name] = every_value[0]


def _free(view: View) -> frozenset[str]:
    """Tensors that no value of an input can change: computed from constants, and from sizes."""
    free = set(view.constants)
    random = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
    for op in view.ops:
        if op.type in random or any(a.HasField("g") or a.graphs for a in op.node.attribute):
            continue
        if op.type in ("Shape", "Size") or all(name in free for name in op.inputs if name):
            free |= {name for name in op.outputs if name}
    return frozenset(free)


def _vary(view: View, runner: Runner, found: Trace, seen: list[dict[str, Any]]) -> None:
    """Add runs in which the open sizes are doubled: all at once, or one after the other where that fails."""
    places = open_axes(runner.inputs)
    base = found.feeds[0]
    if not places:
        return
    fixed = []
    together = _doubled(base, [p for entry in places.values() for p in entry])
    if (out := _tried(runner, together)) is not None:
        seen.append(out)
        found.feeds.append(together)
        return
    for symbol, where in places.items():
        feed = _doubled(base, where)
        if (out := _tried(runner, feed)) is not None:
            seen.append(out)
            found.feeds.append(feed)
        else:
            fixed.append(symbol)
    found.fixed = tuple(fixed)


def _tried(runner: Runner, feed: Feed) -> dict[str, Any] | None:
    try:
        return runner(feed)
    except Exception:  # it does not run so, which is all that is asked
        return None


def _doubled(feed: Mapping[str, Array], places: Iterable[tuple[str, int]]) -> dict[str, Array]:
    out = dict(feed)
    for name, axis in places:
        if name in out and out[name].ndim > axis:
            out[name] = np.concatenate([out[name], out[name]], axis)
    return out


def batches(feeds: Iterable[Feed]) -> Iterator[dict[str, Array]]:
    """Feeds as plain arrays."""
    for feed in feeds:
        yield {name: np.asarray(value) for name, value in feed.items()}
