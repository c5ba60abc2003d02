"""A model prepared once for refits at any amount: what is measured does not depend on how much is kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.feeding import longer
from emp_onnx.calibration.network import Network
from emp_onnx.calibration.own import Found
from emp_onnx.errors import UsageError, quote
from emp_onnx.fisher.metric import metrics
from emp_onnx.refit.allocate import allocate
from emp_onnx.refit.curves import Curve, curves, unmeasured
from emp_onnx.refit.further import helped, mirrored_feeds
from emp_onnx.refit.notes import notes
from emp_onnx.refit.prepared import Prepared
from emp_onnx.refit.sequence import Fitted, fit
from emp_onnx.refit.solve import largest
from emp_onnx.refit.thin import Thin
from emp_onnx.runtime.feeds import Feed
from emp_onnx.runtime.memory import give_back
from emp_onnx.weights.find import Weight
from emp_onnx.words import ALLOCATIONS, CRITERIA

__all__ = ["Fitting", "Thin"]

Array = NDArray[Any]
MEASURED = ("error", "owl")  # allocations that need more than weights


@dataclass(eq=False)
class Fitting(Prepared):
    """A model with its calibration feeds, ready to be refitted at any amount.

    Args, errors: those of `Prepared`: model, feeds, include, exclude, min_size, embeddings, seed, held, threads, watch,
        gradients, biases.
    """

    def __post_init__(self) -> None:
        self._curves: list[Curve] | None = None
        self._metrics: dict[int, NDArray[np.float32]] | None = None
        self._seen: tuple[Network, Mapping[int, Found]] | None = None
        super().__post_init__()
        if self.learns and not (self.quick or self.random or self.joined):
            copies = mirrored_feeds(self.network, self.network.feeds)
            if copies and helped(self.network, self._probed(), copies):
                self.network = self.network.on(self.network.feeds, copies)

    def without(self, back: Sequence[int]) -> Fitting:
        """The same fitting, but that it does not learn from some of its feeds: these are kept back."""
        whole = self.kept_back
        used = [feed for i, feed in enumerate(whole) if i not in set(back)]
        out = self._from(used) if 0 < len(used) < len(whole) else copy.copy(self)
        out.kept_back, out._says = [whole[i] for i in back], None
        return out

    def to_all(self) -> Fitting:
        """The same fitting, but that it learns from the feeds that were kept back too."""
        out = self._from(self.all_feeds)
        out.held = 0.0
        return out

    def _from(self, used: Sequence[Feed]) -> Fitting:
        """The same fitting, from other feeds; what was measured stays as it was."""
        out = copy.copy(self)
        more = longer(self.model, used, self.threads) if self.joined else []
        copies = mirrored_feeds(self.network, used) if self.network.copied else []
        out.joined, out.network = len(more), self.network.on([*used, *more], copies)
        return out

    def thin_masks(self) -> dict[str, NDArray[np.bool_]]:
        """The masks of a model from which nothing was removed."""
        return {weight.name: np.ones(weight.shape, bool) for weight in self.weights}

    @property
    def curves(self) -> list[Curve]:
        """What each layer can bear; measured when first asked for."""
        if self._curves is None:
            self._phase("measuring layers")
            self._curves = curves(self.network, self._probed(), self.watch)
        return self._curves

    def _weighing(self, criterion: str, update: bool) -> Mapping[int, NDArray[np.float32]] | None:
        """What errors of layers' outputs count; measured when first asked for."""
        if self.quick or self.random or not (update and self.learns and criterion == "obs"):
            return None
        if self._metrics is None:
            self._phase("weighing errors")
            self._metrics = metrics(self.network, self._probed(), self.watch)
        return self._metrics

    def ready_for(self, criterion: str, update: bool) -> None:
        """Whether what is known is enough for a criterion, and for solving weights again where `update` asks for it.

        Raises:
            UsageError: it is not.
        """
        if criterion not in CRITERIA:
            raise UsageError(f"criterion must be one of {', '.join(CRITERIA)}, got {quote(criterion)}")
        if criterion == "gradient" and self.gradients is None:
            raise UsageError("criterion 'gradient' must come with gradients, got none")

    def thin(self, keep: int, *, how: str = "error", criterion: str = "obs", update: bool = True) -> Thin:
        """The model with `keep` weights.

        Args:
            keep: in all.
            how: they are spread over the layers: one of `error`, `emp`, `uniform`, `lamp`, `erk`, `owl`.
            criterion: which stay within a layer: `obs`, `magnitude`, `wanda`, `sparsegpt`, `gradient`.
            update: whether kept weights and biases are solved again.
        """
        if how not in ALLOCATIONS:
            raise UsageError(f"allocate must be one of {', '.join(ALLOCATIONS)}, got {quote(how)}")
        self.ready_for(criterion, update)
        layers = [curve for curve in self._layers(how) if curve.samples]
        reached = {key for curve in layers for key, _ in curve.problem.parts}
        blind = [w for w in self.weights if w.name not in reached]
        density = keep / self.total
        masks: dict[str, NDArray[np.bool_]] = {}
        changed: dict[str, Array] = {}
        for weight in blind:
            self._by_size(weight, max(1, math.floor(density * math.prod(weight.shape))), masks, changed)
        seen_twice = _once(layers)
        rest = keep - sum(int(np.count_nonzero(mask)) for mask in masks.values())
        loose = sum(math.prod(w.shape) for w in self.weights if w.name in reached) - sum(c.size for c in seen_twice)
        counts = allocate(how, seen_twice, rest - loose, self._shares(how, criterion)) if seen_twice else []
        weighing = self._weighing(criterion, update)
        self._phase("solving")
        done = fit(
            self.network, seen_twice, counts, criterion=criterion, update=update, start=changed, watch=self.watch,
            gradients=self.gradients, known=self._known(), quick=self.quick, metrics=weighing,
        )  # fmt: skip
        masks |= done.masks
        counted = {key: (problem, k) for problem, k in zip((c.problem for c in seen_twice), counts, strict=True)
                   for key, _ in problem.parts}  # fmt: skip
        for weight in self.weights:  # met by no feed, which shows only now where layers were not measured
            if weight.name in counted and weight.name not in masks:
                problem, k = counted[weight.name]
                count = max(1, round(k * math.prod(weight.shape) / problem.size))
                self._by_size(weight, count, masks, done.changed)
                blind.append(weight)
        for weight in self.weights:
            masks.setdefault(weight.name, np.ones(weight.shape, bool))
        return Thin(done.changed, masks, self._notes(blind, done))

    def forget(self) -> None:
        """Let go of what was measured; it would be measured again."""
        self._curves = self._seen = self._metrics = None
        give_back()

    def _layers(self, how: str) -> list[Curve]:
        """The layers: measured, where the allocation needs that, or has been done."""
        return unmeasured(self.network) if how not in MEASURED and self._curves is None else self.curves

    def _by_size(
        self, weight: Weight, count: int, masks: dict[str, NDArray[np.bool_]], changed: dict[str, Array]
    ) -> None:
        """Keep the largest, as they are."""
        masks[weight.name] = largest(self._scores(weight), count)
        changed[weight.name] = weight.zero.filled(self.model.values(weight.name), masks[weight.name])

    def _known(self) -> Mapping[int, Found] | None:
        """Moments that are used instead of running the network, by the id of their problem."""
        return None

    def _shares(self, how: str, criterion: str) -> Callable[[Curve], Any]:
        """What an allocation takes for the weights of a layer."""
        return lambda curve: self.network.matrix(curve.problem)

    def _notes(self, blind: Sequence[Weight], done: Fitted) -> tuple[str, ...]:
        feeds = len(self._given())
        return tuple(notes(self.network, blind, done, random=self.random, feeds=feeds, held=self.held))


def _once(layers: Iterable[Curve]) -> list[Curve]:
    """Without layers whose weights were met before."""
    out, owner = list[Curve](), dict[str, int]()
    for curve in layers:
        keys = [key for key, _ in curve.problem.parts]
        if all(owner.setdefault(key, id(curve.site)) == id(curve.site) for key in keys):
            out.append(curve)
    return out
