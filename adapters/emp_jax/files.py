"""The verbs `save` and `load`: the arrays of a tree by name, and their certificate, in one file that NumPy reads."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emp_core import ArgumentError
from emp_core.certificates import KEY
from emp_core.whole import whole
from emp_jax.trees import Tree, name_of, verify

__all__ = ["load", "save"]

NUMPY = (np.ndarray, np.generic)
NUMBERS = (bool, int, float, complex)
FOREIGN = 2  # what `numpy.dtype.isbuiltin` says of types that others registered


def save(params: Tree, certificate: str, path: str | os.PathLike[str], /) -> Path:
    """Write parameters and their certificate as an ``.npz`` file, after checking one against the other.

    Arrays stand under their names (``params.dense.kernel``), types that NumPy has not, such as bfloat16, as bits under
    that name; no pickles.

    Args:
        params: a tree of arrays and numbers.
        certificate: from `apply`.
        path: of the file; it appears whole or not at all.

    Raises:
        ArgumentError: the parameters are not what the certificate says, or two have one name, or one is neither array
            nor number, or the place cannot take a file.
    """
    faults, target = verify(params, certificate), Path(path)
    if faults:
        raise ArgumentError(f"params must be as the certificate says, got such in which {'; '.join(faults[:3])}")
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    arrays = {name_of(where): _plain(name_of(where), leaf) for where, leaf in leaves}
    if len(arrays) < len(leaves) or KEY in arrays:
        raise ArgumentError("params must have leaves of different names, got two of one name")
    for name in arrays:
        if "\0" in name or name.encode(errors="replace").decode() != name:  # an archive would keep another name
            raise ArgumentError(f"params must have names that are text without NUL, got {name!r}")
    with whole(target) as temporary, zipfile.ZipFile(temporary, "x") as archive:
        # what np.savez writes, which takes names as keywords and so cannot write a leaf named "file"
        for name, array in {**arrays, KEY: np.array(certificate)}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    return target


def load(like: Tree, path: str | os.PathLike[str], /) -> tuple[Tree, str]:
    """Parameters that `save` wrote, and their certificate, checked.

    Args:
        like: a tree of the same structure, shapes and types (such as ``jax.eval_shape`` gives); its values are not
            looked at. Where it has arrays of NumPy or plain numbers, such are given.
        path: of the file.

    Raises:
        ArgumentError: it is no file of `save`, or of another tree, or not what its certificate says.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # np.load mistakes one of "x" and "x.npy" for the other
            arrays = {entry.removesuffix(".npy"): _read(archive, entry) for entry in archive.namelist()}
        certificate = str(arrays.pop(KEY))
    except (OSError, KeyError, ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ArgumentError(f"path must be a file that `save` wrote, got {str(path)!r}: {error}") from error
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    if sorted(arrays) != sorted(name_of(where) for where, _ in leaves):
        raise ArgumentError(f"like must have the names of {str(path)!r}, got others")
    found = []
    for where, leaf in leaves:
        array, wanted = arrays[name_of(where)], _described(leaf)
        if wanted[1] is None or (array.shape, array.dtype) != wanted:  # to NumPy, None is float64
            raise ArgumentError(
                f"like must have {name_of(where)} of shape {array.shape} and type {array.dtype}, "
                f"got {wanted[0]} and {wanted[1]}"
            )
        if isinstance(leaf, NUMPY):
            found.append(array)
        else:
            found.append(array.item() if isinstance(leaf, NUMBERS) else jnp.asarray(array))
    params = jax.tree_util.tree_unflatten(structure, found)
    faults = verify(params, certificate)
    if faults:
        raise ArgumentError(f"{str(path)!r} must be as its certificate says, got such in which {'; '.join(faults[:3])}")
    return params, certificate


def _plain(name: str, leaf: Any) -> np.ndarray[Any, Any]:
    """A leaf as NumPy writes it: types that are not its own as bits, under their name."""
    dtype = _described(leaf)[1]
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        what = dtype if isinstance(leaf, jax.Array) else type(leaf).__name__
        raise ArgumentError(f"params must have leaves that are arrays of numbers, or numbers, got {name}, a {what}")
    host = np.asarray(leaf)
    return host.view([(dtype.name, f"u{dtype.itemsize}")]) if dtype.isbuiltin == FOREIGN else host


def _read(archive: zipfile.ZipFile, entry: str) -> np.ndarray[Any, Any]:
    """An array as it was before `_plain`."""
    with archive.open(entry) as file:
        array: np.ndarray[Any, Any] = np.lib.format.read_array(file, allow_pickle=False)
    if array.dtype.names is None:
        return array
    (name,) = array.dtype.names
    return array.view(jnp.dtype(name))


def _described(leaf: Any) -> tuple[Any, Any]:
    """Shape and type of a leaf; no type where it is neither array nor number."""
    if isinstance(leaf, NUMBERS) and not isinstance(leaf, NUMPY):
        return (), np.asarray(leaf).dtype
    return getattr(leaf, "shape", ()), getattr(leaf, "dtype", None)
