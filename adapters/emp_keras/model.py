"""The verbs on Keras models: weights go out as NumPy arrays and come back through ``assign``, on any backend."""

from __future__ import annotations

import os
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from emp_core import ArgumentError, VerifyError
from emp_core.certificates import KEY, Certificate, Seen, certify, contradictions
from emp_core.certificates import read as read_certificate
from emp_core.plans import Plan, Rule, decide, dtype_name, hash_values, host_values
from emp_core.whole import whole

__all__ = ["apply", "certificate_of", "find_weights", "load", "plan", "prune", "save", "verify"]

ATTRIBUTE = "_effective_pruning_certificate"
KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel")
TABLES = ("embeddings",)


def find_weights(
    model: Any, /, *, include: Sequence[str] = (), exclude: Sequence[str] = (), embeddings: bool = False
) -> dict[str, Any]:
    """The kernels of a built model (dense, convolutional, recurrent, attention), by path; each once, also if shared.

    A path is the names of the layers that hold the kernel, from the model's own on, and its name there. Names that
    Keras made up within a layer of your own are counted anew there (``block/dense``, ``block/dense_1``), since Keras
    makes up others when it reads the file. Where two paths are alike, the second ends in ``_1``, and so on.

    Args:
        model: a Keras model.
        include, exclude: patterns of paths (``*`` and ``?``); each must match something.
        embeddings: also tables of embeddings.

    Raises:
        ArgumentError: a pattern that matches nothing, or a model that is not built.
    """
    if not getattr(model, "built", False):
        raise ArgumentError(f"model must be built, got {type(model).__name__}, which has no weights yet")
    wanted = KERNELS + (TABLES if embeddings else ())
    found = {
        path: variable
        for path, variable in _paths(model).items()
        if variable.name.split("/")[-1].removeprefix("cell_") in wanted and keras.backend.is_float_dtype(variable.dtype)
    }
    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(path, pattern) for path in found):
                raise ArgumentError(f"{option} must match paths of weights, got {pattern!r}, which matches none")
    return {
        path: variable
        for path, variable in found.items()
        if (not include or any(fnmatchcase(path, p) for p in include))
        and not any(fnmatchcase(path, p) for p in exclude)
    }


def _paths(model: Any) -> dict[str, Any]:
    """Every variable of a model once, by the chain of layers that hold it.

    Not by ``variable.path``: that is where the layer was when it was built, and a layer that is built by itself, as
    those within others are when Keras reads a file, has lost what stood around it.
    """
    owners = dict[int, str]()

    def walk(layer: Any, prefix: str, listed: bool) -> None:
        # what a graph or a sequence of layers is made of is named in its file; what other layers make is made anew
        listed = listed and (isinstance(layer, keras.Sequential) or hasattr(layer, "operations"))
        counts = Counter[str]()
        for inner in layer._flatten_layers(include_self=False, recursive=False):
            name = plain = re.sub(r"_\d+$", "", inner.name)
            if listed or plain.replace("_", "") != type(inner).__name__.replace("_", "").lower():
                name = inner.name
            elif counts[plain]:
                name = f"{plain}_{counts[plain]}"
            counts[plain] += 1
            walk(inner, f"{prefix}{name}/", listed)
        for variable in layer.weights:
            owners.setdefault(id(variable), prefix + variable.name)

    walk(model, "", True)  # without the model's own name, which counts up with every model of a process
    found = dict[str, Any]()
    for variable in {id(v): v for v in model.weights}.values():
        path = plain = owners.get(id(variable), variable.path)
        times = 0
        while path in found:
            times += 1
            path = f"{plain}_{times}"
        found[path] = variable
    return found


def values_of(variable: Any) -> NDArray[Any]:
    """A variable as NumPy."""
    out: NDArray[Any] = host_values(keras.ops.convert_to_numpy(variable))
    return out


