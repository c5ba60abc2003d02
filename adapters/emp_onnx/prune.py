"""All of it: load, find_weights, plan, apply, verify, save."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emp_onnx.apply import applied, decided
from emp_onnx.certificates.rule import KEY
from emp_onnx.decide import decide, watched
from emp_onnx.errors import ModelError, PlanError, UsageError, quote
from emp_onnx.figures import Rule
from emp_onnx.files.again import load_again
from emp_onnx.files.gzipped import gzipped
from emp_onnx.files.model_io import Model, load, save
from emp_onnx.files.names import default_out
from emp_onnx.files.whole import check_target, same_file
from emp_onnx.packing.choose import choose
from emp_onnx.packing.rewrite import rewritten
from emp_onnx.plan import Plan
from emp_onnx.progress import Watch
from emp_onnx.runtime.feeds import Feed
from emp_onnx.runtime.isolated import Isolated
from emp_onnx.verification.outcome import Verification, VerifyError
from emp_onnx.verification.running import begin, load_ahead, many_nodes
from emp_onnx.verification.written import verify_written
from emp_onnx.weights.find import NOTHING, Refusal, find_weights

GZIPPED = 1 << 26  # bytes up to which the size under gzip is measured: it takes longer than all else

__all__ = ["Report", "Sizes", "nothing_to_prune", "prune"]


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model with its sidecar files, as they are and as gzip would leave them (None: not measured)."""

    plain: int
    gzipped: int | None


@dataclass(frozen=True)
class Report:
    """What `prune` did.

    Attributes:
        source: the model that was read, or None for one in memory.
        out: the file that was written.
        sidecars: files with weights that belong to `out`.
        plan: what was kept, and what was refused.
        verification: every check, and the behaviour on the feeds.
        before, after: bytes on disk.
        notes: anything else a person should know.
    """

    source: Path | None
    out: Path
    sidecars: tuple[Path, ...]
    plan: Plan
    verification: Verification
    before: Sizes
    after: Sizes
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "source": str(self.source) if self.source else None,
            "out": str(self.out),
            "sidecars": [str(file) for file in self.sidecars],
            "total": {
                **asdict(self.plan.total),
                "density": self.plan.total.density,
                "sparsity": self.plan.total.sparsity,
            },
            "bytes": {"before": asdict(self.before), "after": asdict(self.after)},
            "notes": list(self.notes),
            "verification": self.verification.to_dict(),
            "plan": self.plan.to_dict(),
        }


def prune(
    model: Model | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    /,
    *,
    beta: float | None = None,
    order: float = 2.0,
    sparsity: float | None = None,
    scope: str = "tensor",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_size: int = 1,
    embeddings: bool = False,
    plan: Plan | None = None,
    feeds: Iterable[Feed] | str | os.PathLike[str] | None = None,
    seed: int = 0,
    in_place: bool = False,
    threads: int | None = None,
    gzip: bool = True,
    pack: str | None = None,
    target: str = "onnxruntime",
    watch: Watch | None = None,
) -> Report:
    """Prune a model: load, find its weights, plan, apply, verify, save.

    The result is verified as the file it will be, before it takes its place: if anything fails, nothing is left behind.

    Args:
        model: a path, or a model from `load`.
        out: where the result goes; `IN.pruned.onnx` beside the input if not given. A file already there is replaced.
        beta: multiplier of the effective size, default 1: the rule itself, nothing to choose.
        order, sparsity, scope: see `Rule`.
        include, exclude, min_size, embeddings: see `find_weights`.
        plan: a plan made before; then no option above may be given.
        feeds: for the comparison of outputs: a path (see `read_feeds`) or feeds; seeded random ones if not given.
        seed: of the random feeds.
        in_place: replace the input. Without it, an `out` that is the input is refused.
        threads: how many to use; the result is the same for any number.
        gzip: also measure the size that gzip would leave (of models up to 64 MiB: it takes longer than all else).
        pack, target: also store the result in the smallest forms, as `emp_onnx.pack` does with `form` and `target`.
            Without it, weights that were packed are packed again, and others stay dense.
        watch: told how far the work is, in bytes.

    Returns:
        The report.

    Raises:
        UsageError: an option out of its range, a pattern that matches nothing, feeds that do not fit, a plan made for
            another model (PlanError), a place that cannot be written to (OutputError).
        ModelError: not an ONNX model, damaged, or without anything that can be pruned (the message gives the reasons).
        VerifyError: the result failed verification; nothing was written.

    Example:
        >>> prune("missing.onnx")
        Traceback (most recent call last):
            ...
        emp_onnx.errors.ModelError: model must be an ONNX file, got 'missing.onnx', which does not exist
    """
    with Isolated(threads=threads) as process:
        if not isinstance(model, Model):
            begin(process, model)
        source = model if isinstance(model, Model) else load(model)
        place = _target(source, out, in_place)
        if many_nodes(source):
            load_ahead(process, source.path, source, feeds)
        if plan is None:
            rule = Rule(1.0 if beta is None and sparsity is None else beta, order, sparsity, scope)
            found = find_weights(source, include=include, exclude=exclude, min_size=min_size, embeddings=embeddings)
            weighed = watched(source, watch, "counting", 1, found.weights)
            if found.weights and not many_nodes(source):
                load_ahead(process, source.path, source, feeds)  # while the weights are counted
            decision = decide(source, found.weights, rule, refusals=found.refusals, threads=threads)
            made = decision.plan
            if not made.entries:
                raise nothing_to_prune(source, made.refusals)
        else:
            chosen = (beta, sparsity, order, scope, *include, *exclude, min_size, embeddings)
            if chosen != (None, None, 2.0, "tensor", 1, False):
                raise UsageError(
                    "plan must come alone, got other options of the rule or of the choice of weights with it"
                )
            made = plan
            if not made.entries:
                raise PlanError("plan must name at least one weight, got none")
            planned = [source.tensors[entry.name] for entry in plan.entries if entry.name in source.tensors]
            weighed = watched(source, watch, "counting", 2, planned)
            decision = decided(source, plan, threads=threads)
        changed = _packed(applied(source, made, decision), pack, target)
        old = [source.path, *source.sidecars().values()] if source.path else []
        result: list[tuple[Verification, Sizes, Sizes]] = []

        def check(temporary: Path) -> None:
            load_ahead(process, temporary, source, feeds)
            written = load_again(temporary, source, frozenset(decision.kept))
            written.read_disk()
            new = [temporary, *written.sidecars().values()]
            if watch is not None:
                watch.phase("checking", 2 * weighed)
                written.watch = source.watch
            with ThreadPoolExecutor(1) as beside:
                sizes = beside.submit(lambda: (_sizes(old, gzip), _sizes(new, gzip)))
                done = verify_written(
                    written, source, decision, feeds=feeds, seed=seed, threads=threads, process=process
                )
            if not done.ok:
                raise VerifyError(f"verification failed, nothing was written: {'; '.join(done.faults[:5])}", done)
            result.append((done, *sizes.result()))

        notes = _notes(source, made, place, in_place)
        if watch is not None:
            watch.phase("writing", weighed)
        files = save(changed, place, check=check)
        return Report(source.path, place, files[1:], made, *result[0], notes)


