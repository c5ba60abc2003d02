"""The verbs `pack` and `unpack`: a model in smaller forms, or in plain ones, checked before it takes its place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from emp_onnx.certificates.rule import KEY
from emp_onnx.errors import UsageError, quote
from emp_onnx.files.model_io import Model, load, save, unfused
from emp_onnx.files.names import default_out
from emp_onnx.files.whole import check_target, same_file
from emp_onnx.packing.check import Feeds, checked
from emp_onnx.packing.choose import REPLACEABLE, Row, choose
from emp_onnx.packing.places import Chosen
from emp_onnx.packing.rewrite import rewritten
from emp_onnx.progress import Watch
from emp_onnx.runtime.isolated import Isolated
from emp_onnx.verification.outcome import Verification, VerifyError
from emp_onnx.verification.running import weight_of, worth_running
from emp_onnx.words import MAKE_CONSTANT

__all__ = ["Packing", "pack", "unpack"]


@dataclass(frozen=True)
class Packing:
    """What `pack` or `unpack` did.

    Attributes:
        source: the model that was read, or None for one in memory.
        out: the file that was written.
        sidecars: files that belong to it.
        rows: a line per tensor of at least 1 KiB: form, bytes, and why.
        before, after: bytes on disk.
        verification: every check.
        notes: anything else a person should know.
    """

    source: Path | None
    out: Path
    sidecars: tuple[Path, ...]
    rows: tuple[Row, ...]
    before: int
    after: int
    verification: Verification
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "source": str(self.source) if self.source else None,
            "out": str(self.out),
            "sidecars": [str(file) for file in self.sidecars],
            "bytes": {"before": self.before, "after": self.after},
            "tensors": [asdict(row) for row in self.rows],
            "notes": list(self.notes),
            "verification": self.verification.to_dict(),
        }


def pack(
    model: Model | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    /,
    *,
    form: str = "auto",
    target: str = "onnxruntime",
    compact_indices: bool = False,
    values: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    in_place: bool = False,
    feeds: Feeds = None,
    seed: int = 0,
    threads: int | None = None,
    watch: Watch | None = None,
) -> Packing:
    """Store each tensor in the smallest form that the target runs. Nothing is lost: every bit comes back.

    Args:
        model: a path, or a model from `load`.
        out: where the result goes; `IN.packed.onnx` beside the input if not given. A file already there is replaced.
        form: auto, or dense, coo, packed: of these the smallest, and dense where that is smaller still.
        target: onnxruntime; onnxruntime-web (no sparse initializers); checker-strict (what `onnx.checker` accepts).
        compact_indices: in the coo form, indices of 16 or 32 bits: onnxruntime takes them, `onnx.checker` does not.
        values: float16 to round the values of float32 tensors to that type, which is LOSSY: outputs are compared and
            the difference is reported, not judged; a certificate no longer holds and is removed.
        include, exclude: patterns of names of tensors.
        in_place: replace the input.
        feeds: on which both are run: a folder of `.npz`, one `.npz`, or dicts of arrays. Without them models of up to
            256 MiB are run on made-up ones.
        seed: of the made-up feeds.
        threads: for onnxruntime, when the result is run.
        watch: told how far the work is, in bytes.

    Returns:
        The table and the checks.

    Raises:
        UsageError: an option out of its range, or a place that cannot be written to (OutputError).
        ModelError: not an ONNX model, or damaged.
        VerifyError: the result is not the same model; nothing was written.

    Example:
        >>> pack("missing.onnx")
        Traceback (most recent call last):
            ...
        emp_onnx.errors.ModelError: model must be an ONNX file, got 'missing.onnx', which does not exist
    """
    source = unfused(model if isinstance(model, Model) else load(model))
    given = feeds if feeds is None or isinstance(feeds, (str, os.PathLike)) else list(feeds)
    if compact_indices and target == "checker-strict":
        raise UsageError("compact_indices must come without the target checker-strict, which takes no such indices")
    if values not in (None, "float16"):
        raise UsageError(f"values must be float16, or not be given, got {quote(values)}")
    place = _target(source, out, in_place, "packed")
    run = _Run(given, seed, threads, watch)
    if watch is not None:
        total = sum(t.size * 4 for t in source.tensors.values())
        source.watch = watch.add
        watch.phase("looking", total)
    chosen, rows = choose(
        source,
        form=form,
        target=target,
        compact=compact_indices,
        half=values is not None,
        include=include,
        exclude=exclude,
    )
    notes = []
    if lossy := sum(item.half for item in chosen):
        notes.append(f"LOSSY: the values of {lossy} tensors were rounded to float16.")
        if KEY in source.metadata:
            notes.append("The certificate of the pruning no longer holds, and was removed.")
    if any(item.form.kind == "coo" and item.form.width != 64 for item in chosen):
        notes.append("onnx.checker does not accept indices of 32 bits; onnxruntime does.")
    if any(row.why == REPLACEABLE for row in rows):
        notes.append(MAKE_CONSTANT)
    done = _written(source, place, chosen, rows, notes, run)
    if form in ("dense", "coo") or done.after < done.before or not chosen:
        return done
    # what the target does not read is stored otherwise even where that takes more bytes
    if target != "onnxruntime" and any(item.tensor.storage == "sparse" for item in chosen):
        note = f"The file is larger than before: {target} reads no sparse initializers."
        return replace(done, notes=(*done.notes, note))
    rows = [replace(row, after=row.before, form=row.was, why="the file would not be smaller") for row in rows]
    return _written(source, place, [], rows, notes, run)


def unpack(
    model: Model | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    /,
    *,
    in_place: bool = False,
    feeds: Feeds = None,
    seed: int = 0,
    threads: int | None = None,
    watch: Watch | None = None,
) -> Packing:
    """Store every packed or sparse tensor as plain dense numbers again; for the rest as `pack`.

    Example:
        >>> unpack("missing.onnx")
        Traceback (most recent call last):
            ...
        emp_onnx.errors.ModelError: model must be an ONNX file, got 'missing.onnx', which does not exist
    """
    source = unfused(model if isinstance(model, Model) else load(model))
    place = _target(source, out, in_place, "unpacked")
    packed = frozenset(key for key, tensor in source.tensors.items() if tensor.recipe or tensor.storage == "sparse")
    chosen, rows = choose(source, form="dense", keys=packed)
    return _written(source, place, chosen, rows, [], _Run(feeds, seed, threads, watch))


def _target(source: Model, out: str | os.PathLike[str] | None, in_place: bool, word: str) -> Path:
    if in_place:
        if source.path is None or (out is not None and not same_file(out, source.path)):
            raise UsageError("in_place must come without another output, and with a model from a file")
        return source.path
    if out is None:
        if source.path is None:
            raise UsageError("out must be given for a model that came from no file")
        out = default_out(source.path, word)
    target = Path(out)
    if source.path is not None and same_file(target, source.path):
        raise UsageError(f"out must not be the input {quote(source.path)}; to replace that, ask for it with in_place")
    check_target(target, "out")
    return target


@dataclass(frozen=True)
class _Run:
    """How the result is run, and who is told of the work."""

    feeds: Feeds
    seed: int
    threads: int | None
    watch: Watch | None


def _written(
    source: Model, target: Path, chosen: Sequence[Chosen], rows: Sequence[Row], notes: Sequence[str], run: _Run
) -> Packing:
    before, watch = weight_of(source), run.watch
    result: list[Verification] = []
    with Isolated(threads=run.threads) as process:
        if worth_running(source, run.feeds):
            process.start()  # it gets ready while the result is written

        def check(temporary: Path) -> None:
            if watch is not None:
                watch.phase("checking", sum(2 * row.before for row in rows))
            done = checked(load(temporary), source, chosen, temporary, process, run.feeds, run.seed)
            if not done.ok:
                raise VerifyError(f"verification failed, nothing was written: {'; '.join(done.faults[:5])}", done)
            result.append(done)

        if watch is not None:
            watch.phase("writing", sum(row.before for row in rows))
        changed = source.replaced({}, {KEY: None}) if any(item.half for item in chosen) else source
        files = save(rewritten(changed, chosen) if chosen else source, target, check=check)
    after = sum(file.stat().st_size for file in files)
    return Packing(source.path, target, files[1:], tuple(rows), before, after, result[0], tuple(notes))
