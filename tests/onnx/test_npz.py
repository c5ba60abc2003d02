"""Feeds in `.npz` files: read as NumPy reads them, or left to it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from emp_onnx.errors import UsageError
from emp_onnx.runtime.feeds import read_arrays
from emp_onnx.runtime.npz import plain_arrays

PLAIN = st.one_of(hnp.floating_dtypes(endianness="="), hnp.integer_dtypes(), hnp.boolean_dtypes())
ARRAYS = hnp.arrays(PLAIN, hnp.array_shapes(min_dims=0, min_side=1, max_dims=4))


@given(st.dictionaries(st.text("abc/._é", min_size=1, max_size=6), ARRAYS, min_size=1, max_size=4), st.booleans())
def test_what_numpy_writes_is_read_as_numpy_reads_it(arrays: dict[str, Any], fortran: bool) -> None:
    file = io.BytesIO()
    np.savez(file, **({k: np.asfortranarray(v) for k, v in arrays.items()} if fortran else arrays))
    found = plain_arrays(file)  # type: ignore[arg-type]
    assert found is not None
    file.seek(0)
    with np.load(file) as right:
        assert found.keys() == set(right.files)
        for name, array in found.items():
            np.testing.assert_array_equal(array, right[name], strict=True)


def test_what_is_not_as_numpy_writes_it_is_left_to_numpy(tmp_path: Path) -> None:
    x = np.arange(6.0)
    np.savez_compressed(tmp_path / "small.npz", x=x)
    np.savez(tmp_path / "objects.npz", x=np.array([None, {}], object))
    np.save(tmp_path / "one.npy", x)
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "nothing.npz").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("x.txt", "no array")
    np.savez(tmp_path / "whole.npz", x=x)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "turned.npz").write_bytes(whole.replace(x[1:3].tobytes(), x[2:4].tobytes()))  # its checksum is wrong
    for path in tmp_path.iterdir():
        assert (plain_arrays(path) is None) == (path.name != "whole.npz"), path
    np.testing.assert_array_equal(read_arrays(tmp_path / "small.npz", "feeds")["x"], x)
    for name in ("objects.npz", "text.npz", "cut.npz", "turned.npz"):
        with pytest.raises(UsageError):
            read_arrays(tmp_path / name, "feeds")