def nothing_to_prune(model: Model, refusals: Sequence[Refusal]) -> UsageError | ModelError:
    """The error for a model in which nothing can be pruned, with the reasons counted."""
    counts = Counter(refusal.reason for refusal in refusals)
    reasons = "; ".join(f"{count} × {reason}" for reason, count in counts.most_common(4))
    if any(refusal.code == "option" for refusal in refusals):
        return UsageError(
            f"include, exclude and min_size must leave something to prune in {model.origin}, got: {reasons}"
        )
    return ModelError(f"nothing in {model.origin} can be pruned: {reasons or NOTHING}")


def _packed(changed: Model, pack: str | None, target: str) -> Model:
    """The model with its new values in the forms asked for; what was packed is packed again."""
    again = frozenset(key for key in changed.patches if changed.tensors[key].recipe)
    if pack is None and not again:
        return changed
    chosen, _ = choose(changed, form=pack or "packed", target=target, keys=None if pack else again)
    known = {item.tensor.key for item in chosen}
    if pack and again - known:
        chosen += choose(changed, form="packed", target=target, keys=again - known)[0]
    return rewritten(changed, chosen)


def _target(source: Model, out: str | os.PathLike[str] | None, in_place: bool) -> Path:
    if in_place:
        if source.path is None or (out is not None and not same_file(out, source.path)):
            raise UsageError("in_place must come without another output, and with a model from a file")
        return source.path
    if out is None and source.path is None:
        raise UsageError("out must be given for a model that came from no file")
    target = Path(out) if out is not None else default_out(source.path or Path(), "pruned")
    if source.path is not None and same_file(target, source.path):
        raise UsageError(f"out must not be the input {quote(source.path)}; to replace that, ask for it with in_place")
    check_target(target, "out")
    return target


def _notes(source: Model, plan: Plan, target: Path, in_place: bool) -> tuple[str, ...]:
    notes = []
    if KEY in source.metadata:
        notes.append(
            "The input carried a certificate of an earlier pruning. It is replaced; the new figures are relative to it."
        )
    if plan.total.k == plan.total.n:
        notes.append("NOTHING WAS PRUNED: the rule keeps every weight of this model.")
    if empty := [entry.name for entry in plan.entries if entry.k == 0]:
        some = ", ".join(map(quote, empty[:5])) + (" and more" if len(empty) > 5 else "")
        notes.append(f"Nothing is left of {len(empty)} weights, since others in the common pool are larger: {some}.")
    if in_place and (sidecars := source.sidecars()):
        some = ", ".join(quote(name) for name in sidecars)
        notes.append(f"The model no longer uses {some}; delete that if nothing else does.")
    return tuple(notes)


def _sizes(files: Sequence[Path], gzip: bool) -> Sizes:
    plain = sum(file.stat().st_size for file in files)
    return Sizes(plain, sum(map(gzipped, files)) if gzip and plain <= GZIPPED else None)
