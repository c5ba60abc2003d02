"""Mutants of many files, in a process that is watched. More of them: `python -m tests.fuzz`."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz import attempt, fuzz, mutant
from tests.onnx.builders import two_layers, write

DATA = two_layers(np.random.default_rng(0)).model.SerializeToString()


def test_500_mutants_are_answered() -> None:
    result = fuzz(500, seed=7)
    assert result.faults == []
    assert sum(result.codes.values()) == 500
    assert result.codes["0"] > 10
    assert set(result.codes) <= {"0", "1", "2", "3"}


def test_mutants_are_the_same_every_time() -> None:
    assert [mutant(DATA, random.Random(i)) for i in range(20)] == [mutant(DATA, random.Random(i)) for i in range(20)]


@pytest.mark.parametrize(
    ("said", "code", "fault"),
    [
        ("", 7, "exit code 7"),
        ("Traceback\nValueError", 3, "exit code 3 with"),
        ("", 3, "exit code 3 with"),
        ("emp: a sentence", 3, ""),
    ],
)
def test_what_is_wrong_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, code: int, fault: str
) -> None:
    write(two_layers(np.random.default_rng(0)).model, tmp_path / "in.onnx")

    def main(argv: list[str]) -> int:
        if said:
            print(said, file=sys.stderr)
        return code

    monkeypatch.setattr("emp_onnx.cli.main", main)
    assert attempt(DATA, tmp_path, "tensor")[1].startswith(fault)
    assert bool(attempt(DATA, tmp_path, "tensor")[1]) == bool(fault)
