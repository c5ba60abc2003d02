"""A model made ready for calibration: its program, its linear maps, its levels, and how to run it with other
weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.chunks import chunks
from emp_onnx.calibration.flat import flatten
from emp_onnx.calibration.loops import fixed_value
from emp_onnx.calibration.maps import Problem, Site
from emp_onnx.calibration.own import Found, merge
from emp_onnx.calibration.past import find_past
from emp_onnx.calibration.pooled import before_mean
from emp_onnx.calibration.program import Program
from emp_onnx.calibration.runner import Runner
from emp_onnx.calibration.sites import UNOPENED, find_sites
from emp_onnx.calibration.smooth import smooth
from emp_onnx.calibration.stored import Stored
from emp_onnx.calibration.taking import PER_INPUT, Taking, Totals
from emp_onnx.calibration.unquantised import unquantised
from emp_onnx.calibration.uses import together
from emp_onnx.errors import ModelError
from emp_onnx.files.graph import Graph
from emp_onnx.files.model_io import Model
from emp_onnx.runtime.feeds import Feed
from emp_onnx.weights.find import Weight
from emp_onnx.weights.layout import SLOTS

__all__ = ["Network", "merged"]

Array = NDArray[Any]
Float = NDArray[np.float64]
SAMPLES = 16_000  # samples of a linear map that are taken, and PER_INPUT more for each of its inputs


class Network(Stored):
    """A model, its weights, and the places where these act linearly.

    Attributes:
        sites: in order of their levels; `why` says of the other weights why they have none.
        feeds: the calibration feeds.
        copied: how many of the last of them are copies of the first ones, in their order.
        levels: the highest level.
        enough: samples of a linear map that are taken for each of its inputs, and how many more: as many as the last
            tenth of a point of accuracy asks for; fewer take less time.
        smooth: whether activations are not rounded on the way that the model does (see `smooth.py`).
    """

    enough = PER_INPUT, SAMPLES
    copied = 0

    def __init__(
        self, model: Model, weights: Sequence[Weight], feeds: Sequence[Feed], threads: int | None = None, *,
        smooth: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(model, weights)
        self.feeds, self.threads = list(feeds), threads
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
            unquantised(program, lambda name: program.constants[name].size)
            self.smooth = smooth(program, partial(self._fixed, program))
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
                use.past = find_past(use, partial(self._fixed, use.program))
            if len(site.problems) == len(site.reads) == 1 and not site.again:
                site.pooled = before_mean(program, site.reads[0])
        self.cut = chunks(program, self.levels, {site.pooled for site in sites if site.pooled})
        return program, sites, why

    def _fixed(self, program: Program, name: str) -> Array:
        return fixed_value(program, name, self.value, self.threads)

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

    def on(self, feeds: Sequence[Feed], copies: Sequence[Feed] = (), /) -> Network:
        """The same network with other calibration feeds, and copies of the first of them, in their order."""
        other = copy.copy(self)
        other.feeds, other.copied, other._halves = [*feeds, *copies], len(copies), None
        return other

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
        come in turns (first steps and second ones, say). A copy goes where the feed is that it was made of."""
        own = len(self.feeds) - self.copied
        if self._halves is None:
            self._halves = np.random.default_rng(own).permutation(own) % 2
        return int(self._halves[feed if feed < own else feed - own])

    def limit(self, problem: Problem) -> int:
        """Samples taken of each feed."""
        each, more = self.enough
        return max(8, (each * problem.shape[2] + more) // max(len(self.feeds), 1))

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


def merged(found: Sequence[list[list[Found]]], /) -> list[list[Found]]:
    """The moments over several uses: of each problem, for each part of the feeds."""
    first, *others = found
    for other in others:
        first = [[merge(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(first, other, strict=True)]
    return first


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
