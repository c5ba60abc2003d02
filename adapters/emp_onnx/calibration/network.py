"""A model made ready for calibration: its program, its linear maps, its levels, and how to run it with other
weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.finding import able
from emp_onnx.calibration.flat import flatten
from emp_onnx.calibration.loops import fixed_value
from emp_onnx.calibration.maps import Problem, Site
from emp_onnx.calibration.own import Found, merge
from emp_onnx.calibration.pooled import before_mean
from emp_onnx.calibration.program import Program
from emp_onnx.calibration.runner import Runner, chunks
from emp_onnx.calibration.sites import UNOPENED, find_sites
from emp_onnx.calibration.smooth import smooth
from emp_onnx.calibration.taking import PER_INPUT, Taking, Totals
from emp_onnx.calibration.uses import together
from emp_onnx.errors import ModelError
from emp_onnx.files.graph import Graph
from emp_onnx.files.model_io import Model
from emp_onnx.runtime.feeds import Feed
from emp_onnx.weights.find import Weight
from emp_onnx.weights.layout import SLOTS
from emp_onnx.weights.zero import FLOAT

__all__ = ["Network", "merged"]

Array = NDArray[Any]
Float = NDArray[np.float64]
SAMPLES = 16_000  # samples of a linear map that are enough, and PER_INPUT more for each of its inputs
CACHE = 1 << 28  # bytes of constants kept in memory


class Network:
    """A model, its weights, and the places where these act linearly.

    Attributes:
        sites: in order of their levels; `why` says of the other weights why they have none.
        feeds: the calibration feeds.
        levels: the highest level.
        share: of the samples that are enough to be sure of the last tenth of a point; fewer take less time.
        smooth: whether activations are not rounded on the way that the model does (see `smooth.py`).
    """

    share = 1.0

    def __init__(
        self, model: Model, weights: Sequence[Weight], feeds: Sequence[Feed], threads: int | None = None, *,
        smooth: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.weights, self.feeds, self.threads = model, tuple(weights), list(feeds), threads
        self._cache: dict[str, Array] = {}
        self._held = 0
        self._zeros = {w.name: w.zero for w in weights if w.zero.quantised and able(w)}
        whole: dict[int, str] = {}
        self.smooth = smooth
        while True:
            self.program, self.sites, self.why = self._laid(whole)
            refused = self._probe()
            if not refused:
                break
            whole |= refused
        self._halves: NDArray[np.int64] | None = None

    def _laid(self, whole: Mapping[int, str]) -> tuple[Program, list[Site], dict[str, str]]:
        """The program with its levels, its sites, and why other weights have none; `whole` says of loops that are not
        opened, by the ids of their bodies, why not."""
        known: dict[int, bool] = {}
        program = flatten(self.model, lambda graph: _opens(graph, self.model, known), whole)
        if self.smooth:
            self.smooth = smooth(program, lambda name: fixed_value(program, name, self.value, self.threads))
        found, why = find_sites(program, self.model, self.weights)
        if whole:
            reason = f"a loop cannot be run step by step ({'; '.join(sorted(set(whole.values())))})"
            why = {key: reason if said is UNOPENED else said for key, said in why.items()}
        mine = {id(step) for site in found for step in (*site.path, site.step)}
        for step in {step for site in found for step in site.path}:
            assert step.body is not None
            step.body.program.rank(lambda step: id(step) in mine)
        self.levels = program.rank(lambda step: id(step) in mine)
        sites = sorted(together(found), key=lambda site: site.level)
        for site in sites:
            for use in site.uses:
                use.skip = _skip(use)
            if len(site.problems) == len(site.reads) == 1 and not site.again:
                site.pooled = before_mean(program, site.reads[0])
        self.cut = chunks(program, self.levels, {site.pooled for site in sites if site.pooled})
        return program, sites, why

    def _probe(self) -> dict[int, str]:
        """The bodies of loops that cannot be run step by step, by their ids, and why not."""
        looped = [use for site in self.sites for use in site.uses if use.path]
        if not looped:
            return {}
        run, wanted = self.runner(None, self.feeds[:1]), {name for use in looped for name in use.needs}
        refused: dict[int, str] = {}
        try:
            for level in range(self.levels + 1):
                for use in looped:
                    if use.level == level and id(use.outer.node.bodies[0]) not in refused:
                        try:
                            Taking(self, use, None, lambda feed: 0, 1, False).walk(run)
                        except ModelError as error:
                            refused[id(use.outer.node.bodies[0])] = str(error)
                run.level(level, wanted)
        except ModelError as error:  # of a loop, or of the model
            return {id(use.outer.node.bodies[0]): str(error) for use in looped}
        return refused

    def on(self, feeds: Sequence[Feed], /) -> Network:
        """The same network with other calibration feeds."""
        other = copy.copy(self)
        other.feeds, other._halves = list(feeds), None
        return other

    def value(self, key: str, changed: Mapping[str, Array] | None = None, /) -> Array:
        """A tensor, as stored or as changed."""
        if changed is not None and key in changed:
            return changed[key]
        if key in self._cache:
            return self._cache[key]
        found = self.model.values(key)
        if self._held + found.nbytes <= CACHE:
            self._held += found.nbytes
            self._cache[key] = found
        return found

    def matrix(self, problem: Problem, changed: Mapping[str, Array] | None = None, /) -> Float:
        """The weights of a problem, (groups, out, d); of quantised ones what they stand for."""
        parts = []
        for key, places in problem.parts:
            values = self.value(key, changed)
            if key in self._zeros and values.dtype.kind != "f":  # gradients are floats
                values = self._zeros[key].scores(values)
            parts.append(places.of(values.reshape(-1)))
        return np.concatenate(parts, -1, dtype=np.float64)

    def filled(self, key: str, values: Array, mask: NDArray[np.bool_], /) -> Array:
        """A weight's values with zero (+0.0, or the zero point) wherever the mask does not keep them."""
        return self._zeros.get(key, FLOAT).filled(values, mask)

    def grid(self, problem: Problem, /) -> tuple[Float, Float, Float] | None:
        """Of a problem with quantised weights what one step of each is worth (0 where it is a float), and how many
        steps below and above 0 it may go, each (groups, out, d)."""
        if not any(key in self._zeros for key, _ in problem.parts):
            return None
        found: list[list[Array]] = [[], [], []]
        for key, places in problem.parts:
            values, zero = self.value(key), self._zeros.get(key)
            three = (np.zeros(values.shape),) * 3
            if zero is not None:
                scale, point = zero.laid(values)
                three = (scale, np.iinfo(values.dtype).min - point, np.iinfo(values.dtype).max - point)
            for some, part in zip(found, three, strict=True):
                some.append(places.of(part.reshape(-1)))
        step, low, high = (np.concatenate(some, -1, dtype=np.float64) for some in found)
        return step, low, high

    def runner(self, changed: Mapping[str, Array] | None = None, feeds: Sequence[Feed] | None = None) -> Runner:
        """The network with some tensors changed, at its start; it sees later changes of `changed` too."""
        made = Runner(self.program, self.cut, lambda key: self.value(key, changed), threads=self.threads)
        made.start(self.feeds if feeds is None else feeds)
        return made

    def wanted(self, after: int = -1, /) -> set[str]:
        """Values that the rows of sites are made from, of those beyond a level."""
        return {name for site in self.sites if site.level > after for name in site.needs}

    def at(self, level: int, /) -> list[Site]:
        """The sites of one level."""
        return [site for site in self.sites if site.level == level]

    def half(self, feed: int) -> int:
        """Which half a feed belongs to when one is learnt from and one measured on, 0 or 1: at random, since feeds may
        come in turns (first steps and second ones, say)."""
        if self._halves is None:
            self._halves = np.random.default_rng(len(self.feeds)).permutation(len(self.feeds)) % 2
        return int(self._halves[feed])

    def limit(self, problem: Problem) -> int:
        """Samples taken of each feed."""
        enough = int(self.share * (PER_INPUT * problem.shape[2] + SAMPLES))
        return max(8, enough // max(len(self.feeds), 1))

    def moments(
        self, site: Site, dense: Runner, thin: Runner | None = None, changed: Mapping[str, Array] | None = None,
        part: Callable[[int], int] = lambda feed: 0, parts: int = 1, positions: bool = True,
        shared: dict[object, list[Totals]] | None = None,
    ) -> list[list[Found]]:  # fmt: skip
        """For each problem the moments of its inputs and of what should come out, over each part of the feeds.

        Inputs are those of `thin`, the pruned network with `changed` tensors, if given; what should come out is what
        the dense weights make of the dense inputs, and what is missing on the way past the site. Behind a mean over
        positions, where feeds are few, each position counts as a sample of its own, unless `positions` is false.
        Sites of one level that read the same value find its sums in `shared`.

        Raises:
            ModelError: NaN or infinities, with the node's name.
        """
        if site.also:
            return self._together(site, changed, part, parts, thin is not None)
        taking = Taking(self, site, changed, part, parts, thin is not None)
        if positions:
            taking.look(dense, thin, dense.feeds)
        taking.prepare(shared)
        taking.take(dense, thin)
        return taking.moments()

    def _together(
        self, site: Site, changed: Mapping[str, Array] | None, part: Callable[[int], int], parts: int, two: bool
    ) -> list[list[Found]]:
        """The sums over all uses of the same weights, from networks that are run for them up to the last use."""
        runs, found = [self.runner(), *([self.runner(changed)] if two else [])], list[list[list[Found]]]()
        for level in range(max(use.level for use in site.uses)):
            later = {name for use in site.uses if use.level > level for name in use.needs}
            for run in runs:
                run.level(level, later)
            for use in site.uses:
                if use.level == level + 1:
                    taking = Taking(self, use, changed, part, parts, two)
                    taking.prepare(None)
                    taking.take(runs[0], runs[1] if two else None)
                    found.append(taking.moments())
        return merged(found)

    def changed_by(
        self, problem: Problem, weights: Float, shift: Float | None, changed: Mapping[str, Array], /
    ) -> Iterator[tuple[str, Array]]:
        """The tensors with other weights in them, and the bias moved by `shift` from what it was."""
        start = 0
        for key, places in problem.parts:
            stop = start + places.shape[2]
            new = self.value(key, changed).reshape(-1).copy()
            mine = weights[..., start:stop]
            if key in self._zeros:
                scale, point = (places.of(a.reshape(-1)) for a in self._zeros[key].laid(self.value(key)))
                mine = _whole(mine / np.where(scale == 0, 1, scale) + point, new.dtype)
            places.put(new, mine)
            yield key, new.reshape(self.model.tensors[key].shape)
            start = stop
        bias = problem.bias
        if bias is not None and shift is not None:
            old = self.value(bias.key)
            new = self.value(bias.key, changed).reshape(-1).copy()
            moved = old.reshape(-1)[bias.index].astype(np.float64) + bias.sign * shift / bias.unit
            moved = _whole(moved, new.dtype) if new.dtype.kind in "iu" else moved
            new[bias.index.reshape(-1)] = moved.reshape(-1).astype(new.dtype)
            yield bias.key, new.reshape(old.shape)


def merged(found: Sequence[list[list[Found]]], /) -> list[list[Found]]:
    """The moments over several uses: of each problem, for each part of the feeds."""
    first, *others = found
    for other in others:
        first = [[merge(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(first, other, strict=True)]
    return first


def _whole(values: Array, dtype: np.dtype[Any]) -> Array:
    """The nearest whole numbers that a type holds."""
    return np.clip(np.rint(values), np.iinfo(dtype).min, np.iinfo(dtype).max)


def _skip(site: Site) -> str:
    """What an Add behind a site adds to its output: the way past it, which may carry errors already."""
    program, name = site.program, site.step.outputs[0] if site.step.outputs else ""
    for _ in range(3):
        users = program.readers.get(name, [])
        if len(users) != 1 or name in program.outputs:
            return ""
        step, slot = users[0]
        if step.node.op != "Add" or step.node.domain or len(step.inputs) != 2:
            return ""
        other = step.inputs[1 - slot]
        if other not in program.fixed:
            level = max((s.level for s in program.makers.get(other, ())), default=0)
            return other if level < site.step.level else ""
        name = step.outputs[0]
    return ""


def _opens(graph: Graph, model: Model, known: dict[int, bool]) -> bool:
    """Whether a body or a function holds anything that can be refitted; `known` of some, by their ids."""
    if id(graph) not in known:
        known[id(graph)] = any(
            (node.domain, node.op) in SLOTS
            or any(_opens(inner, model, known) for inner in node.bodies)
            or ((called := model.functions.get((node.domain, node.op))) is not None and _opens(called, model, known))
            for node in graph.nodes
        )
    return known[id(graph)]
