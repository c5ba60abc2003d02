"""The tensors of a model as matrices: as stored, or with others in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.calibration.finding import able
from emp_onnx.calibration.maps import Problem
from emp_onnx.files.model_io import Model
from emp_onnx.weights.find import Weight
from emp_onnx.weights.zero import FLOAT

__all__ = ["Stored"]

Array = NDArray[Any]
Float = NDArray[np.float64]
CACHE = 1 << 28  # bytes of constants kept in memory


class Stored:
    """A model's tensors.

    Attributes:
        model: from `load`.
        weights: those that matter; quantised ones count as the numbers that they stand for.
    """

    def __init__(self, model: Model, weights: Sequence[Weight]) -> None:
        self.model, self.weights = model, tuple(weights)
        self._cache: dict[str, Array] = {}
        self._held = 0
        self._zeros = {w.name: w.zero for w in weights if w.zero.quantised and able(w)}

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

    def offset(self, problem: Problem, /) -> Float:
        """The bias of a problem, (groups, 1, out), or 0."""
        bias = problem.bias
        if bias is None:
            return np.zeros(())
        found = self.value(bias.key).reshape(-1)[bias.index].astype(np.float64) * bias.sign * bias.unit
        return np.asarray(found[:, None])

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


def _whole(values: Array, dtype: np.dtype[Any]) -> Array:
    """The nearest whole numbers that a type holds."""
    return np.clip(np.rint(values), np.iinfo(dtype).min, np.iinfo(dtype).max)
