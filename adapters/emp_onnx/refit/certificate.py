"""The certificate of a refitted model, under the same key as the plain one, and what can be checked of it.

Kept weights and biases hold new values, so they cannot be compared with the original's. What is checked instead:

- alone: the certificate is whole; each weight has its certified shape, count of nonzeros, and hash; so have the biases.
- with the original: it is the model that was refitted (hashes of its weights and biases); effective sizes and retained
  masses are those of its magnitudes; the count is the rule's, where a β gave it; nothing differs but the declared
  tensors.

How well the refit does is not certified: it is measured, on feeds, and reported.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from emp_core import __version__, effective_size
from emp_onnx.certificate import KEY
from emp_onnx.errors import ModelError, UsageError, quote
from emp_onnx.files.model_io import Model
from emp_onnx.refit.biases import Added, added_of, with_biases
from emp_onnx.refit.fitting import Thin
from emp_onnx.verify import Check
from emp_onnx.weights.find import find_weights
from emp_onnx.weights.zero import FLOAT, Zero

__all__ = ["Refitted", "checks_against", "checks_alone", "read", "refit_checks", "write"]

FORMAT, VERSION = "effective_pruning.refit", 1
NEAR = 1e-6
MADE = "it was made from this original, and the figures are those of its weights"


@dataclass(frozen=True)
class Refitted:
    """What is certified of one weight: n, N_eff of the original magnitudes, how many are not zero now, the share of the
    original Σ|w| at their places, and hashes of the values before and after."""

    shape: tuple[int, ...]
    n: int
    n_eff: float
    k: int
    mass: float
    before: str
    after: str


def write(model: Model, thin: Thin, how: Mapping[str, Any], added: Sequence[Added] = ()) -> str:
    """The certificate's text for `model` with `thin.changed` in it; `how` says what was asked for, `added` which of the
    model's biases the original lacks."""
    weights, biases = {}, {}
    size = _Sizes(model)
    for key, values in thin.changed.items():
        if key in thin.masks:
            weights[key] = asdict(_of(size, key, model.values(key), values))
        else:
            biases[key] = {"before": _hash(model.values(key)), "after": _hash(values)}
    for key in thin.masks.keys() - thin.changed.keys():
        weights[key] = asdict(_of(size, key, model.values(key), model.values(key)))
    body = {
        "format": FORMAT, "version": VERSION, "tool": __version__, "how": dict(how),
        "weights": dict(sorted(weights.items())), "biases": dict(sorted(biases.items())),
        **({"added": [asdict(item) for item in added]} if added else {}),
    }  # fmt: skip
    return _text({**body, "sha256": hashlib.sha256(_text(body).encode()).hexdigest()})


def read(model: Model) -> dict[str, Any]:
    """The certificate.

    Raises:
        UsageError: it is damaged or was edited.
    """
    try:
        body: dict[str, Any] = json.loads(model.metadata.get(KEY, ""))
        digest = body.pop("sha256")
        whole = hashlib.sha256(_text(body).encode()).hexdigest() == digest
        if body["format"] != FORMAT or body["version"] != VERSION:
            raise UsageError(f"certificate must be of version {VERSION}, got {quote(body['version'])}")
        for said in body["weights"].values():
            Refitted(**said)
        for said in body["biases"].values():
            said["before"], said["after"]
        added_of(body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"certificate must be as written by this tool, got something else: {error!r}") from error
    if not whole:
        raise UsageError("certificate must be as it was written, got one that was edited: its own hash does not match")
    return body


def checks_alone(model: Model) -> tuple[tuple[Check, ...], dict[str, Any] | None]:
    """What can be checked without the original, and the certificate if it is whole."""
    try:
        body = read(model)
    except UsageError as error:
        return (Check("the certificate is whole", False, (str(error),)),), None
    faults = tuple(_faults(model, body))
    return (
        Check("the certificate is whole", True),
        Check("refitted weights and biases are as certified", not faults, faults[:50]),
    ), body


