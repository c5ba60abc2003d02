"""A model made ready for calibration: its program, its linear maps, its levels, and how to run it with other
weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.moments import Moments, Samples, Sums
from emp_onnx.calibration.pooled import before_mean
from emp_onnx.calibration.program import flatten
from emp_onnx.calibration.runner import Runner, chunks
from emp_onnx.calibration.sites import Problem, Site, find_sites
from emp_onnx.calibration.taking import PER_INPUT, Taking
from emp_onnx.files.graph import Graph
from emp_onnx.files.model_io import Model
from emp_onnx.runtime.feeds import Feed
from emp_onnx.weights.find import Weight
from emp_onnx.weights.layout import SLOTS

__all__ = ["Network"]

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
    """

    share = 1.0

    def __init__(
        self, model: Model, weights: Sequence[Weight], feeds: Sequence[Feed], threads: int | None = None
    ) -> None:
        self.model, self.weights, self.feeds, self.threads = model, tuple(weights), list(feeds), threads
        self.program = flatten(model, _opens)
        found, self.why = find_sites(self.program, model, weights)
        mine = {id(site.step) for site in found}
        self.levels = self.program.rank(lambda step: id(step) in mine)
        self.sites = sorted(found, key=lambda site: site.step.level)
        for site in self.sites:
            site.skip = self._skip(site)
            if len(site.problems) == len(site.reads) == 1 and not site.hidden:
                site.pooled = before_mean(self.program, site.reads[0])
        self.cut = chunks(self.program, self.levels, {site.pooled for site in self.sites if site.pooled})
        self._cache: dict[str, Array] = {}
        self._held = 0
        self._halves: NDArray[np.int64] | None = None

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
        """The weights of a problem, (groups, out, d)."""
        parts = [places.of(self.value(key, changed).reshape(-1)) for key, places in problem.parts]
        return np.concatenate(parts, -1, dtype=np.float64)

    def runner(self, changed: Mapping[str, Array] | None = None, feeds: Sequence[Feed] | None = None) -> Runner:
        """The network with some tensors changed, at its start; it sees later changes of `changed` too."""
        made = Runner(self.program, self.cut, lambda key: self.value(key, changed), threads=self.threads)
        made.start(self.feeds if feeds is None else feeds)
        return made

    def wanted(self, after: int = -1, /) -> set[str]:
        """Values that the rows of sites are made from, of those beyond a level."""
        later = [site for site in self.sites if site.step.level > after]
        rows = {name for site in later for name in (*site.reads, site.skip, site.pooled) if name}
        # a cell is run again for what it remembers, with its first state and the lengths of its sequences
        cells = {name for site in later if site.hidden for name in site.step.inputs if name}
        return rows | (cells - self.program.fixed)

    def at(self, level: int, /) -> list[Site]:
        """The sites of one level."""
        return [site for site in self.sites if site.step.level == level]

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
        shared: dict[object, list[Sums]] | None = None,
    ) -> list[list[Moments | Samples]]:  # fmt: skip
        """For each problem the moments of its inputs and of what should come out, over each part of the feeds.

        Inputs are those of `thin`, the pruned network with `changed` tensors, if given; what should come out is what
        the dense weights make of the dense inputs, and what is missing on the way past the site. Behind a mean over
        positions, where feeds are few, each position counts as a sample of its own, unless `positions` is false.
        Sites of one level that read the same value find its sums in `shared`.

        Raises:
            ModelError: NaN or infinities, with the node's name.
        """
        taking = Taking(self, site, changed, part, parts, thin is not None)
        if positions:
            taking.look(dense, thin, dense.feeds)
        taking.prepare(shared)
        taking.take(dense, thin)
        return taking.moments()

    def _skip(self, site: Site) -> str:
        """What an Add behind a site adds to its output: the way past it, which may carry errors already."""
        name = site.step.outputs[0] if site.step.outputs else ""
        for _ in range(3):
            users = self.program.readers.get(name, [])
            if len(users) != 1 or name in self.program.outputs:
                return ""
            step, slot = users[0]
            if step.node.op != "Add" or step.node.domain or len(step.inputs) != 2:
                return ""
            other = step.inputs[1 - slot]
            if other not in self.program.fixed:
                level = max((s.level for s in self.program.makers.get(other, ())), default=0)
                return other if level < site.step.level else ""
            name = step.outputs[0]
        return ""

    def changed_by(
        self, problem: Problem, weights: Float, shift: Float | None, changed: Mapping[str, Array], /
    ) -> Iterator[tuple[str, Array]]:
        """The tensors with other weights in them, and the bias moved by `shift` from what it was."""
        start = 0
        for key, places in problem.parts:
            stop = start + places.shape[2]
            new = self.value(key, changed).reshape(-1).copy()
            places.put(new, weights[..., start:stop])
            yield key, new.reshape(self.model.tensors[key].shape)
            start = stop
        bias = problem.bias
        if bias is not None and shift is not None:
            old = self.value(bias.key)
            new = self.value(bias.key, changed).reshape(-1).copy()
            moved = old.reshape(-1)[bias.index].astype(np.float64) + bias.sign * shift
            new[bias.index.reshape(-1)] = moved.reshape(-1).astype(new.dtype)
            yield bias.key, new.reshape(old.shape)


def _opens(body: Graph) -> bool:
    """Whether a branch of If holds anything that can be refitted."""
    return any((node.domain, node.op) in SLOTS or any(_opens(inner) for inner in node.bodies) for node in body.nodes)
