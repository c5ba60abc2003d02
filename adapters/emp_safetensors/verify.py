"""The verb `verify`: what a pruned checkpoint is, against what its certificate says, and against the original."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from emp_core import ArgumentError, EmpError
from emp_core.certificates import KEY, Certificate, Seen, contradictions, read
from emp_safetensors.checkpoint import Checkpoint, Stored, load
from emp_safetensors.errors import quote
from emp_safetensors.kept import Kept
from emp_safetensors.plan import decide, dtype_of
from emp_safetensors.weights import FLOATS, cannot_be_pruned

__all__ = ["certificates", "verify"]


def verify(
    pruned: Checkpoint | str | os.PathLike[str],
    original: Checkpoint | str | os.PathLike[str] | None = None,
    /,
    *,
    threads: int | None = None,
) -> tuple[str, ...]:
    """Check a pruned checkpoint; returns what is wrong, nothing if all is well.

    Alone: zeros, hash of what is left, mass, bounds and count of every certified tensor. With the original: the count
    is repeated, kept elements must have their old bits, removed ones be zero, and everything else be the same.

    Raises:
        ArgumentError: there is no certificate, or it was edited.
        CheckpointError: one of the checkpoints cannot be read.
    """
    checkpoint = pruned if isinstance(pruned, Checkpoint) else load(pruned)
    faults = list[str]()
    for certificate in certificates(checkpoint):
        for name in certificate.weights:
            tensor = checkpoint.tensors.get(name)
            if tensor is None:
                faults.append(f"{quote(name)} is certified, but the checkpoint does not hold it")
                continue
            if tensor.place.dtype not in FLOATS:
                faults.append(f"{quote(name)} holds {tensor.place.dtype}, certified {certificate.weights[name].dtype}")
                continue
            seen = Seen.of(stored for _, stored in tensor.pieces())
            faults += [
                f"{quote(name)} {fault}"
                for fault in contradictions(certificate, name, tensor.shape, dtype_of(tensor), seen)
            ]
    if original is not None:
        faults += compare(checkpoint, original if isinstance(original, Checkpoint) else load(original), threads)
    return tuple(faults)


def certificates(checkpoint: Checkpoint) -> tuple[Certificate, ...]:
    """The certificates of a checkpoint, one per file that has one.

    Raises:
        ArgumentError: there is none, or one was edited.
    """
    texts = checkpoint.metadata(KEY)
    if not texts:
        raise ArgumentError(f"checkpoint must carry a certificate ({KEY}), got {quote(checkpoint.path)} without one")
    return tuple(read(text) for text in texts.values())


def compare(pruned: Checkpoint, original: Checkpoint, threads: int | None) -> Iterator[str]:
    """What a pruned checkpoint does not have from its original, though it should."""
    found = certificates(pruned)
    names = [name for certificate in found for name in certificate.weights if name in original.tensors]
    rule = found[0].rule
    if any(certificate.rule != rule for certificate in found):
        yield "the certificates of its files give different rules"
        return
    weights = [original.tensors[name] for name in original.tensors if name in set(names)]
    for weight in weights:
        if reason := cannot_be_pruned(weight):
            yield f"its original cannot be counted again: in it {quote(weight.name)} {reason}"
            return
    try:
        plan = decide(weights, rule, (), threads, hashed=False)
    except (EmpError, OSError) as error:  # no other: those are not the checkpoint's faults
        yield f"its original cannot be counted again: {error}"
        return
    counted = {e.name: e.k for e in plan.entries}
    said = {name: c.weights[name] for c in found for name in c.weights}
    for name in names:
        if name not in counted:
            yield f"{quote(name)} holds nothing but zeros in the original, and {said[name].k} are certified to be kept"
        elif counted[name] != said[name].k:
            yield f"{quote(name)} must keep {counted[name]} by its rule, certified {said[name].k}"
    if list(pruned.tensors) != list(original.tensors):
        yield "it must hold the tensors of its original, in the same order, got others"
    for name, tensor in pruned.tensors.items():
        before = original.tensors.get(name)
        if before is None:
            continue
        if (tensor.place.dtype, tensor.shape) != (before.place.dtype, before.shape):
            yield f"{quote(name)} has another type or shape than in the original"
        elif not _equal(tensor, before, plan.kept.get(name)):
            yield f"{quote(name)} is not its original with what the rule removes set to zero"


def _equal(tensor: Stored, before: Stored, kept: Kept | None) -> bool:
    if kept is None:
        step = 1 << 22
        for at in range(0, tensor.place.stop - tensor.place.start, step):
            count = min(step, tensor.place.stop - tensor.place.start - at)
            one, two = bytearray(count), bytearray(count)
            tensor.file.into(tensor.place.start + at, one)
            before.file.into(before.place.start + at, two)
            if one != two:
                return False
        return True
    for (start, raw), (_, old) in zip(tensor.pieces(), before.pieces(), strict=True):
        bits, was = (a.view(f"u{a.dtype.itemsize}") for a in (raw, old))
        mask = kept.mask(old, start)
        if not np.array_equal(bits, np.multiply(was, mask, dtype=was.dtype)):
            return False
    return True
