"""Pruning from what is already known: statistics saved by `emp calibrate`, gradients of a loss, or both.

The network is not run to choose and to solve, so each layer is solved for the inputs that the dense network gave it.
What earlier layers got wrong is not made good: that needs feeds. Nor is it known what an error of a layer does to the
answers: a layer's error is measured as a share of what its own outputs vary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.answers import Answers
from emp_onnx.calibration.feeding import gather
from emp_onnx.calibration.maps import Problem
from emp_onnx.calibration.moments import Moments
from emp_onnx.calibration.network import Network
from emp_onnx.calibration.statistics import Inputs, Statistics
from emp_onnx.errors import UsageError, quote
from emp_onnx.refit.notes import notes
from emp_onnx.refit.quick import Quick
from emp_onnx.refit.sequence import Fitted
from emp_onnx.weights.find import Weight

__all__ = ["Known"]

Array = NDArray[Any]


@dataclass(eq=False)
class Known(Quick):
    """A model with statistics or gradients in place of calibration feeds.

    Args:
        statistics: as `calibrate` made them; None: only gradients are known.
        others: see `Fitting`; `feeds` are measured on and not learnt from.

    Raises:
        UsageError: statistics or gradients that are not of this model: which, what is expected, what came.
    """

    statistics: Statistics | None = None
    learns = False
    quick = False

    def _ready(self) -> None:
        """Take the feeds; no biases are added, since statistics are of the model as it is."""
        given, self.random = gather(self.model, self.feeds, self.seed, self.threads)
        self.kept_back = list(given)
        self.network = Network(self.model, self.weights, given, self.threads)
        self.answers = Answers(self.network)
        problems = [problem for site in self.network.sites for problem in site.problems]
        if self.statistics is None:
            self._moments = {id(problem): self._blank(problem) for problem in problems}
        else:
            self._moments = {id(p): self._of(p, found) for p, found in self._matched(self.statistics, problems)}

    @property
    def calibrated(self) -> tuple[int, str, bool]:
        """Of the statistics."""
        if self.statistics is None:
            return 0, hashlib.sha256().hexdigest(), False
        return self.statistics.feeds, self.statistics.digest(), self.statistics.random

    def ready_for(self, criterion: str, update: bool) -> None:
        """Whether what is known is enough.

        Raises:
            UsageError: it is not: what is missing.
        """
        super().ready_for(criterion, update)
        norms = self.statistics is not None and self.statistics.norms_only
        needed = ("magnitude", "gradient", *(() if self.statistics is None else ("wanda",)))
        if (self.statistics is None or norms) and criterion not in needed:
            what = "statistics with norms only" if norms else "gradients alone"
            raise UsageError(f"criterion must be one of {', '.join(needed)} with {what}, got {quote(criterion)}")
        if update and self.statistics is None:
            raise UsageError("a refit must have --feeds or --stats, got gradients alone")
        if update and norms:
            raise UsageError("a refit must have second moments, got statistics with norms only (`calibrate --norms`)")

    def _known(self) -> Mapping[int, Moments]:
        return self._moments

    def _shares(self, how: str, criterion: str) -> Any:
        """The effective size that counts where gradients choose is that of their scores."""
        if how != "emp" or criterion != "gradient":
            return super()._shares(how, criterion)
        return lambda c: np.abs(self.network.matrix(c.problem) * self.network.matrix(c.problem, self.gradients))

    def _matched(self, statistics: Statistics, problems: Sequence[Problem]) -> Iterator[tuple[Problem, Inputs]]:
        """Each problem with its statistics; the second use of the same weights with the second that there are."""
        waiting: dict[tuple[str, ...], list[Inputs]] = {}
        for item in statistics.inputs:
            for key in item.keys:
                if key not in self.model.tensors:
                    raise UsageError(
                        f"statistics must be of this model, got some of {quote(key)}, which {self.model.origin} lacks"
                    )
            waiting.setdefault(item.keys, []).append(item)
        for problem in problems:
            keys = tuple(key for key, _ in problem.parts)
            if not waiting.get(keys):
                continue
            found = waiting[keys].pop(0)
            if found.shape != problem.shape:
                raise UsageError(
                    f"statistics of {', '.join(map(quote, keys))} must be of (groups, outputs, inputs) = "
                    f"{problem.shape}, got {found.shape}"
                )
            yield problem, found

    def _of(self, problem: Problem, found: Inputs) -> Moments:
        """Moments as the sums of one network give them; where there are only norms, of inputs that do not meet."""
        w = self.network.matrix(problem)
        second = found.second
        if second is None:
            second = found.squares[:, :, None] * np.eye(problem.shape[2])
        yx = w @ second
        return Moments(found.count, found.total, (w @ found.total[..., None])[..., 0], second, yx, found.outputs)

    def _blank(self, problem: Problem) -> Moments:
        groups, out, d = problem.shape
        w = self.network.matrix(problem)
        eye = np.broadcast_to(np.eye(d), (groups, d, d))
        return Moments(1, np.zeros((groups, d)), np.zeros((groups, out)), eye, w, (w * w).sum(2))

    def _notes(self, blind: Sequence[Weight], done: Fitted) -> tuple[str, ...]:
        said = list(notes(self.network, blind, done, random=False, feeds=self.calibrated[0], held=0.0))
        if self.statistics is not None:
            said.append(
                "From statistics alone: each layer was solved for the inputs that the dense network gives it. What "
                "earlier layers got wrong is not made good; that needs --feeds."
            )
            if self.statistics.random:
                said.append("THE STATISTICS ARE OF SEEDED RANDOM NUMBERS, not of data: they say little.")
        if self.random:
            said.append(
                "NO FEEDS WERE GIVEN: agreement and error were measured on seeded random numbers, and say little."
            )
        return tuple(said)
