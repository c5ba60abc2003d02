"""The kernels under three sanitizers, and no instruction where it must not be."""

from __future__ import annotations

import platform
import shutil
import subprocess

import pytest

from tests.kernels.native import build


@pytest.mark.parametrize("sanitize", ["address,undefined", "thread"])
def test_well_formed_and_hostile_weights_by_many_threads(sanitize: str) -> None:
    """Weights in arrays of exactly their size; half of the rounds have sizes and contents that do not agree."""
    program = build(sanitize=sanitize, target="emp_stress") / "emp_stress"
    done = subprocess.run([str(program), "0", "60"], capture_output=True, text=True, timeout=500)
    if "FATAL: ThreadSanitizer" in done.stderr:
        pytest.skip(f"ThreadSanitizer does not run on this system: {done.stderr.splitlines()[0]}")
    assert (done.returncode, done.stdout) == (0, "60 rounds\n"), done.stderr[-4000:]


@pytest.mark.alone
def test_a_limit_of_time_ends_it_and_it_tells_how_far_it_came() -> None:
    program = build(sanitize="address,undefined", target="emp_stress") / "emp_stress"
    done = subprocess.run(
        [str(program), "1", "100000000", "3", "hostile"], capture_output=True, text=True, timeout=60, check=True
    )
    assert " rounds in 2 s\n" in done.stderr
    assert 0 < int(done.stdout.split()[0]) < 100000000


@pytest.mark.parametrize(
    "isa", ["avx512", "avx2", "integer_avx512", "integer_avxvnni", "integer_avx2", "narrow_avx2"]
)
def test_code_of_an_instruction_set_stays_in_its_namespace(isa: str) -> None:
    """A function that two files define is kept once by the linker; it must not be the copy that needs AVX-512."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the files of AVX are empty on other processors")
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    (made,) = build().rglob(f"{isa}.cpp.o")
    listed = subprocess.run(["nm", "-C", str(made)], capture_output=True, text=True, check=True).stdout.splitlines()
    shared = [line.split(" ", 2)[2] for line in listed if line[17:18] in ("W", "V", "u")]
    assert shared, "the test looks for what is there"
    assert [name for name in shared if f"emp::{isa}::" not in name] == []
