"""The demonstration: real accuracy, kept, in a moment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import emp_onnx.demo
from emp_onnx.cli import main
from emp_onnx.demo import FOLDER, run_demo

needed = pytest.mark.skipif(not (FOLDER / "digits.onnx").is_file(), reason="needs the files of the demonstration")


@needed
@pytest.mark.parametrize("scope", ["tensor", "row", "model"])
def test_accuracy_stays_and_it_is_quick(scope: str) -> None:
    shown = run_demo(scope=scope)
    assert shown.report.verification.ok
    assert shown.before > 0.95
    assert shown.after > shown.before - 0.05
    assert 0.2 < shown.report.plan.total.sparsity < 0.8
    assert shown.seconds < 10
    assert not shown.report.out.exists()


@needed
def test_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    out = capsys.readouterr().out
    assert "digits it never saw" in out
    assert "[ok] the certificate is whole" in out
    assert main(["demo", "--json", "--scope", "row"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"]["digits"] > 0


def test_missing_files_are_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(emp_onnx.demo, "FOLDER", tmp_path)
    assert main(["demo"]) == 3
    assert "must have its files" in capsys.readouterr().err
