"""Packed files in Netron's own reader, under Node.js: it opens them and shows the functions, the parts and the rest."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emp_onnx import Model, pack
from emp_onnx.files.functions import DOMAIN
from tests.onnx.test_packing import sparse_matmul

VERSION = "9.3.3"
RUN = Path(__file__).with_name("run_netron.mjs")


@pytest.fixture(scope="module")
def netron(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with Netron's scripts."""
    if shutil.which("node") is None:
        pytest.skip("needs node")
    folder = tmp_path_factory.mktemp("netron")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), f"netron=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"needs netron {VERSION} from the package index: {done.stderr.strip()[-200:]}")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    return folder / "netron"


def shown(netron: Path, model: Path) -> Any:
    command = ["node", str(RUN), str(netron), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("density", "form", "function", "parts"),
    [
        (0.5, "packed", "UnpackMask", {"w.mask": "uint8[8192]", "w.values": "float32[{}]"}),
        (0.1, "packed", "UnpackGaps4", {"w.values": "float32[{}]"}),
        (0.5, "dense", None, {"w": "float32[256,256]"}),
    ],
)
def test_netron_shows_what_is_in_a_packed_file(
    netron: Path, tmp_path: Path, density: float, form: str, function: str | None, parts: dict[str, str]
) -> None:
    proto = sparse_matmul(np.random.default_rng(0), 256, density)
    weight = np.frombuffer(proto.graph.initializer[0].raw_data, np.float32)
    done = pack(Model(proto), tmp_path / "p.onnx", form=form)
    told = shown(netron, done.out)
    assert told["format"].startswith("ONNX")
    constants = {v["name"]: v["type"] for node in told["graph"] for v in node["inputs"] if v["constant"]}
    for name, kind in parts.items():
        assert constants[name] == kind.format(np.count_nonzero(weight.view(np.uint32)) + 1)
    kinds = [(node["module"], node["type"]) for node in told["graph"]]
    assert ("MatMul" in {kind for _, kind in kinds}) is True
    assert ({kind for module, kind in kinds if module == DOMAIN} - {"Stage"}) == ({function} if function else set())
    if function:
        node = next(node for node in told["graph"] if node["type"] == function)
        assert node["outputs"] == ["w"]
        assert "Gather" in told["functions"][function]