def plan(
    model: Any,
    /,
    *,
    beta: float | None = None,
    order: float = 2.0,
    sparsity: float | None = None,
    scope: str = "tensor",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embeddings: bool = False,
) -> Plan:
    """Decide what is kept of every weight; see `emp_core.plans.Rule`. The rows of scope `row` are units of the last
    axis.

    Raises:
        ArgumentError: an option out of range, or nothing to prune.
    """
    weights = find_weights(model, include=include, exclude=exclude, embeddings=embeddings)
    if not weights:
        raise ArgumentError("model must have something to prune, got no kernel")
    rule = Rule(1.0 if beta is None and sparsity is None else beta, order, sparsity, scope)
    return decide(
        {path: keras.ops.convert_to_numpy(v) for path, v in weights.items()}, rule, axes=dict.fromkeys(weights, -1)
    )


def apply(model: Any, plan: Plan, /) -> Any:
    """Set what the plan removes to zero, in place, and leave the certificate with the model.

    Raises:
        ArgumentError: the plan was made for other weights; nothing was changed then.
    """
    weights = find_weights(model, embeddings=True)
    for e in plan.entries:
        if e.name not in weights or hash_values(values_of(weights[e.name])) != e.sha256:
            raise ArgumentError(f"plan must be made for this model, got one made from other values of {e.name}")
    left = {}
    for e in plan.entries:
        value = np.asarray(keras.ops.convert_to_numpy(weights[e.name]))
        weights[e.name].assign(np.where(np.asarray(plan.masks[e.name]), value, np.zeros((), value.dtype)))
        left[e.name] = Seen.whole(values_of(weights[e.name])).kept
    object.__setattr__(model, ATTRIBUTE, certify(plan, left))
    return model


def certificate_of(model: Any, /) -> Certificate:
    """The certificate that `apply` or `load` left with a model.

    Raises:
        ArgumentError: there is none, or it was edited.
    """
    text = getattr(model, ATTRIBUTE, None)
    if text is None:
        raise ArgumentError("model must carry a certificate, as `apply` leaves it, got one without")
    return read_certificate(text)


def verify(model: Any, /) -> tuple[str, ...]:
    """Check a model against its certificate; returns what is wrong, nothing if all is well."""
    said, held = certificate_of(model), find_weights(model, embeddings=True)
    faults = []
    for name in said.weights:
        if name not in held:
            faults.append(f"{name} is certified, but the model does not have it")
            continue
        host = values_of(held[name])
        shape = tuple(int(d) for d in host.shape)
        faults += [f"{name} {fault}" for fault in contradictions(said, name, shape, dtype_name(host), Seen.whole(host))]
    return tuple(faults)


def prune(model: Any, /, **options: Any) -> Plan:
    """All of it, in place: plan, apply, verify; returns the plan.

    Raises:
        ArgumentError: an option out of range, or nothing to prune.
        emp_core.VerifyError: the result is not as its certificate says.
    """
    made = plan(model, **options)
    apply(model, made)
    faults = verify(model)
    if faults:
        raise VerifyError(f"model must be as its certificate says, got one in which {'; '.join(faults[:3])}")
    return made


def save(model: Any, path: str | os.PathLike[str], /) -> Path:
    """Write a ``.keras`` file that Keras reads as any other, with the certificate as one more entry of the archive.

    Raises:
        ArgumentError: there is no certificate, or the model is not what it says, or the place cannot take a file.
    """
    certificate_of(model)
    target, faults = Path(path), verify(model)
    if faults:
        raise ArgumentError(f"model must be as its certificate says, got one in which {'; '.join(faults[:3])}")
    if target.suffix != ".keras":
        raise ArgumentError(f"path must end in .keras, got {str(path)!r}")
    with whole(target) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(KEY, getattr(model, ATTRIBUTE))
    return target


def load(path: str | os.PathLike[str], /, **options: Any) -> Any:
    """A model that `save` wrote, with its certificate, checked. Options are those of ``keras.saving.load_model``.

    Raises:
        ArgumentError: it is no such file, or not what its certificate says.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            text = archive.read(KEY).decode()
    except (OSError, KeyError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise ArgumentError(f"path must be a file that `save` wrote, got {str(path)!r}: {error}") from error
    model = keras.saving.load_model(path, **options)
    object.__setattr__(model, ATTRIBUTE, text)
    faults = verify(model)
    if faults:
        raise ArgumentError(f"{str(path)!r} must be as its certificate says, got one in which {'; '.join(faults[:3])}")
    return model
