"""The kernels for aarch64, compiled here and run by an emulator."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.kernels.native import build

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def test_well_formed_and_hostile_weights_on_aarch64() -> None:
    for tool in ("cmake", COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (Debian: g++-aarch64-linux-gnu, qemu-user)")
    system = [
        "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_EXE_LINKER_FLAGS=-static",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
    ]  # fmt: skip
    program = build(*system, compiler=COMPILER, target="emp_stress") / "emp_stress"
    done = subprocess.run([EMULATOR, str(program), "1", "10"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "10 rounds\n"), done.stderr[-4000:]
