"""At the same parameters: other tools' structured pruning against `emp shrink --refit`, scored on labelled data.

    python -m tests.benchmarks.shrink_peers --onnxsim PYTHON --torch PYTHON [--write docs/shrinking.md] [--tasks a,b]

Each PYTHON is the interpreter of an environment that needs no part of this project: one with onnxsim, one with torch,
onnx and torch-pruning. onnxsim is asked for channels by norm and by activation, each also with its own refit.
Torch-Pruning needs a network in PyTorch: the model's operations are rebuilt there with its weights, pruned by L1 and by
L2 norms without fine-tuning, and exported by torch.onnx. What is left in parameters is then the target for ours.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import emp_onnx
from emp_onnx.shrink import shrink
from tests.benchmarks._report import machine, table, write
from tests.benchmarks.shrinking import FLOORS, kept, tasks

PEER = """
import sys, numpy as np, onnx, onnxsim
path, feeds, folder, sparsity = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
z = np.load(feeds)
data = [{k: z[k][i] for k in z.files} for i in range(len(z[z.files[0]]))]
model = onnx.load(path)
made = {
    "norm": lambda: onnxsim.apply_structured_pruning(model, sparsity),
    "activation": lambda: onnxsim.apply_structured_wanda_pruning(model, calibration_data=data, sparsity=sparsity),
}
for name, make in made.items():
    try:
        out = make()
        onnx.save(out, f"{folder}/{name}.onnx")
        onnx.save(onnxsim.apply_pruning_finetune(model, out, calibration_data=data), f"{folder}/{name} + refit.onnx")
    except Exception as error:
        print(name, type(error).__name__, str(error)[:200])
print("onnxsim", onnxsim.__version__)
"""

TORCH = """
import sys, numpy as np, onnx, torch, torch.nn.functional as F
import torch_pruning as tp
from onnx import numpy_helper
path, feeds, folder, sparsity = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
model = onnx.load(path)
z = np.load(feeds)
kind = {i.name: i for i in model.graph.input}
held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
name = next(n for n in kind if n not in held)
x = torch.tensor(z[name][0])

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.steps, self.layers = [], torch.nn.ModuleDict()
        for k, n in enumerate(model.graph.node):
            a = {i.name: onnx.helper.get_attribute_value(i) for i in n.attribute}
            if n.op_type == "Conv":
                w = held[n.input[1]]
                pads, group = a.get("pads", [0] * 4), a.get("group", 1)
                assert pads[:2] == pads[2:], "uneven pads"
                layer = torch.nn.Conv2d(w.shape[1] * group, w.shape[0], w.shape[2:], a.get("strides", [1, 1]), pads[:2],
                                        a.get("dilations", [1, 1]), group, len(n.input) > 2)
            elif n.op_type == "Gemm" or (n.op_type == "MatMul" and n.input[1] in held):
                w = held[n.input[1]]
                w = w if a.get("transB") else w.T
                layer = torch.nn.Linear(w.shape[1], w.shape[0], n.op_type == "Gemm" and len(n.input) > 2)
            else:
                layer = None
            if layer is not None:
                layer.weight.data = torch.tensor(w.copy())
                if layer.bias is not None:
                    layer.bias.data = torch.tensor(held[n.input[2]].copy())
                self.layers[str(k)] = layer
            self.steps.append((n.op_type, list(n.input), list(n.output), a))
        self.const = {k: torch.tensor(v) for k, v in held.items()}
        self.out = model.graph.output[0].name

    def forward(self, x):
        e = {name: x}
        get = lambda n: e[n] if n in e else self.const[n]
        for k, (op, i, o, a) in enumerate(self.steps):
            if str(k) in self.layers: y = self.layers[str(k)](get(i[0]))
            elif op == "Relu": y = F.relu(get(i[0]))
            elif op == "Clip": y = torch.clip(get(i[0]), float(get(i[1])), float(get(i[2])))
            elif op == "Add": y = get(i[0]) + get(i[1])
            elif op == "Flatten": y = get(i[0]).flatten(1)
            elif op == "Reshape": y = get(i[0]).flatten(1)
            elif op == "Concat": y = torch.cat([get(n) for n in i], a["axis"])
            elif op == "MaxPool": y = F.max_pool2d(get(i[0]), a["kernel_shape"], a["strides"])
            elif op == "GlobalAveragePool": y = get(i[0]).mean((2, 3), keepdim=True)
            elif op == "Softmax": y = F.softmax(get(i[0]), 1)
            elif op == "Dropout": y = get(i[0])
            else: raise NotImplementedError(op)
            e[o[0]] = y
        return e[self.out]

