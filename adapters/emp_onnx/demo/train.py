"""Train and export the network of ``emp demo``, exactly as it was shipped.

    pip install ".[onnx]" torch==2.13.0 onnxscript scikit-learn
    python -m emp_onnx.demo.train            # writes digits.onnx and digits.npz beside this file
    python -m emp_onnx.demo.train --check    # trains again and compares with what is shipped

The data are the UCI handwritten digits as scikit-learn bundles them: 1797 images of 8 x 8 pixels with values 0..16
(E. Alpaydin and C. Kaynak, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0). They are divided once, by a seeded
permutation, into three parts that share no image: 1169 for training, 128 calibration feeds, 500 for the test.

The settings below were chosen on a part of the training images, over three seeds; the test images had no say, and the
seed is simply 0.

Training runs in float64 on one thread and the weights are rounded to float32 at the end. So what is left of the order
of summation on another processor lies far below one unit in the last place of the file, and the file comes out the
same, byte for byte, wherever the same versions run.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

SEED = 0
FEEDS = 128
TEST = 500
EPOCHS = 80
BATCH = 32
RATE = 2e-3
WEIGHT_DECAY = 0.2
DROPOUT = 0.3
HERE = Path(__file__).resolve().parent


def data() -> dict[str, Any]:
    """Return the three parts of the data: ``x`` in the model's input form, ``y`` as integers."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = (digits.images / 16.0).astype(np.float32)[:, None]  # every value is a multiple of 1/16: exact in float32
    y = digits.target.astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(x))
    test, feeds, train = order[:TEST], order[TEST : TEST + FEEDS], order[TEST + FEEDS :]
    return {
        "x_train": x[train],
        "y_train": y[train],
        "x_test": x[test],
        "y_test": y[test],
        "x_feeds": x[feeds],
    }


def network() -> Any:
    """Return the untrained network: two convolutions and two linear layers, 38 282 parameters."""
    from torch import nn

    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 16, 3, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(16, 32, 3, stride=2, padding=1),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            dropout=nn.Dropout(DROPOUT),
            hidden=nn.Linear(512, 64),
            relu3=nn.ReLU(),
            output=nn.Linear(64, 10),
        )
    )


def train(x: Any, y: Any, *, seed: int = SEED) -> Any:
    """Return the network trained on ``x`` and ``y``; equal arguments give equal weights."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float64)
    inputs, labels = torch.from_numpy(x).double(), torch.from_numpy(y)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * -(-len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss = nn.CrossEntropyLoss()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(inputs)).split(BATCH):
            optimizer.zero_grad()
            loss(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    torch.set_default_dtype(torch.float32)
    return model.float().eval()


def export(model: Any) -> bytes:
    """Return the ONNX file: torch's exporter, without the traces of the machine that it ran on."""
    import onnx
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.onnx"
        torch.onnx.export(
            model,
            (torch.zeros(2, 1, 8, 8),),
            path,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        proto = onnx.load(path)
    # The exporter writes stack traces, with local paths, into the metadata of every node.
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    proto.producer_version = proto.producer_version.partition("+")[0]  # the build (+cpu, +cu130) changes nothing
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString(deterministic=True))


def accuracy(model: bytes, x: Any, y: Any) -> float:
    """Return the share of ``x`` that the ONNX file names right in onnxruntime."""
    import onnxruntime as ort

    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": x})
    return float((logits.argmax(1) == y).mean())


def make() -> tuple[bytes, bytes, dict[str, Any]]:
    """Return the bytes of ``digits.onnx`` and ``digits.npz``, and the arrays that the second holds."""
    import numpy as np

    parts = data()
    model = export(train(parts.pop("x_train"), parts.pop("y_train")))
    packed = io.BytesIO()
    np.savez_compressed(packed, **parts)
    return model, packed.getvalue(), parts


def check(model: bytes, parts: dict[str, Any]) -> list[str]:
    """Return what differs from the shipped files; an empty list when nothing does."""
    import numpy as np

    differences = []
    with np.load(HERE / "digits.npz") as shipped:
        for name, array in parts.items():
            if not np.array_equal(shipped[name], array):
                differences.append(f"{name} of digits.npz differs")
    shipped_model = (HERE / "digits.onnx").read_bytes()
    if model != shipped_model:
        differences.append("digits.onnx has other bytes")
        ours, theirs = (accuracy(one, parts["x_test"], parts["y_test"]) for one in (model, shipped_model))
        differences.append(f"accuracy {ours:.4f}, shipped {theirs:.4f}")
    return differences


def main(arguments: list[str] | None = None) -> int:
    """Train, then write or compare; return 0 when done and 1 when the comparison fails."""
    parser = argparse.ArgumentParser(prog="python -m emp_onnx.demo.train", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; compare with the shipped files")
    asked = parser.parse_args(arguments)
    # The same kernels on every x86-64 processor; read when torch is loaded.
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "default")
    os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
    try:
        import onnxscript  # noqa: F401
        import sklearn  # noqa: F401
        import torch  # noqa: F401
    except ImportError as missing:
        print(f"{missing}; run: pip install torch==2.13.0 onnxscript scikit-learn", file=sys.stderr)
        return 2
    model, packed, parts = make()
    print(f"test accuracy {accuracy(model, parts['x_test'], parts['y_test']):.4f}, {len(model)} bytes")
    if asked.check:
        differences = check(model, parts)
        print("\n".join(differences) if differences else "the same as shipped, byte for byte")
        return 1 if differences else 0
    (HERE / "digits.onnx").write_bytes(model)
    (HERE / "digits.npz").write_bytes(packed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
