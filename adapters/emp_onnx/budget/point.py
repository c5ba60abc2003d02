"""What is asked for, and what was seen at one amount."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from emp_onnx.budget.doubt import doubt
from emp_onnx.calibration.outputs import agreement, moved, top1
from emp_onnx.errors import UsageError, quote
from emp_onnx.files.gzipped import gzipped
from emp_onnx.files.model_io import save
from emp_onnx.refit.fitting import Fitting, Thin

__all__ = ["Budget", "Point", "measure", "point_of"]

Says = Sequence[Sequence[NDArray[Any]]]
Score = Callable[[Path], float]
Seal = Callable[[Thin], Mapping[str, Any]]


@dataclass(frozen=True)
class Budget:
    """What may be lost, or must be reached; exactly one of drop, error and size.

    Attributes:
        drop: how far the accuracy (`Point.cost`), the agreement with the dense model, or the score, if there is one,
            may fall: 0.01 is one point.
        error: how large the relative error of the outputs may be.
        size: bytes that the file may have when gzipped.
        score: a function from a model file to a number, higher is better.
        drop_in: what the drop is of, where it is not of a score of one's own: `accuracy` (the default), answers that
            stay right, or `agreement`, answers that stay the same.
    """

    drop: float | None = None
    error: float | None = None
    size: int | None = None
    score: Score | None = None
    drop_in: str | None = None

    def __post_init__(self) -> None:
        given = [x for x in (self.drop, self.error, self.size) if x is not None]
        if len(given) != 1:
            raise UsageError(f"budget must be one of max_drop, max_error and target_size, got {len(given)} of them")
        if given[0] < 0:
            raise UsageError(f"budget must be ≥ 0, got {given[0]}")
        if self.drop is not None and self.drop >= 1 and self.score is None:
            raise UsageError(f"max_drop must be < 1, as 0.01 or 1%, got {self.drop}")
        if self.drop_in not in (None, "accuracy", "agreement"):
            raise UsageError(f"drop_in must be accuracy or agreement, got {quote(self.drop_in)}")
        if self.drop_in is not None and (self.drop is None or self.score is not None):
            raise UsageError(f"drop_in must come with max_drop, and without a metric, got {quote(self.drop_in)}")

    @property
    def most(self) -> float:
        """The largest `lost` that is within."""
        if self.size is not None:
            return self.size
        return (self.drop or self.error or 0.0) + 1e-12

    def lost(self, point: Point, dense: Point) -> float:
        """What a point loses, in the budget's own measure; the dense model's point is there to compare with."""
        if self.size is not None:
            assert point.size is not None
            return point.size
        if self.error is not None:
            return point.error
        if self.score is not None:
            assert point.score is not None
            assert dense.score is not None
            return dense.score - point.score
        if point.cost is not None and self.drop_in != "agreement":
            return point.cost
        # what was counted, and what that lets expect: few feeds are too coarse a count
        return 1 - min(point.agreement, 1.0 if point.expected is None else point.expected)


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
        cost: the accuracy to lose on other inputs, on the careful side (see `Doubt.bound`).
        mass: share of the original Σ|w| at the places that are kept.
        bound: share that the largest of as many would keep at least, tensor by tensor, going by N_eff alone.
        feeds: how many were kept back.
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
    feeds: int | None = None

    def worst(self, *others: Point) -> Point:
        """The same amount, with the worst that was seen on several kinds of feeds."""
        points = (self, *others)

        def of(pick: Callable[[list[float]], float], values: list[float | None]) -> float | None:
            known = [value for value in values if value is not None]
            return pick(known) if known else None

        return replace(
            self,
            agreement=min(p.agreement for p in points),
            error=max(p.error for p in points),
            expected=of(min, [p.expected for p in points]),
            cost=of(max, [p.cost for p in points]),
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def point_of(
    sparsity: float, one: Says, other: Says, score: float | None = None, size: int | None = None, *,
    handed: bool = False,
) -> Point:  # fmt: skip
    """What the answers of the dense model and of another one to the same feeds say.

    `handed`: a state is among them that the next step reads. A feed shows one step, but errors of the state add up from
    step to step: so the relative error itself must be as small as what may be lost.
    """
    found = doubt(one, other)
    expected = None if found is None else 1 - min(1.0, sum(found.changed))
    cost = None if found is None else found.bound
    same = agreement(one, other)
    if cost is not None and top1(one, other) is None:  # probabilities of one thing: on which side, and how far off
        cost = max(cost, 1 - same)
    error = moved(one, other)
    if handed:
        cost = max(cost or 0.0, min(1.0, error))
    return Point(
        sparsity, same, error, score, size, expected, cost, feeds=len(one)
    )  # fmt: skip


def measure(
    fitting: Fitting, thin: Thin, *, score: Score | None = None, size: bool = False, seal: Seal | None = None
) -> Point:
    """What a model is like, on the feeds that its fitting kept back; its file has the certificate that `seal` makes."""
    value = nbytes = None
    if score is not None or size:
        with tempfile.TemporaryDirectory(prefix="emp-") as folder:
            made = fitting.model.replaced(thin.changed, {} if seal is None else seal(thin))
            files = save(made, Path(folder) / "model.onnx")
            value = None if score is None else score(files[0])
            nbytes = sum(gzipped(file) for file in files) if size else None
    says = fitting.both(thin)
    return point_of(thin.sparsity, *says, value, nbytes, handed=bool(fitting.answers.states))
