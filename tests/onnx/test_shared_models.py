"""Real models: each is pruned and verified under every scope, or refused with the true reason."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import emp_onnx
from emp_onnx.figures import SCOPES

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "models"
MODELS = sorted(SHARED.glob("*.onnx"))

pytestmark = pytest.mark.skipif(not MODELS, reason=f"needs the models in {SHARED}, which are no part of the repository")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_model(path: Path, scope: str, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    before = path.stat()
    report = emp_onnx.prune(path, out, scope=scope, gzip=False)
    assert report.verification.ok
    assert report.verification.behaviour is not None, report.verification.not_run
    assert report.verification.behaviour.outputs
    assert emp_onnx.verify(out).ok
    # counted by onnx itself: exactly the planned zeros, nothing else changed
    planned = {entry.name: entry for entry in report.plan.entries}
    old, new = tensors(onnx.load(path).graph), tensors(onnx.load(out).graph)
    pruned = 0
    for (name, a), (_, b) in zip(old, new, strict=True):
        x, y = onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b)
        same = a.SerializeToString() == b.SerializeToString()
        entry = planned.get(name)
        if entry is not None and not entry.zero and x.shape == entry.shape:
            assert int((y == 0).sum()) == entry.zeros
            assert ((x == y) | (y == 0)).all()
            pruned += 1
        elif entry is not None and entry.zero.isdecimal():
            assert int((y == int(entry.zero)).sum()) == entry.zeros
            assert ((x == y) | (y == int(entry.zero))).all()
            pruned += 1
        else:
            assert same or entry is not None
    assert pruned
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (before.st_mtime_ns, before.st_size)


def tensors(graph: onnx.GraphProto, path: str = "") -> list[tuple[str, onnx.TensorProto]]:
    """Every initializer and tensor attribute, with its key, also in bodies."""
    out = [(path + t.name, t) for t in graph.initializer]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                out.append((path + node.output[0], attribute.t))
            if attribute.HasField("g"):
                out += tensors(attribute.g, f"{path}{attribute.name} of {node.op_type} '{node.name}'/")
    return out


def test_weights_of_constant_nodes_are_pruned() -> None:
    for stem in ("silero_vad", "ppocr_det_v11"):
        made = emp_onnx.plan(emp_onnx.load(SHARED / f"{stem}.onnx"))
        assert len(made.entries) > 10
        assert not made.refusals
