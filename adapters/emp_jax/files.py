"""The verbs `save` and `load`: the arrays of a tree by name, and their certificate, in one file that NumPy reads."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emp_core import ArgumentError
from emp_core.certificates import BFLOAT16, KEY
from emp_core.whole import whole
from emp_jax.trees import Tree, name_of, verify

__all__ = ["load", "save"]


def save(params: Tree, certificate: str, path: str | os.PathLike[str], /) -> Path:
    """Write parameters and their certificate as an ``.npz`` file, after checking one against the other.

    Arrays stand under their names (``params.dense.kernel``), bfloat16 as bits under that name; no pickles.

    Args:
        params: a tree of arrays.
        certificate: from `apply`.
        path: of the file; it appears whole or not at all.

    Raises:
        ArgumentError: the parameters are not what the certificate says, or two have one name, or the place cannot take
            a file.
    """
    faults, target = verify(params, certificate), Path(path)
    if faults:
        raise ArgumentError(f"params must be as the certificate says, got such in which {'; '.join(faults[:3])}")
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    arrays = {name_of(where): _plain(leaf) for where, leaf in leaves}
    if len(arrays) < len(leaves) or KEY in arrays:
        raise ArgumentError("params must have leaves of different names, got two of one name")
    with whole(target) as temporary, open(temporary, "xb") as file:
        np.savez(file, allow_pickle=False, **{**arrays, KEY: np.array(certificate)})
    return target


def load(like: Tree, path: str | os.PathLike[str], /) -> tuple[Tree, str]:
    """Parameters that `save` wrote, and their certificate, checked.

    Args:
        like: a tree of the same structure, shapes and types (such as ``jax.eval_shape`` gives); its values are not
            looked at.
        path: of the file.

    Raises:
        ArgumentError: it is no file of `save`, or of another tree, or not what its certificate says.
    """
    try:
        with np.load(path, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
        certificate = str(arrays.pop(KEY))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ArgumentError(f"path must be a file that `save` wrote, got {str(path)!r}: {error}") from error
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    if sorted(arrays) != sorted(name_of(where) for where, _ in leaves):
        raise ArgumentError(f"like must have the names of {str(path)!r}, got others")
    found = []
    for where, leaf in leaves:
        array = arrays[name_of(where)]
        array = array.view(jnp.bfloat16) if array.dtype == BFLOAT16 else array
        if (array.shape, array.dtype) != (jnp.shape(leaf), jnp.result_type(leaf)):
            raise ArgumentError(
                f"like must have {name_of(where)} of shape {array.shape} and type {array.dtype}, "
                f"got {jnp.shape(leaf)} and {jnp.result_type(leaf)}"
            )
        found.append(jnp.asarray(array))
    params = jax.tree_util.tree_unflatten(structure, found)
    faults = verify(params, certificate)
    if faults:
        raise ArgumentError(f"{str(path)!r} must be as its certificate says, got such in which {'; '.join(faults[:3])}")
    return params, certificate


def _plain(leaf: Any) -> np.ndarray[Any, Any]:
    host = np.asarray(leaf)
    return host.view(BFLOAT16) if host.dtype == jnp.bfloat16 else host
