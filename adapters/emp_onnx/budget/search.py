"""Finding the amount: the most sparsity that a budget allows, or the least that a size asks for."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emp_onnx.budget.doubt import doubt
from emp_onnx.calibration.outputs import agreement, moved
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
        accuracy: the drop is of the accuracy, as far as the dense model itself knows it (`Point.cost`), not of the
            agreement.
    """

    drop: float | None = None
    error: float | None = None
    size: int | None = None
    score: Callable[[Path], float] | None = None
    accuracy: bool = False

    def __post_init__(self) -> None:
        given = [x for x in (self.drop, self.error, self.size) if x is not None]
        if len(given) != 1:
            raise UsageError(f"budget must be one of max_drop, max_error and target_size, got {len(given)} of them")
        if given[0] < 0:
            raise UsageError(f"budget must be ≥ 0, got {given[0]}")
        if self.accuracy and (self.drop is None or self.score is not None):
            raise UsageError("drop_in must be 'agreement' without max_drop, or with a metric, got 'accuracy'")


@dataclass(frozen=True)
class Point:
    """What was seen at one amount, on feeds kept back.

    Attributes:
        sparsity: of all weights together.
        agreement: share of the answers that stayed the same.
        error: relative, of the outputs.
        score: one's own, if it was asked for.
        size: bytes of the file when gzipped, if they were.
        expected: the agreement to expect on other inputs, one standard error below the mean; None where the outputs are
            no class scores.
        cost: the accuracy that is lost, if the dense model is right as often as it says, one standard error above the
            mean.
        mass: share of the original Σ|w| at the places that are kept.
        bound: share that the largest of as many would keep at least, tensor by tensor, going by N_eff alone.
    """

    sparsity: float
    agreement: float
    error: float
    score: float | None = None
    size: int | None = None
    expected: float | None = None
    cost: float | None = None
    mass: float | None = None
    bound: float | None = None

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
    answers = fitting.both(thin)
    found = doubt(*answers)
    expected = None if found is None else 1 - min(1.0, sum(found.changed))
    cost = None if found is None else min(1.0, sum(found.cost))
    return Point(thin.sparsity, agreement(*answers), moved(*answers), value, nbytes, expected, cost)


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
        if budget.accuracy and point.cost is not None:
            return point.cost <= budget.drop
        # what was counted, and what that lets expect: few feeds are too coarse a count
        return min(point.agreement, 1.0 if point.expected is None else point.expected) >= 1 - budget.drop - 1e-12

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
