"""Calibration statistics by themselves: sums that can be saved, merged (two runs, two machines), and scored with."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_core.criteria import obs, output_error, wanda
from emp_onnx.calibration.feeding import gather
from emp_onnx.calibration.network import Network
from emp_onnx.calibration.taking import Totals
from emp_onnx.errors import UsageError, quote
from emp_onnx.files.model_io import Model, load
from emp_onnx.files.whole import write_whole
from emp_onnx.progress import Watch
from emp_onnx.runtime.feeds import Feed
from emp_onnx.weights.find import find_weights

__all__ = ["Inputs", "Statistics", "calibrate"]

Float = NDArray[np.float64]
FORMAT = "effective_pruning.statistics 1"


@dataclass(frozen=True, eq=False)
class Inputs:
    """What goes into one linear map of a model: sums over samples, in float64.

    Attributes:
        keys: the weights that make up the map, side by side along their inputs.
        shape: (groups, outputs, inputs) of the map.
        count: samples.
        total: Σ x, (groups, inputs).
        squares: Σ x², (groups, inputs).
        second: Σ x xᵀ, (groups, inputs, inputs), or None where only norms were asked for.
        outputs: Σ y² of each output without its bias, (groups, outputs).
    """

    keys: tuple[str, ...]
    shape: tuple[int, int, int]
    count: int
    total: Float
    squares: Float
    second: Float | None
    outputs: Float

    @property
    def norms(self) -> Float:
        """‖x‖₂ of each input over the samples, (groups, inputs)."""
        return np.sqrt(self.squares)

    def merge(self, other: Inputs) -> Inputs:
        """The sums over both."""
        if (self.keys, self.shape, self.second is None) != (other.keys, other.shape, other.second is None):
            raise UsageError(f"statistics must be of the same model and kind to be merged, got others for {self.keys}")
        second = None if self.second is None or other.second is None else self.second + other.second
        return replace(
            self, count=self.count + other.count, total=self.total + other.total, squares=self.squares + other.squares,
            second=second, outputs=self.outputs + other.outputs,
        )  # fmt: skip

    def scores(self, criterion: str, weights: Float, /, *, ridge: float = 1e-2) -> Float:
        """Scores of the map's weights (groups, outputs, inputs): `wanda`, `obs`, or `error` (of the map's outputs, as a
        share of their energy, so that layers can be compared)."""
        if criterion == "wanda":
            return np.stack([wanda(w, x) for w, x in zip(weights, self.norms, strict=True)])
        if self.second is None:
            raise UsageError(f"criterion {quote(criterion)} must have second moments, got statistics with norms only")
        out = []
        for w, xx in zip(weights, self.second / max(self.count, 1), strict=True):
            mean = float(np.trace(xx)) / max(len(xx), 1)
            inverse = np.linalg.inv(xx + (ridge * mean if mean > 0 else 1.0) * np.eye(len(xx)))
            out.append(obs(w, np.diagonal(inverse)))
        found = np.stack(out)
        if criterion == "obs":
            return found
        if criterion == "error":
            return np.asarray(output_error(found, float(self.outputs.sum()) / max(self.count, 1)))
        raise UsageError(f"criterion must be one of wanda, obs, error, got {quote(criterion)}")


@dataclass(frozen=True, eq=False)
class Statistics:
    """The statistics of a model: one entry per linear map, in the order in which the network uses them.

    Attributes:
        inputs: the maps.
        feeds: how many feeds they come from.
        missing: weights without statistics, and why.
        random: whether the feeds were made up.
    """

    inputs: tuple[Inputs, ...]
    feeds: int
    missing: tuple[tuple[str, str], ...] = ()
    random: bool = False

    def merge(self, other: Statistics) -> Statistics:
        """The sums over the feeds of both.

        Raises:
            UsageError: they are of other models, or of another kind.
        """
        if len(self.inputs) != len(other.inputs):
            raise UsageError(
                f"statistics must be of the same model, got {len(self.inputs)} and {len(other.inputs)} maps"
            )
        merged = tuple(a.merge(b) for a, b in zip(self.inputs, other.inputs, strict=True))
        return Statistics(merged, self.feeds + other.feeds, self.missing, self.random or other.random)

    @property
    def norms_only(self) -> bool:
        """Whether there are no second moments."""
        return any(item.second is None for item in self.inputs)

    def digest(self) -> str:
        """A hash of all sums."""
        hashed = hashlib.sha256()
        for item in self.inputs:
            hashed.update(f"{item.keys} {item.shape} {item.count}".encode())
            for sums in (item.total, item.squares, item.outputs, item.second):
                if sums is not None:
                    hashed.update(np.ascontiguousarray(sums).data)
        return hashed.hexdigest()

    def save(self, path: str | os.PathLike[str], /) -> None:
        """Write them to an `.npz` file, complete or not at all."""
        arrays: dict[str, Any] = {}
        head = {
            "format": FORMAT, "feeds": self.feeds, "random": self.random,
            "missing": [list(item) for item in self.missing],
            "maps": [{"keys": list(i.keys), "shape": list(i.shape), "count": i.count} for i in self.inputs],
        }  # fmt: skip
        for i, item in enumerate(self.inputs):
            arrays |= {f"{i}.total": item.total, f"{i}.squares": item.squares, f"{i}.outputs": item.outputs}
            if item.second is not None:
                arrays[f"{i}.second"] = item.second
        out = io.BytesIO()
        np.savez(out, head=np.frombuffer(json.dumps(head).encode(), np.uint8), **arrays)
        write_whole(str(path), out.getvalue(), "statistics")

    @classmethod
    def load(cls, path: str | os.PathLike[str], /) -> Statistics:
        """Read them back.

        Raises:
            UsageError: no such file, or not one that `save` wrote.
        """
        try:
            with open(Path(path), "rb") as stream, np.load(stream, allow_pickle=False) as z:
                head = json.loads(z["head"].tobytes())
                if head["format"] != FORMAT:
                    raise ValueError(f"format {head['format']!r}")
                inputs = tuple(
                    Inputs(
                        tuple(said["keys"]), tuple(said["shape"]), said["count"], z[f"{i}.total"], z[f"{i}.squares"],
                        z[f"{i}.second"] if f"{i}.second" in z.files else None, z[f"{i}.outputs"],
                    )
                    for i, said in enumerate(head["maps"])
                )  # fmt: skip
                missing = tuple((str(a), str(b)) for a, b in head["missing"])
                return cls(inputs, int(head["feeds"]), missing, bool(head["random"]))
        except FileNotFoundError as error:
            raise UsageError(f"statistics must be a file, got {quote(path)}, which does not exist") from error
        except Exception as error:  # whatever a file that is something else leads to
            raise UsageError(f"statistics must be as written by `emp calibrate`, got {quote(path)}: {error}") from error


def calibrate(
    model: Model | str | os.PathLike[str],
    feeds: Iterable[Feed] | str | os.PathLike[str] | None = None,
    /,
    *,
    second: bool = True,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_size: int = 1,
    embeddings: bool = False,
    seed: int = 0,
    threads: int | None = None,
    watch: Watch | None = None,
) -> Statistics:
    """What goes into every weight of a model, over calibration feeds.

    The graph is run one level at a time, so activations never all coexist; sums are in float64.

    Args:
        model: a path, or a model from `load`.
        feeds: a path (see `read_feeds`) or feeds; seeded random ones if not given (`Statistics.random` says so).
        second: also second moments, which `obs` and `error` need; else norms only.
        include, exclude, min_size, embeddings: see `find_weights`.
        seed: of random feeds.
        threads: for onnxruntime.
        watch: told how far the work is.

    Raises:
        UsageError: feeds that do not fit. ModelError: NaN activations, with the node's name.
    """
    source = model if isinstance(model, Model) else load(model)
    chosen = {"include": include, "exclude": exclude, "min_size": min_size, "embeddings": embeddings}
    weights = find_weights(source, **chosen).weights  # type: ignore[arg-type]
    given, random = gather(source, feeds, seed, threads)
    network = Network(source, weights, given, threads)
    if watch is not None:
        watch.phase("calibrating", sum(4 * p.size for site in network.sites for p in site.problems))
    dense, found = network.runner(), list[Inputs]()
    for level in range(network.levels):
        dense.level(level, network.wanted(level))
        shared: dict[object, list[Totals]] = {}
        for site in network.at(level + 1):
            done = network.moments(site, dense, positions=False, shared=shared)
            for problem, (sums,) in zip(site.problems, done, strict=True):
                yy = np.zeros(0) if sums.yy is None else sums.yy
                squares = np.diagonal(sums.xx, axis1=1, axis2=2).copy()
                keys = tuple(key for key, _ in problem.parts)
                found.append(Inputs(keys, problem.shape, sums.count, sums.x, squares, sums.xx if second else None, yy))
                if watch is not None:
                    watch.add(4 * problem.size)
    return Statistics(tuple(found), len(given), tuple(sorted(network.why.items())), random)
