"""Gradual pruning as a callback for trainers in the manner of Lightning, which is not imported."""

from __future__ import annotations

from typing import Any

from emp_core import ArgumentError
from emp_torch.gradual import GradualPruner

__all__ = ["GradualPruning"]


class GradualPruning:
    """``Trainer(callbacks=[GradualPruning(sparsity=0.9, begin=500, steps=20, every=100)])``.

    Takes the options of `GradualPruner`; model and optimizer are the trainer's. The hooks that it does not use do
    nothing.

    Args:
        part: dotted name of the module to prune, within the one that is trained; all of it if empty.
    """

    def __init__(self, part: str = "", /, **options: Any) -> None:
        self.part, self.options = part, options
        self.pruner: GradualPruner | None = None
        self._state: dict[str, Any] | None = None

    @property
    def state_key(self) -> str:
        """The name of this callback in checkpoints."""
        return f"{type(self).__name__}{{{self.part}}}"

    @property
    def _legacy_state_key(self) -> type:
        """Under which Lightning also looks for its state when training goes on from a checkpoint."""
        return type(self)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Take hold of the model and of its one optimizer."""
        optimizers = list(trainer.optimizers)
        if len(optimizers) != 1:
            raise ArgumentError(f"trainer must have one optimizer, got {len(optimizers)}")
        self.pruner = GradualPruner(
            module.get_submodule(self.part) if self.part else module, optimizers[0], **self.options
        )
        if self._state is not None:
            self.pruner.load_state_dict(self._state)
            self._state = None

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """One step."""
        if self.pruner is not None and not self.pruner.finished:
            steps = getattr(trainer, "global_step", None)
            if steps is None or steps > self.pruner.steps_done:  # a batch that only accumulates is no step
                self.pruner.step()

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Fix the masks."""
        if self.pruner is not None:
            self.pruner.finish()

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return self.pruner.state_dict() if self.pruner is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint; taken up when training starts."""
        self._state = dict(state) if state else None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_") or name in ("setup", "teardown"):
            return _nothing
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


def _nothing(*_: Any, **__: Any) -> None:
    """A hook that is not used."""
