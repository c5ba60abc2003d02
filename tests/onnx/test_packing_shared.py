"""Real models and other people's files, pruned and packed: the same outputs as unpacked, and every bit back."""

from __future__ import annotations

from pathlib import Path

import pytest

import emp_onnx
from emp_onnx import ModelError, load

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
MODELS = sorted((SHARED / "models").glob("*.onnx"))
CORPUS = sorted((SHARED / "corpus").glob("*.onnx"))


@pytest.mark.skipif(not MODELS, reason=f"needs the models in {SHARED / 'models'}, no part of the repository")
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_model(path: Path, tmp_path: Path) -> None:
    pruned = emp_onnx.prune(path, tmp_path / "pruned.onnx", gzip=False)
    done = emp_onnx.pack(pruned.out, tmp_path / "packed.onnx")
    assert done.verification.ok
    assert done.verification.behaviour is not None, done.verification.not_run
    assert all(output.max_abs == 0 for output in done.verification.behaviour.outputs)
    assert done.after <= done.before
    assert emp_onnx.verify(done.out).ok
    again = emp_onnx.prune(path, tmp_path / "both.onnx", pack="auto", gzip=False)
    assert again.verification.ok
    assert {e.name for e in again.plan.entries} == {e.name for e in pruned.plan.entries}
    back = emp_onnx.unpack(done.out, tmp_path / "back.onnx")
    before, after = load(pruned.out), load(back.out)
    for key, tensor in before.tensors.items():
        if tensor.storage in ("raw", "typed", "external") and "indices of" not in key:
            assert after.values(key).tobytes() == before.values(key).tobytes()


@pytest.mark.skipif(not CORPUS, reason=f"needs the files in {SHARED / 'corpus'}, no part of the repository")
@pytest.mark.parametrize("part", range(4))
def test_a_sample_of_the_corpus(part: int, tmp_path: Path) -> None:
    tried = 0
    for path in CORPUS[part::20]:
        try:
            pruned = emp_onnx.prune(path, tmp_path / "pruned.onnx", gzip=False)
        except ModelError:
            continue
        done = emp_onnx.pack(pruned.out, tmp_path / "packed.onnx")
        assert done.verification.ok, path
        assert done.after <= done.before, path
        assert emp_onnx.unpack(done.out, tmp_path / "back.onnx").verification.ok, path
        tried += 1
    assert tried


def test_floors_of_real_models_at_the_rule(tmp_path: Path) -> None:
    if not MODELS:
        pytest.skip(f"needs the models in {SHARED / 'models'}, no part of the repository")
    path = SHARED / "models" / "mobilenetv2.onnx"
    report = emp_onnx.prune(path, tmp_path / "p.onnx", pack="auto", gzip=False)
    assert report.after.plain <= 0.68 * report.before.plain
