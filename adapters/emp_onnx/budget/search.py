"""Finding the amount: the most sparsity that a budget allows, or the least that a size asks for."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emp_onnx.errors import UsageError
from emp_onnx.files.model_io import save
from emp_onnx.refit.fitting import Fitting, Thin

__all__ = ["Budget", "Point", "Tried", "measure", "search"]

MOST = 0.98  # sparsity beyond which no search goes
TRIES = 7


@dataclass(frozen=True)
class Budget:
    """What may be lost, or must be reached; exactly one of drop, error and size, or none of them with a score.

    Attributes:
        drop: how far the agreement with the dense model (or the score, if there is one) may fall: 0.01 is one point.
        error: how large the relative error of the outputs may be.
        size: bytes that the file may have when gzipped.
        score: a function from a model file to a number, higher is better.
    """

    drop: float | None = None
    error: float | None = None
    size: int | None = None
    score: Callable[[Path], float] | None = None

    def __post_init__(self) -> None:
        given = [x for x in (self.drop, self.error, self.size) if x is not None]
        if len(given) != 1:
            raise UsageError(f"budget must be one of max_drop, max_error and target_size, got {len(given)} of them")
        if given[0] < 0:
            raise UsageError(f"budget must be ≥ 0, got {given[0]}")


@dataclass(frozen=True)
class Point:
    """What was seen at one amount: sparsity, the agreement and relative error of the outputs on feeds kept back, the
    score if one was asked for, and the bytes of the file when gzipped if they were."""

    sparsity: float
    agreement: float
    error: float
    score: float | None = None
    size: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Tried:
    """The outcome: the model found, what was seen there, and all that was seen, by sparsity."""

    thin: Thin
    point: Point
    curve: tuple[Point, ...]
    within: bool


def measure(fitting: Fitting, thin: Thin, *, score: Callable[[Path], float] | None = None, size: bool = False) -> Point:
    """What the model is like."""
    value = nbytes = None
    if score is not None or size:
        with tempfile.TemporaryDirectory(prefix="emp-") as folder:
            files = save(fitting.model.replaced(thin.changed, {}), Path(folder) / "model.onnx")
            value = None if score is None else score(files[0])
            nbytes = sum(_gzipped(file) for file in files) if size else None
    return Point(thin.sparsity, fitting.agreement(thin), fitting.moved(thin), value, nbytes)


def search(
    fitting: Fitting, budget: Budget, *, how: str = "error", criterion: str = "obs", update: bool = True
) -> Tried:
    """The most sparsity within the budget (of a size: the least that is small enough), by halving; what is returned was
    itself measured and is within the budget, or `within` is False and it is as near as can be."""
    seen: dict[int, tuple[Thin, Point]] = {}
    sized = budget.size is not None

    def look(keep: int) -> tuple[Thin, Point]:
        if keep not in seen:
            thin = fitting.thin(keep, how=how, criterion=criterion, update=update)
            seen[keep] = thin, measure(fitting, thin, score=budget.score, size=sized)
        return seen[keep]

    dense = Thin({}, fitting.thin_masks())
    first = measure(fitting, dense, score=budget.score, size=sized)

    def holds(point: Point) -> bool:
        if budget.size is not None:
            return point.size is not None and point.size <= budget.size
        if budget.error is not None:
            return point.error <= budget.error
        assert budget.drop is not None
        if budget.score is not None:
            assert first.score is not None
            assert point.score is not None
            return point.score >= first.score - budget.drop - 1e-12
        return point.agreement >= 1 - budget.drop - 1e-12

    n = fitting.total
    fewest, most = max(1, round(n * (1 - MOST))), n
    best: tuple[Thin, Point] | None = (dense, first) if holds(first) else None
    if sized:
        if best is None:
            low, high = fewest, most  # low: small enough, high: too large
            found = look(low)
            best = found if holds(found[1]) else None
            for _ in range(TRIES if best else 0):
                middle = (low + high) // 2
                found = look(middle)
                if holds(found[1]):
                    low, best = middle, found
                else:
                    high = middle
            if best is None:
                best = found
    elif best is not None:
        low, high = fewest, most  # low: too far, as far as is known; high: within the budget
        for _ in range(TRIES):
            middle = (low + high) // 2
            found = look(middle)
            if holds(found[1]):
                high, best = middle, found
            else:
                low = middle
    if best is None:
        best = dense, first
    curve = sorted([first, *(point for _, point in seen.values())], key=lambda point: point.sparsity)
    return Tried(best[0], best[1], tuple(curve), holds(best[1]))


def _gzipped(file: Path) -> int:
    packer, size = zlib.compressobj(6, wbits=31), 0
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            size += len(packer.compress(chunk))
    return size + len(packer.flush())
