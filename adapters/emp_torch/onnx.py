"""Export to ONNX with the certificate carried along, so that ``emp verify`` checks the exported file."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import emp_onnx
from emp_core import ArgumentError
from emp_core.certificates import KEY, Certified, Seen, write
from emp_core.plans import host_values
from emp_torch.apply import certificate_of, verify
from emp_torch.weights import find_weights

__all__ = ["export"]


def export(model: nn.Module, args: tuple[Any, ...], path: str | os.PathLike[str], /, **options: Any) -> tuple[str, ...]:
    """Write a pruned model as an ONNX file that carries its certificate.

    The exporter renames weights and may store them transposed; each certified weight is found again by its values, and
    certified under the name and shape that it has in the file.

    Args:
        model: pruned by `apply`, `prune` or `GradualPruner`.
        args: example inputs.
        path: of the file; large models get a sidecar beside it, as `emp_onnx.save` names it.
        options: for ``torch.onnx.export``.

    Returns:
        Names of certified weights that are not in the file as they are (split, merged or folded by the exporter), and
        hence not certified there.

    Raises:
        ArgumentError: there is no certificate, it is not by magnitude, or the model is not what it says; see
            `recertify`.
    """
    certificate = certificate_of(model)
    faults = verify(model)
    if faults:
        raise ArgumentError(f"model must be as its certificate says, got one in which {'; '.join(faults[:3])}")
    if certificate.criterion != "magnitude":
        raise ArgumentError(
            f"certificate must be by magnitude to be checked in ONNX, got one by {certificate.criterion}; "
            "recertify the model's zeros for that"
        )
    modes = {module: module.training for module in model.modules()}
    values = {w.name: host_values(w.value.detach()) for w in find_weights(model, embeddings=True).weights}
    with tempfile.TemporaryDirectory(dir=Path(path).resolve().parent) as folder:
        plain = Path(folder) / "plain.onnx"
        try:
            model.eval()
            with warnings.catch_warnings():  # of the exporter about itself
                for kind in (FutureWarning, DeprecationWarning):
                    warnings.simplefilter("ignore", kind)
                torch.onnx.export(model, args, str(plain), **{"verbose": False, **options})
        finally:
            for module, mode in modes.items():
                module.training = mode
        exported = emp_onnx.load(plain)
        carried, missing = _carried(exported, certificate.weights, values)
        text = write(replace(certificate, weights=carried))
        emp_onnx.save(exported.replaced({}, {KEY: text}), path)
    return missing


def _carried(
    exported: emp_onnx.Model, said: Mapping[str, Certified], values: Mapping[str, np.ndarray[Any, Any]]
) -> tuple[dict[str, Certified], tuple[str, ...]]:
    """What the certificate says, under the exported names."""
    free = {w.name: w for w in emp_onnx.find_weights(exported, embeddings=True).weights}
    carried, missing = dict[str, Certified](), []
    for name, item in said.items():
        first = [key for key, w in free.items() if name in (key, w.tensor)]
        for key in [*first, *(k for k in free if k not in first)]:
            weight = free[key]
            if int(np.prod(weight.shape)) != item.n or weight.dtype != item.dtype:
                continue
            found = exported.values(key)
            if any(_same(found, candidate) for candidate in (values[name], values[name].T)):
                carried[key] = replace(item, shape=tuple(weight.shape), kept=Seen.whole(found).kept)
                del free[key]
                break
        else:
            missing.append(name)
    if not carried:
        raise ArgumentError("the exported file must hold certified weights as they are, got none of them")
    return carried, tuple(missing)


def _same(found: np.ndarray[Any, Any], value: np.ndarray[Any, Any]) -> bool:
    return found.shape == value.shape and np.array_equal(found, value)
