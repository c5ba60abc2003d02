"""The checksum of values: what pieces they come in does not matter, what bits they have does."""

from __future__ import annotations

import hashlib
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_core.checksum import STRETCH, Checksum, checksum


def slow(data: bytes) -> str:
    """The definition, one stretch after the other."""
    crcs = [zlib.crc32(data[i : i + STRETCH]) for i in range(0, len(data), STRETCH)]
    return hashlib.sha256(b"".join(crc.to_bytes(4, "little") for crc in crcs)).hexdigest()


@given(st.lists(st.integers(0, 3 * STRETCH // 2), max_size=5), st.integers(0, 255))
def test_pieces_do_not_matter(sizes: list[int], seed: int) -> None:
    data = np.random.default_rng(seed).integers(0, 256, sum(sizes), dtype=np.uint8)
    parts = Checksum()
    for part in np.split(data, np.cumsum(sizes)[:-1] if sizes else []):
        parts.update(part)
    assert parts.hexdigest() == checksum(data) == slow(data.tobytes())


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint16"])
def test_values_count_as_they_are_stored(dtype: str) -> None:
    values = np.arange(100).astype(dtype)
    assert checksum(values) == slow(values.tobytes()) == checksum(values.reshape(10, 10))
    assert checksum(values[::2]) == slow(values[::2].tobytes())


@given(st.integers(0, 2 * STRETCH), st.integers(0, 7))
def test_every_changed_bit_is_found(at: int, bit: int) -> None:
    data = np.zeros(2 * STRETCH + 1, np.uint8)
    before = checksum(data)
    data[at] ^= 1 << bit
    assert checksum(data) != before


def test_nothing_has_a_checksum_too() -> None:
    assert checksum(np.empty(0, np.float32)) == hashlib.sha256(b"").hexdigest()
