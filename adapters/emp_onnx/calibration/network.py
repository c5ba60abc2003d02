"""A model made ready for calibration: its program, its linear maps, its levels, and how to run it with other
weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.moments import Moments, Samples, Sums
from emp_onnx.calibration.pooled import before_mean, pick, unpool
from emp_onnx.calibration.program import Step, flatten
from emp_onnx.calibration.recurrent import HIDDEN
from emp_onnx.calibration.runner import Runner, chunks, holds, open_session
from emp_onnx.calibration.sites import Get, Problem, Site, find_sites
from emp_onnx.errors import ModelError
from emp_onnx.files.graph import Graph
from emp_onnx.files.model_io import Model
from emp_onnx.runtime.feeds import Feed
from emp_onnx.weights.find import Weight
from emp_onnx.weights.layout import SLOTS

__all__ = ["Network"]

Array = NDArray[Any]
Float = NDArray[np.float64]
SAMPLES, PER_INPUT = 16_000, 12  # samples of a linear map that are enough, and how many more for each of its inputs
CACHE = 1 << 28  # bytes of constants kept in memory


class Network:
    """A model, its weights, and the places where these act linearly.

    Attributes:
        sites: in order of their levels; `why` says of the other weights why they have none.
        feeds: the calibration feeds.
        levels: the highest level.
    """

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
        later = (site for site in self.sites if site.step.level > after)
        return {name for site in later for name in (*site.reads, site.skip, site.pooled) if name}

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
        return max(8, (PER_INPUT * problem.shape[2] + SAMPLES) // max(len(self.feeds), 1))

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
        weights = [self.matrix(problem) for problem in site.problems]
        if not all(np.isfinite(w).all() for w in weights):
            raise ModelError(f"{site.step.node.label} must have finite weights, got NaN or infinities")
        before = self._getter(site, dense, None)
        after = before if thin is None else self._getter(site, thin, changed)
        ways = (dense,) if thin is None else (dense, thin)
        apart = positions and self._apart(site, zip(ways, (before, after), strict=False))
        found: list[list[Sums]] = []
        todo: list[tuple[Problem, Float, list[Sums]]] = []
        for problem, w in zip(site.problems, weights, strict=True):
            # what should come out is made where it is not the weights' doing alone, or where that is less work
            groups, out, d = problem.shape
            past = bool(site.skip) and thin is not None and problem.outs is not None
            made = past or (thin is not None and 2 * out < d)
            known = None if shared is None or made or apart or problem.same is None else shared.get(problem.same)
            if known is None:
                known = [Sums(groups, d, out if made else None, thin is not None) for _ in range(parts)]
                todo.append((problem, w, known))
                if shared is not None and not made and not apart and problem.same is not None:
                    shared[problem.same] = known
            found.append(known)
        for i in range(dense.feeds if todo else 0):
            one, two = before(i), after(i)
            reached = all(holds(run.values.get(name, i), wanted) for run in ways for name, wanted in site.step.guard)
            if not reached or any(get(name) is None for get in (one, two) for name in site.reads[:1]):
                continue
            for problem, w, sums in todo:
                self._add(site, problem, w, sums[part(i)], (dense, thin), (one, two), apart, i)
        return [[s.moments(w) for s in sums] for sums, w in zip(found, weights, strict=True)]

    def _add(
        self, site: Site, problem: Problem, w: Float, sums: Sums, runs: tuple[Runner, Runner | None],
        gets: tuple[Get, Get], apart: bool, feed: int,
    ) -> None:  # fmt: skip
        """Take in the samples of one feed."""
        dense, thin = runs
        limit, past = self.limit(problem), 0.0
        want = problem.rows(gets[0], feed, limit)
        have = want if thin is None else problem.rows(gets[1], feed, limit)
        if have.shape != want.shape:
            return
        if site.skip and thin is not None and problem.outs is not None:
            past = self._missing(site, problem, dense, thin, feed, limit)
        if apart:
            want, have, past = self._spread(site, gets, (want, have, past), feed, limit)
            have = want if thin is None else have
        if not (np.isfinite(have).all() and (have is want or np.isfinite(want).all()) and np.isfinite(past).all()):
            raise ModelError(f"{site.step.node.label} must see finite numbers, got NaN or infinities on feed {feed}")
        if not sums.made:
            sums.add(have, want)
        else:
            sums.add(have, y=want.astype(np.float64) @ w.swapaxes(1, 2) + past)

    def _apart(self, site: Site, ways: Iterable[tuple[Runner, Callable[[int], Get]]]) -> bool:
        """Whether a site's samples are few, and are the mean over positions on every feed, in every network."""
        if not site.pooled:
            return False
        problem, found = site.problems[0], 0
        for run, at in ways:
            found = 0
            for i in range(run.feeds):
                x = run.values.get(site.pooled, i)
                if run.values.get(site.reads[0], i) is None:
                    continue
                rows = problem.rows(at(i), i, self.limit(problem))
                if x is None or unpool(x, rows) is None:
                    return False
                found += rows.shape[1]
        return 0 < found < PER_INPUT * problem.shape[2]

    @staticmethod
    def _spread(site: Site, gets: tuple[Get, Get], rows: tuple[Array, Array, Any], feed: int, limit: int) -> Any:
        """Inputs, dense and thin, and what is missing, at the positions behind them."""
        out = []
        for get, some in zip(gets, rows, strict=False):
            x = get(site.pooled)
            flat = None if x is None else unpool(x, some)
            assert flat is not None
            out.append(flat)
        past = rows[2]
        if np.ndim(past):
            past = np.broadcast_to(past[0][:, None], (*out[0].shape[:2], past.shape[2]))
            past = pick(past, feed, limit)
        return pick(out[0], feed, limit), pick(out[1], feed, limit), past

    def _missing(self, site: Site, problem: Problem, dense: Runner, thin: Runner, feed: int, limit: int) -> Any:
        one, two = dense.values.get(site.skip, feed), thin.values.get(site.skip, feed)
        if one is None or two is None or one.shape != two.shape or problem.outs is None:
            return 0.0
        return problem.outs(one.astype(np.float64) - two, feed, limit)

    def _getter(self, site: Site, run: Runner, changed: Mapping[str, Array] | None) -> Callable[[int], Get]:
        """Values of one feed, the hidden states of a cell among them: these are made by running it; and constants."""
        session: Any = None
        constant: dict[str, Array] = {}

        def at(feed: int) -> Get:
            seen: dict[str, Array] = {}

            def get(name: str) -> Array | None:
                nonlocal session
                if name in self.program.fixed:
                    if name not in constant:
                        constant[name] = self._fixed(name, changed)
                    return constant[name]
                if not name.startswith(HIDDEN):
                    return run.values.get(name, feed)
                if name not in seen:
                    reads = {n: run.values.get(n, feed) for n in site.step.inputs if n and n not in self.program.fixed}
                    given = {n: v for n, v in reads.items() if v is not None}
                    if session is None:
                        session = self._cell(site.step, name, given, changed)
                    seen[name] = session.run([name], given)[0]
                return seen[name]

            return get

        return at

    def _fixed(self, name: str, changed: Mapping[str, Array] | None) -> Array:
        """A value that follows from constants."""
        if name in self.program.constants:
            return self.value(self.program.constants[name].key, changed)
        session = open_session(self.program, [], {}, [name], lambda key: self.value(key, changed), self.threads)
        return np.asarray(session.run([name], {})[0])

    def _cell(self, step: Step, name: str, reads: Mapping[str, Array], changed: Mapping[str, Array] | None) -> Any:
        proto = type(step.proto)()
        proto.CopyFrom(step.proto)
        del proto.output[:]
        proto.output.append(name)
        alone = Step(proto, step.node, step.inputs, (name,))
        return open_session(self.program, [alone], reads, [name], lambda key: self.value(key, changed), self.threads)

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
