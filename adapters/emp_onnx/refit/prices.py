"""What an error of a layer costs at the answers: how many of these to look at, and how far to believe them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

__all__ = ["COMMON", "enough", "steadied"]

FEW, ROWS = 16, 1280  # feeds that are looked at where each holds many answers, as a sequence does, if they hold so many
COMMON = 8  # answers that what layers have in common counts as much as


def enough(rows: Sequence[int], /) -> int:
    """How many feeds to look at, given how many answers each holds.

    All of them, unless fewer hold `ROWS` answers; never fewer than `FEW`.

    >>> enough([1] * 64), enough([300] * 64), enough([64] * 64)
    (64, 16, 20)
    """
    for i, total in enumerate(accumulate(rows), 1):
        if i >= FEW and total >= ROWS:
            return i
    return len(rows)


def steadied(costs: Sequence[float], rows: int, /) -> list[float]:
    """What it costs to get each layer wholly wrong, made safe against few answers.

    That is much the same for most layers. And costs come from the few answers that are near to another choice: where
    few are looked at, there may be none of these for one layer, and it seems to cost a hundredth of the next one. So
    its logarithm goes `COMMON` / (`rows` + `COMMON`) of the way to the mean over the layers. What costs nothing at all
    stays so, and so does what has no bounds.

    Args:
        costs: one per layer.
        rows: answers that they were measured on.

    >>> [round(cost, 3) for cost in steadied([1.0, 100.0, 0.0], 8)]
    [3.162, 31.623, 0.0]
    """
    logs = {i: math.log(cost) for i, cost in enumerate(costs) if 0 < cost < math.inf}
    mean, share = math.fsum(logs.values()) / max(len(logs), 1), COMMON / (rows + COMMON)
    return [math.exp(logs[i] + share * (mean - logs[i])) if i in logs else cost for i, cost in enumerate(costs)]
