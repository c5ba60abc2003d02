"""What a person should know of a refit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from emp_onnx.calibration.network import Network
from emp_onnx.errors import quote
from emp_onnx.refit.sequence import Fitted
from emp_onnx.weights.find import Weight

__all__ = ["notes"]

SOME = 4  # names that are listed


def notes(
    network: Network, blind: Sequence[Weight], done: Fitted, *, random: bool, feeds: int, held: float
) -> Iterator[str]:
    """Feeds that were made up, weights that were not refitted, layers that saw too few samples.

    Args:
        network: what could not be refitted, and why.
        blind: weights that were pruned by magnitude.
        done: what was fitted.
        random: whether the feeds were made up.
        feeds: how many were learnt from.
        held: share of the feeds that were kept back.
    """
    if random:
        yield (
            "NO FEEDS WERE GIVEN: the refit saw seeded random numbers, not data. Its figures say little; give --feeds."
        )
    if blind:
        some = ", ".join(quote(w.name) for w in blind[:SOME])
        some += f" and {len(blind) - SOME} more" if len(blind) > SOME else ""
        why = sorted({network.why.get(w.name, "no feed reaches it") for w in blind})
        yield f"Pruned by magnitude and not refitted ({'; '.join(why)}): {some}."
    if done.few:
        key, count, d = max(done.few, key=lambda item: item[2] / max(item[1], 1))
        needed = math.ceil(feeds * d / max(count, 1) / (1 - held))
        yield (
            f"{len(done.few)} of the layers have more inputs than samples, so ridge decides there "
            f"({quote(key)}: {count} samples, {d} inputs); {needed} feeds would do."
        )
