"""The certificate of a refitted model, under the same key as the plain one.

Kept weights and biases hold new values: of each the hashes before and after are certified, and of weights the effective
size and the retained mass. How well the refit does is not certified: it is measured, on feeds, and reported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from emp_core import __version__, effective_size
from emp_onnx.certificates.added import Added, added_of
from emp_onnx.certificates.rule import KEY
from emp_onnx.errors import UsageError, quote
from emp_onnx.files.model_io import Model
from emp_onnx.weights.find import find_weights
from emp_onnx.weights.zero import FLOAT, Zero

__all__ = ["Magnitudes", "Refitted", "figures_of", "hash_of", "read", "write"]

FORMAT, VERSION = "effective_pruning.refit", 1


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


def write(
    model: Model, changed: Mapping[str, Any], masked: Collection[str], how: Mapping[str, Any],
    added: Sequence[Added] = (),
) -> str:  # fmt: skip
    """The certificate's text for `model` with the values `changed` in it, of which `masked` are weights and the others
    biases; `how` says what was asked for, `added` which of the model's biases the original lacks."""
    weights, biases = {}, {}
    size = Magnitudes(model)
    for key, values in changed.items():
        if key in masked:
            weights[key] = asdict(figures_of(size, key, model.values(key), values))
        else:
            biases[key] = {"before": hash_of(model.values(key)), "after": hash_of(values)}
    for key in set(masked) - changed.keys():
        weights[key] = asdict(figures_of(size, key, model.values(key), model.values(key)))
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


class Magnitudes:
    """Magnitudes of the weights of a model; of quantised ones those of the numbers that they stand for."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._zeros: dict[str, Zero] | None = None

    def __call__(self, key: str, values: Any, /) -> Any:
        """The magnitudes of these values, which are or could be those of this tensor."""
        if values.dtype.kind not in "iu":
            return np.abs(values.astype(np.float64))
        if self._zeros is None:
            self._zeros = {w.name: w.zero for w in find_weights(self.model, embeddings=True).weights}
        return np.abs(self._zeros.get(key, FLOAT).scores(values).astype(np.float64))


def figures_of(sizes: Magnitudes, key: str, before: Any, after: Any, /) -> Refitted:
    """What is to be certified of a weight with these values before and after."""
    size = sizes(key, before)
    kept, total = sizes(key, after) != 0, float(size.sum())
    return Refitted(
        tuple(before.shape), before.size, float(effective_size(size)), int(np.count_nonzero(kept)),
        float(size[kept].sum()) / total if total else 1.0, hash_of(before), hash_of(after),
    )  # fmt: skip


def hash_of(values: Any, /) -> str:
    """SHA-256 of numbers as they are stored."""
    return hashlib.sha256(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data).hexdigest()


def _text(body: Mapping[str, Any]) -> str:
    return json.dumps(body, separators=(",", ":"), allow_nan=False)
