"""What each layer can bear, measured: its own error at every density, and what a unit of that error does to the
answers.

Weights are chosen and solved on one half of the feeds, the error is that on the other half: on few feeds a layer with
many inputs fits anything, and looks as if it could lose everything. Then the halves change places, and the mean of both
counts: which half is which is chance, and one alone made the scores of a network of 0.4 M weights vary by a point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.answers import Answers
from emp_onnx.calibration.maps import Problem, Site
from emp_onnx.calibration.moments import Samples
from emp_onnx.calibration.network import Network
from emp_onnx.calibration.outputs import distance, rows_of
from emp_onnx.calibration.own import Found, Own
from emp_onnx.calibration.taking import Totals
from emp_onnx.progress import Watch
from emp_onnx.refit.light import Light
from emp_onnx.refit.loss import FACTORED, Few, Quadratic
from emp_onnx.refit.prices import enough, steadied
from emp_onnx.refit.solve import descend, effort, leaning

__all__ = ["RIDGES", "TRIED", "USUAL", "Curve", "curve", "curves", "quadratic", "stand_ins", "unmeasured"]

Array = NDArray[Any]
Float = NDArray[np.float64]
Says = list[list[Array]]
DENSITIES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.22, 0.15, 0.1, 0.06, 0.03, 0.01)
PROBE = 0.05  # share of its outputs' variance that a layer must get wrong for the answers to be looked at: less drowns
RIDGES = (1e0, 1e-1, 1e-2, 1e-3, 1e-4)  # tried in turn, as long as the next does better
USUAL = 1e-2  # where none is tried
LOOKS, LEAST, WORK = 128, 4, 5e8  # feeds on which answers are looked at: fewer where there are many weights
TRIED = 64  # outputs of a layer that the strength of the ridge is tried on
BUDGET, FEWEST = 8e9, 64  # multiplications of one round over all layers; outputs of a layer that are looked at anyway


@dataclass(frozen=True, eq=False)
class Curve:
    """One problem's curve.

    Attributes:
        counts: weights kept, from all of them down.
        errors: of the layer's outputs on feeds not used to choose them, squared, per sample; 0 for the dense layer.
        price: what one unit of that error costs at the answers.
        ridge: the strength that did best.
        samples: in the half that was fitted; 0 where no feed reaches the layer, and then nothing is known.
        outliers: share of the scores |w|·‖x‖ above five times their mean.
    """

    site: Site
    problem: Problem
    counts: tuple[int, ...]
    errors: tuple[float, ...]
    price: float
    ridge: float
    samples: int
    outliers: float

    @property
    def size(self) -> int:
        """How many weights."""
        return int(np.prod(self.problem.shape))


def quadratic(problem: Problem, w: Float, sums: Found, ridge: float) -> Quadratic:
    """The loss of a problem with weights w (or of some of its outputs): of covariances where a bias takes up the
    means. The ridge is at least what the number of samples calls for."""
    centred = problem.bias is not None
    ridge = max(ridge, unseen(problem, sums.count))
    if isinstance(sums, Own):
        second, make = sums.second(centred), Light.own if problem.shape[2] >= FACTORED else Quadratic.around
        return make(second, w, ridge)
    if isinstance(sums, Samples):
        return Few.fit(*sums.scaled(centred), w, ridge)
    return Quadratic.ridge(*(sums.centred() if centred else sums.raw()), w, ridge)


def unseen(problem: Problem, count: int) -> float:
    """How much of each input is taken to vary by itself, in ways that so many samples do not show.

    That is so of recurrent cells: what a cell remembers after the few steps that a feed shows is not all that it will
    remember. So the fewer samples there are for each input, the less is made of how the inputs hung together in them.
    """
    return problem.shape[2] / max(count, 1) if len(problem.parts) > 1 else 0.0


def _seen(problem: Problem, w: Float, sums: Found) -> Quadratic:
    """What the outputs are off by on these samples, and on others to come, when the weights are other ones than w."""
    centred = problem.bias is not None
    if isinstance(sums, Own):
        return Quadratic.around(sums.second(centred), w, unseen(problem, sums.count))
    if isinstance(sums, Samples):
        return Few.around(sums.scaled(centred)[0], w, unseen(problem, sums.count))
    return Quadratic.around((sums.centred() if centred else sums.raw())[0], w, unseen(problem, sums.count))


def curves(network: Network, answers: Answers, watch: Watch | None = None) -> list[Curve]:
    """The curve of every problem, one level after the other, on the dense network."""
    weights = sum(math.prod(weight.shape) for weight in network.weights)
    looks = int(min(LOOKS, max(LEAST, WORK / max(weights, 1))))
    # of the half that is not learnt from: what was fitted to a feed says little of what errors cost on it
    probe = [i for i in range(len(network.feeds)) if network.half(i) == 1][:looks] or [0]
    says = answers(None, [network.feeds[i] for i in probe])
    rows = [rows_of(answers.told(found)) for found in says]
    says = says[: enough(rows)]
    probe = probe[: len(says)]
    found = list(_measured(network, answers, probe, says, watch))
    costs = steadied([one.price * one.errors[-1] for one in found], sum(rows[: len(says)]))
    return [
        replace(one, price=cost / one.errors[-1]) if one.errors[-1] > 0 else one
        for one, cost in zip(found, costs, strict=True)
    ]


def _measured(
    network: Network, answers: Answers, probe: Sequence[int], says: Says, watch: Watch | None
) -> Iterator[Curve]:
    """The same with prices as they are on the answers of the feeds `probe`."""
    dense = network.runner()
    for level in range(network.levels):
        dense.level(level, network.wanted(level))
        sites = network.at(level + 1)
        after = answers.beyond(level, dense, probe, says) if sites else None
        shared: dict[object, list[Totals]] = {}
        for site in sites:
            found = network.moments(site, dense, part=network.half, parts=2, shared=shared)
            for problem, (fit, test) in zip(site.problems, found, strict=True):
                if watch is not None:
                    watch.add(problem.size * 4)
                assert after is not None
                cost = partial(_cost, says, after)
                if not (fit.count and test.count):
                    fit = test = fit if fit.count else test
                    yield curve(network, site, problem, fit, test, cost)
                else:  # each half once
                    one = curve(network, site, problem, fit, test, cost)
                    yield _mean(one, curve(network, site, problem, test, fit, None))


def _mean(one: Curve, other: Curve) -> Curve:
    """What two halves say together. The price is that of the first: to look at the answers takes longest, and a second
    time it made no measured difference."""
    errors = tuple((a + b) / 2 for a, b in zip(one.errors, other.errors, strict=True))
    return replace(
        one, errors=errors, ridge=math.sqrt(one.ridge * other.ridge),
        samples=min(one.samples, other.samples), outliers=(one.outliers + other.outliers) / 2,
    )  # fmt: skip


def unmeasured(network: Network) -> list[Curve]:
    """The layers alone, for allocations that look at nothing but weights: no feed is run."""
    return [
        Curve(site, problem, (problem.size,), (0.0,), 0.0, USUAL, 1, 0.0)
        for site in network.sites for problem in site.problems
    ]  # fmt: skip


def curve(
    network: Network, site: Site, problem: Problem, fit: Found, test: Found,
    cost: Callable[[Mapping[str, Array]], float] | None,
) -> Curve:  # fmt: skip
    """The curve of one problem, from the moments of two halves of the feeds, and what a change of weights costs (its
    price is 0 where that is not asked)."""
    n = problem.size
    if not fit.count:
        return Curve(site, problem, (n,), (0.0,), 0.0, USUAL, 0, 0.0)
    dense = w = network.matrix(problem)
    some = some_outputs(network, problem)
    share = 1.0 if some is None else some.size / w.shape[1]
    if some is not None:
        w, fit, test = w[:, some], fit.rows(some), test.rows(some)
    few = stand_ins(w.shape[1], TRIED)
    ridge = _tuned(problem, w[:, few], fit.rows(few), _seen(problem, w[:, few], test.rows(few)))
    loss, real = quadratic(problem, w, fit, ridge), _seen(problem, w, test)
    variance = test.variance(problem.bias is not None)
    steps, *_ = effort((w.shape[0], w.shape[1], w.shape[2]))
    every = max(1, -(-len(DENSITIES) // steps))
    densities = DENSITIES[::-1][::every]
    points = {max(1, round(d * w.size)): max(1, round(d * n)) for d in densities}
    points = {count: points[count] for count in sorted(points, reverse=True) if count < w.size and points[count] < n}
    errors, price, looked = [0.0], 0.0, False
    lean = leaning(w.shape[2], fit.count)
    for count, _, thin in descend(loss, list(points), lean=lean):
        errors.append(max(real.loss(thin), errors[-1]))
        last = count == min(points)
        if cost is not None and not price and (last or (not looked and errors[-1] >= PROBE * variance)):
            looked = True
            mean = fit.x / fit.count
            shift = ((w - thin) @ mean[..., None])[..., 0]
            if some is not None:
                thin, shift = _whole(dense, some, thin, shift)
            price = cost(dict(network.changed_by(problem, thin, shift, {}))) / max(errors[-1], 1e-300)
    scores = np.abs(w) * np.sqrt(loss.diagonal)[:, None]
    outliers = float((scores > 5 * scores.mean()).mean())
    errors = [error / share for error in errors]
    return Curve(site, problem, (n, *points.values()), tuple(errors), price, ridge, fit.count, outliers)


def some_outputs(network: Network, problem: Problem) -> NDArray[np.intp] | None:
    """Outputs that stand for all of a problem's, where the network is so large that all of them would take minutes."""
    work = sum(math.prod(p.shape) * p.shape[2] for site in network.sites for p in site.problems)
    out = problem.shape[1]
    count = max(FEWEST, math.ceil(out * BUDGET / work))
    return None if count >= out else stand_ins(out, count)


