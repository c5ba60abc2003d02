"""Pruning during training (Zhu and Gupta, arXiv 1710.01878), with the final sparsity chosen, or read from the weights.

Parameters stay the parameters of a plain model: a masked weight is zero, its gradient and its optimiser state are
zero, and no step changes that. What a weight was when it was masked is kept aside until masks are final, and competes
with that value when they are refreshed, so that a weight masked too early comes back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from emp_core import ArgumentError, Rows, cubic_schedule, select
from emp_core.plans import SCOPES
from emp_torch.apply import recertify
from emp_torch.weights import Weight, find_weights

__all__ = ["GradualPruner"]

Schedule = Callable[[int], float]


class GradualPruner:
    """Three lines in a plain loop::

        pruner = GradualPruner(model, optimizer, sparsity=0.9, begin=500, steps=20, every=100)
        for batch in batches:
            loss(model, batch).backward(); optimizer.step(); optimizer.zero_grad()
            pruner.step()
        pruner.finish()

    Args:
        model: any module.
        optimizer: whose state of masked weights stays zero; None: the state is not looked after.
        sparsity: to reach by a cubic ramp from `initial`, or a function step → sparsity.
        beta: instead, EMP's own sparsity 1 − ⌊β·N_eff⌋/n of the weights as they are at each refresh, reached by the
            same ramp; or a function step → β (see `emp_core.beta_schedule`), by which masks are cut directly. Default
            1.
        begin: training step at which the ramp begins.
        steps: number of changes of the masks.
        every: training steps between them.
        initial: sparsity before the ramp.
        scope: which weights compete: those of one `tensor`, of one `row`, or of the whole `model`.
        criterion: function weight → scores of its shape, at each refresh; magnitudes if None. Values kept aside
            compete by magnitude, so for other criteria a masked weight does not come back.
        weights: from `find_weights`; all of the model's by default, frozen ones too.

    Raises:
        ArgumentError: an option out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        sparsity: float | Schedule | None = None,
        beta: float | Schedule | None = None,
        begin: int = 0,
        steps: int = 10,
        every: int = 100,
        initial: float = 0.0,
        scope: str = "tensor",
        criterion: Callable[[Weight], Tensor] | None = None,
        weights: Iterable[Weight] | None = None,
    ) -> None:
        if scope not in SCOPES:
            raise ArgumentError(f"scope must be one of {', '.join(SCOPES)}, got {scope!r}")
        if sparsity is not None and beta is not None:
            raise ArgumentError("sparsity fixes the count, so beta must be left alone, got both")
        self.model, self.optimizer, self.scope, self.criterion = model, optimizer, scope, criterion
        for name, value in (("sparsity", sparsity), ("initial", initial)):
            if name == "sparsity" and (value is None or callable(value)):
                continue
            if not (isinstance(value, Real) and 0 <= value < 1):
                raise ArgumentError(f"{name} must be a sparsity in [0, 1), got {value!r}")
        given = beta is not None and not callable(beta)
        if given and not (isinstance(beta, Real) and math.isfinite(beta) and beta > 0):
            raise ArgumentError(f"beta must be a finite number > 0, got {beta!r}")
        # how much of the way is gone, 0 to 0.5; also where it is not used, it refuses what is no begin, steps or every
        ramp = cubic_schedule(0.0, 0.5, begin=begin, steps=steps, every=every)
        self.begin, self.every, self.last = begin, every, begin + steps * every
        self._beta: Schedule | None = None
        self._share: Schedule | None = None
        self._sparsity: Schedule | None = None
        if callable(beta):
            self._beta = beta
        elif sparsity is None:
            self._final = 1.0 if beta is None else beta
            self._share = lambda step: 2 * ramp(step)  # of the way to the final sparsity
        elif callable(sparsity):
            self._sparsity = sparsity
        else:
            self._sparsity = cubic_schedule(initial, sparsity, begin=begin, steps=steps, every=every)
        self.initial = initial
        self.weights = tuple(find_weights(model).weights if weights is None else weights)
        if not self.weights:
            raise ArgumentError("model must have something to prune, got no weight that is known here")
        self.masks = {w.name: torch.ones_like(w.parameter, dtype=torch.bool) for w in self.weights}
        self._aside = dict[str, Tensor]()
        self.steps_done, self.finished = 0, False
        self._hooks = [
            w.parameter.register_post_accumulate_grad_hook(self._grad_hook(w.name))
            for w in self.weights
            if w.parameter.requires_grad  # one that is frozen has no gradient to be masked
        ]
        if optimizer is not None:
            self._hooks.append(optimizer.register_step_post_hook(lambda *_: self._hold()))
        if begin == 0:
            self.refresh()

    @property
    def sparsity(self) -> float:
        """The share of all weights that is masked now."""
        n = sum(mask.numel() for mask in self.masks.values())
        return 1 - sum(int(mask.sum()) for mask in self.masks.values()) / int(n)

    def step(self) -> None:
        """After each step of the optimizer: count it, refresh the masks when it is time, keep masked weights zero."""
        if self.finished:
            raise ArgumentError("step must come before finish, got it after")
        self.steps_done += 1
        on_grid = (self.steps_done - self.begin) % self.every == 0
        if self.begin <= self.steps_done <= self.last and on_grid:
            self.refresh()
            if self.steps_done == self.last:
                self._aside.clear()
        elif self.optimizer is None:
            self._hold()

    @torch.no_grad()
    def refresh(self) -> None:
        """Decide the masks anew, by what the schedule says for this step."""
        scores = {w.name: self._scores(w) for w in self.weights}
        if self.scope == "model":
            new = dict(self._masks(scores, "model"))
        else:
            new = {}
            for w in self.weights:
                row = self.scope == "row" and w.parameter.dim() > 0
                new[w.name] = self._masks(scores[w.name], Rows(w.axis) if row else "whole")
        for w in self.weights:
            mask, old, value = new[w.name], self.masks[w.name], w.parameter
            aside = self._aside.get(w.name)
            if aside is not None:
                value.copy_(torch.where(mask & ~old, aside, value))  # what comes back has the value it had
                aside.copy_(torch.where(old & ~mask, value, aside))
            elif bool((~mask).any()):
                self._aside[w.name] = torch.where(mask, torch.zeros_like(value), value).detach()
            self.masks[w.name] = mask
        self._hold()

    def finish(self) -> None:
        """Fix the masks for good: hooks are removed, zeros stay as plain zeros, and the model gets its certificate."""
        if not self.finished:
            self._hold()
            for hook in self._hooks:
                hook.remove()
            self._aside.clear()
            self.finished = True
            recertify(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Masks, values kept aside and the count of steps: what a checkpoint needs besides model and optimizer."""
        return {"steps_done": self.steps_done, "masks": dict(self.masks), "aside": dict(self._aside)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; load model and optimizer first.

        Raises:
            ArgumentError: it is of another model.
        """
        shapes = {w.name: tuple(w.parameter.shape) for w in self.weights}
        if {name: tuple(mask.shape) for name, mask in state["masks"].items()} != shapes:
            raise ArgumentError("state must be of the same weights, got one of others")
        self.steps_done = int(state["steps_done"])
        for w in self.weights:
            self.masks[w.name] = state["masks"][w.name].to(w.parameter.device)
        self._aside = {
            w.name: state["aside"][w.name].to(w.parameter.device) for w in self.weights if w.name in state["aside"]
        }
        self._hold()

    def _scores(self, weight: Weight) -> Tensor:
        if self.criterion is not None:
            found = self.criterion(weight)
            if found.shape != weight.parameter.shape:
                raise ArgumentError(
                    f"criterion must give scores of the shape {tuple(weight.parameter.shape)}, got {tuple(found.shape)}"
                )
            return torch.where(self.masks[weight.name], found.detach(), torch.zeros_like(found))
        value = weight.parameter.detach()
        aside = self._aside.get(weight.name)
        return value if aside is None else torch.where(self.masks[weight.name], value, aside)

    def _masks(self, scores: Any, scope: Any) -> Any:
        """Masks of scores under this step's schedule."""
        if self._beta is not None:
            return select(scores, beta=self._beta(self.steps_done), scope=scope).mask
        if self._share is None:
            assert self._sparsity is not None
            return select(scores, sparsity=self._sparsity(self.steps_done), scope=scope).mask
        # EMP's own sparsity of the weights as they are, and the part of the way to it; all of it: the rule itself
        share, own = self._share(self.steps_done), select(scores, beta=self._final, scope=scope)
        if share == 1:
            return own.mask
        kept = own.k.sum() if isinstance(own.k, Tensor) else own.k
        n = own.n.sum() if isinstance(own.n, Tensor) else own.n
        final = 1 - float(kept) / float(n)
        return select(scores, sparsity=self.initial + (final - self.initial) * share, scope=scope).mask

    def _grad_hook(self, name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            if parameter.grad is not None and name in self.masks:
                parameter.grad.mul_(self.masks[name])

        return hook

    @torch.no_grad()
    def _hold(self) -> None:
        """Masked weights are zero, and so is their state."""
        for w in self.weights:
            mask = self.masks[w.name]
            w.parameter.mul_(mask)
            state = self.optimizer.state.get(w.parameter, {}) if self.optimizer is not None else {}
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == mask.shape and value.dim() > 0:
                    value.mul_(mask)
