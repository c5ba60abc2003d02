"""The files of the demo are what their script and their licence note say."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "adapters" / "emp_onnx" / "demo"


@pytest.fixture(name="arrays")
def read_arrays() -> dict[str, np.ndarray]:
    with np.load(DEMO / "digits.npz") as file:
        return dict(file)


def test_shapes_and_values(arrays: dict[str, np.ndarray]) -> None:
    assert {name: (a.shape, a.dtype.name) for name, a in arrays.items()} == {
        "x_test": ((500, 1, 8, 8), "float32"),
        "y_test": ((500,), "int64"),
        "x_feeds": ((128, 1, 8, 8), "float32"),
    }
    for name in ("x_test", "x_feeds"):
        assert np.array_equal(arrays[name] * 16, (arrays[name] * 16).astype(np.uint8)), "pixels are multiples of 1/16"
    assert set(arrays["y_test"].tolist()) == set(range(10))


def test_feeds_and_test_images_are_disjoint(arrays: dict[str, np.ndarray]) -> None:
    feeds = {x.tobytes() for x in arrays["x_feeds"]}
    assert not feeds & {x.tobytes() for x in arrays["x_test"]}


def test_the_network_is_one_small_clean_file() -> None:
    data = (DEMO / "digits.onnx").read_bytes()
    assert len(data) < 200_000
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node if node.op_type in {"Conv", "Gemm"}] == [
        *["Conv"] * 2,
        *["Gemm"] * 2,
    ]
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    parts = [model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output]
    assert not any(part.doc_string or part.metadata_props for part in parts)
    assert (model.producer_name, model.producer_version) == ("pytorch", "2.13.0")


def test_accuracy(arrays: dict[str, np.ndarray]) -> None:
    session = onnxruntime.InferenceSession(DEMO / "digits.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": arrays["x_test"]})
    assert (logits.argmax(axis=1) == arrays["y_test"]).mean() == 0.98


def test_training_again_gives_the_same_bytes() -> None:
    missing = [name for name in ("torch", "sklearn", "onnxscript") if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    if version("torch").partition("+")[0] != "2.13.0":
        pytest.skip(f"the network was trained with torch 2.13.0, this is {version('torch')}")
    done = subprocess.run(
        [sys.executable, "-m", "emp_onnx.demo.train", "--check"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, ROOT / "adapters"]))},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
