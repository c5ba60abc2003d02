"""A model and its feeds made ready: what is learnt from, what is measured on, and how many weights a rule keeps."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_core import effective_size
from emp_onnx.calibration.answers import Answers
from emp_onnx.calibration.feeding import gather, longer
from emp_onnx.calibration.network import Network
from emp_onnx.calibration.outputs import agreement, moved
from emp_onnx.certificates.added import Added, with_biases
from emp_onnx.decide import refuse_unless_finite
from emp_onnx.errors import UsageError
from emp_onnx.files.model_io import Model
from emp_onnx.progress import Watch
from emp_onnx.refit.biases import missing_biases
from emp_onnx.refit.candidates import candidates
from emp_onnx.refit.gradients import Gradients, checked
from emp_onnx.refit.thin import Thin
from emp_onnx.runtime.feeds import Feed
from emp_onnx.weights.find import Refusal, Weight

__all__ = ["Prepared"]

Array = NDArray[Any]
CELLS = ("LSTM", "GRU", "RNN")


@dataclass(eq=False)
class Prepared:
    """A model with its calibration feeds.

    Args:
        model: from `load`.
        feeds: calibration feeds, a path or feeds themselves; seeded random ones if None (`random` says so then).
        include, exclude, min_size, embeddings: see `find_weights`.
        seed: of random feeds.
        held: share of the feeds that is kept back for `agreement` and `moved`, 0 ≤ held < 1.
        threads: for onnxruntime.
        watch: told how far the work is.
        biases: whether layers that have none get one, zero at first (`added`, and `model` has them then).
        gradients: of a loss, by name of weight, for the criterion `gradient`; they then also count, as ``|w·g|``.

    Raises:
        UsageError: feeds or gradients that do not fit the model (which, what is expected, what came), an option out of
            its range.
        ModelError: nothing here can be pruned; NaN activations, with the node's name.
    """

    model: Model
    feeds: Any
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    min_size: int = 1
    embeddings: bool = False
    seed: int = 0
    held: float = 0.0
    threads: int | None = None
    watch: Watch | None = None
    gradients: Gradients | None = None
    biases: bool = False
    learns = True  # from its feeds; otherwise they are only measured on
    quick = False  # whether layers are solved with little effort
    weights: tuple[Weight, ...] = field(init=False)
    refusals: tuple[Refusal, ...] = field(init=False)
    random: bool = field(init=False)

    def __post_init__(self) -> None:
        self.weights, self.refusals = candidates(
            self.model, include=self.include, exclude=self.exclude, min_size=self.min_size, embeddings=self.embeddings
        )
        for weight in self.weights:
            refuse_unless_finite(self.model, weight)
        if not 0 <= self.held < 1:
            raise UsageError(f"held must be ≥ 0 and < 1, got {self.held}")
        if self.gradients is not None:
            self.gradients = checked(self.gradients, self.weights, [w.name for w in self.refusals])
        self._says: list[list[Array]] | None = None
        self.joined = 0  # feeds that were made of others by joining them
        self.added: list[Added] = []
        self._sizes: dict[str, float] = {}
        self._ready()

    def _ready(self) -> None:
        """Take the feeds."""
        feeds, self.random = gather(self.model, self.feeds, self.seed, self.threads)
        back = set(_spread(len(feeds), math.ceil(self.held * len(feeds)))) if len(feeds) > 1 else set()
        self.all_feeds: list[Feed] = list(feeds)
        self.kept_back: list[Feed] = [feed for i, feed in enumerate(feeds) if i in back] or list(feeds)
        used = [feed for i, feed in enumerate(feeds) if i not in back]
        cells = any(weight.op in CELLS for weight in self.weights)
        more = longer(self.model, used, self.threads) if cells and not self.random else []
        self.joined, used = len(more), [*used, *more]
        self.network = Network(self.model, self.weights, used, self.threads, smooth=True)
        self.added = missing_biases(self.network) if self.biases else []
        if self.added:
            self.model = with_biases(self.model, self.added)
            self.network = Network(self.model, self.weights, used, self.threads, smooth=True)
        # the whole model is measured as it is
        real = Network(self.model, self.weights, used, self.threads) if self.network.smooth else self.network
        self.answers = Answers(real)

    @property
    def total(self) -> int:
        """How many weights there are."""
        return sum(math.prod(weight.shape) for weight in self.weights)

    def _probed(self) -> Answers:
        """The answers of the network that is fitted."""
        return Answers(self.network) if self.network.smooth else self.answers

    @property
    def calibrated(self) -> tuple[int, str, bool]:
        """How many feeds the statistics are of, their hash, and whether they were made up."""
        return len(self._given()), self.digest(), self.random

    def _given(self) -> list[Feed]:
        """The feeds that are learnt from, without those that were made of them."""
        return self.network.feeds[: len(self.network.feeds) - self.joined - self.network.copied]

    def count(self, *, beta: float | None = None, sparsity: float | None = None) -> int:
        """How many weights a rule keeps: Σ ⌊β·N_eff⌋ over the weights (of ``|w·g|`` where there are gradients), or what
        `sparsity` leaves of them all.

        Raises:
            UsageError: out of range.
        """
        if sparsity is not None:
            if not 0 <= sparsity < 1:
                raise UsageError(f"sparsity must be ≥ 0 and < 1, got {sparsity}")
            return max(1, self.total - round(Fraction(sparsity) * self.total))
        beta = 1.0 if beta is None else beta
        if not 0 < beta < math.inf:
            raise UsageError(f"beta must be > 0 and finite, got {beta}")
        for weight in self.weights:
            if weight.name not in self._sizes:
                self._sizes[weight.name] = float(effective_size(self._scores(weight)))
        return sum(min(math.prod(w.shape), max(1, math.floor(beta * self._sizes[w.name]))) for w in self.weights)

    def both(self, thin: Thin) -> tuple[list[list[Array]], list[list[Array]]]:
        """What the dense model and this one answer to the feeds kept back."""
        if self._says is None:
            self._says = self.answers.dense(self.kept_back)
        return self._says, self.answers(thin.changed, self.kept_back)

    def agreement(self, thin: Thin) -> float:
        """See `outputs.agreement`, on the feeds kept back."""
        return agreement(*self.both(thin))

    def moved(self, thin: Thin) -> float:
        """See `outputs.moved`, on the feeds kept back."""
        return moved(*self.both(thin))

    def digest(self) -> str:
        """A hash of the feeds that were given."""
        hashed = hashlib.sha256()
        for feed in self._given():
            for name in sorted(feed):
                value = np.ascontiguousarray(feed[name])
                hashed.update(f"{name} {value.dtype} {value.shape}".encode())
                hashed.update(value.tobytes())
        return hashed.hexdigest()

    def _scores(self, weight: Weight) -> Any:
        """Of the weights of a tensor, by themselves: |w|, or |w·g|."""
        values = self.magnitudes(weight)
        return values if self.gradients is None else values * np.abs(self.gradients[weight.name])

    def magnitudes(self, weight: Weight) -> NDArray[np.float64]:
        """Of the numbers that a tensor holds or stands for."""
        return np.abs(weight.zero.scores(self.model.values(weight.name)).astype(np.float64))

    def _phase(self, name: str) -> None:
        if self.watch is not None:
            self.watch.phase(name, 4 * self.total)


def _spread(n: int, count: int) -> list[int]:
    return [int((i + 0.5) * n / count) for i in range(count)] if count else []
