"""What an operation costs: multiply-adds from its shapes, microseconds from onnxruntime's own profile.

The time of an operation is taken to shrink with its multiply-adds (or with the elements it touches), down to a share
that is overhead. That
is for choosing only: what is reported is the latency of the whole model, measured.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time as clock
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from emp_onnx.runtime.feeds import Feed
from emp_onnx.shrink.cut import Masks
from emp_onnx.shrink.links import Axis
from emp_onnx.shrink.trace import Runner, Trace
from emp_onnx.shrink.view import Op, View

if TYPE_CHECKING:
    from emp_onnx.shrink.problem import Problem

__all__ = ["Costs", "flops"]

OVERHEAD = 0.1  # of the time of an operation that stays whatever is cut, where that was not measured
STEP = 8  # what half of a group is a multiple of
FEWER = 0.95  # of its work: an operation with less shows what it costs
RUNS, SECONDS = (12, 60), 1.0  # of a profile, at least and at most; after so long no more
BLOCK = 16  # channels that onnxruntime's blocked convolutions compute together (AVX-512; 8 elsewhere)
ROWS = 8  # of a small product that take as long as one: its weights are read once for all of them
Sizes = Mapping[str, tuple[int, ...]]


def flops(op: Op, sizes: Sizes) -> float:
    """Multiply-adds of an operation; elements written, where it multiplies nothing."""
    out = prod(sizes.get(op.outputs[0], ())) if op.outputs and op.outputs[0] else 0
    if op.type == "Conv":
        return float(out * prod(sizes[op.inputs[1]][1:]))
    if op.type == "ConvTranspose":
        return float(prod(sizes[op.inputs[0]]) * prod(sizes[op.inputs[1]][1:]))
    if op.type == "Gemm":
        a = sizes[op.inputs[0]]
        return float(out * a[0 if op.attributes.get("transA") else -1])
    if op.type in ("MatMul", "com.microsoft.FusedMatMul"):
        return float(out * sizes[op.inputs[0]][-1])
    if op.type == "Einsum":
        text = op.attributes["equation"].decode().replace(" ", "").split("->")[0].split(",")
        letters = {
            c: d for name, term in zip(op.inputs, text, strict=True) for c, d in zip(term, sizes[name], strict=True)
        }
        return float(prod(letters.values()))
    if op.type in ("LSTM", "GRU", "RNN"):
        steps = prod(sizes[op.inputs[0]][:2])
        return float(steps * (prod(sizes[op.inputs[1]]) + prod(sizes[op.inputs[2]])))
    return float(max(out, prod(sizes.get(op.inputs[0], (1,))) if op.inputs and op.inputs[0] else 1))


def counts_as_work(op: Op) -> bool:
    """Whether an operation multiplies and adds."""
    return op.type in (
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "Einsum",
        "LSTM",
        "GRU",
        "RNN",
        "com.microsoft.FusedMatMul",
    )


def blocked(op: Op, sizes: Sizes) -> Sizes:
    """Sizes as a convolution is computed: channels in full blocks, where there is more than one."""
    if op.type != "Conv":
        return sizes
    out = dict(sizes)
    for name, axes in ((op.inputs[0], (1,)), (op.inputs[1], (0, 1)), (op.outputs[0], (1,))):
        shape = list(out[name])
        for axis in axes:
            shape[axis] = shape[axis] if shape[axis] < BLOCK else -(-shape[axis] // BLOCK) * BLOCK
        out[name] = tuple(shape)
    return out


def work(op: Op, sizes: Sizes) -> float:
    """What an operation's time goes with: its multiply-adds, of a convolution in full blocks.

    A recurrent operation multiplies all steps by W at once and each by R after the other, so R is read from memory in
    every step, and W once for so many rows as a product takes together.
    """
    if op.type not in ("LSTM", "GRU", "RNN"):
        return flops(op, blocked(op, sizes))
    steps, batch = sizes[op.inputs[0]][:2]
    w, r = prod(sizes[op.inputs[1]]), prod(sizes[op.inputs[2]])
    return float(-(-steps * batch // ROWS) * w + steps * -(-batch // ROWS) * r)


class Costs:
    """Microseconds and multiply-adds of every operation, and what they become under masks."""

    def __init__(self, view: View, traced: Trace, feeds: Sequence[Feed], *, threads: int = 1) -> None:
        self.view, self.trace = view, traced
        self.sizes: dict[str, tuple[int, ...]] = dict(traced.runs[0])
        self.flops = {op.index: flops(op, self._sizes(op, {})) for op in view.ops}
        self.feeds, self.threads = feeds, threads
        self.fixed: dict[int, float] = {}
        self.work: dict[Any, float] = {}
        self.micros, self.other = self._measure(view)
        self.touch: dict[int, list[str]] = {
            op.index: [n for n in (*op.inputs, *op.outputs) if n in self.sizes] for op in view.ops
        }

        self.axes = {
            index: [(name, axis) for name in names for axis in range(len(self.sizes[name]))]
            for index, names in self.touch.items()
        }

    def total(self, masks: Masks) -> float:
        """Predicted microseconds of one run."""
        gone = {axis: int(mask.sum()) for axis, mask in masks.items()}
        touched = {axis[0] for axis in masks}
        return self.other + sum(
            time if not touched.intersection(self.touch[index]) else time * self._share(self.view.ops[index], gone)
            for index, time in self.micros.items()
        )

    def total_flops(self, masks: Masks) -> float:
        """Multiply-adds of one run."""
        gone = {axis: int(mask.sum()) for axis, mask in masks.items()}
        return sum(flops(op, self._sizes(op, gone)) for op in self.view.ops if counts_as_work(op))

    def _share(self, op: Op, gone: Mapping[Axis, int]) -> float:
        get = gone.get
        key = op.index, tuple([get(axis, 0) for axis in self.axes[op.index]])
        if key not in self.work:
            self.work[key] = work(op, self._sizes(op, gone))
        before = self.work.get((op.index, ())) or self.work.setdefault((op.index, ()), work(op, self._sizes(op, {})))
        fixed = self.fixed.get(op.index, OVERHEAD)
        return fixed + (1 - fixed) * (self.work[key] / before if before else 1.0)

    def _sizes(self, op: Op, gone: Mapping[Axis, int]) -> dict[str, tuple[int, ...]]:
        out = {}
        for name in (*op.inputs, *op.outputs):
            if name in self.sizes:
                out[name] = tuple(
                    d - gone.get((name, a), 0) for a, d in enumerate(self.sizes[name])
                )
        return out

    def learn(self, problem: Problem) -> None:
        """See from the model with half of every group how much of each operation's time does not shrink."""
        counts = [group.units // 2 // STEP * STEP or group.units // 2 for group in problem.groups]
        masks = problem.masks(counts)
        if not masks:
            return
        gone = {axis: int(mask.sum()) for axis, mask in masks.items()}
        view = View.of(problem.cut(masks))
        named = {op.outputs[0]: op.index for op in self.view.ops if op.outputs}
        half = {named.get(view.ops[i].outputs[0]): t for i, t in self._measure(view)[0].items()}
        for index, time in self.micros.items():
            op = self.view.ops[index]
            before = work(op, self._sizes(op, {}))
            left = work(op, self._sizes(op, gone)) / before if before else 1.0
            if left < FEWER and index in half and time > 0:
                self.fixed[index] = float(np.clip((half[index] / time - left) / (1 - left), 0.0, 1.0))

    def _measure(self, view: View) -> tuple[dict[int, float], float]:
        """Microseconds by operation of a model as onnxruntime fuses it, the mean of the faster half of several runs;
        and what is left over."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(view.model)
        for i, node in enumerate(model.graph.node):
            node.name = f"emp{i}x"
        times: dict[int, float] = {}
        with tempfile.TemporaryDirectory() as folder:
            runner = Runner(model, threads=self.threads, profile=os.path.join(folder, "profile"))
            start, runs = clock.perf_counter(), 0
            while runs < RUNS[0] or (runs < RUNS[1] and clock.perf_counter() - start < SECONDS):
                runner(self.feeds[0])
                runs += 1
            with open(runner.session.end_profiling(), encoding="utf-8") as file:
                events = json.load(file)
        durations: dict[str, list[float]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                durations.setdefault(event["name"][: -len("_kernel_time")], []).append(float(event["dur"]))
        per_name = {name: float(np.mean(sorted(d)[: -(-len(d) // 2)])) for name, d in durations.items()}
        rest = 0.0
        for name, micros in per_name.items():
            index = _whose(view, name, times)
            if index is None:
                rest += micros
            else:
                times[index] = times.get(index, 0.0) + micros
        return times, rest


def _whose(view: View, name: str, times: Mapping[int, float]) -> int | None:
    """The operation that a node of the optimised graph stands for.

    Most keep the names of their nodes; a convolution in blocked layout is called after the tensor that it makes,
    which is that of the last operation fused into it.
    """
    found = re.findall(r"emp(\d+)x", name)
    if found:
        return int(found[0])
    op = view.makers.get(name.removesuffix("_nchwc"))
    last = op
    for _ in range(4):
        if op is None or counts_as_work(op):
            break
        makers = [view.makers[i] for i in op.inputs if i in view.makers]
        op = next((m for m in makers if counts_as_work(m) and m.index not in times), makers[0] if makers else None)
    found_op = op if op is not None and counts_as_work(op) else last
    return None if found_op is None else found_op.index
