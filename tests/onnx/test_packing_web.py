"""Packed files in onnxruntime-web, WebAssembly under Node.js: outputs as of the unpacked file, bit for bit."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from emp_onnx import Model, pack, unpack

VERSION = "1.23.2"
RUN = Path(__file__).with_name("run_web.mjs")


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which node finds onnxruntime-web."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs node and npm")
    folder = tmp_path_factory.mktemp("web")
    (folder / "package.json").write_text('{"private": true}')
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", f"onnxruntime-web@{VERSION}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"needs onnxruntime-web {VERSION} from the npm registry: {done.stderr.strip()[-200:]}")
    shutil.copy(RUN, folder)
    return folder


def outputs(web: Path, model: Path, feeds: dict[str, Any]) -> dict[str, bytes]:
    told = {k: {"type": "float32", "dims": v.shape, "data": v.reshape(-1).tolist()} for k, v in feeds.items()}
    feed = web / "feed.json"
    feed.write_text(json.dumps(told))
    done = subprocess.run(
        ["node", RUN.name, str(model), str(feed)], cwd=web, capture_output=True, text=True, timeout=300, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {k: base64.b64decode(v) for k, v in json.loads(done.stdout.strip().splitlines()[-1]).items()}


@pytest.mark.parametrize(
    ("density", "opset", "shape"),
    [
        (0.6, 9, (256, 256)),
        (0.5, 17, (256, 2048)),
        (0.12, 17, (128, 256)),
        (0.05, 13, (128, 512)),
        (0.01, 17, (128, 512)),
    ],
)
def test_the_same_outputs_as_unpacked(
    web: Path, tmp_path: Path, density: float, opset: int, shape: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape).astype(np.float32)
    weight[rng.random(shape) >= density] = 0
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", 1, [1, shape[0]])], [helper.make_tensor_value_info("y", 1, [1, shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    done = pack(Model(proto), tmp_path / "packed.onnx", form="packed", target="onnxruntime-web")
    assert {row.form for row in done.rows} != {"dense"}
    plain = unpack(done.out, tmp_path / "plain.onnx")
    onnx.checker.check_model(done.out, full_check=True)
    feeds = {"x": rng.standard_normal((1, shape[0])).astype(np.float32)}
    assert outputs(web, done.out, feeds) == outputs(web, plain.out, feeds)


SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "models"


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the models in {SHARED}, which are no part of the repository")
@pytest.mark.parametrize("name", ["cifar10_resnet_4b", "mnist_fc_256x6", "squeezenet"])
def test_real_models(web: Path, tmp_path: Path, name: str) -> None:
    from emp_onnx import prune
    from emp_onnx.runtime.compare import Session

    pruned = prune(SHARED / f"{name}.onnx", tmp_path / "pruned.onnx", gzip=False).out
    done = pack(pruned, tmp_path / "packed.onnx", target="onnxruntime-web")
    assert done.after < 0.75 * done.before
    rng = np.random.default_rng(0)
    feeds = {
        item.name: rng.standard_normal([d if isinstance(d, int) else 1 for d in item.shape]).astype(np.float32)
        for item in Session(pruned).inputs
    }
    assert outputs(web, done.out, feeds) == outputs(web, pruned, feeds)
