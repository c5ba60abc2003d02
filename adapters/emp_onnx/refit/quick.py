"""Pruning with each layer solved by itself, for the inputs that the dense network gives it.

What earlier layers got wrong is not made good, so this is less exact than a `Fitting`. But the feeds pass through the
network once, no layer waits for another, and nothing is looked at twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.maps import Problem, Site
from emp_onnx.calibration.moments import Moments
from emp_onnx.calibration.once import once
from emp_onnx.calibration.own import Found
from emp_onnx.refit.curves import USUAL, Curve, curve
from emp_onnx.refit.fitting import Fitting
from emp_onnx.runtime.memory import give_back

__all__ = ["Quick"]

Array = NDArray[Any]
ENOUGH = 1, 500  # samples for each input of a linear map, and how many more: three times as many show in no score


@dataclass(eq=False)
class Quick(Fitting):
    """A model with its calibration feeds, seen once."""

    quick = True

    @property
    def curves(self) -> list[Curve]:
        """What each layer can bear, as far as that is known."""
        if self._curves is None:
            self._curves = [self._curve(s, p) for s in self.network.sites for p in s.problems]
        return self._curves

    def _shares(self, how: str, criterion: str) -> Callable[[Curve], Any]:
        """For `lamp`: what each weight adds to its layer's outputs, w·σ(x), so that its square over the sum of the
        squares is a share of their variance, in any layer."""
        if how != "lamp" or not self.quick:
            return super()._shares(how, criterion)

        def scores(curve: Curve) -> Array:
            moments, w = self._known().get(id(curve.problem)), self.network.matrix(curve.problem)
            if moments is None or not moments.count:
                return w
            return np.asarray(w * np.sqrt(moments.spread())[:, None, :])

        return scores

    def _known(self) -> Mapping[int, Found]:
        if self._seen is None or self._seen[0] is not self.network:
            self._phase("calibrating")
            self._seen = self.network, once(self.network, ENOUGH)
            give_back()
        return self._seen[1]

    def _curve(self, site: Site, problem: Problem) -> Curve:
        moments = self._known().get(id(problem))
        if moments is None or not moments.count:
            n = problem.size
            return replace(curve(self.network, site, problem, _none(problem), _none(problem), _nothing), counts=(n,))
        found = curve(self.network, site, problem, moments, moments, _nothing)
        variance = moments.variance(problem.bias is not None)
        return replace(found, ridge=USUAL, price=1 / variance if variance > 0 else 0.0)


def _none(problem: Problem) -> Moments:
    groups, out, d = problem.shape
    zero = np.zeros((groups, out))
    return Moments(0, np.zeros((groups, d)), zero, np.zeros((groups, d, d)), np.zeros((groups, out, d)), zero)


def _nothing(changed: Mapping[str, Array]) -> float:
    return 0.0
