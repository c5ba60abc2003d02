"""How much errors of a layer's outputs count, and how they make up for one another: its Fisher information.

Answers are drawn from what the dense network says, so no labels are needed. The gradients of their log-probabilities
with respect to a layer's outputs, squared and averaged, are what an error of these does to the divergence of the
answers: `½ eᵀFe` for a small error e (Amari 1998; as one of two factors, Martens and Grosse, arXiv 1503.05671). Where
an output is no class scores, its numbers count by their squared error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.answers import Answers
from emp_onnx.calibration.maps import Site
from emp_onnx.calibration.network import Network
from emp_onnx.calibration.outputs import classes, heat, probabilities, rows_of
from emp_onnx.errors import ModelError
from emp_onnx.fisher.adjoints import UnableError
from emp_onnx.fisher.reverse import Reverse
from emp_onnx.progress import Watch

__all__ = ["metrics"]

Array = NDArray[Any]
Single = NDArray[np.float32]
DRAWN, MOST = 256, 4  # answers that are drawn over all feeds, and of one feed at most
DAMPED = 1.0  # of the mean over a layer's outputs, added to each: a few hundred draws say little of single outputs
ROOM = 1 << 25  # numbers of all metrics together; the largest do without one
LEAST = 1e-30


def metrics(network: Network, answers: Answers, watch: Watch | None = None) -> dict[int, Single]:
    """Of problems, by their ids, the matrix (groups, out, out) that errors of their outputs are weighed with, of mean
    diagonal 1; of those alone from which every way to the answers is known. Together they are not large.

    Each feed counts alike, whatever its answers are worth: else a few that the model is unsure of would say it all.
    None of layers whose outputs are the answers themselves, so classes that no feed shows count as much as others; and
    none at all where there are more classes than answers that are drawn, which then say nothing of most.
    """
    fitting = sorted((site for site in network.sites if _fits(network, site)), key=_size)
    ends = accumulate(map(_size, fitting))
    sites = {site.step.outputs[0]: site for site, end in zip(fitting, ends, strict=True) if end <= ROOM}
    feeds = network.feeds[: len(network.feeds) - network.copied]
    if not sites or answers.large or answers.states or not feeds:
        return {}
    feeds = feeds[:: -(-len(feeds) // DRAWN)]
    try:
        return _summed(network, answers, sites, feeds, watch)
    except (UnableError, ModelError):
        return {}


def _fits(network: Network, site: Site) -> bool:
    first = site.problems[0]
    whole = len(site.problems) == 1 and first.outs is not None and not (site.again or site.step.guard)
    return whole and network.grid(first) is None


def _size(site: Site) -> int:
    groups, out, _ = site.problems[0].shape
    return groups * out * out


def _summed(
    network: Network, answers: Answers, sites: Mapping[str, Site], feeds: Sequence[Mapping[str, Any]],
    watch: Watch | None,
) -> dict[int, Single]:  # fmt: skip
    (first,) = answers(None, feeds[:1])  # sees along which axes they hold scores, too
    told = [name for name in answers.names if name not in answers.states]
    reverse = Reverse(network, told, sites, feeds[0])
    if not reverse.found:
        return {}
    said = answers.told(first)
    rows = max(1, rows_of(said))
    draws = max(1, min(MOST, DRAWN // (len(feeds) * rows)))
    most = max((scores.shape[1] for scores in map(classes, said) if scores is not None), default=0)
    if most > draws * rows * len(feeds):
        return {}
    rng = np.random.default_rng(len(feeds))
    sums: dict[str, Single] = {}
    for at, feed in enumerate(feeds):
        values = reverse.forward(feed)
        for seeds in _drawn(answers, told, values, draws, rng):
            for name, pull in reverse.back(values, seeds).items():
                problem = sites[name].problems[0]
                assert problem.outs is not None
                outs = problem.outs(pull, at, network.limit(problem))
                size = math.sqrt(float(np.square(outs, dtype=np.float64).sum()))
                if LEAST < size < math.inf:
                    outs = outs / np.float32(size)
                    made = np.asarray(outs.swapaxes(1, 2) @ outs, np.float32)
                    sums[name] = sums[name] + made if name in sums else made
        if watch is not None:
            watch.add(4 * sum(math.prod(weight.shape) for weight in network.weights) // len(feeds))
    return {id(sites[name].problems[0]): damped(found) for name, found in sums.items()}


def damped(found: Single) -> Single:
    """With more for each output, and a mean of the diagonal of 1.

    >>> damped(np.array([[[3.0, 1.0], [1.0, 1.0]]])).tolist()
    [[[1.25, 0.25], [0.25, 0.75]]]
    """
    diagonal = np.einsum("goo->go", found)
    mean = float(diagonal.mean())
    out = found / ((1 + DAMPED) * mean)
    np.einsum("goo->go", out)[...] += DAMPED / (1 + DAMPED)
    return out


def _drawn(
    answers: Answers, told: Sequence[str], values: Mapping[str, Array], draws: int, rng: np.random.Generator
) -> Iterator[dict[str, Array]]:
    """Gradients of the log-probability of drawn answers with respect to what is said, several times."""
    says = {name: values[name] for name in told if name in values}
    for _ in range(draws):
        yield {name: seed(value, answers.along.get(name, value.ndim - 1), rng) for name, value in says.items()}


def seed(value: Array, axis: int | None, rng: np.random.Generator) -> Array:
    """Of one value that is said, with class scores along an axis, or none.

    >>> rng = np.random.default_rng(0)
    >>> found = seed(np.array([[0.0, np.log(3)]], np.float32), 1, rng)  # one of (¾, −¾), (−¼, ¼)
    >>> found.round(3).tolist()
    [[-0.25, 0.25]]
    """
    rows = None if axis is None else classes(np.moveaxis(value, axis, -1))
    if rows is None or axis is None:
        spread = float(value.std(dtype=np.float64))
        return rng.standard_normal(value.shape) / (spread if spread > 0 else 1)
    x = rows.astype(np.float64)
    known = probabilities(x)
    scores = np.log(np.maximum(x, LEAST)) if known else x / heat([rows])
    odds = np.exp(scores - scores.max(1, keepdims=True))
    odds /= odds.sum(1, keepdims=True)
    chosen = (odds.cumsum(1) > rng.random((len(odds), 1))).argmax(1)[:, None]
    found = np.zeros_like(odds) if known else -odds
    at = np.take_along_axis(found, chosen, 1)
    np.put_along_axis(found, chosen, at + (1 / np.take_along_axis(odds, chosen, 1) if known else 1), 1)
    moved = np.moveaxis(value, axis, -1)
    return np.moveaxis(found.reshape(moved.shape), -1, axis)
