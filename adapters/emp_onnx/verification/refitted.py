"""A refitted model: by itself, and against its original.

Kept weights and biases hold new values, so they cannot be compared with the original's. What is checked instead:

- alone: the certificate is whole; each weight has its certified shape, count of nonzeros, and hash; so have the biases.
- with the original: it is the model that was refitted (hashes of its weights and biases); effective sizes and retained
  masses are those of its magnitudes; the count is the rule's, where a β gave it; nothing differs but the declared
  tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from emp_core.certificates import NEAR
from emp_onnx.certificates.added import added_of, with_biases
from emp_onnx.certificates.refit import Magnitudes, figures_of, hash_of, read
from emp_onnx.certificates.rule import KEY
from emp_onnx.errors import ModelError, UsageError, quote
from emp_onnx.files.model_io import Model
from emp_onnx.verification.alone import WHOLE
from emp_onnx.verification.outcome import Check, check

__all__ = ["refitted"]

MADE = "it was made from this original, and the figures are those of its weights"


def refitted(model: Model, original: Model | None, /) -> tuple[Check, ...]:
    """Everything that can be checked of a refitted model without running it."""
    first, body = _alone(model)
    return first if original is None or body is None else (*first, *_against(model, original, body))


def _alone(model: Model) -> tuple[tuple[Check, ...], dict[str, Any] | None]:
    """What can be checked without the original, and the certificate if it is whole."""
    try:
        body = read(model)
    except UsageError as error:
        return (Check(WHOLE, False, (str(error),)),), None
    found = check("refitted weights and biases are as certified", _faults(model, body))
    return (Check(WHOLE, True), found), body


def _faults(model: Model, body: Mapping[str, Any]) -> Iterator[str]:
    size = Magnitudes(model)
    for key, said in body["weights"].items():
        tensor = model.tensors.get(key)
        if tensor is None or list(tensor.shape) != list(said["shape"]):
            yield f"weight {quote(key)} is missing, or of another shape than certified"
            continue
        try:
            values = model.values(key)
        except ModelError as error:
            yield f"weight {quote(key)} cannot be read: {error}"
            continue
        k = int(np.count_nonzero(size(key, values)))
        if k != said["k"]:
            yield f"weight {quote(key)} has {k} nonzeros, certified {said['k']}"
        if hash_of(values) != said["after"]:
            yield f"weight {quote(key)} has other values than certified"
        if not 1 - NEAR <= said["n_eff"] <= said["n"] * (1 + NEAR) or not 0 <= said["mass"] <= 1 + NEAR:
            yield f"weight {quote(key)} has an effective size or a retained mass that no weights have"
    for key, said in body["biases"].items():
        if key not in model.tensors or hash_of(model.values(key)) != said["after"]:
            yield f"bias {quote(key)} is not as certified"


def _against(model: Model, original: Model, body: Mapping[str, Any]) -> tuple[Check, ...]:
    """What can be checked with the original."""
    try:
        source = with_biases(original, added_of(body))
    except UsageError as error:
        return (Check(MADE, False, (str(error),)),)
    source = source.replaced({}, {KEY: None}) if KEY in original.metadata else source
    faults = _others(model, source, body)
    keys = frozenset((*body["weights"], *body["biases"]))
    after, before = model.rest(keys, KEY), source.rest(keys, KEY)
    rest = (
        f"{place} differs from the original" for place in sorted(after.keys() | before.keys())
        if after.get(place) != before.get(place)
    )  # fmt: skip
    return check(MADE, faults), check("nothing but the declared weights and biases differs", rest)


def _others(model: Model, original: Model, body: Mapping[str, Any]) -> Iterator[str]:
    sizes, size = [], Magnitudes(original)
    for key, said in body["weights"].items():
        if key not in original.tensors or hash_of(original.values(key)) != said["before"]:
            yield f"weight {quote(key)} was another one before the refit than the original's"
            continue
        right = figures_of(size, key, original.values(key), model.values(key))
        sizes.append(right.n_eff)
        for what in ("n", "k"):
            if getattr(right, what) != said[what]:
                yield f"weight {quote(key)}: certified {what} is {said[what]}, the files give {getattr(right, what)}"
        for what in ("n_eff", "mass"):
            if not math.isclose(getattr(right, what), said[what], rel_tol=NEAR, abs_tol=1e-9):
                found = getattr(right, what)
                yield f"weight {quote(key)}: certified {what} is {said[what]:.9g}, the files give {found:.9g}"
    for key, said in body["biases"].items():
        if key not in original.tensors or hash_of(original.values(key)) != said["before"]:
            yield f"bias {quote(key)} was another one before the refit than the original's"
    beta = body["how"].get("beta")
    if beta is not None and len(sizes) == len(body["weights"]):
        asked = sum(max(1, math.floor(beta * size * (1 + 1e-9))) for size in sizes)
        kept = sum(said["k"] for said in body["weights"].values())
        if kept > asked:
            yield f"{kept} weights are kept, but Σ⌊β·N_eff⌋ is {asked}"