def stand_ins(out: int, count: int) -> NDArray[np.intp]:
    """At most `count` of so many outputs, at random and in order; always the same ones."""
    return np.sort(np.random.default_rng(out).permutation(out)[:count])


def _whole(dense: Float, some: NDArray[np.intp], thin: Float, shift: Float) -> tuple[Float, Float]:
    """All weights, and the change of the bias, where those of some outputs changed."""
    weights, moved = dense.copy(), np.zeros(dense.shape[:2])
    weights[:, some], moved[:, some] = thin, shift
    return weights, moved


def _cost(says: Says, after: Callable[[Mapping[str, Array]], Says], thin: Mapping[str, Array]) -> float:
    return distance(says, after(thin))


def _tuned(problem: Problem, w: Float, fit: Found, real: Quadratic) -> float:
    """The ridge that does best on the other half."""
    least, best = math.inf, RIDGES[0]
    for ridge in RIDGES:
        error = _trial(quadratic(problem, w, fit, ridge), real, leaning(w.shape[2], fit.count))
        if error >= least:
            break
        least, best = error, ridge
    return best


def _trial(loss: Quadratic, real: Quadratic, lean: float) -> float:
    counts = [max(1, round(d * real.best.size)) for d in (0.7, 0.5, 0.35)]
    *_, (_, _, w) = descend(loss, counts, lean=lean)
    return real.loss(w)
