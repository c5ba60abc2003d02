"""The proof: the shrunk model says what the masked one says.

The masked model is the model as it was, in its old shape, with the constants of the shrunk one put back in place and
zeros where units went. Both run in onnxruntime on the same feeds; all outputs have to agree to float rounding. The file
is then read again before it takes its place, and has to hold the model that was so proven.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.errors import ModelError, quote
from emp_onnx.runtime.feeds import Feed
from emp_onnx.runtime.ort import first_line
from emp_onnx.shrink.axes.trace import Runner
from emp_onnx.shrink.cut import Masks, scatter
from emp_onnx.shrink.fitting.distance import ancestors
from emp_onnx.shrink.store import digest, read
from emp_onnx.shrink.view import View

__all__ = ["Proof", "file_problem", "masked", "prove"]

ROUNDING = {2: 2e-2, 4: 1e-4, 8: 1e-9}  # of the largest magnitude of an output, by bytes of its type
HALF = 2.0  # how far beyond the noise between two ways of running one model


@dataclass(frozen=True)
class Proof:
    """What was compared.

    Attributes:
        feeds: how many.
        random: whether they were made up.
        worst: largest difference of any output, as a share of its largest magnitude.
        allowed: what float rounding may make, of the same.
        problem: why it does not hold; empty if it does.
    """

    feeds: int
    random: bool
    worst: float
    allowed: float
    problem: str = ""

    @property
    def holds(self) -> bool:
        """Whether every output agreed."""
        return not self.problem


def masked(view: View, shrunk: Any, masks: Masks) -> Any:
    """The prepared model with the constants of the shrunk one, zero where units went."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(view.model)
    new = {t.name: t for t in shrunk.graph.initializer}
    for tensor in model.graph.initializer:
        if tensor.name in new:
            values = onnx.numpy_helper.to_array(new[tensor.name])
            old = tuple(tensor.dims)
            if any((tensor.name, axis) in masks for axis in range(len(old))):
                values = scatter(tensor.name, values, old, masks)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return model


def prove(reference: Any, shrunk: Any, feeds: Iterable[Feed], *, random: bool = False, threads: int = 1) -> Proof:
    """Run both and compare."""
    try:
        witness = ancestors(reference)
        one, again = (
            Runner(reference, witness, threads=threads),
            Runner(reference, witness, plain=True, threads=threads),
        )
    except ModelError as error:
        return Proof(0, random, np.inf, 0.0, f"the masked model does not load: {error}")
    try:
        other = Runner(shrunk, witness, threads=threads)
    except ModelError as error:
        return Proof(0, random, np.inf, 0.0, f"the shrunk model does not load: {error}")
    worst = allowed = 0.0
    count = 0
    for feed in feeds:
        count += 1
        try:
            a, noise = one(feed), again(feed)
        except Exception as error:  # onnxruntime's own errors have no common base
            return Proof(count, random, np.inf, 0.0, f"the masked model does not run: {first_line(error)}")
        try:
            b = other(feed)
        except Exception as error:  # as above
            return Proof(count, random, np.inf, 0.0, f"the shrunk model does not run: {first_line(error)}")
        close = True
        for name in sorted(a, key=lambda n: n not in witness):
            gap, fits = _gap(a[name], b[name])
            if not fits:
                return Proof(count, random, np.inf, 0.0, f"output {quote(name)} has another type or shape")
            if _floating(a[name]):
                size = a[name].dtype.itemsize if isinstance(a[name], np.ndarray) else 4
                limit = ROUNDING.get(size, 1e-4) + HALF * _gap(a[name], noise[name])[0]
                worst, allowed = max(worst, gap), max(allowed, limit)
                close = close and gap <= limit
                if gap > limit:
                    return Proof(count, random, worst, limit, f"output {quote(name)} is off by {gap:.2g} of its size")
            elif gap and not (witness and close):
                return Proof(count, random, worst, allowed, f"output {quote(name)} holds other whole numbers")
    if not count:
        return Proof(0, random, np.inf, 0.0, "no feeds were given")
    return Proof(count, random, worst, allowed)


def file_problem(path: Path, shrunk: Any, threads: int = 1) -> str:
    """Why a file is not the model that was proven, read as others will read it; empty if it is."""
    try:
        again, _ = read(path)
        Runner(str(path), threads=threads)
    except ModelError as error:
        return f"the file that was written does not load: {error}"
    return "" if digest(again) == digest(shrunk) else "the file that was written holds another model than was proven"


def _gap(one: Any, other: Any) -> tuple[float, bool]:
    """The largest difference as a share of the largest magnitude, and whether types and shapes fit."""
    if isinstance(one, (list, dict)):
        return _inner(one, other)
    if not isinstance(one, np.ndarray):
        return (0.0 if one == other else np.inf), type(one) is type(other)
    if not isinstance(other, np.ndarray) or one.dtype != other.dtype or one.shape != other.shape:
        return np.inf, False
    if one.dtype.kind not in "fV":
        return (0.0 if np.array_equal(one, other) else np.inf), True
    a, b = _wide(one), _wide(other)
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
        size = np.abs(a[np.isfinite(a)]).max(initial=0.0)
    worst = float(np.nan_to_num(gap, nan=np.inf, posinf=np.inf).max(initial=0.0))
    return (worst / size if size else worst), True


def _floating(value: Any) -> bool:
    """Whether an output is made of floats."""
    if isinstance(value, (list, dict)):
        return any(_floating(v) for v in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) or (isinstance(value, np.ndarray) and value.dtype.kind in "fV")


def _inner(one: Any, other: Any) -> tuple[float, bool]:
    """The same for sequences and maps: of all their numbers, the same places in both."""
    if type(one) is not type(other) or len(one) != len(other):
        return np.inf, False
    if isinstance(one, dict):
        if list(one) != list(other):
            return np.inf, False
        one, other = list(one.values()), list(other.values())
    if one and all(isinstance(v, float) for v in (*one, *other)):
        return _gap(np.array(one, np.float32), np.array(other, np.float32))
    found = [_gap(a, b) for a, b in zip(one, other, strict=True)]
    return max((gap for gap, _ in found), default=0.0), all(fits for _, fits in found)


def _wide(values: NDArray[Any]) -> NDArray[np.float64]:
    return values.astype(np.float64)
