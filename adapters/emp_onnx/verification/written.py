"""A file just written, against the original and the decision that it was written by."""

from __future__ import annotations

import os
from collections.abc import Iterable

from emp_onnx.certificates.rule import read_certificate
from emp_onnx.decide import Decision
from emp_onnx.errors import UsageError
from emp_onnx.files.model_io import Model
from emp_onnx.runtime.feeds import Feed
from emp_onnx.runtime.isolated import Isolated
from emp_onnx.verification.alone import AS_CERTIFIED, POOL, WHOLE, examined, pool_faults
from emp_onnx.verification.original import EQUAL, differences, nothing_else
from emp_onnx.verification.outcome import Check, Verification, check
from emp_onnx.verification.running import many_nodes, run_both
from emp_onnx.weights.find import Weight, find_weights
from emp_onnx.weights.kept import Pruned
from emp_onnx.weights.look import Seen, look, look_each

__all__ = ["verify_written"]


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
        return Verification((Check(WHOLE, False, (str(error),)),))
    names = frozenset(decision.kept)
    pruned.read_codes_like(original, names & pruned.tensors.keys())
    rest = nothing_else(pruned, original, names)
    found = decision.weights if rest.ok else {w.name: w for w in find_weights(pruned, embeddings=True).weights}
    differing: list[str] = []
    patches = {name: Pruned(decision.weights[name], kept) for name, kept in decision.kept.items()}
    known = (
        look_each(pruned, original, [patches[name] for name in certificate.weights if name in names]) if rest.ok else {}
    )

    def see(weight: Weight) -> Seen:
        patch = patches[weight.name]
        seen = known.get(weight.name) or look(pruned, weight, sums=False, original=original, patch=patch)
        differing.extend(differences(weight.name, patch, seen))
        return seen

    certified = list(examined(certificate, {name: found[name] for name in found if name in names}, see))
    if certificate.weights.keys() != names:
        certified.append("the certificate names other weights than were pruned")
    checks = [Check(WHOLE, True), check(AS_CERTIFIED, certified)]
    if certificate.rule.scope == "model":
        checks.append(check(POOL, pool_faults(certificate)))
    done = [*checks, check(EQUAL, differing), rest]
    return run_both(pruned, original, done, process, feeds=feeds, seed=seed, threads=threads)
