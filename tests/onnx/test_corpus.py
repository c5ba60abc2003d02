"""A sample of other people's files: none fails. The whole is `python -m tests.benchmarks.corpus`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.corpus import FAILED, KEPT, PRUNED, SHARED, corpora, main, operations, outcome

FILES = corpora()
# odd ones always, and a few of the rest
ODD = ("weightless", "sparse", "bf16", "nested_local_function", "loop", "QLinear", "attention", "quantize", "Einsum")


@pytest.mark.skipif(not FILES["corpus"], reason=f"needs the files in {SHARED / 'corpus'}, no part of the repository")
@pytest.mark.parametrize("part", range(4))
def test_a_sample_of_the_corpus(part: int, tmp_path: Path) -> None:
    odd = [path for path in FILES["corpus"] if any(word.lower() in path.name.lower() for word in ODD)][:40]
    chosen = list(dict.fromkeys([*odd, *FILES["corpus"][::16]]))[part::4]
    found = {path.name: outcome(path, tmp_path, ("tensor", "row", "model", "row")[part]) for path in chosen}
    assert {name: o.reason for name, o in found.items() if o.kind == FAILED} == {}
    assert sum(o.kind in (PRUNED, KEPT) for o in found.values()) >= 2


def test_a_sample_of_onnx_s_own_models(tmp_path: Path) -> None:
    found = {path: outcome(path, tmp_path) for path in FILES["onnx backend tests"][::8]}
    assert {path: o.reason for path, o in found.items() if o.kind == FAILED} == {}
    assert found


def test_a_sample_of_onnx_s_tests_of_operations(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    files = operations(tmp_path / "made")
    assert len(files) > 1000
    some = [*files[::60], *(path for path in files if "sparse" in path.name)]
    found = {path.name: outcome(path, tmp_path) for path in some}
    assert {name: o.reason for name, o in found.items() if o.kind == FAILED} == {}


def test_the_table_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- corpus: begin -->\n\n<!-- corpus: end -->\n")
    files = {name: paths[:2] for name, paths in FILES.items()}
    monkeypatch.setattr("tests.benchmarks.corpus.corpora", lambda: files)
    monkeypatch.setattr("tests.benchmarks.corpus.operations", lambda folder: [])
    assert main(["--write", str(page)]) == 0
    assert "| onnx backend tests | 2 |" in page.read_text()
    assert "pruned and verified" in capsys.readouterr().out
