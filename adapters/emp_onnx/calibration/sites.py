"""Every place of a model where a weight acts linearly; and for the other weights why there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from emp_onnx.calibration.biasing import has
from emp_onnx.calibration.convolutions import conv, conv_transpose
from emp_onnx.calibration.finding import Finder, able
from emp_onnx.calibration.integers import stands_for, whole_gemm
from emp_onnx.calibration.maps import Bias, Found, Problem, Site
from emp_onnx.calibration.places import Places
from emp_onnx.calibration.products import einsum, gemm, matmul
from emp_onnx.calibration.program import Program, Step
from emp_onnx.calibration.recurrent import recurrent
from emp_onnx.files.model_io import Model
from emp_onnx.weights.find import Weight
from emp_onnx.weights.layout import SLOTS

__all__ = ["UNOPENED", "find_sites"]

UNOPENED = "its use lies in a body or a function that is not opened, or depends on more than itself"


def find_sites(program: Program, model: Model, weights: Sequence[Weight]) -> tuple[list[Site], dict[str, str]]:
    """Every place where one of these float weights acts linearly; and for the other weights why there is none."""
    why: dict[str, str] = {}
    sites = list(_sites(Finder(program, model, {w.name: w for w in weights}, program), (), why))
    have = {key for site in sites for key in site.keys}
    for weight in weights:
        if weight.name not in have and weight.name not in why:
            why[weight.name] = UNOPENED if able(weight) else f"{weight.dtype} weights are not refitted"
    return sites, {key: reason for key, reason in why.items() if key not in have}


def _sites(finder: Finder, path: tuple[Step, ...], why: dict[str, str]) -> Iterator[Site]:
    """Those of a program, in the order of its steps."""
    for step in finder.program.steps:
        if step.body is not None:
            inside = Finder(step.body.program, finder.model, finder.weights, finder.whole)
            yield from _sites(inside, (*path, step), why)
        slots = [
            slot.index for slot in SLOTS.get((step.node.domain, step.node.op), ()) if slot.index < len(step.inputs)
        ]
        found = {i: hit for i in slots if (hit := finder.weight(step.inputs[i])) is not None}
        found = {i: hit for i, hit in found.items() if able(finder.weights[hit[0]])}
        if not found or (path and all(name in finder.program.fixed for name in step.outputs)):
            continue
        make = MAKERS.get(step.node.op) if not step.node.domain or step.node.op == "QGemm" else None
        site = make(finder, step, found) if make else f"{step.node.op} is not refitted"
        if isinstance(site, str):
            why.update({key: site for key, _ in found.values()})
        else:
            site.program, site.path = finder.program, path
            yield site


def cell(finder: Finder, step: Step, found: Found) -> Site | str:
    if set(found) != {1, 2}:
        return "a recurrent cell of which only one side is a weight is not refitted"
    given = finder.parts(step.inputs[3]) if has(step, 3) else []
    readers = {bias.key: bias.readers for bias in given}
    made = recurrent(step, found[1], found[2], [(bias.key, bias.index) for bias in given])
    if isinstance(made, str):
        return made
    problems, hidden = made
    bias = [Bias(*p.bias, readers=readers[p.bias[0]]) if p.bias else None for p in problems]
    reads = tuple(step.inputs[i] for i in (0, 4, 5) if has(step, i))
    return Site(
        step, (found[1][0], found[2][0]), reads,
        [
            Problem([(key, Places(index)) for key, index in p.parts], p.rows, None, b)
            for p, b in zip(problems, bias, strict=True)
        ],
        hidden,
    )  # fmt: skip


MAKERS: Mapping[str, Callable[[Finder, Step, Found], Site | str]] = {
    "Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, "MatMul": matmul, "Einsum": einsum,
    "LSTM": cell, "GRU": cell, "RNN": cell, "QGemm": whole_gemm,
    "QLinearConv": lambda finder, step, found: stands_for(finder, step, found, conv, "Conv", (0, 3), 8),
    "QLinearMatMul": lambda finder, step, found: stands_for(finder, step, found, matmul, "MatMul", (0, 3)),
}  # fmt: skip