for label, p in (("L1", 1), ("L2", 2)):
    net = Net().eval()
    last = [m for m in net.layers.values()][-1]
    tp.pruner.MagnitudePruner(net, x, importance=tp.importance.MagnitudeImportance(p=p), pruning_ratio=sparsity,
                              ignored_layers=[last]).step()
    torch.onnx.export(net, (x,), f"{folder}/{label}.onnx", input_names=[name], output_names=[net.out], dynamo=False)
"""

TOOLS = {"onnxsim": PEER, "torch-pruning": TORCH}


def parameters(path: Path) -> int:
    """How many numbers the constants of a model hold, of those that something reads."""
    graph = onnx.load(path).graph
    read = {name for node in graph.node for name in node.input}
    return sum(int(np.prod(t.dims)) for t in graph.initializer if t.name in read)


def compare(name: str, task: Any, tool: str, python: str, sparsity: float, folder: Path) -> list[list[str]]:
    """Rows of one task and one other tool."""
    feeds = list(task.feeds(64))[:64]
    try:
        np.savez(folder / "feeds.npz", **{key: np.stack([feed[key] for feed in feeds]) for key in feeds[0]})
    except ValueError:
        return [[name, tool, "-", "-", "takes no feeds of several sizes", "-"]]
    done = subprocess.run(
        [python, "-W", "ignore", "-c", TOOLS[tool], task.model, folder / "feeds.npz", folder, f"{sparsity}"],
        capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    said = (done.stdout.strip() + " " + done.stderr.strip()[-300:]).strip()
    print(said, file=sys.stderr)
    if not list(folder.glob("*.onnx")):
        return [
            [name, tool, "-", "-", f"makes no file: {said.splitlines()[-1][:80] if said else done.returncode}", "-"]
        ]
    dense, whole, rows = task.score(task.model), parameters(task.model), []
    known: dict[float, str] = {}
    for file in sorted(folder.glob("*.onnx")):
        share = parameters(file) / whole
        try:
            theirs = f"{task.score(file):.4f}"
        except Exception as error:
            theirs = f"does not run: {type(error).__name__}"
        ours = known.get(round(share, 3), "-")
        if share < 0.999 and ours == "-":
            try:
                report = shrink(
                    task.model, folder / "ours.shrunk", feeds=feeds, refit=True, target_size=share, threads=2
                )
                ours = f"{task.score(report.out):.4f}"
            except emp_onnx.OnnxError as error:
                ours = str(error)
            known[round(share, 3)] = ours
        rows.append([name, f"{tool}, {file.stem}", f"{share:.0%}", f"{dense:.4f}", theirs, ours])
        print(*rows[-1], flush=True)
        file.unlink()
    return rows


def main(argv: list[str] | None = None) -> int:
    """Compare, print, and write if asked."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.shrink_peers", description=__doc__.split("\n")[0])
    parser.add_argument("--onnxsim", metavar="PYTHON", help="an interpreter that has onnxsim")
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has torch, onnx and torch-pruning")
    parser.add_argument("--tasks", default=",".join(FLOORS))
    parser.add_argument("--sparsity", type=float, default=0.25)
    parser.add_argument("--write", metavar="FILE", type=Path)
    options = parser.parse_args(argv)
    rows, known = [], tasks()
    if not known:
        print("shrink_peers: the tasks are not there", file=sys.stderr)
        return 2
    tools = {"onnxsim": options.onnxsim, "torch-pruning": options.torch}
    versions = [f"{name} {_version(python, name)}" for name, python in tools.items() if python]
    heads = [
        "task",
        "the other tool's channels by",
        "parameters left",
        "dense score",
        "other tool",
        "emp shrink --refit",
    ]
    text, asked = "", options.tasks.split(",")
    others = kept(options.write, "peers", asked)
    for name in asked:
        for tool, python in tools.items():
            if python:
                with tempfile.TemporaryDirectory() as folder:
                    rows += compare(name, known[name], tool, python, options.sparsity, Path(folder))
        foot = (
            f"{', '.join(versions)}, sparsity {options.sparsity:g}, 64 feeds. {machine('onnx', 'onnxruntime', 'numpy')}"
        )
        every = sorted([*others, *rows], key=lambda row: list(FLOORS).index(row[0]))
        text = f"{table(heads, every)}\n\n{foot}"
        if options.write:
            write(options.write, "peers", text)
    print(text)
    return 0


def _version(python: str, name: str) -> str:
    code = f"import importlib.metadata as m; print(m.version('{name}'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
