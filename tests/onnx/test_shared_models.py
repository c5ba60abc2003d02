"""Real models: each is pruned and verified under every scope, or refused with the true reason."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import emp_onnx
from emp_onnx.figures import SCOPES

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "models"
MODELS = sorted(SHARED.glob("*.onnx"))
# models without float32 weights in initializers: what the refusal says of most of them
REFUSED = {
    "mobilenetv2_qdq": "quantised (int8), reaches Conv through DequantizeLinear",
    "ppocr_det_v11": "held by a Constant node",
    "silero_vad": "held by a Constant node",
    "squeezenet_fp16": "float16 weights are not pruned yet",
    "tiny_random_gpt2_fp16": "float16 weights are not pruned yet",
}

pytestmark = pytest.mark.skipif(not MODELS, reason=f"needs the models in {SHARED}, which are no part of the repository")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_model(path: Path, scope: str, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    before = path.stat()
    if path.stem in REFUSED:
        with pytest.raises(emp_onnx.ModelError) as caught:
            emp_onnx.prune(path, out, scope=scope)
        assert REFUSED[path.stem] in str(caught.value)
        assert list(tmp_path.iterdir()) == []
        return
    report = emp_onnx.prune(path, out, scope=scope, gzip=False)
    assert report.verification.ok
    assert report.verification.behaviour is not None, report.verification.not_run
    assert report.verification.behaviour.outputs
    assert emp_onnx.verify(out).ok
    # counted by onnx itself: exactly the planned zeros, nothing else changed
    planned = {entry.name: entry for entry in report.plan.entries}
    old, new = onnx.load(path).graph, onnx.load(out).graph
    assert [n.SerializeToString() for n in old.node] == [n.SerializeToString() for n in new.node]
    for a, b in zip(old.initializer, new.initializer, strict=True):
        x, y = onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b)
        if a.name in planned:
            assert int((y == 0).sum()) == planned[a.name].zeros
            assert ((x == y) | (y == 0)).all()
        else:
            assert a.SerializeToString() == b.SerializeToString()
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (before.st_mtime_ns, before.st_size)


def test_most_models_are_pruned() -> None:
    assert len(MODELS) - len(REFUSED) >= 17
    assert set(REFUSED) <= {path.stem for path in MODELS}