def _faults(model: Model, body: Mapping[str, Any]) -> Iterator[str]:
    size = _Sizes(model)
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
        if _hash(values) != said["after"]:
            yield f"weight {quote(key)} has other values than certified"
        if not 1 - NEAR <= said["n_eff"] <= said["n"] * (1 + NEAR) or not 0 <= said["mass"] <= 1 + NEAR:
            yield f"weight {quote(key)} has an effective size or a retained mass that no weights have"
    for key, said in body["biases"].items():
        if key not in model.tensors or _hash(model.values(key)) != said["after"]:
            yield f"bias {quote(key)} is not as certified"


def refit_checks(model: Model, original: Model | None) -> tuple[Check, ...]:
    """Everything that can be checked without running the models."""
    first, body = checks_alone(model)
    return first if original is None or body is None else (*first, *checks_against(model, original, body))


def checks_against(model: Model, original: Model, body: Mapping[str, Any]) -> tuple[Check, ...]:
    """What can be checked with the original."""
    try:
        source = with_biases(original, added_of(body))
    except UsageError as error:
        return (Check(MADE, False, (str(error),)),)
    source = source.replaced({}, {KEY: None}) if KEY in original.metadata else source
    faults = tuple(_others(model, source, body))
    keys = frozenset((*body["weights"], *body["biases"]))
    after, before = model.rest(keys, KEY), source.rest(keys, KEY)
    rest = tuple(
        f"{place} differs from the original" for place in sorted(after.keys() | before.keys())
        if after.get(place) != before.get(place)
    )  # fmt: skip
    return (
        Check(MADE, not faults, faults[:50]),
        Check("nothing but the declared weights and biases differs", not rest, rest[:50]),
    )


def _others(model: Model, original: Model, body: Mapping[str, Any]) -> Iterator[str]:
    sizes, size = [], _Sizes(original)
    for key, said in body["weights"].items():
        if key not in original.tensors or _hash(original.values(key)) != said["before"]:
            yield f"weight {quote(key)} was another one before the refit than the original's"
            continue
        right = _of(size, key, original.values(key), model.values(key))
        sizes.append(right.n_eff)
        for what in ("n", "k"):
            if getattr(right, what) != said[what]:
                yield f"weight {quote(key)}: certified {what} is {said[what]}, the files give {getattr(right, what)}"
        for what in ("n_eff", "mass"):
            if not math.isclose(getattr(right, what), said[what], rel_tol=NEAR, abs_tol=1e-9):
                found = getattr(right, what)
                yield f"weight {quote(key)}: certified {what} is {said[what]:.9g}, the files give {found:.9g}"
    for key, said in body["biases"].items():
        if key not in original.tensors or _hash(original.values(key)) != said["before"]:
            yield f"bias {quote(key)} was another one before the refit than the original's"
    beta = body["how"].get("beta")
    if beta is not None and len(sizes) == len(body["weights"]):
        asked = sum(max(1, math.floor(beta * size * (1 + 1e-9))) for size in sizes)
        kept = sum(said["k"] for said in body["weights"].values())
        if kept > asked:
            yield f"{kept} weights are kept, but Σ⌊β·N_eff⌋ is {asked}"


class _Sizes:
    """Magnitudes of the weights of a model; of quantised ones those of the numbers that they stand for."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._zeros: dict[str, Zero] | None = None

    def __call__(self, key: str, values: Any) -> Any:
        if values.dtype.kind not in "iu":
            return np.abs(values.astype(np.float64))
        if self._zeros is None:
            self._zeros = {w.name: w.zero for w in find_weights(self.model, embeddings=True).weights}
        return np.abs(self._zeros.get(key, FLOAT).scores(values).astype(np.float64))


def _of(sizes: _Sizes, key: str, before: Any, after: Any) -> Refitted:
    size = sizes(key, before)
    kept, total = sizes(key, after) != 0, float(size.sum())
    return Refitted(
        tuple(before.shape), before.size, float(effective_size(size)), int(np.count_nonzero(kept)),
        float(size[kept].sum()) / total if total else 1.0, _hash(before), _hash(after),
    )  # fmt: skip


def _hash(values: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data).hexdigest()


def _text(body: Mapping[str, Any]) -> str:
    return json.dumps(body, separators=(",", ":"), allow_nan=False)
