"""The verb `plan`: what is kept of every weight of a model, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from emp_core import ArgumentError
from emp_core.plans import Plan, Rule, decide
from emp_torch.criteria import Statistics, scores
from emp_torch.weights import find_weights, refuse_sums

__all__ = ["plan"]


def plan(
    model: nn.Module,
    /,
    *,
    beta: float | None = None,
    order: float = 2.0,
    sparsity: float | None = None,
    scope: str = "tensor",
    criterion: str | Mapping[str, Tensor] = "magnitude",
    statistics: Statistics | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_size: int = 1,
    embeddings: bool = False,
    threads: int | None = None,
) -> Plan:
    """Decide what is kept of every weight; the model is not changed. Equal inputs give an equal plan.

    Args:
        model: any module, on any device.
        beta: multiplier of the effective size (default 1).
        order, sparsity, scope: see `emp_core.plans.Rule`.
        criterion: a name from `scores`, or the scores themselves, by name of weight.
        statistics: from `calibrate`, for criteria that need them.
        include, exclude, min_size, embeddings: see `find_weights`.
        threads: most threads on the CPU.

    Returns:
        A plan; ``print`` shows it as a table.

    Raises:
        ArgumentError: an option out of its range, or nothing to prune.
        PoolError: a weight holds NaN or infinities; the message names it.

    >>> import torch
    >>> layer = nn.Linear(2, 2, bias=False)
    >>> layer.weight.data = torch.tensor([[4.0, -3.0], [0.5, 0.5]])
    >>> plan(layer).masks["weight"].tolist()
    [[True, True], [False, False]]
    """
    found = find_weights(model, include=include, exclude=exclude, min_size=min_size, embeddings=embeddings)
    if not found.weights:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.refusals[:4])
        raise ArgumentError(f"model must have something to prune, got {reasons or 'no weight that is known here'}")
    values = {w.name: w.value.detach() for w in found.weights}
    refuse_sums(values.items())
    given = scores(found.weights, criterion, statistics=statistics) if isinstance(criterion, str) else criterion
    if criterion != "magnitude":
        refuse_sums(((name, given[name]) for name in values if isinstance(given.get(name), Tensor)), "scores")
    return decide(
        values,
        Rule(1.0 if beta is None and sparsity is None else beta, order, sparsity, scope),
        scores=given,
        criterion=criterion if isinstance(criterion, str) else "given",
        axes={w.name: w.axis for w in found.weights},
        refusals=found.refusals,
        threads=threads,
    )
