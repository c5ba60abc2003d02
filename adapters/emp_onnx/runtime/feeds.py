"""Calibration feeds: read from `.npz` files, or made up from a model's declared inputs."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emp_onnx.errors import UsageError, quote
from emp_onnx.runtime.npz import plain_arrays

__all__ = ["Feed", "Input", "check_feed", "random_feeds", "read_arrays", "read_feeds"]

Feed = Mapping[str, NDArray[Any]]

ENOUGH = 1 << 20  # numbers in one made-up feed, above which one feed must do
SOME = 4  # names that a message lists
MANY = 1 << 24  # and above which a size that the model leaves open is not tried

DTYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(bool)": "bool",
    **{f"tensor({kind}{bits})": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}  # fmt: skip


@dataclass(frozen=True)
class Input:
    """An input that a model declares: name, onnxruntime's type, and dims (number, symbol, or None for unknown)."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]

    @property
    def dtype(self) -> str | None:
        """The NumPy dtype, or None for what NumPy has no plain array of."""
        return DTYPES.get(self.type)


def read_feeds(path: str | os.PathLike[str], /, needed: Sequence[str] = ()) -> Iterator[dict[str, NDArray[Any]]]:
    """Feeds from a folder of `.npz` files (one feed each, in order of name), or from one `.npz` of samples, or from a
    folder of `.npy` files (one input each, named as the input; or for a model of one input one feed each, in order of
    name).

    Keys are input names. In a single `.npz`, and in `.npy` files that are named as inputs, every array has one more
    leading axis, the samples; such `.npy` files are read sample by sample.

    Args:
        path: of the folder or the file.
        needed: names of the inputs that a feed must give. If it is one, and no `.npy` file is named so, each is a feed.

    Raises:
        UsageError: nothing there, files of another kind, or arrays whose numbers of samples differ.
    """
    place = Path(path)
    if not place.is_dir():
        return _samples(read_arrays(place, "feeds"), place)
    names = sorted(os.listdir(place))  # names, not paths, which take long to compare
    files, columns = ([place / name for name in names if name.endswith(kind)] for kind in (".npz", ".npy"))
    if files and columns:
        raise UsageError(f"feeds must be a folder of .npz files, or of .npy files, got {quote(path)}, which has both")
    if len(needed) == 1 and columns and needed[0] not in {file.stem for file in columns}:
        return ({needed[0]: np.asarray(_column(file))} for file in columns)
    if columns:
        return _samples({file.stem: _column(file) for file in columns}, place)
    if not files:
        raise UsageError(f"feeds must be a folder of .npz or .npy files, got {quote(path)}, which holds none")
    return (read_arrays(file, "feeds") for file in files)


def _samples(arrays: dict[str, NDArray[Any]], path: Path) -> Iterator[dict[str, NDArray[Any]]]:
    counts = {name: len(array) if array.ndim else None for name, array in arrays.items()}
    if not counts or None in counts.values() or len(set(counts.values())) > 1:
        have = ", ".join(f"{quote(n)} with {'no axis' if c is None else c}" for n, c in counts.items())
        raise UsageError(f"feeds must hold arrays with equally many samples, got {have or 'none'} in {quote(path)}")
    count = next(iter(counts.values())) or 0
    if not count:
        raise UsageError(f"feeds must hold at least one sample, got 0 in {quote(path)}")
    return ({name: np.asarray(array[i]) for name, array in arrays.items()} for i in range(count))


