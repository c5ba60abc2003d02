"""Real exports: every network, by both exporters of torch, loses half of what can go, and says what the masked one
says."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs torch, whose exporters write the models")

from emp_onnx.shrink.cut import merge_masks  # noqa: E402
from emp_onnx.shrink.exact import exact  # noqa: E402
from emp_onnx.shrink.problem import Problem  # noqa: E402
from emp_onnx.shrink.proof import prove  # noqa: E402
from tests.onnx.torch_nets import NETS  # noqa: E402

# units that can go at the least: all that a careful reader of the network would find
LEAST = {
    "ResNet-18": 8 + 4 * 8 + 4 * 16 + 2 * 32, "DenseNet": 20, "EfficientNet": 8 + 64 + 8, "ShuffleNet": 24, "U-Net": 24,
    "YOLO": 40,
    "BERT": 2 * (4 + 32), "GPT": 2 * (4 + 32), "ViT": 2 * (4 + 32), "LSTM": 12 + 20,
}  # fmt: skip


def exported(
    name: str, dynamo: bool, folder: Path, open_batch: bool = True
) -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    if dynamo:
        pytest.importorskip("onnxscript", reason="torch's newer exporter needs it")
    torch.manual_seed(0)
    make, shape = NETS[name]
    net = make().eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.bias.data.normal_(0, 0.3)
    x = torch.randn(shape) if shape else torch.randint(0, 50, (2, 8))
    path = folder / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            dims = {0: torch.export.Dim("batch", min=1, max=64)} if open_batch else None
            program = torch.onnx.export(net, (x,), dynamo=True, dynamic_shapes=(dims,) if dims else None, verbose=False)
            program.save(str(path))
        else:
            stream = io.BytesIO()
            axes = {"x": {0: "batch"}} if open_batch else None
            torch.onnx.export(net, (x,), stream, dynamo=False, input_names=["x"], dynamic_axes=axes)
            path.write_bytes(stream.getvalue())
    model = onnx.load(path)
    key = model.graph.input[0].name
    feeds = [{key: x.numpy()}]
    return model, feeds


@pytest.mark.parametrize("dynamo", [False, True], ids=["classic", "dynamo"])
@pytest.mark.parametrize("name", list(NETS))
def test_masked_equals_shrunk(name: str, dynamo: bool, tmp_path: Path) -> None:
    model, feeds = exported(name, dynamo, tmp_path)
    problem = Problem.of(model, feeds, biases=True)
    assert sum(group.units for group in problem.groups) >= LEAST[name], (problem.groups, problem.reasons)
    rng = np.random.default_rng(0)
    masks: dict = {}
    for group in problem.groups:
        trial = merge_masks([masks, group.removed(rng.permutation(group.units)[: group.units // 2])])
        if not any(mask.all() for mask in trial.values()):
            masks = trial
    assert masks
    shrunk = problem.cut(masks)
    onnx.checker.check_model(shrunk, full_check=True)
    proof = prove(problem.reference(shrunk, masks), shrunk, problem.trace.feeds)
    assert proof.holds, proof
    reference, folded = exact(problem, masks)
    proof = prove(reference, folded, problem.trace.feeds)
    assert proof.holds, proof
    assert [d.SerializeToString() for d in shrunk.graph.output] == [d.SerializeToString() for d in model.graph.output]
