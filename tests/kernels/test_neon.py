"""The kernels for aarch64, compiled here and run by an emulator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.kernels.native import SOURCES

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def test_well_formed_and_hostile_weights_on_aarch64(tmp_path: Path) -> None:
    for tool in ("cmake", COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (Debian: g++-aarch64-linux-gnu, qemu-user)")
    system = [
        f"-DCMAKE_CXX_COMPILER={COMPILER}", "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_EXE_LINKER_FLAGS=-static", "-DEMP_TESTS=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
    ]  # fmt: skip
    subprocess.run(["cmake", "-S", str(SOURCES), "-B", str(tmp_path), *system], check=True, capture_output=True)
    made = subprocess.run(
        ["cmake", "--build", str(tmp_path), "--parallel", "2", "--target", "emp_stress"], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert "warning:" not in made.stdout + made.stderr, made.stdout + made.stderr
    done = subprocess.run(
        [EMULATOR, str(tmp_path / "emp_stress"), "1", "10"], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "10 rounds\n"), done.stderr[-4000:]
