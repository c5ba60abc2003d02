"""Files written and read past the system's memory of them hold the same bytes, whatever the order and the borders."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emp_core import direct
from emp_core.direct import BLOCK, LEAST, ROOM, DirectReader, DirectWriter
from emp_onnx.files.source import FileSource
from emp_onnx.files.whole import put

SIZE = 3 * ROOM + 777
DATA = np.random.default_rng(0).integers(1, 256, SIZE, np.uint8)
EDGES = [0, 1, BLOCK - 1, BLOCK, LEAST, LEAST + 5, ROOM - 3, ROOM, ROOM + 1, 2 * ROOM + BLOCK, SIZE - 1, SIZE]


def written(path: Path, stretches: list[tuple[int, int]]) -> bytes:
    """A file of zeros after these stretches of DATA were written."""
    with open(path, "wb+") as file:
        os.ftruncate(file.fileno(), SIZE)
        with DirectWriter(path, partial(put, file.fileno())) as write:
            for start, stop in stretches:
                write(start, DATA[start:stop].data)
    return path.read_bytes()


@given(st.permutations(range(len(EDGES) - 1)), st.integers(0, len(EDGES) - 1))
def test_what_is_written_is_there_whatever_the_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], left: int
) -> None:
    stretches = [(EDGES[i], EDGES[i + 1]) for i in order[left:]]
    expected = np.zeros(SIZE, np.uint8)
    for start, stop in stretches:
        expected[start:stop] = DATA[start:stop]
    assert written(tmp_path_factory.mktemp("w") / "f", stretches) == expected.tobytes()


@given(st.sampled_from(EDGES), st.sampled_from(EDGES))
def test_what_is_read_is_what_is_there(tmp_path_factory: pytest.TempPathFactory, one: int, other: int) -> None:
    start, stop = sorted((one, other))
    path = tmp_path_factory.mktemp("r") / "f"
    path.write_bytes(DATA.data)
    room = np.zeros(stop - start, np.uint8)
    done = DirectReader(path).into(start, room.data) if room.size else 0
    np.testing.assert_array_equal(room[:done], DATA[start : start + done])
    assert not room[done:].any()


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_disk_that_refuses_is_written_the_usual_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    usual, write, straight = list[int](), os.pwrite, list[int]()
    opened = direct._opened

    def handle(path: Path, how: int) -> int:
        straight.append(opened(path, how))
        return straight[-1]

    def refuse(handle: int, data: bytes, at: int) -> int:
        if handle in straight:
            raise OSError(refusal, "no")
        usual.append(at)
        return write(handle, data, at)

    monkeypatch.setattr(direct, "_opened", handle)
    monkeypatch.setattr(os, "pwrite", refuse)
    assert written(tmp_path / "f", [(0, SIZE)]) == DATA.tobytes()
    assert usual


def test_no_room_on_the_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: bytes, at: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        written(tmp_path / "f", [(0, SIZE)])


def test_a_system_without_this_way_writes_and_reads_the_usual_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "FLAG", 0)
    assert written(tmp_path / "f", [(5, SIZE)])[5:] == DATA[5:].tobytes()
    assert DirectReader(tmp_path / "f").into(0, bytearray(SIZE)) == 0


def test_zeros_stay_holes(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with open(path, "wb+") as file:
        os.ftruncate(file.fileno(), 8 * ROOM)
        with DirectWriter(path, partial(put, file.fileno())) as write:
            write(0, np.zeros(8 * ROOM, np.uint8).data)
    if direct._opened(path, os.O_RDWR) < 0:
        pytest.skip("this file system has no direct way")
    assert path.stat().st_blocks * 512 < ROOM


def test_a_file_that_became_shorter_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emp_onnx.files.source.LARGE", 1)
    path = tmp_path / "f"
    path.write_bytes(DATA.data)
    source = FileSource(path)
    source.read_disk()
    assert source.read(3, SIZE - 3) == DATA[3:].tobytes()
    os.truncate(path, ROOM)
    with pytest.raises(Exception, match="became shorter"):
        source.read(3, SIZE - 3)


@given(st.lists(st.sampled_from(EDGES), max_size=6), st.sampled_from(EDGES), st.sampled_from(EDGES), st.booleans())
def test_holes_read_as_zeros_and_take_no_memory(
    tmp_path_factory: pytest.TempPathFactory, edges: list[int], one: int, other: int, direct: bool
) -> None:
    start, stop = sorted((one, other))
    path, expected, edges = tmp_path_factory.mktemp("h") / "f", np.zeros(SIZE, np.uint8), sorted(edges)
    with open(path, "wb") as file:
        os.ftruncate(file.fileno(), SIZE)
        for begin, end in zip(edges[::2], edges[1::2], strict=False):
            expected[begin:end] = DATA[begin:end]
            os.pwrite(file.fileno(), DATA[begin:end].data, begin)
    source = FileSource(path)
    if direct:
        source._direct = DirectReader(path)
    assert source.read(start, stop - start) == expected[start:stop].tobytes()


def test_a_hole_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "f", os.preadv
    with open(path, "wb") as file:
        os.pwrite(file.fileno(), b"end", 1 << 40)
    source, counts = FileSource(path), list[int]()
    if not source._sparse or source._stretch(0, 1 << 30) != (True, 1 << 30):
        pytest.skip("this file system has no holes")

    def seen(handle: int, buffers: list[memoryview], at: int) -> int:
        counts.append(read(handle, buffers, at))
        return counts[-1]

    monkeypatch.setattr(os, "preadv", seen)
    assert source.read((1 << 40) - ROOM, ROOM + 3) == bytes(ROOM) + b"end"
    assert sum(counts) <= BLOCK + 3
    with pytest.raises(Exception, match="became shorter"):
        source.read(1 << 40, 4)
    os.truncate(path, 1 << 39)  # within the hole: what is gone is not taken for zeros
    with pytest.raises(Exception, match="became shorter"):
        source.read((1 << 39) - 8, ROOM)


def test_where_bytes_on_their_way_cannot_be_waited_for_no_hole_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "fsync", refuse)
    path = tmp_path / "f"
    with open(path, "wb") as file:
        os.truncate(file.fileno(), SIZE)
    source = FileSource(path)
    assert not source._sparse
    assert source.read(0, SIZE) == bytes(SIZE)
