"""Pruning during ``model.fit`` (Zhu and Gupta, arXiv 1710.01878), as a callback of Keras."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from emp_core import cubic_schedule, select
from emp_core.ramp import refuse_wrong_ramp
from emp_keras.model import find_weights

__all__ = ["GradualPruning"]


class GradualPruning(keras.callbacks.Callback):  # type: ignore[misc]
    """``model.fit(x, y, callbacks=[GradualPruning(sparsity=0.9, begin=500, steps=20, every=100)])``.

    After each batch masked weights are zero, and so is the optimiser's state of them. What a weight was when it was
    masked is kept aside until masks are final, and competes with that value when they are refreshed.

    Batches are counted on from one ``fit`` of a model to the next, and anew for another model. Where Keras runs several
    before it calls back (``steps_per_execution``), masks change at its next call. Give it to ``fit`` in a list: a
    callback alone Keras may run in another thread, beside the training itself.

    Args:
        sparsity: to reach by a cubic ramp from `initial`; None: EMP's own 1 − ⌊β·N_eff⌋/n of the weights as they are.
        beta: multiplier of the effective size, where no sparsity is given.
        begin, steps, every: batches before the ramp, changes of the masks, batches between them.
        initial: sparsity at which the ramp begins; with ``begin=0`` weights are masked before the first batch.
        options: of `find_weights`.

    Raises:
        ArgumentError: an option out of its range.
    """

    def __init__(
        self,
        *,
        sparsity: float | None = None,
        beta: float = 1.0,
        begin: int = 0,
        steps: int = 10,
        every: int = 100,
        initial: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        refuse_wrong_ramp(sparsity=sparsity, beta=beta, initial=initial, begin=begin, steps=steps, every=every)
        self.target, self.beta, self.initial, self.options = sparsity, beta, initial, options
        self.begin, self.every, self.last, self.done = begin, every, begin + steps * every, 0
        ramp = cubic_schedule(0.0, 0.5, begin=begin, steps=steps, every=every)
        self.share: Callable[[int], float] = lambda step: 2 * ramp(step)
        self.masks: dict[str, Any] = {}
        self._weights: dict[str, Any] = {}
        self._aside: dict[str, Any] = {}
        self._seen = 0

    @property
    def sparsity(self) -> float:
        """The share of all weights that is masked now."""
        n = sum(mask.size for mask in self.masks.values())
        return 1 - sum(int(mask.sum()) for mask in self.masks.values()) / n if n else 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        """Take hold of the weights; those of another model than before begin anew."""
        weights = find_weights(self.model, **self.options)
        if {path: id(v) for path, v in weights.items()} != {path: id(v) for path, v in self._weights.items()}:
            self._weights, self.done = weights, 0
            self.masks = {path: np.ones(tuple(v.shape), bool) for path, v in weights.items()}
            self._aside.clear()
            if self.begin == 0 and self.initial > 0:
                self.refresh()
                self._hold(self.model.optimizer)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Keras counts the batches of each epoch from 0."""
        self._seen = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count the batches since the last call, refresh the masks when it is time, keep masked weights zero."""
        # where the last batches of an epoch are fewer than Keras runs together, it says a number beyond the end
        seen = min(batch + 1, (self.params or {}).get("steps") or batch + 1)
        before, self.done = self.done, self.done + seen - min(self._seen, seen - 1)
        self._seen = seen
        optimizer = (
            self.model.optimizer
        )  # asking for the model brings its state back where JAX holds it (in Keras itself)
        if self._changes(before) < self._changes(self.done):
            self.refresh()
        self._hold(optimizer)

    def refresh(self) -> None:
        """Decide the masks anew."""
        share = self.share(self.done)
        for path, variable in self._weights.items():
            old, value = self.masks[path], np.asarray(keras.ops.convert_to_numpy(variable))
            dense = np.where(old, value, self._aside.get(path, value))
            final = self.target
            if final is None:
                own = select(dense, beta=self.beta)
                final = 1 - int(own.k) / int(own.n)
            mask = (
                own.mask
                if self.target is None and share == 1
                else select(dense, sparsity=self.initial + (final - self.initial) * share).mask
            )
            if (mask & ~old).any():
                variable.assign(np.where(mask, dense, 0).astype(dense.dtype))
            self.masks[path], self._aside[path] = mask, dense
        if self.done >= self.last:
            self._aside.clear()

    def _changes(self, done: int) -> int:
        """How often the masks are to have been decided after so many batches."""
        return max((min(done, self.last) - self.begin) // self.every + 1, 0)

    def _hold(self, optimizer: Any) -> None:
        like = defaultdict[str, list[int]](list)  # variables of one path, in the order in which the optimiser has them
        for trained in self.model.trainable_variables:
            like[trained.path].append(id(trained))
        for path, variable in self._weights.items():
            mask = self.masks[path]
            if mask.all():
                continue
            on = keras.ops.convert_to_tensor(mask.astype(np.float32), dtype=variable.dtype)
            variable.assign(variable * on)
            prefix = variable.path.replace("/", "_") + "_"
            named = defaultdict[str, list[Any]](list)
            for state in getattr(optimizer, "variables", ()):
                if state.name.startswith(prefix):
                    named[state.name].append(state)
            same = like[variable.path]
            if id(variable) not in same:  # frozen: what has its name is another's
                continue
            for states in named.values():
                for state in [states[same.index(id(variable))]] if len(states) == len(same) else states:
                    if tuple(state.shape) == mask.shape:
                        state.assign(state * keras.ops.cast(on, state.dtype))
