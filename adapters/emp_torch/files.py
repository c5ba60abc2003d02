"""The verbs `save` and `load`: a state dict with its certificate, in one file that appears whole or not at all."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from emp_core import ArgumentError
from emp_core.certificates import KEY, read
from emp_core.whole import whole
from emp_torch.apply import ATTRIBUTE, certificate_of, verify
from emp_torch.weights import find_weights, unwrapped

__all__ = ["load", "save"]

STATE = "state_dict"


def save(model: nn.Module, path: str | os.PathLike[str], /) -> Path:
    """Write a model's state dict and its certificate, after checking one against the other.

    Of a model within ``torch.compile`` or ``DataParallel``, what is within is written. The file is what
    ``torch.save({"state_dict": …, "effective_pruning.certificate": …})`` writes.

    Raises:
        ArgumentError: there is no certificate, or the model is not what it says (weights were trained on: see
            `recertify`), or the place cannot take a file.
    """
    certificate_of(model)
    inner = unwrapped(model)
    faults = verify(model)
    if faults:
        raise ArgumentError(f"model must be as its certificate says, got one in which {'; '.join(faults[:3])}")
    target = Path(path)
    body = {STATE: inner.state_dict(), KEY: getattr(inner, ATTRIBUTE)}
    with whole(target) as temporary, open(temporary, "xb") as file:
        torch.save(body, file)
    return target


def load(model: nn.Module, path: str | os.PathLike[str], /, *, strict: bool = True) -> nn.Module:
    """Put a saved state dict into a model, and its certificate with it, checked. No code in the file is run.

    Raises:
        ArgumentError: it is no file of `save`, or does not fit the model, or is not what its certificate says; the
            model is as it was then.
    """
    try:
        body: Any = torch.load(path, map_location="cpu", weights_only=True)
        state, text = body[STATE], body[KEY]
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ArgumentError(f"path must be a file that `save` wrote, got {str(path)!r}: {error}") from error
    certificate = read(text)
    inner = unwrapped(model)
    before = {name: _copy(value) for name, value in inner.state_dict().items()}
    try:
        _fill(inner, state, strict=strict)
        faults = verify(model, certificate)
        if faults:
            said = "; ".join(faults[:3])
            raise ArgumentError(f"{str(path)!r} must be as its certificate says, got one in which {said}")
    except BaseException as error:
        # also where torch refuses the state: it has filled in what fits by then
        _fill(inner, {name: value for name, value in before.items() if not is_lazy(value)}, strict=False)
        if isinstance(error, RuntimeError):
            raise ArgumentError(
                f"model must be the one that {str(path)!r} was saved from, got another: {error}"
            ) from error
        raise
    setattr(inner, ATTRIBUTE, text)
    return model


def _fill(model: nn.Module, state: Mapping[str, Any], *, strict: bool) -> None:
    model.load_state_dict(state, strict=strict)
    for weight in find_weights(model, embeddings=True).weights:
        weight.refresh()


def _copy(value: Any) -> Any:
    """Of an entry of a state dict; tensors on the host, where there is more room than on a device."""
    if not isinstance(value, Tensor) or is_lazy(value) or value.is_meta:
        return value
    return value.detach().to("cpu", copy=True)