def read_arrays(path: str | os.PathLike[str], what: str, /) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` file, which is said to be `what`.

    Raises:
        UsageError: no such file, or something else.
    """
    found = plain_arrays(path)
    if found is not None:
        return found
    try:
        # opened here, since np.load does not close what it cannot read
        with open(path, "rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.lib.npyio.NpzFile):
                return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError as error:
        kinds = "a folder or an .npz file" if what == "feeds" else "an .npz file"
        raise UsageError(f"{what} must be {kinds}, got {quote(path)}, which does not exist") from error
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise UsageError(f"{what} must be .npz files of plain arrays, got {quote(path)}: {_told(error)}") from error
    raise UsageError(f"{what} must be .npz files, got {quote(path)}, which is a single array")


def _told(error: Exception) -> str:
    """What is wrong with a file. NumPy takes what it does not know for pickled objects, and says how to load these."""
    return "it is cut short, or of another kind" if "pickle" in str(error) else str(error)


def _column(path: Path) -> NDArray[Any]:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"feeds must be .npy files of plain arrays, got {quote(path)}: {_told(error)}") from error


def check_feed(feed: Feed, inputs: Iterable[Input], which: int, optional: frozenset[str] = frozenset()) -> None:
    """Check one feed against what the model declares.

    Raises:
        UsageError: an input that is missing or unknown, or another dtype or shape; says which, expected, given.
    """
    declared = {item.name: item for item in inputs}
    here = f"feed {which}"
    for name in declared:
        if name not in feed and name not in optional:
            some = ", ".join(map(quote, list(feed)[:SOME])) or "nothing"
            more = f" and {len(feed) - SOME} more" if len(feed) > SOME else ""
            raise UsageError(f"{here} must hold the input {quote(name)}, got {some}{more}")
    for name, value in feed.items():
        if name not in declared:
            raise UsageError(
                f"{here} must hold inputs of the model, got {quote(name)}; they are: {', '.join(map(quote, declared))}"
            )
        item, array = declared[name], np.asarray(value)
        if item.dtype is not None and array.dtype != item.dtype:
            raise UsageError(f"{here} must hold {quote(name)} as {item.dtype}, got {array.dtype}")
        fits = len(array.shape) == len(item.shape) and all(
            not isinstance(want, int) or want == got for want, got in zip(item.shape, array.shape, strict=True)
        )
        if item.shape and not fits:
            want = ", ".join("?" if d is None else str(d) for d in item.shape)
            lacks = len(array.shape) == len(item.shape) - 1
            hint = "; the first axis of a single .npz and of .npy files counts samples" if lacks else ""
            raise UsageError(f"{here} must hold {quote(name)} of shape ({want}), got {tuple(array.shape)}{hint}")


def random_feeds(inputs: Iterable[Input], /, *, seed: int, count: int) -> Iterator[list[dict[str, NDArray[Any]]]]:
    """Attempts at `count` feeds each, to be tried in turn until the model runs on one: only it knows what fits.

    Sizes that the model leaves open are equal wherever the same symbol stands; floats are standard normal; masks are
    ones; whole numbers are small, and smaller from attempt to attempt, since most are indices. Large ones come singly.

    Raises:
        UsageError: an input of a type that cannot be made up (strings, sequences).
    """
    items = tuple(inputs)
    for item in items:
        if item.dtype is None:
            raise UsageError(f"input {quote(item.name)} is a {item.type}, and such values cannot be made up")
    open_ends = any(not isinstance(d, int) for item in items for d in item.shape)
    for high in (8, 2, 1) if any("int" in str(item.dtype) for item in items) else (8,):
        for size in (8, 64, 16, 32, 224, 1, 4, 128, 256, 512) if open_ends else (1,):
            for batch in (1, size) if open_ends and size > 1 else (1,):
                rng = np.random.default_rng(seed)
                numbers = sum(math.prod(_sizes(item, batch, size)) for item in items)
                if open_ends and numbers > MANY:
                    continue
                wanted = count if numbers <= ENOUGH else 1
                yield [{item.name: _made_up(item, rng, batch, size, high) for item in items} for _ in range(wanted)]


def _sizes(item: Input, batch: int, size: int) -> tuple[int, ...]:
    return tuple(
        d if isinstance(d, int) else batch if axis == 0 or (isinstance(d, str) and "batch" in d.lower()) else size
        for axis, d in enumerate(item.shape)
    )


def _made_up(item: Input, rng: np.random.Generator, batch: int, size: int, high: int) -> NDArray[Any]:
    shape = _sizes(item, batch, size)
    dtype, name = np.dtype(item.dtype), item.name.lower()
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if "mask" in name or dtype.kind == "b":
        return np.ones(shape, dtype)
    if "len" in name and len(shape) <= 1:
        return np.full(shape, min(size, np.iinfo(dtype).max), dtype)
    return rng.integers(0, high, shape).astype(dtype)
