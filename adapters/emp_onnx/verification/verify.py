"""Check a pruned model: by its certificate alone, against the original, and both on the same feeds."""

from __future__ import annotations

import os
from collections.abc import Iterable

from emp_onnx.certificates.rule import is_refitted
from emp_onnx.errors import UsageError
from emp_onnx.files.model_io import Model, load, unfused
from emp_onnx.runtime.feeds import Feed
from emp_onnx.runtime.isolated import Isolated
from emp_onnx.verification.alone import alone
from emp_onnx.verification.original import against
from emp_onnx.verification.outcome import Verification
from emp_onnx.verification.refitted import refitted
from emp_onnx.verification.running import load_ahead, run_both
from emp_onnx.verification.unpacking import unpacking

__all__ = ["verify"]

NO_ORIGINAL = "there is no original to compare with"


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
    single rows are not stored; they are recomputed with the original.) Packed weights are unpacked by the functions
    that `emp pack` writes, which onnxruntime runs.

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
            checks = [*unpacking(model), *refitted(model, source)]
            if source is None:
                return Verification(tuple(checks), None, NO_ORIGINAL)
        else:
            first, certificate = alone(model)
            first = (*unpacking(model), *first)
            if source is None or certificate is None:
                return Verification(first, None, NO_ORIGINAL if source is None else "")
            checks = [*first, *against(model, source, certificate, threads)]
        return run_both(model, source, checks, process, feeds=feeds, seed=seed, threads=threads)
