"""Reading `.npz` files as NumPy writes them, in a third of its time and without what it leaves to the search for
garbage: two hundred small files are a tenth of a short run.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["plain_arrays"]

MAGIC, HEAD = b"\x93NUMPY\x01\x00", 10  # of a .npy file of version 1.0, and where its header begins


def plain_arrays(path: str | os.PathLike[str], /) -> dict[str, NDArray[Any]] | None:
    """The arrays of an `.npz` file, which are not to be written to; None where anything in it is not as NumPy writes
    it, for `np.load` to look at.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            items = archive.infolist()
            if any(info.compress_type != zipfile.ZIP_STORED for info in items):  # what small ones hold may be large
                return None
            found = {info.filename: _array(archive.read(info)) for info in items}
    except (OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None
    out = {name[:-4]: array for name, array in found.items() if name.endswith(".npy") and array is not None}
    return out if out and len(out) == len(found) else None


def _array(data: bytes) -> NDArray[Any] | None:
    stop = HEAD + int.from_bytes(data[8:HEAD], "little")
    if data[:8] != MAGIC or len(data) < stop:
        return None
    shape, order, dtype = _header(data[:stop])
    if dtype.hasobject or not dtype.itemsize:
        return None
    return np.frombuffer(data, dtype, offset=stop).reshape(shape, order=order)


@lru_cache(16)
def _header(head: bytes) -> tuple[tuple[int, ...], Any, np.dtype[Any]]:
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(head[8:]))
    return shape, "F" if fortran else "C", dtype
