"""How many answers would change on other inputs: what a count on a few feeds is too coarse to say.

On 50 feeds one answer more or less is two points. But every answer also says how near it came to change: by how much
its best score leads, and by how much the leads moved. So each answer is also given the movements that others like it
saw, and its share of these that would have turned it over is its doubt.

A feed may hold many answers, one for every token or pixel. Then doubts are looked up for some of them, by chance, and
all are counted besides: the worse of the two is believed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.outputs import classes, sides

__all__ = ["Doubt", "doubt"]

Array = NDArray[Any]
Float = NDArray[np.float64]
RIVALS = 16  # of the best class, by rank
ALIKE = 0.5  # share of the answers that count as like one: those whose leads are nearest to its own
ROWS = 512  # answers whose doubts are looked up, by chance where there are more
WHOLE = 0.1  # of the changes from or to a right answer, those that may lose one, whatever the model says of them
LOST = 0.25  # of the changes from or to a right answer, what is taken to be lost at least
SURE = 0.5  # how sure, beyond chance, a model must be of one answer at least for its doubts to be believed
ONE_SIDED = 1.64  # standard errors that one answer in twenty lies above
LEAST = 1e-12  # of a probability
FAR = 1e30  # stands for infinity


@dataclass(frozen=True)
class Doubt:
    """What to expect on other inputs, each with its error: of what changes one standard error, of what it costs as much
    as one answer in twenty lies above.

    Attributes:
        changed: share of answers that change.
        cost: what that costs in accuracy. Each changed answer costs the probability that the first model gave its own
            answer, less the one that it gave the other. But no model knows quite how often it is right: that a tenth of
            `either` may cost a whole one each is part of the error. And where a model is not sure of a single answer,
            its outputs are no logarithms of odds (but cosines, say, or fitted to zeros and ones), and all changed
            answers cost one. So do those of a model that says the probability of one thing, where what decides
            by it need not do so at a half; what changes then has 1.64 standard errors too.
        paid: what the answers that did change cost, counted the same way.
        either: share of answers that change and were right before or are then, going by the first model: what changes
            from one wrong answer to another costs nothing.
    """

    changed: tuple[float, float]
    cost: tuple[float, float]
    paid: float
    either: float

    @property
    def bound(self) -> float:
        """What to reckon with: the cost at the upper end of its error, and never less than what was paid, nor than
        a quarter of `either`. Answers that changed between two classes that the first model thought as likely were
        right ones by .2 to .4 more often than not, on networks of ten classes whose probabilities were else as good as
        their word. Where there are a thousand, more than a third of the changes are between two that are both wrong."""
        return min(1.0, max(sum(self.cost), self.paid, LOST * self.either))

    def worse(self, other: Doubt) -> Doubt:
        """The worse of each that two ways of looking at the same answers say."""
        return Doubt(
            max(self.changed, other.changed, key=sum), max(self.cost, other.cost, key=sum),
            max(self.paid, other.paid), max(self.either, other.either),
        )  # fmt: skip


def doubt(one: Sequence[Sequence[Array]], other: Sequence[Sequence[Array]], /) -> Doubt | None:
    """How many answers are expected to change, and what that costs.

    Args:
        one, other: answers of two models to the same feeds: per feed, per output.

    Returns:
        None where no output is class scores, or the probability of one thing.
    """
    shares: list[Float] = []
    counts: list[Float] = []
    wide, thinned = 1.0, False
    feeds: list[NDArray[np.intp]] = []
    for outputs in range(len(one[0]) if one else 0):
        before, after = ([answer[outputs] for answer in answers] for answers in (one, other))
        two = sides(before)
        if two is not None:
            wide = ONE_SIDED  # no probability of another answer makes them careful
            before, after = two, sides([np.clip(x, 0, 1) for x in after]) or after
        rows = [(classes(a), classes(b)) for a, b in zip(before, after, strict=True)]
        if any(p is None for p, _ in rows):
            continue
        pairs = [(i, p, q) for i, (p, q) in enumerate(rows) if p is not None and q is not None and p.shape == q.shape]
        if len(pairs) < len(rows) or len({p.shape[1] for _, p, _ in pairs}) > 1:
            return Doubt((1.0, 0.0), (1.0, 0.0), 1.0, 1.0)
        owner = np.concatenate([np.full(len(p), i) for i, p, _ in pairs])
        some = np.arange(len(owner))
        if len(owner) > ROWS:
            thinned, some = True, np.sort(np.random.default_rng(0).permutation(len(owner))[:ROWS])
        starts = np.cumsum([0, *(len(p) for _, p, _ in pairs)])  # pictures are large: only what is picked is copied
        picked = [some[owner[some] == i] - start for (i, *_), start in zip(pairs, starts, strict=False)]
        first = np.concatenate([p[at] for (_, p, _), at in zip(pairs, picked, strict=True)]).astype(np.float64)
        second = np.concatenate([q[at] for (_, _, q), at in zip(pairs, picked, strict=True)]).astype(np.float64)
        share, believed = _each(*_scores(first, second), weighed=two is None)
        shares.append(share)
        feeds.append(owner[some])
        counts.append(np.array([_counted(p, q, believed) for _, p, q in pairs]))
    if not shares:
        return None
    total, *sums = np.sum(counts, 0).T
    counted = _doubt([_mean(each, total) for each in sums], wide)
    found, owner = np.concatenate(shares), np.concatenate(feeds)
    looked, *sums = (np.bincount(owner, x, len(one)).astype(np.float64) for x in (np.ones(len(owner)), *found.T))
    expected = replace(_doubt([_mean(each, looked) for each in sums], wide), paid=counted.paid)
    return counted.worse(expected) if thinned else expected


def _doubt(means: Sequence[tuple[float, float]], wide: float) -> Doubt:
    (changed, apart), (cost, error), (either, _) = means
    careful = math.hypot(ONE_SIDED * error, WHOLE * max(either - cost, 0.0))
    return Doubt((changed, wide * apart), (cost, careful), cost, either)


def _mean(sums: Float, counts: Float) -> tuple[float, float]:
    """The mean of what was summed over so many answers of each feed, and its standard error: answers of one feed go
    together."""
    mean = float(sums.sum() / counts.sum())
    each = sums - mean * counts
    return mean, math.sqrt(float(each @ each)) / float(counts.sum())


def _counted(before: Array, after: Array, believed: bool) -> tuple[float, float, float, float]:
    """How many answers there are, how many of them changed, what that cost, and how many were right before or then."""
    a, b = _scores(before.astype(np.float64), after.astype(np.float64))
    own, now = a.argmax(1), b.argmax(1)
    changed = np.flatnonzero(own != now)
    if not believed:
        return len(a), len(changed), len(changed), len(changed)
    a = a[changed]
    odds = np.exp(a - a.max(1, keepdims=True))
    odds /= odds.sum(1, keepdims=True)
    at = np.arange(len(changed))
    first, then = odds[at, own[changed]], odds[at, now[changed]]
    return len(before), len(changed), float((first - then).sum()), float((first + then).sum())


def _each(before: Float, after: Float, *, weighed: bool) -> tuple[Float, bool]:
    """Of each row (rows, classes): the share of the movements like its own that would turn it over, what these cost,
    and how many would be from or to a right answer; and whether the probabilities are believed."""
    n, count = before.shape
    ranks = np.argsort(-before, axis=1, kind="stable")[:, : min(RIVALS, count - 1) + 1]
    first, then = (np.take_along_axis(x, ranks, 1) for x in (before, after))
    lead = first[:, :1] - first[:, 1:]
    moved = lead - (then[:, :1] - then[:, 1:])
    odds = np.exp(before - before.max(1, keepdims=True))
    sure = np.take_along_axis(odds / odds.sum(1, keepdims=True), ranks, 1)
    chance = 1 / count
    believed = bool(weighed and (sure[:, 0].max() - chance) / (1 - chance) >= SURE)
    whole = np.ones((n, ranks.shape[1] - 1))
    loss, either = (sure[:, :1] - sure[:, 1:], sure[:, :1] + sure[:, 1:]) if believed else (whole, whole)
    beyond = ~(ranks == after.argmax(1)[:, None]).any(1)  # changed to a class that is none of the rivals
    order = np.argsort(lead[:, 0], kind="stable")
    ordered = moved[order]
    wide = min(n, max(1, math.ceil(ALIKE * n)))
    out = np.zeros((n, 3))
    for at, i in enumerate(order):
        start = min(max(0, at - wide // 2), n - wide)
        over = ordered[start : start + wide] - lead[i]
        turned = (over > 0).any(1)
        to = over.argmax(1)
        out[i] = turned.mean(), *(np.where(turned, each[i][to], 0).mean() for each in (loss, either))
        if beyond[i]:
            own = (sure[i, 0] if believed else 1) / wide
            out[i] = np.maximum(out[i], (1 / wide, own, own))
    return out, believed


def _scores(before: Float, after: Float) -> tuple[Float, Float]:
    """Probabilities as logarithms: leads of near certain answers are all the same otherwise."""
    if (before >= 0).all() and (after >= 0).all() and np.allclose(before.sum(1), 1, atol=1e-3):
        return np.log(np.maximum(before, LEAST)), np.log(np.maximum(after, LEAST))
    # a class that is masked with −∞ is far behind, and stays there
    return np.nan_to_num(before, nan=-FAR, neginf=-FAR, posinf=FAR), np.nan_to_num(
        after, nan=-FAR, neginf=-FAR, posinf=FAR
    )
