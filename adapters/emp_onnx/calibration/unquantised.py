"""Operations that read whole numbers and give whole numbers, said with the floats that these stand for.

`QLinearConv` and its like are a convolution of floats between a `DequantizeLinear` for each thing that it reads and a
`QuantizeLinear` behind it. Said so, what is known of models that quantise and dequantise in steps of their own is known
of these too: which weights act linearly, and that rounding need not be followed (`smooth.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emp_onnx.calibration.program import Program, Step
from emp_onnx.files.graph import Node

__all__ = ["unquantised"]

MS = "com.microsoft"
PER_AXIS = 13  # version of the operations of ONNX from which a scale may vary along an axis
ONE, TWO = (0,), (0, 3)  # where what is read lies among the inputs, each with its scale and zero point behind it
# operation -> the one on floats, what it reads, where scale and zero point of what it gives lie
PLAIN = {
    ("", "QLinearConv"): ("Conv", TWO, 6),
    (MS, "QLinearConv"): ("Conv", TWO, 6),
    ("", "QLinearMatMul"): ("MatMul", TWO, 6),
    (MS, "QGemm"): ("Gemm", TWO, 7),
    (MS, "QLinearAdd"): ("Add", TWO, 6),
    (MS, "QLinearMul"): ("Mul", TWO, 6),
    (MS, "QLinearGlobalAveragePool"): ("GlobalAveragePool", ONE, 3),
    (MS, "QLinearAveragePool"): ("AveragePool", ONE, 3),
    (MS, "QLinearSigmoid"): ("Sigmoid", ONE, 3),
    (MS, "QLinearLeakyRelu"): ("LeakyRelu", ONE, 3),
    (MS, "QLinearConcat"): ("Concat", (), 0),
}  # fmt: skip
BIAS = {"Conv": 8, "Gemm": 6}  # where it lies, in steps of the product of both scales
OWN = ("channels_last",)  # attributes that the operation on floats has not


def unquantised(program: Program, size: Callable[[str], int], /) -> None:
    """Say such steps with floats, in place; those whose scales are no constants stay.

    Args:
        program: laid flat.
        size: of a constant, by its name.
    """
    versions = {item.domain or "": item.version for item in program.opsets}
    per_axis = versions.get("", 0) >= PER_AXIS
    steps: list[Step] = []
    for step in program.steps:
        steps += _said(program, step, size, per_axis) or [step]
    if len(steps) > len(program.steps):
        program.steps = steps
        for name in ("makers", "readers", "fixed"):
            program.__dict__.pop(name, None)


def _said(program: Program, step: Step, size: Callable[[str], int], per_axis: bool) -> list[Step]:
    plain = PLAIN.get((step.node.domain, step.node.op))
    if plain is None or step.body is not None:
        return []
    op, reads, out = plain
    if op == "Concat":
        reads = tuple(range(2, len(step.inputs), 3))
    attributes = {a.name: a for a in step.proto.attribute}
    if any(attributes[name].i for name in OWN if name in attributes):
        return []
    if op == "Gemm" and "alpha" in attributes and attributes["alpha"].f != 1:
        return []
    ends = [name for name in step.inputs[out : out + 2] if name]
    scales = [step.inputs[at + 1] for at in reads]
    if not all(name in program.constants for name in (*scales, *ends[:1])):
        return []
    made = _Made(step)
    axes = {"Conv": 0, "MatMul": -1, "Gemm": 0 if "transB" in attributes and attributes["transB"].i else 1}
    factors: list[str] = []
    for number, (at, scale) in enumerate(zip(reads, scales, strict=True)):
        varies = size(scale) > 1
        if varies and (not per_axis or number != 1 or op not in axes):
            return []
        point = step.inputs[at + 2] if at + 2 < len(step.inputs) else ""
        ins = [name for name in (step.inputs[at], scale, point) if name]
        factors.append(made.step("DequantizeLinear", ins, f"factor {number}", axis=axes[op] if varies else None))
    bias = BIAS.get(op, len(step.inputs))
    if bias < len(step.inputs) and step.inputs[bias]:
        unit = made.step("Mul", scales, "unit")
        factors.append(
            made.step("DequantizeLinear", [step.inputs[bias], unit], "bias", axis=0 if size(scales[1]) > 1 else None)
        )
    given = [a for a in step.proto.attribute if a.name not in OWN]
    if ends:
        made.step("QuantizeLinear", [made.step(op, factors, "said", given), *ends], "")
    else:
        made.step(op, factors, "", given)
    return made.steps


class _Made:
    """Steps in the place of one, under its conditions."""

    def __init__(self, step: Step) -> None:
        self.instead, self.steps = step, list[Step]()

    def step(self, op: str, reads: list[str], name: str, given: Any = (), *, axis: int | None = None) -> str:
        """A step, whose output is called after that of the step that it helps to replace; or is that one's own."""
        import onnx

        out = f"{self.instead.outputs[0]} {name}:" if name else self.instead.outputs[0]
        proto = onnx.helper.make_node(op, reads, [out])
        proto.attribute.extend(given)
        if axis is not None:
            proto.attribute.append(onnx.helper.make_attribute("axis", axis))
        old = self.instead.node
        attributes = {k: v for k, v in old.attributes.items() if k not in OWN} if given else {}
        node = Node(op, "", old.name, tuple(reads), (out,), attributes if axis is None else {"axis": axis}, ())
        self.steps.append(Step(proto, node, tuple(reads), (out,), self.instead.guard))
        return out
