"""Networks of random weights, pruned by magnitude: an MLP, a CNN with residual blocks, a transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["SHAPES", "save_network"]

SHAPES = {"MLP 12 × 2048²": (1, 2048), "ResNet-like CNN": (1, 3, 224, 224), "transformer, 4 layers": (1, 128, 768)}


class _Builder:
    def __init__(self, sparsity: float, opset: int) -> None:
        self.sparsity, self.opset, self.rng = sparsity, opset, np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def tensor(self, array: Any) -> str:
        name = f"t{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int, inputs: int) -> str:
        made = (self.rng.standard_normal(shape) / np.sqrt(inputs)).astype(np.float32)
        least = np.partition(np.abs(made).ravel(), int(made.size * self.sparsity))[int(made.size * self.sparsity)]
        return self.tensor(np.where(np.abs(made) < least, np.float32(0), made))

    def bias(self, size: int) -> str:
        return self.tensor((self.rng.standard_normal(size) / 10).astype(np.float32))

    def op(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def conv(self, x: str, channels: int, outputs: int, kernel: int, stride: int) -> str:
        weight = self.weight(outputs, channels, kernel, kernel, inputs=channels * kernel * kernel)
        return self.op("Conv", x, weight, self.bias(outputs), strides=[stride] * 2, pads=[kernel // 2] * 4)

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        return self.op("Add", self.op("MatMul", x, self.weight(inputs, outputs, inputs=inputs)), self.bias(outputs))

    def norm(self, x: str, size: int) -> str:
        scale, shift = self.tensor(np.ones(size, np.float32)), self.tensor(np.zeros(size, np.float32))
        if self.opset >= 17:
            return self.op("LayerNormalization", x, scale, shift, axis=-1)
        centred = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
        square = self.op("Pow", centred, self.tensor(np.float32(2)))
        spread = self.op("Add", self.op("ReduceMean", square, axes=[-1]), self.tensor(np.float32(1e-5)))
        plain = self.op("Div", centred, self.op("Sqrt", spread))
        return self.op("Add", self.op("Mul", plain, scale), shift)


def save_network(name: str, sparsity: float, path: Path, *, opset: int = 17) -> None:
    """Write one of `SHAPES`; its first axis is open. The opset may be 13 for older engines."""
    built = _Builder(sparsity, opset)
    y = {"M": _mlp, "R": _cnn, "t": _transformer}[name[0]](built)
    info = helper.make_tensor_value_info
    shape: list[Any] = ["batch", *SHAPES[name][1:]]
    out = ["batch", *[f"y{i}" for i in range(2 if name[0] == "t" else 1)]]
    graph = helper.make_graph(built.nodes, "g", [info("x", 1, shape)], [info(y, 1, out)], built.tensors)
    version = 7 if opset < 17 else 8
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=version), path)


def _mlp(built: _Builder) -> str:
    x = "x"
    for _ in range(12):
        x = built.op("Gemm", x, built.weight(2048, 2048, inputs=2048), built.bias(2048), transB=1)
        x = built.op("Relu", x)
    return x


def _cnn(built: _Builder) -> str:
    x = built.op("Relu", built.conv("x", 3, 64, 7, 2))
    x = built.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for outputs in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if block == 0 and outputs > 64 else 1
            y = built.op("Relu", built.conv(x, channels, outputs, 3, stride))
            y = built.conv(y, outputs, outputs, 3, 1)
            x = x if channels == outputs else built.conv(x, channels, outputs, 1, stride)
            x, channels = built.op("Relu", built.op("Add", y, x)), outputs
    x = built.op("Flatten", built.op("GlobalAveragePool", x))
    return built.op("Gemm", x, built.weight(1000, 512, inputs=512), built.bias(1000), transB=1)


def _transformer(built: _Builder) -> str:
    x, size, heads, tokens = "x", 768, 12, 128

    def scalar(value: float) -> str:
        return built.tensor(np.float32(value))

    def head(x: str, order: list[int]) -> str:
        shape = built.tensor(np.array([0, tokens, heads, size // heads], np.int64))
        return built.op("Transpose", built.op("Reshape", built.linear(x, size, size), shape), perm=order)

    for _ in range(4):
        query, key, value = head(x, [0, 2, 1, 3]), head(x, [0, 2, 3, 1]), head(x, [0, 2, 1, 3])
        score = built.op("Div", built.op("MatMul", query, key), scalar((size // heads) ** 0.5))
        mixed = built.op("Transpose", built.op("MatMul", built.op("Softmax", score, axis=-1), value), perm=[0, 2, 1, 3])
        mixed = built.op("Reshape", mixed, built.tensor(np.array([0, tokens, size], np.int64)))
        x = built.norm(built.op("Add", x, built.linear(mixed, size, size)), size)
        wide = built.linear(x, size, 4 * size)
        gate = built.op("Add", built.op("Erf", built.op("Div", wide, scalar(2**0.5))), scalar(1))
        wide = built.op("Mul", built.op("Mul", wide, gate), scalar(0.5))
        x = built.norm(built.op("Add", x, built.linear(wide, 4 * size, size)), size)
    return x
