"""Check a pruned model: by its certificate alone, against the original, and both on the same feeds."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emp_onnx.certificate import (
    KEY,
    Certificate,
    bounded,
    contradictions,
    is_refitted,
    miscounted,
    read_certificate,
    wrong_bounds,
    wrong_bounds_each,
)
from emp_onnx.errors import ModelError, UsageError, quote
from emp_onnx.figures import Figures
from emp_onnx.files.model_io import Model, load, unfused
from emp_onnx.files.rest import same_outside
from emp_onnx.plan import Decision, decide
from emp_onnx.runtime.compare import Behaviour, NotRunError, Run, compare_runs, runs_of
from emp_onnx.runtime.feeds import Feed, read_feeds
from emp_onnx.runtime.isolated import Here, Isolated
from emp_onnx.weights.find import Weight, find_weights
from emp_onnx.weights.kept import Kept, Pruned
from emp_onnx.weights.look import Seen, look, look_each

__all__ = [
    "Check",
    "Verification",
    "alone",
    "begin",
    "load_ahead",
    "many_nodes",
    "run_both",
    "verify",
    "verify_written",
    "weight_of",
    "worth_running",
]

NEAR = 1e-6
EQUAL = "kept weights are bit-equal, removed ones zero"
MANY = 4096  # nodes from which graphs are run as they stand
SOME = 1 << 17  # bytes of the smallest graph with so many nodes
RUN = 1 << 28  # bytes up to which models are run without being asked: onnxruntime holds both in memory


@dataclass(frozen=True)
class Check:
    """One thing checked: what, whether it holds, and if not, in what it fails."""

    what: str
    ok: bool
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verification:
    """The outcome.

    Attributes:
        checks: everything checked.
        behaviour: both models on the same feeds, or None when they were not run.
        not_run: why they were not run, else empty.
    """

    checks: tuple[Check, ...]
    behaviour: Behaviour | None = None
    not_run: str = ""

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    @property
    def faults(self) -> tuple[str, ...]:
        """Every fault found, as sentences."""
        return tuple(fault for check in self.checks for fault in check.faults)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"ok": self.ok, **asdict(self)}


def verify(
    pruned: Model | str | os.PathLike[str],
    original: Model | str | os.PathLike[str] | None = None,
    /,
    *,
    feeds: Iterable[Feed] | str | os.PathLike[str] | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> Verification:
    """Check a pruned model.

    Alone: the certificate is whole; every weight has its certified shape, zeros, kept values and positions; the figures
    are possible, the bounds are those of n, N_eff and k, the count is the rule's. (Under scope `row` the bounds of the
    single rows are not stored; they are recomputed with the original.)

    With the original, also: the rule gives the same figures and masks there; kept weights are bit-equal, removed ones
    +0.0; nothing else in the file differs; and both are run in onnxruntime on `feeds` (a path, or feeds themselves), or
    on seeded random ones (models of more than 256 MiB only on feeds given: onnxruntime holds them in memory). How
    far outputs moved is reported, not judged; a pruned model that fails, or gives NaN or infinities where the
    original does not, is a fault.

    Raises:
        ModelError: a file that is not a readable ONNX model.
        UsageError: feeds that do not fit, or feeds without an original.
    """
    if original is None and feeds is not None:
        raise UsageError("feeds must come with the original model to compare with, got none")
    model = unfused(pruned if isinstance(pruned, Model) else load(pruned))
    source = load(original) if isinstance(original, (str, os.PathLike)) else original
    with Isolated(threads=threads) as process:
        if source is not None:
            for one in (source, model):
                load_ahead(process, one.path, source, feeds)
        if is_refitted(model):
            from emp_onnx.refit.certificate import refit_checks

            checks = list(refit_checks(model, source))
            if source is None:
                return Verification(tuple(checks), None, "there is no original to compare with")
            return run_both(model, source, checks, process, feeds=feeds, seed=seed, threads=threads)
        first, certificate = alone(model)
        checks = list(first)
        if source is None or certificate is None:
            return Verification(tuple(checks), None, "there is no original to compare with" if source is None else "")
        kept = None
        try:
            kept, check = _again(source, certificate, threads)
            checks.append(check)
        except ModelError as error:
            checks.append(Check("the rule gives the same on the original", False, (str(error),)))
        if kept is not None:
            checks.append(_check(EQUAL, _bits(model, source, kept)))
            checks.append(_check("nothing else differs", _rest(model, source, frozenset(kept))))
        return run_both(model, source, checks, process, feeds=feeds, seed=seed, threads=threads)


def verify_written(
    pruned: Model,
    original: Model,
    decision: Decision,
    /,
    *,
    feeds: Iterable[Feed] | str | os.PathLike[str] | None = None,
    seed: int = 0,
    threads: int | None = None,
    process: Isolated | None = None,
) -> Verification:
    """`verify` for a file just written from the original by this decision: each weight is read once, beside the
    original's.

    The certified hashes are those of the bytes handed to the file; that these bytes are there is seen by comparing
    every one with what the decision makes of the original, so they are not hashed again. Where nothing outside the
    weights differs, the file's weights are found where the original's were.
    """
    if process is not None and original.path is not None and many_nodes(original):
        process.wait(original.path)  # three at a time on two processors would hold up the one that takes longest
    try:
        certificate = read_certificate(pruned)
    except UsageError as error:
        return Verification((Check("the certificate is whole", False, (str(error),)),))
    names = frozenset(decision.kept)
    pruned.unpack_like(original, names & pruned.tensors.keys())
    rest = _check("nothing else differs", _rest(pruned, original, names))
    found = decision.weights if rest.ok else {w.name: w for w in find_weights(pruned, embeddings=True).weights}
    differing: list[str] = []
    patches = {name: Pruned(decision.weights[name], kept) for name, kept in decision.kept.items()}
    known = (
        look_each(pruned, original, [patches[name] for name in certificate.weights if name in names]) if rest.ok else {}
    )

    def see(weight: Weight) -> Seen:
        patch = patches[weight.name]
        seen = known.get(weight.name) or look(pruned, weight, sums=False, original=original, patch=patch)
        differing.extend(_differences(weight.name, patch, seen))
        return seen

    certified = list(_examined(certificate, {name: found[name] for name in found if name in names}, see))
    if certificate.weights.keys() != names:
        certified.append("the certificate names other weights than were pruned")
    checks = [Check("the certificate is whole", True), _check("weights and figures are as certified", certified)]
    if certificate.rule.scope == "model":
        checks.append(_check("the common pool's figures are as certified", _pool(certificate)))
    done = [*checks, _check(EQUAL, differing), rest]
    return run_both(pruned, original, done, process, feeds=feeds, seed=seed, threads=threads)


def run_both(
    pruned: Model,
    original: Model,
    done: list[Check],
    process: Isolated | Here | None,
    /,
    *,
    feeds: Iterable[Feed] | str | os.PathLike[str] | None,
    seed: int,
    threads: int | None,
) -> Verification:
    """Both on the same feeds, after all other checks."""
    behaviour, not_run = None, ""
    if not worth_running(original, feeds):
        size = weight_of(original)
        why = f"{size / 2**20:.0f} MiB are more than the {RUN >> 20} MiB up to which models are run unasked; give feeds"
        return Verification(tuple(done), None, why)
    read = read_feeds(feeds, original.needed) if isinstance(feeds, (str, os.PathLike)) else feeds
    what = "the pruned model runs where the original does"
    with process or Isolated(threads=threads) as sessions:
        try:
            before = sessions.open(original.path or original, plain=many_nodes(original))
        except NotRunError as error:
            if feeds is not None:
                raise UsageError(f"feeds must come with a model that runs: {error}") from error
            return Verification(tuple(done), None, str(error))
        # made-up feeds run while the pruned model still loads, where that is another process: a crash in the same one
        # could be either's
        runs: Iterable[Run] | None = None
        try:
            runs = runs_of(before, read, seed=seed) if many_nodes(original) else None
        except NotRunError as error:
            not_run = str(error)
        try:
            after = sessions.open(pruned.path or pruned, plain=many_nodes(original))
        except NotRunError as error:
            return Verification((*done, Check(what, False, (f"the pruned model: {error}",))), None, str(error))
        if not_run:
            return Verification(tuple(done), None, not_run)
        try:
            runs = runs_of(before, read, seed=seed) if runs is None else runs
            behaviour = compare_runs(runs, before.outputs, after, random=read is None)
            done.append(_check(what, behaviour.problems))
        except NotRunError as error:
            not_run = str(error)
    return Verification(tuple(done), behaviour, not_run)


def weight_of(model: Model, /) -> int:
    """Bytes of a model and its sidecar files."""
    return model.source.size + sum(file.stat().st_size for file in set(model.sidecars().values()))


def worth_running(original: Model, feeds: object, /) -> bool:
    """Whether both models are to be run: on feeds given always, on made-up ones if they are not too large."""
    return feeds is not None or weight_of(original) <= RUN


def many_nodes(model: Model, /) -> bool:
    """Whether a model is so long that onnxruntime would take longer to optimise it than to run it."""
    return len(model.graph.nodes) > MANY


def begin(process: Isolated, path: str | os.PathLike[str], /) -> None:
    """Let a process for onnxruntime begin before anything is known of a model but that it may take long to load."""
    with suppress(OSError):  # there is no such file: whoever reads it says so
        if SOME <= os.path.getsize(path) <= RUN:
            process.start()


def load_ahead(process: Isolated, path: Path | None, original: Model, feeds: object, /) -> None:
    """Let onnxruntime begin with a file that will be run; what else is to be done here goes on at the same time."""
    if path is not None and worth_running(original, feeds):
        process.start(plain=many_nodes(original))
        process.ahead(path, plain=many_nodes(original))


def alone(model: Model, /) -> tuple[tuple[Check, ...], Certificate | None]:
    """What can be checked of a pruned model by itself, and its certificate if that is whole."""
    try:
        certificate = read_certificate(model)
    except UsageError as error:
        return (Check("the certificate is whole", False, (str(error),)),), None
    known = {weight.name: weight for weight in find_weights(model, embeddings=True).weights}
    faults = _examined(certificate, known, lambda weight: look(model, weight, digest=True))
    checks = [Check("the certificate is whole", True), _check("weights and figures are as certified", faults)]
    if certificate.rule.scope == "model":
        checks.append(_check("the common pool's figures are as certified", _pool(certificate)))
    return tuple(checks), certificate


def _examined(certificate: Certificate, known: Mapping[str, Weight], see: Callable[[Weight], Seen], /) -> Iterator[str]:
    """What is wrong with the certified weights, after a look at each."""
    figures = [(name, said) for name, said in certificate.weights.items() if bounded(certificate, said)]
    for (name, _), faults in zip(figures, wrong_bounds_each([said for _, said in figures]), strict=True):
        yield from (f"weight {quote(name)} {fault}" for fault in faults)
    for name in certificate.weights:
        weight = known.get(name)
        if weight is None:
            yield f"weight {quote(name)} is certified, but not among the model's weights"
            continue
        try:
            with np.errstate(all="ignore"):  # whatever someone wrote there, infinities and NaN too
                found = list(contradictions(certificate, weight, see(weight)))
            yield from (f"weight {quote(name)} {fault}" for fault in found)
        except (ModelError, ValueError, ArithmeticError) as error:
            yield f"weight {quote(name)} cannot be checked: {error}"


def _pool(certificate: Certificate) -> Iterator[str]:
    pool, weights = certificate.pool, certificate.weights.values()
    if pool is None:
        if certificate.weights:
            yield "the certificate must hold the figures of the common pool, and does not"
        return
    if (pool.n, pool.k) != (sum(w.n for w in weights), sum(w.k for w in weights)):
        yield f"the common pool keeps {pool.k} of {pool.n}, its weights together something else"
    l1 = math.fsum(w.l1 for w in weights)
    squares = math.fsum(w.l1**2 / w.n_eff for w in weights)
    rule_order_2 = certificate.rule.order == 2 or certificate.rule.sparsity is not None
    if rule_order_2 and not math.isclose(pool.n_eff, l1**2 / squares, rel_tol=NEAR):
        yield f"the common pool has an effective size of {pool.n_eff:.9g}, its weights give {l1**2 / squares:.9g}"
    if not math.isclose(pool.mass, math.fsum(w.mass * w.l1 for w in weights) / l1, rel_tol=NEAR):
        yield f"the common pool has a retained mass of {pool.mass:.9g}, its weights give another"
    if rule_order_2:
        yield from (f"the common pool {fault}" for fault in wrong_bounds(pool))
    yield from (f"the common pool {fault}" for fault in miscounted(certificate.rule, pool))


def _again(original: Model, certificate: Certificate, threads: int | None) -> tuple[dict[str, Kept] | None, Check]:
    """The certificate's rule applied to the original, and whether that gives the certificate's figures."""
    what = "the rule gives the same on the original"
    known = {weight.name: weight for weight in find_weights(original, embeddings=True).weights}
    missing = [name for name in certificate.weights if name not in known]
    if missing:
        return None, Check(
            what, False, tuple(f"weight {quote(n)} is certified, but is no weight of the original" for n in missing)
        )
    again = decide(original, [known[name] for name in certificate.weights], certificate.rule, threads=threads)
    plan, kept = again.plan, again.kept
    entries = {entry.name: entry for entry in plan.entries}
    faults = []
    for name, said in certificate.weights.items():
        entry = entries.get(name)
        if entry is None:
            faults.append(f"weight {quote(name)} is certified, but the original's holds only zeros")
        elif entry.shape != said.shape:
            faults.append(f"weight {quote(name)} has the shape {said.shape}, the original's {entry.shape}")
        else:
            faults += [f"weight {quote(name)}: {fault}" for fault in _apart(said, entry)]
            if (entry.zeros, entry.pools) != (said.zeros, said.pools) or not math.isclose(
                entry.l1, said.l1, rel_tol=NEAR
            ):
                faults.append(
                    f"weight {quote(name)}: zeros, pools or Σ|w| are certified otherwise than the original gives"
                )
    if plan.pool and certificate.pool:
        faults += [f"the common pool: {fault}" for fault in _apart(certificate.pool, plan.pool)]
    return (
        kept if not faults else {n: m for n, m in kept.items() if entries[n].shape == certificate.weights[n].shape}
    ), _check(what, faults)


def _apart(said: Figures, right: Figures) -> Iterator[str]:
    if (said.n, said.k) != (right.n, right.k):
        yield f"certified to keep {said.k} of {said.n}, the original gives {right.k} of {right.n}"
    for what in ("n_eff", "mass_lower", "mass", "mass_upper"):
        one, other = getattr(said, what), getattr(right, what)
        if not math.isclose(one, other, rel_tol=NEAR, abs_tol=1e-9):
            yield f"certified {what} is {one:.9g}, the original gives {other:.9g}"


def _bits(pruned: Model, original: Model, kept: Mapping[str, Kept]) -> Iterator[str]:
    found = {weight.name: weight for weight in find_weights(original, embeddings=True).weights}
    there = {weight.name: weight for weight in find_weights(pruned, embeddings=True).weights}
    for name, item in kept.items():
        weight = found[name]
        if name not in there or (there[name].shape, there[name].dtype) != (weight.shape, weight.dtype):
            yield f"weight {quote(name)} is missing, or of another type or shape"
            continue
        patch = Pruned(weight, item)
        yield from _differences(name, patch, look(pruned, weight, sums=False, original=original, patch=patch))


def _differences(name: str, patch: Pruned, seen: Seen) -> Iterator[str]:
    """Where a weight is not the original's, pruned."""
    if seen.removed:
        zero = patch.weight.zero.words or "+0.0"
        yield f"weight {quote(name)} has {seen.removed} removed elements that are not {zero}"
    if seen.changed:
        yield f"weight {quote(name)} has {seen.changed} kept elements whose bits differ from the original's"


def _rest(pruned: Model, original: Model, names: frozenset[str]) -> Iterator[str]:
    apart = frozenset(
        key
        for one, other in ((pruned, original), (original, pruned))
        for key, tensor in one.tensors.items()
        if tensor.recipe or (key in other.tensors and bool(tensor.parts) != bool(other.tensors[key].parts))
    )
    if not apart and same_outside(pruned, original, names, KEY):
        return
    after, before = pruned.rest(names, KEY, apart), original.rest(names, KEY, apart)
    for place in sorted(after.keys() | before.keys()):
        if after.get(place) != before.get(place):
            yield f"{place} differs from the original"


def _check(what: str, faults: Iterable[str]) -> Check:
    found = tuple(faults)
    return Check(what, not found, found[:50])
